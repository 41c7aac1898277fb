"""Scenarios of broadcasts: one room, saturated or paced, many small rooms, and latency."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from collections.abc import Sequence as Row
from functools import partial

from scripts.benchmark.clients import WebSocketClient
from scripts.benchmark.frames import ENGINE_PONG, TEXT, frame, head, masked, server_frame
from scripts.benchmark.stage import BenchError, Stage
from scripts.benchmark.verify import CYCLE, Findings, Sequence

ROOM = "bench"
_RUN = 64
"""Deliveries of a chunk that are compared in one go at most."""


class Broadcasts:
    """One sender's numbered broadcasts to a room; counts when each has reached all."""

    __slots__ = (
        "_remaining",
        "_requests",
        "_sender",
        "complete",
        "going",
        "members",
        "sent",
        "sent_at",
        "size",
        "stream",
    )

    def __init__(self, sender: WebSocketClient, members: int) -> None:
        fill = (b"the quick brown fox jumps over the lazy dog; " * 2)[:60]
        payloads = [b"%04d" % i + fill for i in range(CYCLE)]
        start = b'42["broadcast","%s","' % ROOM.encode()
        self._requests = [frame(start + each + b'"]') for each in payloads]
        frames = [server_frame(b'42["msg","' + each + b'"]') for each in payloads]
        self.size = len(frames[0])
        self.stream = b"".join(frames + frames[:_RUN])
        """All deliveries as the server frames them, and the first ones again."""
        self._sender = sender
        self._remaining = [0] * CYCLE
        self.members = members
        self.sent = self.complete = 0
        self.sent_at = [0.0] * CYCLE
        self.going = True

    def send(self) -> None:
        """Send the next broadcast."""
        digits = self.sent % CYCLE
        self._remaining[digits] = self.members
        self.sent += 1
        self.sent_at[digits] = time.time()
        self._sender.wire.send(self._requests[digits])

    def paced(self, stage: Stage, rate: float) -> None:
        """Send so many a second from now on, while `going`."""
        repeat(stage, rate, self.send, lambda: self.going)

    def delivered(self, first: int, count: int) -> int:
        """Note that a member has these; how many broadcasts are complete with it."""
        remaining = self._remaining
        done = 0
        for number in range(first, first + count):
            digits = number % CYCLE
            remaining[digits] -= 1
            if not remaining[digits]:
                done += 1
        self.complete += done
        return done


def repeat(
    stage: Stage, rate: float, action: Callable[[], None], going: Callable[[], bool]
) -> None:
    """Act so many times a second, evenly, without catching up in bursts after a delay."""
    interval = 1.0 / rate

    def tick(due: float) -> None:
        if going():
            action()
            due = max(due + interval, time.monotonic())
            stage.loop.call_at(due, partial(tick, due))

    now = time.monotonic()
    stage.loop.call_at(now, partial(tick, now))


class Member:
    """One client in the room, whose stream must be the broadcasts and nothing else."""

    __slots__ = ("_broadcasts", "_client", "_findings", "_replace", "latencies", "sequence")

    def __init__(
        self,
        broadcasts: Broadcasts,
        client: WebSocketClient,
        findings: Findings,
        *,
        replace: bool,
        timed: bool = False,
    ) -> None:
        self._broadcasts = broadcasts
        self._client = client
        self._findings = findings
        self._replace = replace
        self.latencies: list[float] | None = [] if timed else None
        if timed:
            client.wire.stamp_arrivals()
        self.sequence = Sequence(findings)
        client.wire.on_data = self.receive

    def receive(self, data: bytes) -> None:
        """Compare a chunk with what is to come; anything else is looked at frame by frame."""
        broadcasts, sequence = self._broadcasts, self.sequence
        size = broadcasts.size
        count, rest = divmod(len(data), size)
        number = sequence.next
        start = number % CYCLE * size
        if (
            not rest
            and 0 < count <= _RUN
            and not self._client.reader.pending
            and data == broadcasts.stream[start : start + count * size]
        ):
            sequence.run(count)
            self._took(number, count)
            return
        for opcode, payload in self._client.reader.feed(data):
            if opcode == TEXT and payload == b"2":
                self._client.wire.send(ENGINE_PONG)
                continue
            digits = self._digits(opcode, payload)
            number = sequence.take_digits(digits) if digits >= 0 else -1
            if number >= 0:
                self._took(number, 1)

    def _digits(self, opcode: int, payload: bytes) -> int:
        digits = payload[10:14]
        if opcode == TEXT and digits.isdigit():
            start = int(digits) * self._broadcasts.size
            whole = self._broadcasts.stream[start : start + self._broadcasts.size]
            if whole.endswith(payload):
                return int(digits)
        self._findings.corrupt += 1
        return -1

    def _took(self, first: int, count: int) -> None:
        broadcasts = self._broadcasts
        if self.latencies is not None:
            now = self._client.wire.arrived
            self.latencies += [
                now - broadcasts.sent_at[i % CYCLE] for i in range(first, first + count)
            ]
        done = broadcasts.delivered(first, count)
        if self._replace and broadcasts.going:
            for _ in range(done):
                broadcasts.send()


def broadcast(stage: Stage, *, members: int, in_flight: int = 0, rate: float = 0.0) -> None:
    """Broadcast to one room: so many in flight, or so many a second."""
    members = stage.pick(members, min(members, 100))
    stage.loop.read_size = 8192
    opened = stage.open(members + 1)
    sender, receivers = opened[0], opened[1:]
    stage.call_all(receivers, "join", ROOM)
    stage.settle()
    broadcasts = Broadcasts(sender, members)
    room = [Member(broadcasts, each, stage.findings, replace=bool(in_flight)) for each in receivers]
    for _ in range(in_flight):
        broadcasts.send()
    if rate:
        broadcasts.paced(stage, rate)
    stage.loop.run_for(stage.pick(1.0, 0.1))
    stage.window(stage.pick(4.0, 0.5), lambda: stage.findings.delivered)
    broadcasts.going = False
    stage.drain(lambda: broadcasts.complete >= broadcasts.sent)
    for each in room:
        each.sequence.finish(broadcasts.sent)
    stage.close(opened)


def latency(stage: Stage, *, rate: float = 100.0) -> None:
    """Tell the latency of broadcasts to receivers on the sender's worker and on the other."""
    opened = stage.open(40)
    places = sorted(stage.whereabouts(opened).items())
    sender = places[0][1].pop()
    chosen = [(pid, each) for pid, clients in places for each in clients[: 20 // len(places)]]
    stage.call_all([each for _pid, each in chosen], "join", ROOM)
    stage.settle()
    broadcasts = Broadcasts(sender, len(chosen))
    groups: dict[str, list[Member]] = {"same": [], "other": []}
    for pid, client in chosen:
        member = Member(broadcasts, client, stage.findings, replace=False, timed=True)
        groups["same" if pid == places[0][0] else "other"].append(member)
    everybody = [each for group in groups.values() for each in group]
    broadcasts.paced(stage, rate)
    stage.loop.run_for(stage.pick(1.0, 0.2))
    for each in everybody:
        each.latencies = []
    stage.window(stage.pick(5.0, 0.5), lambda: stage.findings.delivered)
    broadcasts.going = False
    stage.drain(lambda: broadcasts.complete >= broadcasts.sent)
    for name, group in groups.items():
        times = [1e3 * each for member in group for each in member.latencies or ()]
        if times:
            stage.outcome.values[f"{name} worker p50 ms"] = statistics.median(times)
            stage.outcome.values[f"{name} worker p99 ms"] = percentile(times, 0.99)
    for each in everybody:
        each.sequence.finish(broadcasts.sent)
    stage.close(opened)


def percentile(values: Row[float], part: float) -> float:
    """Return the value below which that part of the values lies."""
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


class Rooms:
    """Senders that broadcast to random rooms; each room hears each sender in order.

    A request is four prepared pieces, whose lengths keep the mask going: room, sender, number,
    room again. The payload says all three.
    """

    def __init__(
        self, stage: Stage, senders: list[WebSocketClient], rooms: int, members: int
    ) -> None:
        self._random = random.Random(stage.job.seed)  # noqa: S311 - a fair choice, no secret
        self._senders = senders
        self._members = members
        fill = (b"the quick brown fox jumps over the lazy dog; " * 2)[:51]
        self.end = [b"r%03d" % i + fill + b'"]' for i in range(rooms)]
        size = len(b'42["broadcast","r000","x') + 8 + len(self.end[0])
        self._start = [head(size) + masked(b'42["broadcast","r%03d","x' % i) for i in range(rooms)]
        self._masked_end = [masked(each) for each in self.end]
        self._sender = [masked(b"s%03d" % i) for i in range(len(senders))]
        self._number = [masked(b"%04d" % i) for i in range(CYCLE)]
        self.sent = [[0] * len(senders) for _ in range(rooms)]
        self._remaining: dict[tuple[int, int, int], int] = {}
        self.replace = self.going = True

    def send(self) -> None:
        """Let a random sender broadcast to a random room."""
        room = self._random.randrange(len(self.end))
        sender = self._random.randrange(len(self._senders))
        number = self.sent[room][sender]
        self.sent[room][sender] = number + 1
        self._remaining[room, sender, number] = self._members
        self._senders[sender].wire.send(
            b"".join(
                (
                    self._start[room],
                    self._sender[sender],
                    self._number[number % CYCLE],
                    self._masked_end[room],
                )
            )
        )

    def delivered(self, room: int, sender: int, number: int) -> None:
        """Note that a member has this one."""
        key = room, sender, number
        left = self._remaining.get(key, 0) - 1
        if left:
            self._remaining[key] = left
            return
        self._remaining.pop(key, None)
        if self.replace and self.going:
            self.send()

    @property
    def complete(self) -> bool:
        """Whether all that was sent has reached everybody."""
        return not self._remaining


class RoomMember:
    """One client in one of many rooms."""

    __slots__ = (
        "_client",
        "_findings",
        "_frame_end",
        "_frame_size",
        "_room",
        "_rooms",
        "_sequences",
    )

    def __init__(
        self, rooms: Rooms, room: int, senders: int, client: WebSocketClient, findings: Findings
    ) -> None:
        self._rooms = rooms
        self._room = room
        self._client = client
        self._findings = findings
        self._sequences = [Sequence(findings) for _ in range(senders)]
        self._frame_end = rooms.end[room]
        self._frame_size = len(server_frame(b'42["msg","xs0000000' + self._frame_end))
        client.wire.on_data = self.receive

    def receive(self, data: bytes) -> None:
        """Judge a chunk; the usual one is one whole frame."""
        if len(data) == self._frame_size and data[0] == 0x81 and not self._client.reader.pending:
            self._take(TEXT, data[2:])
            return
        for opcode, payload in self._client.reader.feed(data):
            if payload == b"2":
                self._client.wire.send(ENGINE_PONG)
            else:
                self._take(opcode, payload)

    def _take(self, opcode: int, payload: bytes) -> None:
        sender, number = payload[12:15], payload[15:19]
        if (
            opcode == TEXT
            and payload[:12] == b'42["msg","xs'
            and payload[19:] == self._frame_end
            and sender.isdigit()
            and number.isdigit()
            and int(sender) < len(self._sequences)
        ):
            which = int(sender)
            full = self._sequences[which].take_digits(int(number))
            if full >= 0:
                self._rooms.delivered(self._room, which, full)
        else:
            self._findings.corrupt += 1

    def finish(self) -> None:
        """Count what did not come."""
        for sequence, sent in zip(self._sequences, self._rooms.sent[self._room], strict=True):
            sequence.finish(sent)


def rooms(stage: Stage, *, in_flight: int = 0, rate: float = 0.0) -> None:
    """Broadcast to 200 rooms of 10 members from 16 senders."""
    count, members, senders = stage.pick(200, 20), 10, 16
    stage.loop.read_size = 8192
    opened = stage.open(count * members + senders)
    speaking, listening = opened[:senders], opened[senders:]
    # Neighbours in the order of connecting are on different workers: rooms span the workers.
    places = [(i // members, client) for i, client in enumerate(listening)]
    answered = 0

    def joined(_values: list[object]) -> None:
        nonlocal answered
        answered += 1

    for room, client in places:
        client.call("join", f"r{room:03d}", answer=joined)
    if not stage.loop.run_until(lambda: answered == len(places), 20.0):
        stage.findings.lost += len(places) - answered
        raise BenchError(f"{len(places) - answered} joins were not acknowledged")
    stage.settle()
    traffic = Rooms(stage, speaking, count, members)
    traffic.replace = bool(in_flight)
    everybody = [
        RoomMember(traffic, room, senders, client, stage.findings) for room, client in places
    ]
    for _ in range(in_flight):
        traffic.send()
    if rate:
        repeat(stage, rate, traffic.send, lambda: traffic.going)
    stage.loop.run_for(stage.pick(1.0, 0.1))
    stage.window(stage.pick(4.0, 0.5), lambda: stage.findings.delivered)
    traffic.going = False
    stage.drain(lambda: traffic.complete)
    for each in everybody:
        each.finish()
    stage.close(opened)
