"""Whose code writes a record: the socket, the event, the request; in one process and a cluster."""

from __future__ import annotations

import asyncio
import json
import logging
import platform
import re
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
import socketio

from harness import RunningCluster, wait_until
from limpet import Server, Socket
from log_sink import Sink
from socketio_fakes import Peer, running, settled

# --- whose code it is -----------------------------------------------------------


async def _logged(sink: Sink, io: Server, packet: bytes) -> tuple[dict[str, Any], Peer, Socket]:
    async with running(io, name="w7"):
        peer = Peer(io, 1)
        socket = peer.connect()
        socket.user = "ann"
        peer.text(packet)
        await settled()
        return sink.last, peer, socket


def _expect(record: dict[str, Any], socket: Socket, event: str | None) -> None:
    assert record.get("event") == event
    assert record["worker"] == "w7"
    assert record["sid"] == socket.id
    assert record["eio_sid"] == "000000"
    assert record["namespace"] == "/"
    assert record["user"] == "ann"


async def test_a_plain_handler_logs_its_socket(sink: Sink) -> None:
    io = Server()
    io.on("say", lambda socket, text: sink.logger.info("said %s", text))
    record, _, socket = await _logged(sink, io, b'2["say","x"]')
    _expect(record, socket, "say")
    assert record["msg"] == "said x"


@pytest.mark.parametrize("ordered", [False, True])
async def test_an_async_handler_logs_its_socket_after_waiting_too(
    sink: Sink, ordered: bool
) -> None:
    io = Server()

    async def deeper() -> None:
        await asyncio.sleep(0)
        sink.logger.info("deep")

    @io.on("say", ordered=ordered)
    async def say(socket: Socket) -> None:
        await asyncio.sleep(0)
        await deeper()

    record, _, socket = await _logged(sink, io, b'2["say"]')
    _expect(record, socket, "say")


async def test_tasks_and_threads_that_a_handler_starts_log_its_socket(sink: Sink) -> None:
    io = Server()
    seen = []

    async def background() -> None:
        await asyncio.sleep(0)
        sink.logger.info("in a task")
        seen.append(sink.last)
        await asyncio.to_thread(sink.logger.info, "in a thread")
        seen.append(sink.last)

    tasks = []

    @io.on("say")
    def say(socket: Socket) -> None:
        tasks.append(asyncio.create_task(background()))

    async with running(io, name="w7"):
        peer = Peer(io, 1)
        socket = peer.connect()
        socket.user = "ann"
        peer.text(b'2["say"]')
        other = Peer(io, 2)
        other.connect()
        await tasks[0]
        for record in seen:
            _expect(record, socket, None)
    assert [record["msg"] for record in seen] == ["in a task", "in a thread"]


async def test_middlewares_and_lifecycle_handlers_log_their_socket(sink: Sink) -> None:
    io = Server()
    seen: dict[str, dict[str, Any]] = {}

    def note(what: str) -> None:
        sink.logger.info(what)
        seen[what] = sink.last

    @io.use
    async def admit(socket: Socket) -> None:
        socket.user = "ann"
        await asyncio.sleep(0)
        note("middleware")

    io.on("connect", lambda socket: note("connect"))

    @io.on("disconnecting")
    def leaving(socket: Socket) -> None:
        note("disconnecting")

    @io.on("disconnect")
    async def left(socket: Socket) -> None:
        await asyncio.sleep(0)
        note("disconnect")

    async with running(io, name="w7"):
        peer = Peer(io, 1)
        socket = await peer.connect_slowly()
        peer.session.close("transport close")
        await settled()
    assert list(seen) == ["middleware", "connect", "disconnecting", "disconnect"]
    for what, record in seen.items():
        _expect(record, socket, what)


async def test_each_client_has_its_own_name_in_the_log(sink: Sink) -> None:
    io = Server()

    @io.on("say")
    async def say(socket: Socket, wait: bool) -> None:
        for _ in range(3 if wait else 1):
            await asyncio.sleep(0)
        sink.logger.info(socket.id)

    io.on("plain", lambda socket: sink.logger.info(socket.id))
    async with running(io):
        peers = [Peer(io, number) for number in range(5)]
        for peer in peers:
            peer.connect()
        for number, peer in enumerate(peers):
            peer.text(b'2["say",true]' if number % 2 else b'2["say",false]', b'2["plain"]')
        await settled()
    records = [json.loads(line) for line in sink.lines]
    assert len(records) == 10
    assert all(record["sid"] == record["msg"] for record in records)


async def test_outgoing_listeners_log_whom_it_is_sent_to(sink: Sink) -> None:
    io = Server()
    io.on_any_outgoing(lambda socket, event: sink.logger.info(socket.id))

    @io.on("say")
    def say(socket: Socket) -> None:
        io.emit("said")
        sink.logger.info("afterwards")

    async with running(io):
        one, two = Peer(io, 1), Peer(io, 2)
        first, second = one.connect(), two.connect()
        one.text(b'2["say"]')
        records = [json.loads(line) for line in sink.lines]
    assert {record["sid"] for record in records[:2]} == {first.id, second.id}
    assert all(record["sid"] == record["msg"] for record in records[:2])
    assert records[2]["sid"] == first.id


async def test_the_failure_of_a_handler_says_whose_it_was(
    sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("limpet.socketio").addHandler(sink.handler)
    io = Server()

    @io.on("plain")
    def plain(socket: Socket) -> None:
        raise RuntimeError("plain")

    @io.on("waits")
    async def waits(socket: Socket) -> None:
        await asyncio.sleep(0)
        raise RuntimeError("waits")

    try:
        for event in ("plain", "waits"):
            record, _, socket = await _logged(sink, io, f'2["{event}"]'.encode())
            _expect(record, socket, event)
            assert record["level"] == "error"
            assert f"RuntimeError: {event}" in record["err"]
    finally:
        logging.getLogger("limpet.socketio").removeHandler(sink.handler)


async def test_a_whole_session_id_is_never_written(sink: Sink, human: Sink) -> None:
    io = Server()

    @io.on("say")
    def say(socket: Socket) -> None:
        for one in (sink, human):
            one.logger.info("of %s", socket.session.sid, extra={"secret": socket.session.sid})
            one.logger.info("at /socket.io/?EIO=4&sid=AAAAAAAAAAAAAAAAAAAA")

    async with running(io):
        peer = Peer(io, 1)
        peer.connect()
        peer.text(b'2["say"]')
        for one in (sink, human):
            assert len(one.lines) == 2
            assert peer.session.sid not in one.stream.getvalue()
            assert "of 000000…" in one.lines[0]
            assert "sid=AAAAAA…" in one.lines[1]


async def test_a_long_or_strange_user_is_left_out(sink: Sink) -> None:
    io = Server()
    io.on("say", lambda socket: sink.logger.info("x"))
    async with running(io):
        peer = Peer(io, 1)
        socket = peer.connect()
        for user, shown in (("ann", "ann"), (7, 7), ("x" * 65, None), ({"a": 1}, None)):
            socket.user = user
            peer.text(b'2["say"]')
            assert sink.last.get("user") == shown


async def test_the_machinery_speaks_for_nobody(sink: Sink) -> None:
    io = Server()
    engine = logging.getLogger("limpet.engineio")

    @io.on("say")
    def say(socket: Socket) -> None:
        engine.warning("a slow consumer of somebody else's")

    engine.addHandler(sink.handler)
    try:
        record, _, _ = await _logged(sink, io, b'2["say"]')
    finally:
        engine.removeHandler(sink.handler)
    assert "sid" not in record


async def test_a_client_that_left_is_not_named_any_more(sink: Sink) -> None:
    io = Server()
    io.on("say", lambda socket: None)
    async with running(io):
        peer = Peer(io, 1)
        peer.connect()
        peer.text(b'2["say"]')
        peer.session.close("transport close")
        sink.logger.info("later")
    assert "sid" not in sink.last


# --- a real cluster -------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(_new_cluster: Callable[..., RunningCluster]) -> RunningCluster:
    return _new_cluster("servers.logs_app:io", 2, "--log-format=json", "--log-level=debug")


def _records(cluster: RunningCluster) -> list[dict[str, Any]]:
    whole = cluster.text.rpartition("\n")[0]  # of the last line only a part may be there
    return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]


def _find(cluster: RunningCluster, text: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    def there() -> bool:
        found[:] = [record for record in _records(cluster) if record["msg"] == text]
        return bool(found)

    wait_until(there, 15.0, f"nobody logged {text!r}")
    return found[0]


@pytest.mark.processes
@pytest.mark.parametrize("transport", ["websocket", "polling"])
async def test_a_cluster_logs_whose_handler_it_was(shop: RunningCluster, transport: str) -> None:
    clients = {}
    for user in ("ann", "bob"):
        client = clients[user] = socketio.AsyncClient(reconnection=False)
        await client.connect(
            shop.url, auth={"user": f"{user}-{transport}"}, transports=[transport], wait_timeout=10
        )
    try:
        for event in ("plain", "waits", "starts"):
            for user, client in clients.items():
                assert await client.call(event, f"{user} by {transport}", timeout=5)
        logged: dict[str, str | None] = {"plain": "plain", "waited": "waits", "later": None}
        for said, event_then in logged.items():
            for user, client in clients.items():
                record = _find(shop, f"{said} {user} by {transport}")
                sid = client.get_sid()
                assert record.get("event") == event_then
                assert record["sid"] == sid
                assert record["user"] == f"{user}-{transport}"
                assert record["namespace"] == "/"
                assert record["eio_sid"] == client.eio.sid[:6]
                assert record["logger"] == "shop"
                assert record["level"] == "info"
                assert record["process"] == record["worker"].replace("w", "worker-")
                assert record["node"] == platform.node()
        await clients["ann"].emit("fails")
        await clients["ann"].call("plain", "afterwards", timeout=5)
        failure = _find(shop, "the event handler of 'fails' failed")
        wait_until(
            lambda: any(
                record.get("user") == f"ann-{transport}" and "as it should" in record["err"]
                for record in _records(shop)
                if record["msg"] == "the event handler of 'fails' failed"
            )
        )
        assert failure["event"] == "fails"
        secret = await clients["bob"].call("tells", timeout=5)
        _find(shop, f"its session is {secret[:6]}…")
        assert secret not in shop.text
    finally:
        for client in clients.values():
            await client.disconnect()
            await client.shutdown()
    users = {f"{user}-{transport}" for user in clients}

    def who(said: str) -> set[str | None]:
        return {record.get("user") for record in _records(shop) if said in record["msg"]}

    wait_until(lambda: who("gone: ") >= users)
    assert who("asks to come in") >= users
    closed = [r for r in _records(shop) if r["msg"].startswith("disconnected: ")]
    assert all(record["duration_ms"] > 0 for record in closed)


@pytest.mark.processes
async def test_a_cluster_sums_repeats_up_and_loses_no_record(shop: RunningCluster) -> None:
    client = socketio.AsyncClient(reconnection=False)
    await client.connect(shop.url, auth={"user": "ann"}, wait_timeout=10)
    assert await client.call("repeats", timeout=5) == "done"
    await client.disconnect()
    await client.shutdown()
    error = "TypeError('not enough arguments for format string')"
    _find(shop, f"odd %d %d (1,) (cannot be formatted: {error})")
    written = [record for record in _records(shop) if record["msg"].startswith("again ")]
    assert len(written) == 10
    assert {record["sid"] for record in written} == {written[0]["sid"]}


@pytest.mark.processes
def test_the_routes_of_the_app_have_a_request_id(shop: RunningCluster) -> None:
    def ask(**headers: str) -> None:
        request = urllib.request.Request(f"{shop.url}/basket", headers=headers)
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert answer.read() == b"empty"

    ask()
    first = _find(shop, "basket")
    assert re.fullmatch("[0-9a-f]{16}", first["request_id"])
    assert "sid" not in first
    ask(**{"X-Request-Id": "from-the-proxy"})
    ask(**{"X-Request-Id": "not good"})
    wait_until(lambda: len([r for r in _records(shop) if r["msg"] == "basket"]) == 3)
    ids = [record["request_id"] for record in _records(shop) if record["msg"] == "basket"]
    assert ids[1] == "from-the-proxy"
    assert ids[2] not in (ids[0], "not good")

    def answered() -> list[dict[str, Any]]:
        return [record for record in _records(shop) if record["msg"] == "GET /basket 200"]

    # An answer is logged once it is out, so those of different workers come in any order.
    wait_until(lambda: {record["request_id"] for record in answered()} == {*ids})
    assert all(record["duration_ms"] > 0 for record in answered())


@pytest.mark.processes
async def test_the_end_of_a_cluster_tells_what_was_left_out(
    spawn_cluster: Callable[..., RunningCluster],
) -> None:
    cluster = spawn_cluster("servers.logs_app:io", 1, "--log-format=json")
    client = socketio.AsyncClient(reconnection=False)
    await client.connect(cluster.url, auth={"user": "ann"}, wait_timeout=10)
    assert await client.call("repeats", timeout=5) == "done"
    await client.disconnect()
    await client.shutdown()
    cluster.stop()
    summary = _find(cluster, "… 40 more of these in 60 s: again %d")
    assert summary["logger"] == "shop"
    after_the_banner = cluster.text.rpartition("limpet is ready")[2].splitlines()[1:]
    assert [line for line in after_the_banner if not line.startswith("{")] == []
