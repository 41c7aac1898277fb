"""What a fork of a process keeps, and how long it lives."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from supervised import gone

pytestmark = pytest.mark.processes

CODE = """
import os, socket, sys, threading, time
from pathlib import Path
from limpet_adapters.forks import close_directory_in_forks, close_in_forks

run = Path(sys.argv[1])
close_directory_in_forks(run)
ours = socket.socket(socket.AF_UNIX); ours.bind(str(run / "ours.sock")); ours.listen()
peer = socket.socket(socket.AF_UNIX); peer.connect(str(run / "ours.sock"))
accepted, _ = ours.accept()
client = socket.create_server(("127.0.0.1", 0))
close_in_forks(lambda: [client.fileno()])
theirs = socket.create_server(("127.0.0.1", 0))
pair = socket.socketpair()
forks = []
def open_in_fork():
    read, write = os.pipe()
    forks.append(os.fork())
    if forks[-1] == 0:
        try:
            def is_open(fd):
                try:
                    os.fstat(fd)
                except OSError:
                    return False
                return True
            named = {"ours": ours, "peer": peer, "accepted": accepted, "client": client,
                     "theirs": theirs, "left": pair[0], "right": pair[1]}
            text = " ".join(sorted(n for n, s in named.items() if is_open(s.fileno())))
            os.write(write, text.encode())
            if sys.argv[2] == "stay":
                time.sleep(600)
        finally:
            os._exit(0)
    return os.read(read, 1000).decode()
print(open_in_fork(), flush=True)
thread_result = []
thread = threading.Thread(target=lambda: thread_result.append(open_in_fork()))
thread.start(); thread.join()
time.sleep(0.2)
print("still open here:", ours.fileno() > 0, client.getsockname()[1] > 0, flush=True)
print(*forks, flush=True)
time.sleep(600)
"""


@pytest.fixture
def process() -> object:
    with tempfile.TemporaryDirectory(prefix="limpet-") as run:
        child = subprocess.Popen(
            [sys.executable, "-c", CODE, run, "stay"], stdout=subprocess.PIPE, text=True
        )
        yield child
        for one in psutil.Process(child.pid).children() if child.poll() is None else []:
            one.kill()
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def test_a_fork_keeps_the_applications_sockets_and_drops_ours(
    process: subprocess.Popen[str],
) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().split() == ["left", "right", "theirs"]
    assert process.stdout.readline() == "still open here: True True\n"


def test_a_fork_ends_with_its_parent_but_not_with_the_thread_that_made_it(
    process: subprocess.Popen[str],
) -> None:
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.readline()
    of_main, of_thread = map(int, process.stdout.readline().split())
    assert not gone(of_main)
    assert not gone(of_thread), "the thread's fork outlived the thread"
    process.kill()
    process.wait()
    deadline = time.monotonic() + 15
    while not gone(of_main):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(of_thread, 9)
    assert Path(f"/proc/{os.getpid()}").exists()
