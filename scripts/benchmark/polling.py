"""Scenarios of pure-polling clients: echoes, and requests over a shared pool of connections."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from scripts.benchmark.clients import HttpChannel, PollingClient
from scripts.benchmark.stage import ANSWER_TIMEOUT, BenchError, Stage
from scripts.benchmark.verify import CYCLE, Sequence

_FILL = (b"the quick brown fox jumps over the lazy dog; " * 2)[:56]


class PollingEcho:
    """One polling client with one echo outstanding: a POST and the poll that brings the reply."""

    __slots__ = ("_client", "_limit", "_stage", "_tail", "answered", "sent", "sequence")

    def __init__(self, stage: Stage, client: PollingClient, number: int, limit: int = -1) -> None:
        self._stage = stage
        self._client = client
        self._tail = b'["c%06d ' % number + _FILL + b'"]'
        self._limit = limit
        self.sequence = Sequence(stage.findings)
        self.sent = 0
        self.answered = True
        client.on_packet = self._packet
        client.on_posted = self.next

    def next(self) -> None:
        """Post the next one when both the last POST and its echo are done."""
        if self.answered and not self._client.posting and self.sent != self._limit:
            self.answered = False
            digits = self.sent % CYCLE
            self.sent += 1
            body = b'42%d["echo",' % (CYCLE + digits) + self._tail[1:]
            self._client.post(body)

    def stop(self) -> None:
        """Send no more."""
        self._limit = self.sent

    @property
    def done(self) -> bool:
        """Whether all that was sent was answered."""
        return self.answered and not self._client.posting

    def _packet(self, packet: bytes) -> None:
        if packet == b"6":
            return
        if packet[:2] != b"43" or packet[7:] != self._tail or not packet[2:7].isdigit():
            self._stage.findings.corrupt += 1
            self._stage.note(f"polled {packet[:60]!r}")
            return
        if self.sequence.take_digits(int(packet[3:7])) >= 0:
            self.answered = True
            self.next()


def polling_echo(stage: Stage, *, clients: int = 200) -> None:
    """Run closed loops of echoes on polling clients that have two connections each."""
    clients = stage.pick(clients, 20)
    failed = _failures(stage)
    channels: list[HttpChannel] = []

    def start() -> PollingClient:
        own = (
            HttpChannel(stage.loop, stage.target.address, failed),
            HttpChannel(stage.loop, stage.target.address, failed),
        )
        channels.extend(own)
        return PollingClient(
            stage.loop, stage.target, lambda: own[1] if own[0].busy else own[0], failed
        )

    opened: list[PollingClient] = []
    while len(opened) < clients:  # 50 at once, as elsewhere
        opened += [start() for _ in range(min(50, clients - len(opened)))]
        stage.loop.run_until(partial(_all_ready, opened), ANSWER_TIMEOUT)
    ready = [each for each in opened if each.ready]
    stage.findings.unanswered += len(opened) - len(ready)
    if len(ready) < clients * 0.9:
        raise BenchError(f"only {len(ready)} of {clients} polling clients connected")
    echoes = [PollingEcho(stage, each, i) for i, each in enumerate(ready)]
    for each in echoes:
        each.next()
    stage.loop.run_for(stage.pick(1.0, 0.1))
    stage.window(stage.pick(3.0, 0.4), lambda: stage.findings.delivered)
    _finish(stage, echoes, channels)


def pool(stage: Stage, *, clients: int = 200, echoes: int = 50) -> None:
    """Send every request of 200 clients over a random connection of one shared pool.

    They start at once. So nearly every request meets a worker that does not own its session.
    """
    clients, echoes = stage.pick(clients, 40), stage.pick(echoes, 10)
    failed = _failures(stage)
    # A client has at most a poll and a POST under way.
    channels = [HttpChannel(stage.loop, stage.target.address, failed) for _ in range(2 * clients)]
    chance = random.Random(stage.job.seed)  # noqa: S311 - a fair choice, no secret

    def pick() -> HttpChannel:
        while True:
            channel = channels[chance.randrange(len(channels))]
            if not channel.busy:
                return channel

    players: list[PollingEcho] = []
    window = stage.start_window()
    for number in range(clients):
        client = PollingClient(stage.loop, stage.target, pick, failed)
        player = PollingEcho(stage, client, number, echoes)
        client.on_ready = player.next
        players.append(player)
    stage.loop.run_until(
        lambda: (
            all(each.sent == echoes and each.done for each in players) or stage.findings.refused > 0
        ),
        30.0,
    )
    stage.end_window(window, stage.findings.delivered)
    stage.findings.unanswered += sum(not each.sent for each in players)
    _finish(stage, players, channels)


def _all_ready(clients: list[PollingClient]) -> bool:
    return all(each.ready for each in clients)


def _failures(stage: Stage) -> Callable[[str], None]:
    def failed(why: str) -> None:
        stage.findings.refused += 1
        stage.note(f"polling: {why}")

    return failed


def _finish(stage: Stage, echoes: list[PollingEcho], channels: list[HttpChannel]) -> None:
    for each in echoes:
        each.stop()
    stage.drain(lambda: all(each.done for each in echoes))
    stage.loop.run_for(0.2)  # a second copy would still come
    for each in echoes:
        each.sequence.finish(each.sent)
    for channel in channels:
        channel.close()
    stage.settle()
