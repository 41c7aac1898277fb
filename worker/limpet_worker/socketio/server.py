"""The server an app talks to: options, handlers of the main namespace, life of a worker."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, overload

from limpet_adapters.counters import histogram
from limpet_adapters.packet import EncodedPacket
from limpet_worker.engineio.options import TRANSPORTS, EngineOptions
from limpet_worker.engineio.server import EngineServer
from limpet_worker.http.cookie import cookie_line
from limpet_worker.http.cors import CorsOptions, OriginFunction, Origins
from limpet_worker.presence import Presence
from limpet_worker.socketio.broadcast import Broadcasting, BroadcastOperator
from limpet_worker.socketio.checks import flag, seconds, whole
from limpet_worker.socketio.client import Client
from limpet_worker.socketio.context import PresenceSink, WorkerContext
from limpet_worker.socketio.errors import NotStarted
from limpet_worker.socketio.handlers import F, Handler, Handlers, Tasks, settle
from limpet_worker.socketio.meter import FANOUT, Meter
from limpet_worker.socketio.namespace import Namespace, ParentNamespace, Predicate, namespace_name
from limpet_worker.socketio.packet import MAX_ATTACHED_BYTES, MAX_ATTACHMENTS

if TYPE_CHECKING:
    from aiohttp import web
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from limpet_worker.engineio.session import Session
    from limpet_worker.socketio.socket import Socket
    from limpet_worker.tracing import Tracing

logger = logging.getLogger("limpet.socketio")

SERVER_EVENTS: Final = frozenset(("bus_gap", "client_error", "new_namespace"))
"""What ``Server.on`` takes as events of the server itself: no client can cause their handlers to
be called by an event of that name."""

_GRACE: Final = 5.0


class Server(Broadcasting):
    """A Socket.IO server. Handlers are registered at it; a worker, or ``limpet.run``, runs it.

    ::

        io = Server(cors_allowed_origins="https://example.org")

        @io.on("chat")
        async def chat(socket: Socket, text: str) -> str:
            io.to("lobby").except_(socket.id).emit("chat", text)
            return "delivered"

    Handlers, middlewares and emits of the server are those of its main namespace ``/``; ``of``
    gives the others. Durations are seconds, sizes bytes.

    Args:
        cors_allowed_origins: pages of which other origins may connect: ``"*"``, one origin, a
            list, a pattern, a function; None (the default): no CORS headers.
        cors_credentials: whether browsers may send cookies along.
        cors_allowed_headers: request headers a preflight allows; None: those it asks for.
        cors_exposed_headers: response headers that pages may read.
        cors_max_age: seconds a browser may remember a preflight.
        path: path of the Engine.IO endpoint.
        ping_interval: from a pong to the next ping.
        ping_timeout: from a ping to the end of a client that is silent.
        upgrade_timeout: for a WebSocket to take over from polling.
        max_http_buffer_size: largest message of a client.
        transports: what clients may begin with.
        allow_upgrades: whether polling may change to WebSocket.
        http_compression: whether large answers to polls are compressed.
        http_compression_threshold: smallest answer that is compressed.
        cookie: a cookie with the first polling answer: True, its name, or its attributes.
        allow_request: asked before a session begins, see ``EngineOptions``.
        max_sessions: sessions of one worker; beyond it new ones get a 503.
        serve_client: whether the client for browsers is served below the path, as
            ``socket.io.js`` and ``socket.io.esm.js``.
        connect_timeout: how long a client may be in no namespace at all.
        max_attachments: binary attachments of one packet.
        max_attached_bytes: bytes of the attachments of one packet together.
        max_namespaces: namespaces one client may be in at a time.
        max_pending_events: events of one socket whose handlers run or wait; beyond it the client
            is disconnected.
        ordered: whether events of one socket are handled one after the other, unless a handler
            says otherwise.
        cleanup_empty_child_namespaces: whether namespaces made for a client by a dynamic one
            end with their last socket.

    Raises:
        OptionError: an option has a value that cannot be; the message says what can.
    """

    def __init__(
        self,
        *,
        cors_allowed_origins: Origins | OriginFunction | None = None,
        cors_credentials: bool = False,
        cors_allowed_headers: Sequence[str] | None = None,
        cors_exposed_headers: Sequence[str] = (),
        cors_max_age: int | None = None,
        path: str = "/socket.io/",
        ping_interval: float = 25.0,
        ping_timeout: float = 20.0,
        upgrade_timeout: float = 10.0,
        max_http_buffer_size: int = 1_000_000,
        transports: Sequence[str] = TRANSPORTS,
        allow_upgrades: bool = True,
        http_compression: bool = True,
        http_compression_threshold: int = 1024,
        cookie: bool | str | Mapping[str, object] = False,
        allow_request: Callable[..., object] | None = None,
        max_sessions: int | None = None,
        serve_client: bool = True,
        connect_timeout: float = 45.0,
        max_attachments: int = MAX_ATTACHMENTS,
        max_attached_bytes: int = MAX_ATTACHED_BYTES,
        max_namespaces: int = 100,
        max_pending_events: int = 5000,
        ordered: bool = False,
        cleanup_empty_child_namespaces: bool = True,
    ) -> None:
        cors = None
        if cors_allowed_origins is not None:
            cors = CorsOptions(
                origin=cors_allowed_origins,
                credentials=cors_credentials,
                allowed_headers=cors_allowed_headers,
                exposed_headers=cors_exposed_headers,
                max_age=cors_max_age,
            )
        self.options = EngineOptions(
            path=path,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
            upgrade_timeout=upgrade_timeout,
            max_http_buffer_size=max_http_buffer_size,
            transports=tuple(transports) if isinstance(transports, list) else transports,  # type: ignore[arg-type]
            allow_upgrades=allow_upgrades,
            http_compression=http_compression,
            http_compression_threshold=http_compression_threshold,
            cookie=cookie,
            cors=cors,
            allow_request=allow_request,
            max_sessions=max_sessions,
        )
        """Options of the Engine.IO layer."""
        cookie_line(cookie)  # checks the attributes
        self.serve_client = flag("serve_client", serve_client)
        """Whether whoever runs the server serves the client for browsers too."""
        self.connect_timeout = seconds("connect_timeout", connect_timeout)
        self.max_attachments = whole("max_attachments", max_attachments)
        self.max_attached_bytes = whole("max_attached_bytes", max_attached_bytes)
        self.max_namespaces = whole("max_namespaces", max_namespaces)
        self.max_pending_events = whole("max_pending_events", max_pending_events)
        self.ordered = flag("ordered", ordered)
        self.cleanup_empty_child_namespaces = flag(
            "cleanup_empty_child_namespaces", cleanup_empty_child_namespaces
        )
        self.namespaces: dict[str, Namespace] = {}
        """Namespaces by name, those that dynamic ones made included. Not to be changed."""
        self.parents: list[ParentNamespace] = []
        """Dynamic namespaces, in the order in which they are asked."""
        self.presence = Presence()
        """Who is where: ``await io.presence.list(room)``."""
        self.presence_sink: PresenceSink | None = None
        self.worker_name = ""
        """Name of the worker that runs the server; empty while none does."""
        self._hooks = Handlers()
        """Handlers of ``SERVER_EVENTS``, of ``startup`` and of ``shutdown``."""
        self._app: web.Application | None = None
        self._context: WorkerContext | None = None
        """None while the server does not run."""
        self._engine: EngineServer | None = None
        """None until the first start."""
        self._waiting: dict[Client, float] = {}
        """Clients in no namespace, and when they will be closed; the earliest first, because
        all wait equally long."""
        self._timer: asyncio.TimerHandle | None = None
        """For the first of these; None when there is none."""
        self._meters: dict[str, Meter] = {}
        """By the label of namespaces."""
        self.fanout = histogram("limpet_broadcast_fanout", FANOUT)
        """For how many local sockets broadcasts were."""
        self.tracing: Tracing | None = None
        """Makes spans and OpenTelemetry's metrics; None unless ``instrument`` was called."""
        self._new_client: Callable[[Session], Client] = partial(Client, self)
        self._root = self.of("/")

    def override(
        self,
        *,
        ping_interval: float | None = None,
        ping_timeout: float | None = None,
        max_sessions: int | None = None,
        max_http_buffer_size: int | None = None,
    ) -> None:
        """Put an operator's values over the application's, before the server starts.

        Args:
            ping_interval: None, here as below: what the application says stays.
            ping_timeout: see the constructor.
            max_sessions: see the constructor.
            max_http_buffer_size: see the constructor.

        Raises:
            OptionError: a value that cannot be.
            RuntimeError: the server runs already: its sessions were told the old values.
        """
        if self._context is not None:
            raise RuntimeError("override() works before the server starts")
        given = {
            "ping_interval": ping_interval,
            "ping_timeout": ping_timeout,
            "max_sessions": max_sessions,
            "max_http_buffer_size": max_http_buffer_size,
        }
        changed: dict[str, Any] = {key: one for key, one in given.items() if one is not None}
        self.options = replace(self.options, **changed)

    # --- what an app registers --------------------------------------------

    @property
    def app(self) -> web.Application:
        """The aiohttp application for what is not Socket.IO: routes, static files."""
        if self._app is None:
            from aiohttp import web  # noqa: PLC0415 - apps without routes do not need it here

            self._app = web.Application()
        return self._app

    @property
    def has_app(self) -> bool:
        """Whether anybody asked for ``app``."""
        return self._app is not None

    @property
    def engine(self) -> EngineServer:
        """The Engine.IO server below.

        Raises:
            NotStarted: the server has not been started.
        """
        if self._engine is None:
            raise NotStarted("the server has not been started")
        return self._engine

    @property
    def engine_or_none(self) -> EngineServer | None:
        """The Engine.IO server below; None before the first start."""
        return self._engine

    @property
    def running(self) -> int:
        """Coroutines of handlers that run now."""
        return 0 if self._engine is None else len(self.tasks.running)

    @overload
    def of(self, name: str) -> Namespace: ...
    @overload
    def of(self, name: re.Pattern[str] | Predicate) -> ParentNamespace: ...
    def of(self, name: str | re.Pattern[str] | Predicate) -> Namespace | ParentNamespace:
        """Return a namespace; it is made when there is none of that name.

        Args:
            name: ``"/chat"`` (the slash may be missing); or a compiled pattern, which must match
                the whole name a client asks for; or ``function(name, auth) -> bool``, plain or
                async. The latter two are dynamic: they make a namespace when a client asks for
                one that does not exist and is theirs.
        """
        if not isinstance(name, str):
            if not isinstance(name, re.Pattern) and not callable(name):
                raise TypeError(f"of() takes a name, a pattern or a function, not {name!r}")
            parent = ParentNamespace(self, name)
            self.parents.append(parent)
            return parent
        name = namespace_name(name)
        namespace = self.namespaces.get(name)
        if namespace is None:
            namespace = self._make(name, None)
        else:
            namespace.parent = None  # the app knows it by name: it stays
            namespace.meter = self.meter(name)
        return namespace

    @overload
    def on(self, event: str, handler: F, *, ordered: bool | None = None) -> F: ...
    @overload
    def on(
        self, event: str, handler: None = None, *, ordered: bool | None = None
    ) -> Callable[[F], F]: ...
    def on(
        self,
        event: str,
        handler: Callable[..., Any] | None = None,
        *,
        ordered: bool | None = None,
    ) -> Any:
        """Register a handler of the namespace ``/``, see ``Namespace.on``; or of the server.

        The server's own events: ``bus_gap`` (a dict: messages of other workers were lost, or may
        have been), ``client_error`` (a dict with ``reason`` and ``sockets``: a client sent what
        it must not and is being disconnected), ``new_namespace`` (one that a client caused).
        """
        if event in SERVER_EVENTS:
            return self._hook(event, handler)
        return self._root._register(event, handler, once=False, ordered=ordered)  # noqa: SLF001

    @overload
    def once(self, event: str, handler: F) -> F: ...
    @overload
    def once(self, event: str, handler: None = None) -> Callable[[F], F]: ...
    def once(self, event: str, handler: Callable[..., Any] | None = None) -> Any:
        """Register a handler of the namespace ``/`` for one call."""
        return self._root.once(event, handler)

    def off(self, event: str | None = None, handler: Callable[..., Any] | None = None) -> None:
        """Remove one handler, or all of an event, or all of the namespace ``/``."""
        if event in SERVER_EVENTS:
            self._hooks.remove(event, handler)
        else:
            self._root.off(event, handler)

    def use(self, middleware: F) -> F:
        """Call ``middleware(socket)`` before a connection to ``/`` is accepted.

        Raise ``ConnectionRefused`` in it to refuse, see ``Namespace.use``.
        """
        return self._root.use(middleware)

    def on_any(self, handler: F) -> F:
        """Listen to every event of every socket of ``/``: ``handler(socket, event, *args)``."""
        return self._root.on_any(handler)

    def off_any(self, handler: Callable[..., Any] | None = None) -> None:
        """Remove one catch-all listener, or all."""
        self._root.off_any(handler)

    def on_any_outgoing(self, handler: F) -> F:
        """Listen to every event sent in ``/``: ``handler(socket, event, *args)``."""
        return self._root.on_any_outgoing(handler)

    def off_any_outgoing(self, handler: Callable[..., Any] | None = None) -> None:
        """Remove one catch-all listener of sent events, or all."""
        self._root.off_any_outgoing(handler)

    def on_startup(self, hook: F) -> F:
        """Call ``hook()`` or ``hook(io)``, plain or async, when a worker starts.

        No client is connected yet. When it raises, the worker does not start.
        """
        self._hooks.add(Handler("startup", hook))
        return hook

    def on_shutdown(self, hook: F) -> F:
        """Call ``hook()`` or ``hook(io)``, plain or async, when a worker ends.

        All sockets are gone and their handlers have returned; the hooks are called in reverse
        order. When one raises, that is logged.
        """
        self._hooks.add(Handler("shutdown", hook))
        return hook

    def instrument(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        accept_traceparent: bool = False,
    ) -> None:
        """Make spans and metrics through OpenTelemetry; call it before the server starts.

        Spans: ``connect``, ``receive {event}``, ``emit {event}`` of broadcasts, ``disconnect``.
        Where they go is set up by the application, as with any library that is instrumented.

        Args:
            tracer_provider: None: the global one.
            meter_provider: None: the global one.
            accept_traceparent: whether a client may say, with ``traceparent`` in its ``auth`` or
                its headers, which trace its connect belongs to. Only for clients that you trust:
                they choose trace ids, and that spans are sampled.

        Raises:
            ImportError: the OpenTelemetry API is not installed.
            RuntimeError: the server runs.
        """
        if self._context is not None:
            raise RuntimeError("instrument() is for before the server starts")
        try:
            from limpet_worker.tracing import Tracing  # noqa: PLC0415 - an optional dependency
        except ImportError as error:
            raise ImportError(
                "instrument() needs OpenTelemetry: pip install 'limpet[otel]'"
            ) from error
        self.tracing = Tracing(self, tracer_provider, meter_provider, accept_traceparent)
        self._new_client = self.tracing.client

    @property
    def sockets(self) -> Mapping[str, Socket]:
        """The sockets of ``/`` on this worker, by id."""
        return self._root.sockets

    def _everybody(self) -> BroadcastOperator:
        return self._root._everybody()  # noqa: SLF001

    def _hook(self, event: str, handler: Callable[..., Any] | None) -> Any:
        def register(function: F) -> F:
            self._hooks.add(Handler(event, function))
            return function

        return register if handler is None else register(handler)

    # --- the life of a worker ---------------------------------------------

    async def start(self, context: WorkerContext) -> None:
        """Begin to serve: connects the namespaces to the bus, then calls the startup hooks.

        Raises:
            Exception: what a startup hook raised; everything is closed again then.
        """
        if self._context is not None:
            raise RuntimeError("the server runs already")
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._context = context
        self.new_id = context.new_id
        self.presence_sink = context.presence
        self.presence.source = context.presence_source
        self.worker_name = context.name
        self.tasks = Tasks(loop)
        self._engine = EngineServer(self.options, self._on_session, context.new_id, loop=loop)
        self._flush = self._engine.flusher.broadcast
        try:
            for namespace in self.namespaces.values():
                namespace.open(context.adapter(namespace.name, namespace.deliver))
            for namespace in list(self.namespaces.values()):
                await namespace.until_ready()
            for hook in self._hooks.by_event.get("startup", ()):
                await settle(hook.fit(self))
        except BaseException:
            await self.close()
            raise

    async def close(self, reason: str = "server shutting down", *, grace: float = _GRACE) -> None:
        """Disconnect everybody, without a DISCONNECT packet, so that stock clients come back.

        Then waits for handlers that still run, at most ``grace`` seconds, and calls the shutdown
        hooks. Closing twice is once.
        """
        if self._context is None or self._engine is None:
            return
        self._context = None
        self._engine.close_all(reason)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waiting.clear()
        await self.tasks.finish(grace)
        for hook in reversed(self._hooks.by_event.get("shutdown", [])):
            try:
                await settle(hook.fit(self))
            except Exception as error:  # noqa: BLE001 - the app's
                hook.failed("shutdown", error)
        self.presence_sink = None
        self.presence.source = None
        for namespace in list(self.namespaces.values()):
            await namespace.close()
            if namespace.parent is not None:
                self._drop(namespace)

    def tell(self, event: str, what: object) -> None:
        """Call the app's handlers of one of the server's own events: ``SERVER_EVENTS``."""
        for handler in self._hooks.by_event.get(event, ()):
            try:
                result = handler.fit(what)
                if asyncio.iscoroutine(result):
                    self.tasks.start(_guard(handler, result))
            except Exception as error:  # noqa: BLE001 - the app's
                handler.failed("server", error)

    # --- namespaces -------------------------------------------------------

    async def find_namespace(self, name: str, auth: dict[str, Any]) -> Namespace | None:
        """Return the namespace a client asks for, made by a dynamic one if need be.

        The caller counts as entering it: it takes 1 from ``entering`` when done.
        """
        namespace = self.namespaces.get(name)
        if namespace is None:
            for parent in self.parents:
                if await parent.matches(name, auth):
                    break
            else:
                return None
            namespace = self.namespaces.get(name)  # somebody else may have made it meanwhile
            if namespace is None:
                if self._context is None:
                    return None
                namespace = self._make(name, parent)
                self.tell("new_namespace", namespace)
        namespace.entering += 1  # before waiting: else another client's end could remove it
        try:
            await namespace.until_ready()
        except BaseException:
            namespace.entering -= 1
            namespace.tidy()
            raise
        if self.namespaces.get(name) is not namespace:
            namespace.entering -= 1
            return None  # the server closed meanwhile
        return namespace

    def remove_child(self, namespace: Namespace) -> None:
        """End a namespace that was made for a client and has no socket any more."""
        self._drop(namespace)
        self.tasks.start(namespace.retire())

    def _drop(self, namespace: Namespace) -> None:
        if self.namespaces.get(namespace.name) is namespace:
            del self.namespaces[namespace.name]
        if namespace.parent is not None:
            namespace.parent.children.pop(namespace.name, None)

    def _make(self, name: str, parent: ParentNamespace | None) -> Namespace:
        namespace = Namespace(self, name, parent)
        self.namespaces[name] = namespace
        if parent is not None:
            parent.children[name] = namespace
        if self._context is not None:
            namespace.open(self._context.adapter(name, namespace.deliver))
        return namespace

    def meter(self, label: str) -> Meter:
        """Return what counts for the namespaces of a label."""
        found = self._meters.get(label)
        if found is None:
            found = self._meters[label] = Meter(label)
        return found

    @property
    def meters(self) -> Collection[Meter]:
        """All of them."""
        return self._meters.values()

    # --- clients ----------------------------------------------------------

    def _on_session(self, session: Session) -> Client:
        client = self._new_client(session)
        if self._context is None:
            session.close("server shutting down")
        else:
            self.waits(client)
        return client

    def waits(self, client: Client) -> None:
        """Give a client that is in no namespace ``connect_timeout`` seconds to connect to one."""
        if self._context is None:
            return
        deadline = self._loop.time() + self.connect_timeout
        self._waiting.pop(client, None)
        self._waiting[client] = deadline
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._time_out)

    def no_longer_waiting(self, client: Client) -> None:
        """Take a client off the list: it is in a namespace, or gone."""
        self._waiting.pop(client, None)

    def _time_out(self) -> None:
        # One timer for all; it is not moved when its client connects, it just finds less to do.
        self._timer = None
        now = self._loop.time()
        late = []
        for client, deadline in self._waiting.items():
            if deadline > now:
                self._timer = self._loop.call_at(deadline, self._time_out)
                break
            late.append(client)
        for client in late:
            client.time_out()

    def broadcast_to_sessions(
        self, sessions: Collection[Session], packet: EncodedPacket, volatile: bool
    ) -> None:
        """Put a packet into the outboxes of sessions."""
        self._flush(sessions, packet, volatile)


async def _guard(handler: Handler, coroutine: Any) -> None:
    try:
        await coroutine
    except Exception as error:  # noqa: BLE001 - the app's
        handler.failed("server", error)
