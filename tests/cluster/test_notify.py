"""sd_notify, both ends: what a child says, and what the supervisor makes of it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet_adapters import notify
from limpet_adapters.notify import Notifier
from limpet_cluster.supervisor.notices import NoticeBoard, parse


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="limpet-") as name:
        yield Path(name)


def listen(address: str) -> socket.socket:
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(address)
    receiver.settimeout(2)
    return receiver


def test_says_nothing_when_nobody_listens(directory: Path) -> None:
    quiet = Notifier.from_environment({})
    assert quiet.address is None
    quiet.ready()
    gone = Notifier(str(directory / "gone"))
    gone.ready("at work")
    gone.stopping()
    gone.close()


def test_takes_its_variables_out_of_the_environment() -> None:
    environment = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "15000000", "HOME": "/"}
    notifier = Notifier.from_environment(environment)
    assert (notifier.address, notifier.watchdog) == ("/run/x", 15.0)
    assert environment == {"HOME": "/"}


@pytest.mark.parametrize(
    ("variables", "watchdog"),
    [
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}, 2.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_reads_the_watchdog_that_is_meant_for_it(
    variables: dict[str, str], watchdog: float
) -> None:
    assert Notifier.from_environment(dict(variables)).watchdog == watchdog


def test_speaks_the_protocol(directory: Path) -> None:
    address = str(directory / "notify")
    with listen(address) as receiver:
        notifier = Notifier(address)
        notifier.ready("serving\nREADY=0")
        assert receiver.recv(1000) == b"READY=1\nSTATUS=serving READY=0"
        notifier.status("draining")
        assert receiver.recv(1000) == b"STATUS=draining"
        notifier.extend(1.5)
        assert receiver.recv(1000) == b"EXTEND_TIMEOUT_USEC=1500000"
        notifier.stopping()
        assert receiver.recv(1000) == b"STOPPING=1"
        notifier.close()


def test_reaches_abstract_sockets() -> None:
    name = f"limpet-test-{os.getpid()}"
    with listen(f"\0{name}") as receiver:
        notifier = Notifier(f"@{name}")
        notifier.ready()
        assert receiver.recv(1000) == b"READY=1"
        notifier.close()


async def test_feeds_the_watchdog_from_the_loop(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(directory / "notify")
    loop = asyncio.get_running_loop()
    call_later = loop.call_later
    pauses: list[float] = []

    def noted(delay: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        if callback == notifier.start_watchdog:
            pauses.append(delay)
        return call_later(delay, callback, *args)

    monkeypatch.setattr(loop, "call_later", noted)
    with listen(address) as receiver:
        notifier = Notifier(address, 0.15)
        receiver.setblocking(False)
        notifier.start_watchdog(loop)
        await asyncio.sleep(0.2)
        # systemd would count from the first one on, and a start may take longer.
        assert _received(receiver) == []
        notifier.ready()
        heard: list[bytes] = []
        async with asyncio.timeout(10):
            while heard.count(b"WATCHDOG=1") < 3:
                await asyncio.sleep(0.01)
                heard += _received(receiver)
        notifier.close()
        assert pauses == pytest.approx([0.05] * len(pauses))
        assert heard.count(b"WATCHDOG=1") < len(pauses)
        _received(receiver)
        await asyncio.sleep(0.1)
        with pytest.raises(BlockingIOError):
            receiver.recv(100)


async def test_who_does_not_listen_holds_up_nobody(directory: Path) -> None:
    address = str(directory / "notify")
    with listen(address) as receiver:
        notifier = Notifier(address, 0.01)
        notifier.ready()
        receiver.setblocking(False)
        began = time.monotonic()
        for number in range(3000):  # more than any queue holds
            notifier.status(f"{number} left")
            notifier.extend(1.0)
        assert time.monotonic() - began < 10, "it would be an hour if each were waited for"
        assert _received(receiver)[0] == b"READY=1"
        notifier.status("heard again")
        assert _received(receiver) == [b"STATUS=heard again"]
        notifier.close()


@pytest.mark.parametrize("watchdog", [0.0, 0.15])
async def test_that_it_is_ready_is_said_again_when_there_was_no_room_for_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch, watchdog: float
) -> None:
    monkeypatch.setattr(notify, "_AGAIN", 0.05)
    address = str(directory / "notify")
    with listen(address) as receiver:
        others, notifier = Notifier(address), Notifier(address, watchdog)
        for _ in range(3000):
            others.status("at work")
        notifier.ready("at work too")
        receiver.setblocking(False)
        assert set(_received(receiver)) == {b"STATUS=at work"}
        notifier.status("busy")  # which is newer than what was not heard
        notifier.start_watchdog(asyncio.get_running_loop())
        await asyncio.sleep(0.3)
        heard = _received(receiver)
        assert heard[:2] == [b"STATUS=busy", b"READY=1"]
        assert set(heard[2:]) == ({b"WATCHDOG=1"} if watchdog else set())
        others.close()
        notifier.close()


def test_that_it_was_ready_is_not_said_at_the_end(directory: Path) -> None:
    address = str(directory / "notify")
    with listen(address) as receiver:
        others, notifier = Notifier(address), Notifier(address, 15.0)
        for _ in range(3000):
            others.status("at work")
        notifier.ready()
        receiver.setblocking(False)
        assert set(_received(receiver)) == {b"STATUS=at work"}
        notifier.stopping()
        notifier.alive()
        assert _received(receiver) == [b"STOPPING=1", b"WATCHDOG=1"]
        others.close()
        notifier.close()


def _received(receiver: socket.socket) -> list[bytes]:
    found = []
    with suppress(BlockingIOError):
        while True:
            found.append(receiver.recv(100))
    return found


@given(st.text(max_size=300))
def test_an_error_arrives_as_it_was_told(message: str) -> None:
    sent: list[str] = []

    class Deaf(Notifier):
        def _send(self, text: str, *, wait: float = 0.0) -> bool:
            sent.append(text)
            return True

    Deaf("x").failed(message)
    fields = parse(sent[0].encode("utf-8", "replace"))
    assert fields == {"X_LIMPET_ERROR": message}


def test_a_very_long_error_keeps_its_end(directory: Path) -> None:
    address = str(directory / "notify")
    with listen(address) as receiver:
        notifier = Notifier(address)
        notifier.failed("x" * 500_000 + "\nNameError: the point")
        fields = parse(receiver.recv(100_000))
        assert fields["X_LIMPET_ERROR"].endswith("\nNameError: the point")
        notifier.close()


@given(st.binary(max_size=400))
def test_no_datagram_is_too_odd(data: bytes) -> None:
    assert all(name for name in parse(data))


async def test_the_board_knows_who_speaks(directory: Path) -> None:
    told: list[tuple[int, dict[str, str]]] = []
    loop = asyncio.get_running_loop()
    path = directory / "notify"
    path.write_text("a leftover")
    board = NoticeBoard(path, lambda pid, fields: told.append((pid, fields)))
    board.attach(loop)
    notifier = Notifier(str(path))
    notifier.ready("here")
    code = (
        "import socket,sys; s=socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);"
        "s.sendto(b'READY=1', sys.argv[1])"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(path)])
    assert other.wait(10) == 0
    await asyncio.sleep(0.05)
    board.close(loop)
    notifier.close()
    assert told == [(os.getpid(), {"READY": "1", "STATUS": "here"}), (other.pid, {"READY": "1"})]
    assert not path.exists()


async def test_the_board_closes_descriptors_that_a_datagram_brings(directory: Path) -> None:
    loop = asyncio.get_running_loop()
    board = NoticeBoard(directory / "notify", lambda *_: None)
    board.attach(loop)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(directory / "notify"))
        before = len(list(Path("/dev/fd").iterdir()))
        for _ in range(20):
            socket.send_fds(sender, [b"FDSTORE=1"], [0, 1])
            board.drain()
        assert len(list(Path("/dev/fd").iterdir())) <= before
    board.close(loop)
