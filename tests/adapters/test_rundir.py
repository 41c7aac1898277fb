"""The run directory: who may use it, and the slots in it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from limpet_adapters.rundir import RunDirectory, RunDirectoryError, Slot, held_slots


def test_it_is_made_for_us_alone(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "a" / "b")
    assert run.path.stat().st_mode & 0o777 == 0o700


def test_one_that_others_can_open_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    with pytest.raises(RunDirectoryError, match=r"0755.*0700"):
        RunDirectory(tmp_path / "run")


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to(tmp_path / "real")
    with pytest.raises(RunDirectoryError, match="link"):
        RunDirectory(tmp_path / "run")


def test_a_path_too_long_for_sockets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="too long"):
        RunDirectory(tmp_path / ("x" * 90))


def test_a_slot_has_one_holder_and_a_new_incarnation_each_time(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    first = Slot(run, 3)
    with pytest.raises(RunDirectoryError, match=f"slot 3 is held by pid {os.getpid()}"):
        Slot(run, 3)
    assert held_slots(run) == [3]
    first.release()
    assert held_slots(run) == []
    second = Slot(run, 3)
    assert second.incarnation == (first.incarnation + 1) % 256
    second.release()


def test_a_look_that_takes_long_refuses_nobody(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    Slot(run, 3).release()
    look = os.open(run.slot(3), os.O_RDWR)
    fcntl.flock(look, fcntl.LOCK_SH | fcntl.LOCK_NB)  # as `held_slots`, which is held up here
    ends = threading.Timer(0.5, os.close, [look])
    ends.start()
    try:
        Slot(run, 3).release()
    finally:
        ends.join()


def test_a_slot_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="0 to 255"):
        Slot(RunDirectory(tmp_path / "run"), 256)


def test_a_fork_does_not_keep_the_slot(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    code = """
import os, sys, threading, time
from pathlib import Path
from limpet_adapters.rundir import RunDirectory, Slot
slot = Slot(RunDirectory(Path(sys.argv[1])), 3)
def fork():
    if os.fork() == 0:
        print(os.getpid(), flush=True)  # by then what it must not keep is closed
        time.sleep(60)
        os._exit(0)
thread = threading.Thread(target=fork)
thread.start()
thread.join()
os._exit(0)
"""
    ran = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE)
    assert ran.stdout is not None
    forked = int(ran.stdout.readline())
    try:
        assert ran.wait(10) == 0
        Slot(run, 3).release()
    finally:
        os.kill(forked, signal.SIGKILL)
        ran.stdout.close()
