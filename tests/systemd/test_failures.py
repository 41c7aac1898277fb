"""What a process that cannot start leaves behind, and how long it waits before it ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from limpet_cluster import child
from limpet_cluster.appload import AppError
from limpet_cluster.failures import Ended, forget_failure, last_failure, note_failure, paced
from limpet_cluster.settings.config import Common, ConfigError


def test_pauses_grow_up_to_a_limit(tmp_path: Path) -> None:
    pauses = [note_failure(tmp_path, "worker-1", "why") for _ in range(10)]
    assert pauses == [0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert note_failure(tmp_path, "worker-2", "why") == 0  # each on its own
    forget_failure(tmp_path, "worker-1")
    assert note_failure(tmp_path, "worker-1", "why") == 0


def test_old_failures_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0  # stands still: a pause would make the younger one too old as well
    monkeypatch.setattr("limpet_cluster.failures.time", SimpleNamespace(monotonic=lambda: now))
    for age, pause in ((119, 2.0), (121, 0.0)):
        (tmp_path / "failed-hub").write_text(f"3 {now - age}\nwhy")
        assert note_failure(tmp_path, "hub", "why") == pause


def test_the_error_is_read_by_who_asked_after_it_was_left(tmp_path: Path) -> None:
    began = time.monotonic()
    note_failure(tmp_path, "worker-1", "line one\n\nline three ü")
    assert last_failure(tmp_path, "worker-1", began) == "line one\n\nline three ü"
    assert last_failure(tmp_path, "worker-1", time.monotonic()) is None
    assert last_failure(tmp_path, "worker-2", began) is None


def test_nothing_misleads_or_hangs_the_reader(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("1 99999999\nsecret")
    (tmp_path / "failed-hub").symlink_to(secret)
    assert last_failure(tmp_path, "hub", 0) is None
    (tmp_path / "failed-balancer").write_bytes(b"\xff\xff")
    assert last_failure(tmp_path, "balancer", 0) is None
    assert note_failure(tmp_path / "none", "hub", "why") == 0


@pytest.fixture
def life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[child.Life]:
    """The life of a worker that systemd started."""
    monkeypatch.setattr("limpet_cluster.child._set_title", lambda title: None)
    monkeypatch.setattr("limpet_cluster.logs.set_up", lambda *arguments: None)
    monkeypatch.setenv(child.ROLE, "")
    monkeypatch.delenv(child.PARENT, raising=False)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as board:
        board.bind(str(tmp_path / "notify"))
        life = child.enter("worker-1", Common(run_directory=tmp_path))
        yield life
        life.notifier.close()


@pytest.mark.parametrize(
    ("error", "code"), [(AppError("no app"), 1), (ConfigError("bad"), 3), (OSError("disk"), 1)]
)
def test_a_process_of_systemd_tells_what_keeps_it_from_starting(
    life: child.Life, tmp_path: Path, error: Exception, code: int
) -> None:
    with pytest.raises(SystemExit) as ended, life.errors_told():
        raise error
    assert ended.value.code == code
    told = last_failure(tmp_path, "worker-1", 0)
    assert told is not None
    assert str(error) in told
    life.notifier.ready()
    assert last_failure(tmp_path, "worker-1", 0) is None
    with pytest.raises(type(error)), life.errors_told():
        raise error  # once ready, it is a crash as any other


def test_wrong_settings_pause_too(tmp_path: Path) -> None:
    environ = {"RUNTIME_DIRECTORY": str(tmp_path), "NOTIFY_SOCKET": "/run/x"}
    for arguments in (["limpet", "worker", "--slot", "7"], ["limpet", "worker", "--slot=7"]):
        with pytest.raises(SystemExit), paced(arguments, environ):
            raise SystemExit(3)
        assert last_failure(tmp_path, "worker-7", 0) == ""
    with pytest.raises(SystemExit), paced(["limpet", "balancer"], environ):
        raise Ended(3, "no such setting")
    assert last_failure(tmp_path, "balancer", 0) == "no such setting"
    with pytest.raises(SystemExit), paced(["limpet", "hub"], environ):
        raise SystemExit(0)
    with pytest.raises(SystemExit), paced(["limpet", "hub"], {}):
        raise SystemExit(3)
    assert last_failure(tmp_path, "hub", 0) is None


def test_what_is_wrong_with_the_settings_has_a_priority_in_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("wb") as output:
        status = os.fstat(output.fileno())
        environ = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        done = subprocess.run(
            (sys.executable, "-m", "limpet", "hub", f"--run-dir={tmp_path}"),
            stderr=output,
            env={**environ, "LIMPET_BUCKETS": "many", "LIMPET_NODE": "x"},
            check=False,
        )
    assert done.returncode == 3
    lines = (tmp_path / "stderr").read_text().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("<3>") for line in lines), lines
