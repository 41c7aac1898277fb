"""The control connection: requests, refusals, bounds, peers, and connecting again."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet_adapters import control
from limpet_adapters.control import ControlClient, ControlConnection, ControlError, Hello
from limpet_cluster.hub.control import HubControl

HELLO = Hello(worker_id=2**64 - 1, node=1, slot=2, incarnation=3, pid=os.getpid(), name="w2")


@asynccontextmanager
async def hub(path: Path) -> AsyncIterator[HubControl]:
    server = HubControl(path)
    server.greeters.append(lambda _connection, hello: {"slot": hello.slot})
    server.greeters.append(lambda _connection, _hello: {"more": True})
    server.handle("echo", lambda _connection, body: body)
    await server.start()
    try:
        yield server
    finally:
        await server.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_hello_is_welcomed_and_both_ends_ask(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    client = ControlClient(path, HELLO)
    client.handle("double", lambda _connection, body: [body, body])
    welcomes: list[dict[str, object]] = []
    client.attach(lambda _connection, welcome: welcomes.append(welcome))
    async with hub(path) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        client.start()
        await client.connected()
        assert welcomes == [{"slot": 2, "more": True}]
        assert await client.request("echo", {"a": b"\x00\xff", "b": [1, None]}, 5) == {
            "a": b"\x00\xff",
            "b": [1, None],
        }
        connection = server.workers[HELLO.worker_id]
        assert connection.peer_pid == os.getpid()
        assert connection.owner == HELLO
        assert await connection.request("double", "x", 5) == ["x", "x"]
        lost: list[Hello] = []
        server.on_lost.append(lambda _connection, hello: lost.append(hello))
        await client.close()
        await until(lambda: lost == [HELLO] and not server.workers)


async def test_refusals_name_the_reason_and_failures_do_not_leak(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_connection: ControlConnection, _body: object) -> object:
        raise ControlError("no such room")

    async def fail(_connection: ControlConnection, _body: object) -> object:
        raise RuntimeError("secret detail")

    async def never(_connection: ControlConnection, _body: object) -> object:
        await asyncio.Event().wait()
        return None

    path = tmp_path / "hub.sock"
    async with hub(path) as server:
        for kind, handler in (("refuse", refuse), ("fail", fail), ("never", never)):
            server.handle(kind, handler)
        server.handle("object", lambda _connection, _body: object())
        client = ControlClient(path, HELLO)
        client.start()
        with pytest.raises(ControlError, match="no such room"):
            await client.request("refuse", None, 5)
        with pytest.raises(ControlError, match=r"fail failed: RuntimeError$"):
            await client.request("fail", None, 5)
        with pytest.raises(ControlError, match=r"object failed: TypeError$"):
            await client.request("object", None, 5)
        with pytest.raises(ControlError, match="unknown request 'nothing'"):
            await client.request("nothing", None, 5)
        with pytest.raises(TimeoutError):
            await client.request("never", None, 0.02)
        waiting = asyncio.create_task(client.request("never", None, 5))
        await asyncio.sleep(0.02)
        await server.close()
        with pytest.raises(ConnectionError):
            await waiting
        await client.close()
    assert "secret detail" in caplog.text  # in our log, with the traceback


async def test_client_comes_back_after_the_hub_restarts(tmp_path: Path) -> None:
    path = tmp_path / "hub.sock"
    client = ControlClient(path, HELLO)
    seen: list[str] = []
    client.attach(lambda _connection, _welcome: seen.append("up"), lambda: seen.append("down"))
    client.start()
    await asyncio.sleep(0.05)  # no hub yet
    for _ in range(2):
        async with hub(path):
            await client.connected()
        await until(lambda: client.connection is None)
        assert client.send("echo", 1) is False
    assert seen == ["up", "down", "up", "down"]
    with pytest.raises(TimeoutError):
        await client.request("echo", 1, 0.02)
    await client.close()


async def test_the_same_worker_again_replaces_its_connection(tmp_path: Path) -> None:
    async with hub(tmp_path / "hub.sock") as server:
        lost: list[int] = []
        server.on_lost.append(lambda _connection, hello: lost.append(hello.worker_id))
        first = ControlClient(server.path, HELLO)
        first.start()
        await first.connected()
        connection = server.workers[HELLO.worker_id]
        second = ControlClient(server.path, HELLO)
        second.start()
        await second.connected()
        assert lost[0] == HELLO.worker_id
        assert server.workers[HELLO.worker_id] is not connection
        await first.close()
        await second.close()


def frame(message: object) -> bytes:
    data = msgspec.msgpack.encode(message)
    return struct.pack(">I", len(data)) + data


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        struct.pack(">I", control.MESSAGE_LIMIT + 1),
        struct.pack(">I", 3) + b"\xc1\xc1\xc1",
        frame([0, 1, "echo"]),
        frame({"kind": "echo"}),
    ],
)
async def test_bad_messages_end_the_connection_only(tmp_path: Path, data: bytes) -> None:
    async with hub(tmp_path / "hub.sock") as server:
        reader, writer = await asyncio.open_unix_connection(str(server.path))
        writer.write(frame([1, 1, "echo", "before"]) + data)
        assert msgspec.msgpack.decode((await reader.read())[4:]) == [2, 1, "", "before"]
        writer.close()
        client = ControlClient(server.path, HELLO)
        client.start()
        assert await client.request("echo", 1, 5) == 1
        await client.close()


async def test_a_bad_hello_is_refused(tmp_path: Path) -> None:
    async with hub(tmp_path / "hub.sock") as server:
        client = ControlClient(server.path, lambda: {"worker_id": "x"})
        client.start()
        with pytest.raises(TimeoutError):
            await client.request("echo", 1, 0.1)
        assert not server.workers
        await client.close()


async def test_a_peer_that_does_not_read_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "BACKLOG_LIMIT", 100_000)
    async with hub(tmp_path / "hub.sock") as server:
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.connect(str(server.path))
            await until(lambda: bool(server.connections))
            (connection,) = server.connections
            for _ in range(100):
                connection.send("noise", bytes(50_000))
            await until(lambda: not server.connections)


async def test_too_long_a_message_is_refused_to_the_sender(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "MESSAGE_LIMIT", 1000)
    async with hub(tmp_path / "hub.sock") as server:
        server.handle("long", lambda _connection, _body: bytes(2000))
        client = ControlClient(server.path, HELLO)
        client.start()
        with pytest.raises(ControlError, match="at most 1000"):
            await client.request("echo", bytes(2000), 5)
        with pytest.raises(ControlError, match="at most 1000"):
            await client.request("long", None, 5)
        await client.close()


class FakeSocket:
    def getsockopt(self, *_arguments: int) -> bytes:
        return struct.pack("3i", 1, os.getuid(), 0)


class FakeTransport(asyncio.Transport):
    """Takes what is written and remembers whether it was aborted."""

    def __init__(self, uid: int | None = None) -> None:
        super().__init__({"socket": FakeSocket()})
        self.written = bytearray()
        self.aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True


@given(st.lists(st.binary(max_size=200), max_size=8), st.booleans())
def test_any_bytes_are_handled_or_end_the_connection(chunks: list[bytes], framed: bool) -> None:
    seen: list[object] = []

    def take(_connection: ControlConnection, body: object) -> Awaitable[object] | object:
        seen.append(body)
        return body

    connection = ControlConnection({"": take})
    transport = FakeTransport()
    connection.connection_made(transport)
    for chunk in chunks:
        connection.data_received(struct.pack(">I", len(chunk)) + chunk if framed else chunk)
        if transport.aborted:
            break
    connection.connection_lost(None)


@given(st.binary(max_size=500), st.lists(st.integers(1, 40), min_size=1))
def test_messages_survive_any_segmentation(body: bytes, sizes: list[int]) -> None:
    seen: list[object] = []
    connection = ControlConnection({"k": lambda _connection, body: seen.append(body)})
    connection.connection_made(FakeTransport())
    data = frame([0, 0, "k", body]) * 3
    at = 0
    while at < len(data):
        for size in sizes:
            connection.data_received(data[at : at + size])
            at += size
    assert seen == [body] * 3
