"""Acknowledgements that the server waits for: an event with an id, and the answer to it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from limpet_adapters.counters import count
from limpet_worker.socketio.errors import AckTimeout, Disconnected

if TYPE_CHECKING:
    from limpet_worker.socketio.socket import Socket

_GONE = "socket has been disconnected"


async def ask(
    socket: Socket, arguments: tuple[object, ...], seconds: float | None, *, volatile: bool = False
) -> Any:
    """Send an event and return what the client acknowledges it with.

    One value is returned as it is, several as a tuple, none as None.

    Raises:
        AckTimeout: nothing came within ``seconds`` (None: wait for as long as it takes).
        Disconnected: the socket went, or had gone before.
    """
    if socket.gone:
        raise Disconnected(_GONE)
    acks = socket.acks
    if acks is None:
        acks = socket.acks = {}
    id_ = socket.nsp.next_ack_id()
    meter = socket.nsp.meter
    meter.acks_pending += 1
    # A future and not an event per socket: it exists only while somebody waits.
    answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
    acks[id_] = answer
    try:
        socket.send_event(arguments, id_, volatile=volatile)
        async with asyncio.timeout(seconds):
            values = await answer
    except TimeoutError:
        count("limpet_ack_timeouts_total")
        raise AckTimeout(f"no acknowledgement of {arguments[0]!r} within {seconds} s") from None
    finally:
        acks.pop(id_, None)
        meter.acks_pending -= 1
        # It holds the exception, whose traceback holds this frame: a cycle around the socket.
        del answer
    if len(values) == 1:
        return values[0]
    return tuple(values) if values else None


def answered(
    acks: dict[int, asyncio.Future[list[Any]]] | None, id_: int, values: list[Any]
) -> bool:
    """Hand an acknowledgement to who waits for it; False when nobody does (any more)."""
    answer = acks.get(id_) if acks else None
    if answer is None or answer.done():
        return False
    answer.set_result(values)
    return True


def give_up(acks: dict[int, asyncio.Future[list[Any]]] | None) -> None:
    """Tell all who wait that the socket is gone."""
    for answer in list(acks.values()) if acks else ():
        if not answer.done():
            answer.set_exception(Disconnected(_GONE))
