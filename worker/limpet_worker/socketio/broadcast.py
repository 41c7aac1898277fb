"""Who an emit goes to: the operators ``to``, ``in_``, ``except_``, ``local``, ``volatile``.

Operators are immutable: each returns a new one, so a selection can be kept and used again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from limpet_adapters.contract import BroadcastOptions
from limpet_worker.socketio.packet import RESERVED


class Emitted:
    """What ``emit`` returns: nothing to wait for, the packet is in the outbox already."""

    __slots__ = ()

    if not TYPE_CHECKING:  # to a type checker it is not awaitable, so the mistake shows early

        def __await__(self) -> NoReturn:
            """Explain: a habit from other libraries.

            Raises:
                TypeError: always.
            """
            raise TypeError(
                "emit() is synchronous and has already put the event on its way: write it "
                "without await (to wait for an answer: await socket.emit_with_ack(...))"
            )

    def __repr__(self) -> str:
        return "<Emitted>"


EMITTED: Final = Emitted()


class Audience(Protocol):
    """A namespace, or all children of a dynamic one: what broadcasts."""

    def broadcast(self, arguments: tuple[object, ...], options: BroadcastOptions) -> None:
        """Send an event, its name first, to the chosen sockets."""


def check_event(event: str) -> None:
    """Refuse a name that cannot be emitted.

    Raises:
        TypeError: it is no string.
        ValueError: the protocol keeps it for itself.
    """
    if not isinstance(event, str):
        raise TypeError(f"the event must be a string, not {type(event).__qualname__}")
    if event in RESERVED:
        raise ValueError(f'"{event}" is a reserved event name')


def room_names(rooms: Iterable[str | Iterable[str]]) -> list[str]:
    """Return the rooms named by strings and by collections of strings, as given to ``to``.

    Raises:
        TypeError: something that is no string.
    """
    names: list[str] = []
    for room in rooms:
        if isinstance(room, str):
            names.append(room)
            continue
        for name in _iterable(room):
            if not isinstance(name, str):
                raise TypeError(f"a room must be a string, not {type(name).__qualname__}")
            names.append(name)
    return names


def _iterable(rooms: Any) -> Iterable[object]:
    if not isinstance(rooms, Iterable):
        raise TypeError(f"a room must be a string, not {type(rooms).__qualname__}")
    return rooms


class BroadcastOperator:
    """A selection of sockets and how they are reached; ``emit`` sends to them."""

    __slots__ = ("_audience", "_nobody", "_options", "_seconds")

    def __init__(
        self,
        audience: Audience,
        options: BroadcastOptions,
        *,
        seconds: float | None = None,
        nobody: bool = False,
    ) -> None:
        self._audience = audience
        self._options = options
        self._seconds = seconds
        self._nobody = nobody

    def to(self, *rooms: str | Iterable[str]) -> BroadcastOperator:
        """Also to the members of these rooms: names, or collections of names.

        A socket in several rooms gets the event once. ``to([])`` alone selects nobody.
        """
        if len(rooms) == 1 and isinstance(rooms[0], str) and not self._options.rooms:
            # The usual case, made without detours.
            old = self._options
            options = BroadcastOptions(
                frozenset((rooms[0],)), old.except_rooms, local=old.local, volatile=old.volatile
            )
            return BroadcastOperator(self._audience, options, seconds=self._seconds)
        names = room_names(rooms)
        nobody = not names and (self._nobody or not self._options.rooms)
        return self._with(rooms=self._options.rooms.union(names), nobody=nobody)

    in_ = to

    def except_(self, *rooms: str | Iterable[str]) -> BroadcastOperator:
        """Not to the members of these rooms (a socket id is a room, too)."""
        return self._with(except_rooms=self._options.except_rooms.union(room_names(rooms)))

    @property
    def local(self) -> BroadcastOperator:
        """Only to the sockets of this worker."""
        return self._with(local=True)

    @property
    def volatile(self) -> BroadcastOperator:
        """Drop the event for a client that cannot take it at this instant."""
        return self._with(volatile=True)

    def timeout(self, seconds: float) -> BroadcastOperator:
        """Set how long whoever waits for the selected sockets waits, in seconds."""
        return BroadcastOperator(
            self._audience, self._options, seconds=seconds, nobody=self._nobody
        )

    def emit(self, event: str, *args: object) -> Emitted:
        """Send an event to the selection; encoded once, never blocks, nothing to await.

        Raises:
            TypeError: an argument that cannot be sent.
            ValueError: a reserved event name.
        """
        check_event(event)
        if not self._nobody:
            self._audience.broadcast((event, *args), self._options)
        return EMITTED

    def send(self, *args: object) -> Emitted:
        """Emit the event ``message``."""
        return self.emit("message", *args)

    def _with(
        self,
        *,
        rooms: frozenset[str] | None = None,
        except_rooms: frozenset[str] | None = None,
        local: bool | None = None,
        volatile: bool | None = None,
        nobody: bool | None = None,
    ) -> BroadcastOperator:
        old = self._options
        options = BroadcastOptions(
            old.rooms if rooms is None else rooms,
            old.except_rooms if except_rooms is None else except_rooms,
            local=old.local if local is None else local,
            volatile=old.volatile if volatile is None else volatile,
        )
        return BroadcastOperator(
            self._audience,
            options,
            seconds=self._seconds,
            nobody=self._nobody if nobody is None else nobody,
        )


class Selecting(ABC):
    """The operators that begin a broadcast; what they begin from is the subclass's affair."""

    __slots__ = ()

    @abstractmethod
    def _everybody(self) -> BroadcastOperator:
        """Return the selection that nothing has narrowed yet."""

    def to(self, *rooms: str | Iterable[str]) -> BroadcastOperator:
        """Select the members of these rooms: names, or collections of names."""
        return self._everybody().to(*rooms)

    def in_(self, *rooms: str | Iterable[str]) -> BroadcastOperator:
        """Select the members of these rooms: another name of ``to``."""
        return self._everybody().to(*rooms)

    def except_(self, *rooms: str | Iterable[str]) -> BroadcastOperator:
        """Select everybody but the members of these rooms."""
        return self._everybody().except_(*rooms)

    @property
    def local(self) -> BroadcastOperator:
        """Select the sockets of this worker."""
        return self._everybody().local


class Broadcasting(Selecting):
    """What a namespace and the server offer: emits that go to everybody, or to a selection."""

    __slots__ = ()

    @property
    def volatile(self) -> BroadcastOperator:
        """Drop the event for a client that cannot take it at this instant."""
        return self._everybody().volatile

    def timeout(self, seconds: float) -> BroadcastOperator:
        """Set how long whoever waits for the selected sockets waits, in seconds."""
        return self._everybody().timeout(seconds)

    def emit(self, event: str, *args: Any) -> Emitted:
        """Send an event to every socket of the namespace; nothing to await.

        Raises:
            TypeError: an argument that cannot be sent.
            ValueError: a reserved event name.
        """
        return self._everybody().emit(event, *args)

    def send(self, *args: Any) -> Emitted:
        """Emit the event ``message`` to every socket of the namespace."""
        return self._everybody().emit("message", *args)
