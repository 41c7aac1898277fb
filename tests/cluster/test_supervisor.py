"""The supervisor on real processes: stand-ins take the places of hub, balancer and workers."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from harness import require, stopped
from supervised import DRIVE, Supervised, gone, is_back, rewrite, until

pytestmark = pytest.mark.processes

Supervise = Callable[..., Supervised]
STALL = 3.0
"""Seconds of silence that are too many: twice what a busy machine may keep a process waiting."""


def test_starts_the_hub_first_and_ends_it_last(supervise: Supervise) -> None:
    cluster = supervise().ready()
    status = cluster.status()
    assert {one["state"] for one in status.values()} == {"ready"}
    assert {one["status"] for one in status.values()} == {"at work"}
    assert cluster.journal(what="start")[0][0] == "hub"
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.ended() == 0
    assert all(gone(one["pid"]) for one in status.values())
    told = [one[0] for one in cluster.journal(what="term")]
    assert set(told[:2]) == {"worker-0", "worker-1"}
    assert set(told[2:]) == {"hub", "balancer"}
    assert not (cluster.directory / "notify.sock").exists()
    assert not (cluster.directory / "supervisor.sock").exists()


def test_passes_listening_sockets_at_descriptor_3(supervise: Supervise) -> None:
    cluster = supervise().ready()
    [(_, what, *_)] = cluster.journal("balancer", "listens")
    ports = what.split()[1:]
    assert len(ports) == 2
    assert ports[0] == ports[1]
    environment = psutil.Process(cluster.pid("balancer")).environ()
    assert environment["LISTEN_FDNAMES"] == "public:public"
    assert "LISTEN_FDS" not in psutil.Process(cluster.pid("worker-0")).environ()
    # Nothing else of the supervisor's is open in a child.
    worker = Path(f"/proc/{cluster.pid('worker-0')}/fd")
    sockets = [fd for fd in worker.iterdir() if str(fd.readlink()).startswith("socket:")]
    assert len(sockets) == 1, "its own notify socket"


def test_no_orphan_survives_kill_9(supervise: Supervise) -> None:
    cluster = supervise().ready()
    pids = [one["pid"] for one in cluster.status().values()]
    cluster.process.kill()
    until(lambda: all(map(gone, pids)), cluster)


def test_a_killed_child_is_started_again(supervise: Supervise) -> None:
    cluster = supervise().ready()
    for name in ("worker-1", "hub", "balancer"):
        before = cluster.pid(name)
        os.kill(before, signal.SIGKILL)
        until(partial(is_back, cluster, name), cluster)
        assert cluster.pid(name) != before
    assert cluster.status()["worker-0"]["restarts"] == 0
    cluster.process.send_signal(signal.SIGINT)
    assert cluster.ended() == 0


def test_a_crash_loop_backs_off_and_leaves_the_others_alone(supervise: Supervise) -> None:
    cluster = supervise(ways={"worker-1": "crash later"}, policy={"backoff_first": 0.1}).ready()
    os.kill(cluster.pid("worker-1"), signal.SIGKILL)
    until(lambda: len(cluster.journal("worker-1", "start")) >= 5, cluster)
    times = [one[3] for one in cluster.journal("worker-1", "start")]
    pauses = [after - before for before, after in pairwise(times[1:])]
    # 0.2, 0.4 and 0.8 s, give or take a quarter, and what a Python needs to start
    for pause, least in zip(pauses, (0.15, 0.3, 0.6), strict=False):
        assert pause >= least
    assert cluster.status()["worker-0"]["restarts"] == 0
    assert "exit code 3" in cluster.text


@pytest.mark.parametrize("what", ["*", "*.sock"])
def test_a_run_directory_that_was_removed_is_made_anew(supervise: Supervise, what: str) -> None:
    cluster = supervise(policy={"stall_after": STALL}).ready()
    before = {name: cluster.pid(name) for name in ("hub", "worker-0", "worker-1", "balancer")}
    # The supervisor notices as soon as its notify socket is away: nothing may be left to do then.
    if what == "*":
        removed = cluster.directory.with_name("removed")
        cluster.directory.rename(removed)
        shutil.rmtree(removed)
    else:
        (cluster.directory / "supervisor.sock").unlink()
        (cluster.directory / "notify.sock").unlink()

    def mended() -> bool:
        status = cluster.status()
        new = [name for name in before if status and status[name]["pid"] != before[name]]
        return "hub" in new and {one["state"] for one in status.values()} == {"ready"}

    until(mended, cluster)
    time.sleep(STALL + 0.5)
    after = {name: one["pid"] for name, one in cluster.status().items()}
    assert [name for name in before if after[name] == before[name]] == ["worker-0", "worker-1"]
    assert {one["state"] for one in cluster.status().values()} == {"ready"}
    assert "was removed: it is made anew" in cluster.text
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.ended() == 0


def test_a_run_directory_that_another_cluster_took_is_left_to_it(supervise: Supervise) -> None:
    cluster = supervise(policy={"stall_after": STALL}).ready()
    before = {name: cluster.pid(name) for name in ("hub", "worker-0", "worker-1", "balancer")}
    with ExitStack() as others:
        with stopped(cluster.process.pid):  # else it might take the directory back first
            shutil.rmtree(cluster.directory)
            cluster.directory.mkdir(0o700)
            (cluster.directory / "notify.sock").touch()
            held = others.enter_context((cluster.directory / "supervisor.lock").open("w"))
            fcntl.flock(held, fcntl.LOCK_EX)
        until(lambda: "processes go on as they are" in cluster.text, cluster)
        time.sleep(STALL + 0.5)
        assert all(not gone(pid) for pid in before.values())
        cluster.process.send_signal(signal.SIGTERM)
        assert cluster.ended() == 0


def test_a_stalled_child_is_replaced(supervise: Supervise) -> None:
    cluster = supervise(policy={"stall_after": STALL}).ready()
    before = cluster.pid("worker-0")
    os.kill(before, signal.SIGSTOP)
    until(lambda: gone(before), cluster)
    until(lambda: cluster.status()["worker-0"]["state"] == "ready", cluster)
    assert cluster.pid("worker-0") != before
    assert "silent" in cluster.text
    assert cluster.status()["worker-1"]["restarts"] == 0


def test_a_stopped_supervisor_does_not_hold_its_own_silence_against_others(
    supervise: Supervise,
) -> None:
    cluster = supervise(policy={"stall_after": STALL}).ready()
    cluster.process.send_signal(signal.SIGSTOP)
    time.sleep(STALL + 1.5)  # more than a second longer
    cluster.process.send_signal(signal.SIGCONT)
    time.sleep(0.5)
    assert {one["restarts"] for one in cluster.status().values()} == {0}


def test_a_deaf_child_is_killed_at_the_deadline(supervise: Supervise) -> None:
    cluster = supervise(ways={"worker-0": "deaf"}, policy={"stop_timeout": 0.5}).ready()
    pid = cluster.pid("worker-0")
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.ended() == 1
    assert gone(pid)
    assert "did not end in time" in cluster.text


def test_a_second_interrupt_is_quick(supervise: Supervise) -> None:
    cluster = supervise(ways={"worker-0": "deaf"}, policy={"stop_timeout": 30}).ready()
    cluster.process.send_signal(signal.SIGINT)
    until(lambda: "ending 2 workers" in cluster.text, cluster)
    assert cluster.process.poll() is None
    cluster.process.send_signal(signal.SIGINT)
    assert cluster.ended() == 1


def test_a_quick_end_does_not_wait_for_what_is_to_start_again(supervise: Supervise) -> None:
    # Nobody of the others may be killed for being slow: the exit code would tell that.
    cluster = supervise(policy={"backoff_first": 60.0, "backoff_longest": 60.0}, at_once=10).ready()
    os.kill(cluster.pid("worker-0"), signal.SIGKILL)
    until(lambda: cluster.status()["worker-0"]["state"] == "waiting", cluster)
    cluster.process.send_signal(signal.SIGQUIT)
    assert cluster.ended() == 0
    assert len(cluster.journal("worker-0", "start")) == 1


def test_few_descriptors_are_enough_to_pass_sockets(supervise: Supervise) -> None:
    few = ["/bin/sh", "-c", 'ulimit -n 64 && exec "$@"', "sh"]
    cluster = supervise(few).ready()
    assert cluster.journal("balancer", "listens")


def test_what_a_child_leaves_behind_goes_with_it(supervise: Supervise) -> None:
    cluster = supervise(ways={"worker-0": "fork"}).ready()
    worker = psutil.Process(cluster.pid("worker-0"))
    [forked] = worker.children()
    worker.kill()
    until(lambda: gone(forked.pid), cluster)


@pytest.mark.parametrize("name", ["hub", "worker-1", "balancer"])
def test_a_child_that_refuses_ends_the_start_with_its_message(
    supervise: Supervise, name: str
) -> None:
    cluster = supervise(ways={name: "refuse"})
    assert cluster.ended() == 1
    assert "limpet: the module is broken\nline 2" in cluster.text
    assert cluster.text.count("the module is broken") == 1


def test_a_child_that_ends_before_it_is_ready_ends_the_start(supervise: Supervise) -> None:
    cluster = supervise(ways={"worker-0": "crash"})
    assert cluster.ended() == 1
    assert "limpet: worker-0 ended with exit code 3 before it was ready" in cluster.text


def test_a_child_that_is_never_ready_ends_the_start(supervise: Supervise) -> None:
    # The others must be ready in that time: else one of them ends the start.
    cluster = supervise(ways={"balancer": "never ready"}, policy={"start_timeout": 6.0})
    assert cluster.ended() == 1
    assert "balancer was not ready after 6 s" in cluster.text


def test_a_later_refusal_is_shown_once_and_tried_again(supervise: Supervise) -> None:
    cluster = supervise(ways={"worker-0": "refuse later"}).ready()
    os.kill(cluster.pid("worker-0"), signal.SIGKILL)
    until(lambda: len(cluster.journal("worker-0", "start")) >= 4, cluster)
    assert cluster.text.count("line 2") == 1
    assert cluster.status()["worker-0"]["error"] == "the module is broken\nline 2"
    assert cluster.status()["worker-1"]["state"] == "ready"


def test_in_development_changed_code_restarts_the_workers(
    supervise: Supervise, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text("")
    development = {"stall_after": 0.0, "start_timeout": 0.0}
    cluster = supervise(
        watch=str(tmp_path), ways={"worker-1": "refuse later"}, policy=development
    ).ready()
    rewrite(tmp_path / "app.py", "x = 1")
    until(lambda: cluster.status()["worker-0"]["restarts"] == 1, cluster)
    until(lambda: "waits for the code to change" in cluster.text, cluster)
    assert "app.py changed" in cluster.text
    assert "line 2" in cluster.text
    starts = len(cluster.journal("worker-1", "start"))
    time.sleep(0.6)
    assert len(cluster.journal("worker-1", "start")) == starts
    assert cluster.status()["hub"]["restarts"] == 0
    rewrite(tmp_path / "app.py", "x = 12")
    until(lambda: len(cluster.journal("worker-1", "start")) == starts + 1, cluster)
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.ended() == 0


def test_a_second_supervisor_in_the_same_run_directory_is_refused(supervise: Supervise) -> None:
    cluster = supervise().ready()
    second = subprocess.run(
        [sys.executable, DRIVE, str(cluster.directory), "{}"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert second.returncode == 1
    assert f"(pid {cluster.process.pid})" in second.stdout
    assert cluster.status()["worker-0"]["state"] == "ready"


def test_as_pid_1_it_collects_the_orphans_of_others_and_ends_on_term(
    supervise: Supervise,
) -> None:
    require("netns", shutil.which("unshare") and os.getuid() == 0, "needs root and unshare")
    cluster = supervise(["unshare", "--pid", "--fork", "--mount-proc"], ways={"worker-0": "fork"})
    cluster.ready()
    [first] = psutil.Process(cluster.process.pid).children()
    worker = next(one for one in first.children() if "worker-0" in one.cmdline())
    [orphan] = worker.children()
    # The worker's end makes the orphan a child of PID 1; its group is ended, and it is collected.
    worker.kill()
    until(lambda: not psutil.pid_exists(orphan.pid), cluster)
    until(partial(is_back, cluster, "worker-0"), cluster)
    known = {one.pid for one in first.children()}
    # A stranger that PID 1 has never heard of, adopted because its parent ended.
    namespace = ["nsenter", "--target", str(first.pid), "--pid", "--mount"]
    subprocess.run([*namespace, "sh", "-c", "sleep 600 & exit 0"], check=True, timeout=20)
    [stranger] = [one for one in first.children() if one.pid not in known]
    stranger.kill()
    until(lambda: not psutil.pid_exists(stranger.pid), cluster)
    first.terminate()
    assert cluster.ended() == 0
