"""The client: a connection, and the namespace that its URL names."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from limpet_client.manager import Manager
from limpet_client.socket import Closing, Socket

if TYPE_CHECKING:
    from limpet_client.options import Auth

_GRACE: Final = 5.0
"""Seconds for handlers that still run at the end of ``async with``."""


class Client(Socket):
    """A Socket.IO client, for any server of protocol revision 5 (Socket.IO 3 and 4).

    ::

        async with Client("https://example.org", auth={"token": "…"}) as client:
            client.emit("say", "harbour", "Hello")
            async for event, args in client:
                ...

    It is a socket of the namespace that the URL's path names, ``/`` by default; ``of`` gives
    others over the same connection. It begins to connect with ``async with`` or ``connect``.
    When the connection is lost it is made again; what is emitted meanwhile waits.

    Args:
        url: ``https://host:port/namespace?query``; http, https, ws or wss.
        auth: what the server is told at each connection to the namespace: a mapping, or a
            function, plain or async, that returns it.
        options: in seconds and bytes, with their defaults: ``path="/socket.io/"``,
            ``query={}``, ``transports=("polling", "websocket")``, ``upgrade=True``,
            ``remember_upgrade=False``, ``try_all_transports=False``;
            ``reconnection=True``, ``reconnection_attempts=inf``, ``reconnection_delay=1``,
            ``reconnection_delay_max=5``, ``randomization_factor=0.5``, ``timeout=20``,
            ``auto_connect=True``; ``retries=0``, ``ack_timeout=None``, ``ordered=False``;
            ``extra_headers={}``, ``cookies={}``, ``ssl=True``, ``proxy=None``,
            ``proxy_headers=None``, ``trust_env=False``, ``http_session=None``, as aiohttp has
            them; ``per_message_deflate=True``, ``compression_threshold=1024``;
            ``max_message_size=100_000_000``, ``max_attachments=1000``,
            ``max_pending_events=10_000``, ``max_buffered_packets=10_000``,
            ``max_buffered_bytes=64_000_000``. ``docs/client.md`` describes them.

    Raises:
        OptionError: an option has a value that cannot be; the message says what can.
        TypeError: there is no option of that name.
    """

    __slots__ = ("__weakref__",)

    def __init__(self, url: str, auth: Auth = None, **options: Any) -> None:
        manager = Manager(url, **options)
        super().__init__(manager, manager.address.namespace, auth=auth)
        manager.add(self)

    @property
    def transport_name(self) -> str:
        """``polling`` or ``websocket``; empty without a connection."""
        return self.manager.transport_name

    def of(
        self,
        nsp: str,
        *,
        auth: Auth = None,
        retries: int | None = None,
        ack_timeout: float | None = None,
    ) -> Socket:
        """Return the socket of another namespace over the same connection, always the same one.

        It connects together with the client, unless ``auto_connect`` is false; then with its own
        ``connect``. The options are those of the client unless given here.
        """
        return self.manager.socket(nsp, auth=auth, retries=retries, ack_timeout=ack_timeout)

    def close(self) -> Closing:
        """Leave all namespaces and end the connection. It acts at once; it may be awaited.

        Acknowledgements that are still waited for end with ``Disconnected``, also those of
        events that have not been sent.
        """
        for socket in list(self.manager.sockets.values()):
            socket.disconnect()
            socket.core.give_up()
        return Closing(self.manager)

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            ConnectError: there is no connection; nothing is tried any more.
        """
        self.listen()
        try:
            await self.connect()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Disconnect, and wait until nothing is left."""
        await self.close()
        await self.manager.finish(_GRACE)
