"""Finds every loss on the bus and keeps the order: a core without sockets or clock.

The hub numbers the frames of each topic. A subscriber sees all frames of its topics, so a jump in
the numbers is a loss, exactly. Counting starts with the hub's acknowledgement of the subscription.
At a gap the later frames of that topic wait while the missing ones are asked for (`requests`); what
does not come in time, or would make too much wait, is counted (`losses`) and the rest delivered.

| state of a stream | `next` | `ready` | a frame with the next number | another frame |
|---|---|---|---|---|
| subscribing | 0 | -1 | passes | passes |
| plain | n | n | passes | later: gap begins, is held; earlier: dropped as double |
| gap | n | -1 | passes, and what was held behind it | later: held; earlier: dropped |
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Final, NamedTuple

from limpet_adapters.wire import sequence_of

HOLD_SECONDS: Final = 0.25
"""How long later frames of a topic wait for the missing ones."""
HOLD_BYTES: Final = 1024 * 1024
"""Bytes of later frames of one topic that may wait."""
HOLD_BYTES_ALL: Final = 16 * 1024 * 1024
"""Bytes of frames of all topics that may wait."""


class Stream:
    """What a subscriber knows of one topic."""

    __slots__ = ("asked", "deadline", "ended", "floor", "held", "known", "next", "ready", "topic")

    def __init__(self, topic: bytes) -> None:
        self.topic = topic
        self.next = 0
        """Number of the next frame to deliver; 0 until the subscription is acknowledged."""
        self.ready = -1
        """Equal to ``next`` while nothing is missing, so that one comparison is the fast path."""
        self.floor = 0
        """Highest number that passed before the acknowledgement."""
        self.held: dict[int, bytes] = {}
        """Frames that came and wait for earlier ones, by number."""
        self.known = 0
        """Highest number known to have been sent, while something is missing."""
        self.deadline = inf
        """When waiting ends, while something is missing."""
        self.asked = False
        """The missing frames were asked for and the answer has not come."""
        self.ended = False
        """Unsubscribed; answers that still come are of no use."""

    @property
    def confirmed(self) -> bool:
        """The subscription is in force."""
        return self.next > 0


class Request(NamedTuple):
    """Frames to be asked of the hub, both ends included."""

    stream: Stream
    first: int
    last: int


class Loss(NamedTuple):
    """Frames that are gone for good, both ends included."""

    topic: bytes
    first: int
    last: int

    @property
    def frames(self) -> int:
        """How many frames."""
        return self.last - self.first + 1


class Sequencer:
    """The streams of one subscriber, in one life of the hub.

    Methods return the frames that may be delivered now, in order. `requests` and `losses` are
    taken and emptied by the caller. ``now`` is monotonic, in seconds.
    """

    def __init__(
        self,
        hold_seconds: float = HOLD_SECONDS,
        hold_bytes: int = HOLD_BYTES,
        hold_bytes_all: int = HOLD_BYTES_ALL,
    ) -> None:
        self.streams: dict[bytes, Stream] = {}
        self.requests: list[Request] = []
        """Repairs to ask for."""
        self.losses: list[Loss] = []
        """What was lost since they were last taken."""
        self.gaps = 0
        """Gaps found."""
        self.repaired_frames = 0
        """Missing frames that came after all."""
        self.doubles = 0
        """Frames that came twice, dropped."""
        self._hold_seconds = hold_seconds
        self._hold_bytes = hold_bytes
        self._hold_bytes_all = hold_bytes_all
        self._waiting: dict[Stream, int] = {}  # streams with something missing: bytes held

    def subscribe(self, topic: bytes) -> Stream:
        """Begin a stream; nothing is counted before its acknowledgement."""
        stream = self.streams[topic] = Stream(topic)
        return stream

    def unsubscribe(self, topic: bytes) -> None:
        """End a stream; what it held is forgotten, for nobody is left to receive it."""
        stream = self.streams.pop(topic)
        stream.ended = True
        stream.held.clear()
        self._waiting.pop(stream, None)

    def restart(self) -> list[bytes]:
        """Begin all streams anew, for another life of the hub; return what was still held."""
        rest: list[bytes] = []
        for topic, stream in list(self.streams.items()):
            if stream in self._waiting:
                rest += self._give_up(stream)
            stream.ended = True
            self.subscribe(topic)
        return rest

    def received(self, stream: Stream, frame: bytes, now: float) -> list[bytes]:
        """Take a frame of a stream."""
        sequence = sequence_of(frame)
        if not stream.next:
            if sequence <= stream.floor:
                self.doubles += 1
                return []
            stream.floor = sequence
            return [frame]
        if sequence < stream.next or sequence in stream.held:
            self.doubles += 1
            return []
        if sequence == stream.ready:
            stream.ready = stream.next = sequence + 1
            return [frame]
        begins = stream.ready >= 0
        if begins:
            self._begin_gap(stream, sequence, now)
        self._hold(stream, sequence, frame)
        if begins:
            self._ask(stream)
        if sequence == stream.next:  # it was asked for, and came by itself
            return self._advance(stream)
        if (
            self._waiting[stream] > self._hold_bytes
            or sum(self._waiting.values()) > self._hold_bytes_all
        ):
            return self._give_up(stream)
        return []

    def acknowledged(self, stream: Stream, last: int, now: float) -> None:
        """The hub acknowledged a subscription of the topic: ours, or another's since."""
        if stream.next:
            self.revealed(stream, last, now)
        else:
            stream.next = stream.ready = max(last, stream.floor) + 1

    def revealed(self, stream: Stream, last: int, now: float) -> None:
        """The hub says that it has sent this much; what has not come by now is lost."""
        if not stream.next or last < stream.next:
            return
        if stream.ready >= 0:
            self._begin_gap(stream, last, now)
            self._ask(stream)
        else:
            stream.known = max(stream.known, last)

    def repaired(
        self, stream: Stream, frames: Iterable[bytes], through: int, now: float
    ) -> list[bytes]:
        """Take the answer to a request.

        What the answer lacks up to the number ``through`` is gone for good; what lies behind it
        is asked for anew.
        """
        if stream.ended or stream not in self._waiting:
            return []  # given up meanwhile, and counted
        stream.asked = False
        for frame in frames:
            sequence = sequence_of(frame)
            if sequence >= stream.next and sequence not in stream.held:
                self.repaired_frames += 1
                self._hold(stream, sequence, frame)
        out = self._advance(stream, through)
        if stream in self._waiting:
            stream.deadline = now + self._hold_seconds
            self._ask(stream)
        return out

    def expired(self, now: float) -> list[bytes]:
        """Give up what was waited for long enough."""
        out: list[bytes] = []
        for stream in [stream for stream in self._waiting if stream.deadline <= now]:
            out += self._give_up(stream)
        return out

    def deadline(self) -> float:
        """Return when `expired` is due next; infinity when nothing is missing."""
        return min((stream.deadline for stream in self._waiting), default=inf)

    # --- inside ------------------------------------------------------------

    def _begin_gap(self, stream: Stream, known: int, now: float) -> None:
        self.gaps += 1
        stream.ready = -1
        stream.known = known
        stream.deadline = now + self._hold_seconds
        self._waiting[stream] = 0

    def _ask(self, stream: Stream) -> None:
        """Ask for the missing frames: from the next to the last that is missing."""
        last = stream.known
        while last in stream.held:
            last -= 1
        stream.asked = True
        self.requests.append(Request(stream, stream.next, last))

    def _hold(self, stream: Stream, sequence: int, frame: bytes) -> None:
        stream.held[sequence] = frame
        stream.known = max(stream.known, sequence)
        self._waiting[stream] += len(frame)

    def _advance(self, stream: Stream, through: int = 0) -> list[bytes]:
        """Deliver what is next, and count as lost what is missing up to ``through``."""
        out: list[bytes] = []
        held = stream.held
        at = stream.next
        while at <= stream.known:
            frame = held.pop(at, None)
            if frame is not None:
                out.append(frame)
                at += 1
                continue
            if at > through:
                break
            end = min(through, min(held, default=stream.known + 1) - 1)
            self.losses.append(Loss(stream.topic, at, end))
            at = end + 1
        stream.next = at
        if at > stream.known:
            stream.ready = at
            stream.deadline = inf
            stream.asked = False
            del self._waiting[stream]
        elif out:
            self._waiting[stream] -= sum(map(len, out))
        return out

    def _give_up(self, stream: Stream) -> list[bytes]:
        return self._advance(stream, stream.known)
