"""The client for scripts and threads."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from client_rig import closed_port
from client_servers import ClientServer
from limpet.sync import Client
from limpet_client.background import background
from limpet_client.errors import AckTimeout, ConnectError, Disconnected, NotSent

# The first of them may have to install the official server.
pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]


@pytest.fixture
def client(server: ClientServer) -> Iterator[Client]:
    with Client(server.url, reconnection_delay=0.01) as one:
        yield one
    assert not one.active


def test_talks(client: Client) -> None:
    assert client.connected
    assert client.emit_with_ack("getId") == client.id
    assert client.emit_with_ack("values", 1, b"2") == (1, b"2")
    assert client.timeout(30).emit_with_ack("echo", "x") == "x"
    client.send("message")
    assert client.nsp == "/"
    assert client.transport_name in {"polling", "websocket"}
    assert "not connected" not in repr(client)


def test_errors_are_raised_where_they_are_made(client: Client) -> None:
    with pytest.raises(AckTimeout):
        client.timeout(0.02).emit_with_ack("unknown")
    with pytest.raises(ValueError, match="reserved"):
        client.emit("connect")
    with pytest.raises(TypeError, match="object"):
        client.emit("x", object())
    with pytest.raises(TimeoutError):
        client.receive(0.01)
    client.disconnect()
    with pytest.raises(NotSent):
        client.volatile.emit_with_ack("echo", 1)
    with pytest.raises(Disconnected):
        client.receive()


def test_handlers_run_in_one_thread_and_may_block(client: Client) -> None:
    seen: list[Any] = []
    done = threading.Event()

    @client.on("item")
    def item(number: int, _text: str) -> None:
        assert client.emit_with_ack("echo", number) == number
        seen.append((number, threading.get_ident()))
        if number == 9:
            done.set()

    @client.on("question")
    def question(value: int) -> Any:
        time.sleep(0.01)
        return client.timeout(30).emit_with_ack("echo", value * 2)

    client.emit("items", 10, "x")
    assert done.wait(15)
    assert [number for number, _ in seen] == list(range(10))
    assert {thread for _, thread in seen}.isdisjoint({threading.get_ident()})
    assert len({thread for _, thread in seen}) == 1
    assert client.emit_with_ack("ask me", 21) == 42


def test_a_handler_that_takes_less_is_not_called_with_more(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    client.on("mirrored", lambda _one: None)
    client.emit("mirror", 1, 2, 3)
    client.emit_with_ack("echo", 1)
    assert "its handler" in caplog.text
    caplog.clear()


def test_listeners_are_removed(client: Client) -> None:
    heard: list[Any] = []

    def hear(*args: Any) -> None:
        heard.append(args)

    client.on("mirrored", hear)
    client.on_any(hear)
    client.on_any_outgoing(hear)
    client.off("mirrored", hear)
    client.off_any(hear)
    client.off_any_outgoing(hear)
    client.emit("mirror", 1)
    assert client.receive(15)[1][0] == 1
    assert not heard


def test_middlewares_and_callbacks(client: Client) -> None:
    heard: list[Any] = []
    client.use(lambda packet: packet.append("more"))
    client.on("mirrored", lambda *args: heard.append(args))
    client.emit("mirror", 1)
    client.emit("echo", 2, ack=lambda *args: heard.append(args))
    deadline = time.monotonic() + 15
    while len(heard) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (None, 2) in heard
    assert any(args[0] == 1 and args[-1] == "more" for args in heard)


def test_iterates_until_disconnected(client: Client) -> None:
    client.emit("items", 5, "x")
    numbers = []
    for _event, args in client:
        numbers.append(args[0])
        if len(numbers) == 5:
            client.emit("kick me", False)
    assert numbers == list(range(5))
    assert client.wait(15)


def test_waits_for_the_end(client: Client) -> None:
    assert not client.wait(0.01)
    threading.Timer(0.05, client.disconnect).start()
    assert client.wait(15)


def test_namespaces(client: Client) -> None:
    with pytest.raises(ConnectError, match="Auth failed"):
        client.of("/no").connect(timeout=15)

    def slow() -> dict[str, int]:
        time.sleep(0.01)
        return {"slow": 1}

    foo = client.of("/foo", auth=slow)
    foo.connect(timeout=15)
    assert foo.emit_with_ack("getId") == foo.id
    foo.disconnect()
    assert client.connected


def test_many_threads(client: Client) -> None:
    wrong: list[Any] = []

    def ask(number: int) -> None:
        for _ in range(20):
            answer = client.emit_with_ack("echo", number)
            if answer != number:
                wrong.append(answer)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)


def test_reconnects(client: Client) -> None:
    back = threading.Event()
    client.manager.on("reconnect", back.set)
    client.emit("end it")
    assert back.wait(15)
    assert client.emit_with_ack("echo", 1) == 1
    client.manager.off("reconnect", back.set)


def test_no_server() -> None:
    client = Client(f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(ConnectError), client:
        pass
    assert not client.active


def test_the_loops_thread_does_not_wait_for_itself(client: Client) -> None:
    with pytest.raises(RuntimeError, match="wait for itself"):
        background().call(client.disconnect)


SCRIPT = """
import sys, threading, time
from limpet.sync import Client
from limpet_client import background

background._FAREWELL = 20  # a server may be slow to say goodbye; the handlers' second comes after
client = Client(sys.argv[1], reconnection_delay=0.01)
client.connect()
client.on("item", lambda *args: time.sleep(60))  # the end does not wait for handlers
client.emit("items", 3, "x")
assert client.emit_with_ack("echo", 1) == 1
threading.Thread(target=client.wait, daemon=True).start()
while not background.background().call(lambda: client._emitter.listen()._enders):
    time.sleep(0.01)
if sys.argv[2] == "raise":
    raise SystemExit(3)
print("done")
"""


@pytest.mark.parametrize(("how", "code"), [("return", 0), ("raise", 3)])
def test_the_interpreter_ends(spawn: Callable[..., ClientServer], how: str, code: int) -> None:
    server = spawn("limpet")
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, server.url, how],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode == code
    assert ended.stderr == "3 handlers still ran after 1.0 s and were cancelled\n"
    assert time.monotonic() - started < 30
