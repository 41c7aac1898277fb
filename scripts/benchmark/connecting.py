"""Scenarios of connections: opening, upgrading, holding, bursts."""

from __future__ import annotations

import gc
from collections.abc import Callable

from scripts.benchmark.clients import UpgradeClient, WebSocketClient
from scripts.benchmark.frames import ENGINE_PING, ENGINE_PONG
from scripts.benchmark.stage import ANSWER_TIMEOUT, BenchError, Stage


def connect(stage: Stage) -> None:
    """Open WebSocket connections with CONNECT, 50 at once, on a server that is warm."""
    count = stage.pick(2000, 100)
    stage.close(stage.open(count))
    window = stage.start_window()
    opened = stage.open(count)
    stage.end_window(window, count)
    stage.findings.delivered += count
    stage.close(opened)


def upgrade(stage: Stage) -> None:
    """Open connections by polling and upgrade them, 50 at once, on a server that is warm."""
    count = stage.pick(1000, 60)
    for measured in (False, True):
        window = stage.start_window()
        clients = _upgrade(stage, stage.pick(count if measured else 400, 20 + 40 * measured))
        if measured:
            stage.end_window(window, len(clients))
            stage.findings.delivered += len(clients)
        for each in clients:
            each.close()
        stage.settle()


def _upgrade(stage: Stage, count: int) -> list[UpgradeClient]:
    done: list[UpgradeClient] = []
    started = failed = 0

    def start() -> None:
        nonlocal started
        if started >= count:
            return
        started += 1
        ended = False

        def finished() -> None:
            nonlocal ended
            if not ended:
                ended = True
                done.append(client)
                start()

        def fault(why: str) -> None:
            nonlocal ended, failed
            if not ended:
                ended = True
                failed += 1
                stage.findings.refused += 1
                stage.note(f"upgrade: {why}")
                start()

        client = UpgradeClient(stage.loop, stage.target, finished, fault)

    for _ in range(50):
        start()
    stage.loop.run_until(lambda: len(done) + failed >= count, ANSWER_TIMEOUT + count / 50)
    stage.findings.unanswered += count - len(done) - failed
    if len(done) < count * 0.9:
        raise BenchError(f"only {len(done)} of {count} upgraded")
    return done


def idle(stage: Stage, *, connections: int = 5000) -> None:
    """Hold connections and tell the memory that each takes, also after a forced collection."""
    connections = stage.pick(connections, 200)
    stage.close(stage.open(stage.pick(200, 20)))
    stage.loop.run_for(stage.pick(1.0, 0.1))
    empty = stage.pss_kib()
    opened = stage.open(connections, spread_sources=True)
    stage.settle()
    stage.loop.run_for(stage.pick(2.0, 0.1))
    values = stage.outcome.values
    values["KiB per connection"] = (stage.pss_kib() - empty) / connections
    for clients in stage.whereabouts(opened[:40]).values():
        stage.call_all(clients[:1], "collect")
    stage.settle()
    values["KiB per connection, collected"] = (stage.pss_kib() - empty) / connections
    stage.findings.delivered += len(opened)
    stage.close(opened)


def heartbeat(stage: Stage, *, connections: int = 5000) -> None:
    """Hold connections through ping cycles; what the empty server uses is subtracted."""
    connections = stage.pick(connections, 200)
    stage.settle()
    empty = stage.start_window()
    stage.loop.run_for(stage.pick(3.0, 0.5))
    rate = empty.close() / empty.wall_ns
    opened = stage.open(connections)
    pings = 0

    def receiver(client: WebSocketClient) -> Callable[[bytes], None]:
        send = client.wire.send

        def receive(data: bytes) -> None:
            nonlocal pings
            if data == ENGINE_PING and not client.reader.pending:
                pings += 1
                send(ENGINE_PONG)
            else:
                client.receive(data)

        return receive

    for client in opened:
        client.wire.on_data = receiver(client)
    stage.loop.run_for(1.0)
    stage.window(stage.pick(10.5, 5.5), lambda: pings)
    outcome = stage.outcome
    outcome.cpu_ns = max(0, outcome.cpu_ns - int(rate * outcome.wall_ns))
    outcome.values["µs per connection and second"] = (
        outcome.cpu_ns / 1e3 / connections / (outcome.wall_ns / 1e9)
    )
    if pings < connections:
        stage.findings.lost += connections - pings
    stage.close(opened)


def burst(stage: Stage, *, total: int = 50_000, size: int = 500) -> None:
    """Connect in bursts and count who is not answered; then see that 20 quick ones spread."""
    total, size = stage.pick(total, 400), stage.pick(size, 100)
    window = stage.start_window()
    for _ in range(total // size):
        opened = stage.open(size, at_once=size, spread_sources=True)
        for client in opened:
            client.close(reset=True)
        stage.findings.delivered += len(opened)
        gc.collect()  # clients and their wires refer to each other
    stage.end_window(window, total)
    stage.settle()
    stage.loop.run_for(2.5)  # placing goes by load that workers report each second
    opened = stage.open(20, at_once=20)
    places = stage.whereabouts(opened)
    counts = sorted((len(each) for each in places.values()), reverse=True)
    stage.outcome.values["most of 20 on one worker"] = counts[0]
    stage.note("20 quick ones: " + " / ".join(map(str, counts)))
    stage.close(opened)
