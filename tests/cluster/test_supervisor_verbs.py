"""What the supervisor does when it is asked to: by its socket and by signals, with stand-ins."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from limpet_cluster.supervisor.commands import (
    Answer,
    CommandError,
    NoSupervisorError,
    ask,
    supervisor_pid,
)
from supervised import Supervised, gone, is_back, rewrite, until

pytestmark = pytest.mark.processes

Supervise = Callable[..., Supervised]


class Asked:
    """Something asked of a supervisor in the background."""

    def __init__(self, cluster: Supervised, verb: str, **arguments: Any) -> None:
        self.told: list[dict[str, Any]] = []
        self.answer: Answer | None = None
        self.error: CommandError | None = None
        self._thread = threading.Thread(target=self._run, args=(cluster, verb, arguments))
        self._thread.start()

    def _run(self, cluster: Supervised, verb: str, arguments: dict[str, Any]) -> None:
        try:
            self.answer = ask(cluster.directory, verb, 20, self.told.append, **arguments)
        except CommandError as error:
            self.error = error

    def steps(self) -> list[tuple[Any, Any]]:
        return [(one.get("step"), one.get("slot")) for one in self.told if "step" in one]

    def wait(self) -> Asked:
        self._thread.join(30)  # longer than the answer may take
        assert not self._thread.is_alive()
        return self


def workers(cluster: Supervised) -> dict[str, str]:
    return {
        name.removeprefix("worker-"): one["state"]
        for name, one in cluster.status().items()
        if name.startswith("worker-")
    }


def refused(cluster: Supervised, verb: str, **arguments: Any) -> CommandError:
    with pytest.raises(CommandError) as told:
        cluster.ask(verb, **arguments)
    return told.value


def test_scale_up_and_down(supervise: Supervise) -> None:
    cluster = supervise().ready()
    first = cluster.pid("worker-0")
    answer = cluster.ask("scale", workers="+2")
    assert (answer["workers"], answer["slots"]) == (4, [0, 1, 2, 3])
    assert workers(cluster) == dict.fromkeys("0123", "ready")
    answer = cluster.ask("scale", workers=1)
    assert answer["slots"] == [0]
    assert workers(cluster) == {"0": "ready"}, "those that left are not listed any more"
    assert cluster.pid("worker-0") == first
    status = ask(cluster.directory, "status")
    assert status["workers"] == 1
    assert status["worker_ends"] == {"scale": 3}
    assert "expected 1 to 255" not in cluster.text
    error = refused(cluster, "scale", workers="-1")
    assert "to end the cluster there is stop" in str(error)
    assert error.exit_code == refused(cluster, "scale", workers=300).exit_code == 2
    assert refused(cluster, "scale", workers=None).exit_code == 2


def test_scaled_up_with_a_worker_that_fails(supervise: Supervise) -> None:
    cluster = supervise(ways={"worker-2": "refuse"}).ready()
    error = refused(cluster, "scale", workers=4)
    assert error.exit_code == 75
    assert str(error).startswith("the module is broken\nline 2\n\nw2 did not come up")
    assert error.answer["slots"] == [0, 1, 3]
    assert workers(cluster) == {"0": "ready", "1": "ready", "3": "ready"}
    # Until it was taken away it might have been tried once more.
    starts = len(cluster.journal("worker-2", "start"))
    time.sleep(0.5)
    assert len(cluster.journal("worker-2", "start")) == starts, "it is not tried again"


def test_reload_with_new_settings(supervise: Supervise) -> None:
    cluster = supervise().ready()
    before = {name: cluster.pid(name) for name in ("hub", "balancer", "worker-0", "worker-1")}
    cluster.renew(mark="new", changes=[["ping_interval: 25 → 5 (limpet.toml:3)", "applied"]])
    asked = Asked(cluster, "reload").wait()
    assert asked.answer is not None, asked.error
    assert asked.answer["slots"] == [0, 1]
    assert asked.answer["changes"] == [
        {"change": "ping_interval: 25 → 5 (limpet.toml:3)", "applies": "applied"}
    ]
    assert asked.steps() == [
        ("change", None),
        ("start", 2), ("ready", 2),
        ("drain", 0), ("ended", 0), ("ready", 0),
        ("drain", 1), ("ended", 1), ("ready", 1),
        ("drain", 2), ("ended", 2),
        ("done", None),
    ]  # fmt: skip
    status = cluster.status()
    assert [name for name in before if status[name]["pid"] == before[name]] == ["hub", "balancer"]
    assert len(cluster.journal("worker", "start new")) == 3
    assert status["worker-1"]["restarts"] == 1
    assert status["worker-1"]["ends"] == {"reload": 1}
    assert "was replaced by a reload" in status["worker-1"]["last_end"]
    told = ask(cluster.directory, "status")
    assert told["last_reload"]["ok"] is True
    assert told["operation"] is None
    # Who crashes later comes back with the new settings.
    os.kill(status["worker-0"]["pid"], signal.SIGKILL)
    until(lambda: len(cluster.journal("worker-0", "start new")) == 2, cluster)


def test_reload_of_what_does_not_come_up_changes_nothing(supervise: Supervise) -> None:
    cluster = supervise().ready()
    before = [cluster.pid("worker-0"), cluster.pid("worker-1")]
    cluster.renew(ways={"worker-2": "refuse"})
    error = refused(cluster, "reload")
    assert error.exit_code == 1
    assert str(error).startswith("the module is broken\nline 2\n\nThe new code or configuration")
    assert [cluster.pid("worker-0"), cluster.pid("worker-1")] == before
    assert workers(cluster) == {"0": "ready", "1": "ready"}
    assert ask(cluster.directory, "status")["last_reload"]["ok"] is False
    cluster.renew(ways={"worker-2": "never ready"}, policy={"start_timeout": 0.5})
    assert cluster.ask("scale", workers=3)["workers"] == 3, "with the old settings"


def test_a_spare_that_is_not_ready_in_time(supervise: Supervise) -> None:
    cluster = supervise().ready()
    soon = {"start_timeout": 0.5}  # too soon for any that is to be ready: only the spare starts
    cluster.renew(policy=soon)
    cluster.ask("restart", what=["hub"])
    cluster.renew(policy=soon, ways={"worker-2": "never ready"})
    error = refused(cluster, "reload")
    assert "worker-2 was not ready after 0.5 s" in str(error)
    assert workers(cluster) == {"0": "ready", "1": "ready"}


def test_reload_stops_half_way_and_the_next_one_heals(supervise: Supervise) -> None:
    cluster = supervise(workers=3).ready()
    cluster.renew(ways={"worker-1": "refuse"}, mark="bad")
    error = refused(cluster, "reload")
    assert error.exit_code == 75
    assert "New code: w0 and w3. Old code: w2. Not running: w1." in str(error)
    assert error.answer["slots"] == [0, 1, 2, 3]
    for asked, slots in (("+1", [0, 1, 2, 3]), ("-1", [0, 1]), ("3", [0, 1, 2])):
        told = cluster.ask("scale", workers=asked, dry_run=True)
        assert told["slots"] == slots, "the spare is none of the workers that are to be there"
    until(lambda: len(cluster.journal("worker-1", "start bad")) >= 2, cluster)
    cluster.renew(mark="good")
    assert cluster.ask("reload")["slots"] == [0, 1, 2]
    assert workers(cluster) == dict.fromkeys("012", "ready")
    assert {one[0] for one in cluster.journal("worker", "start good")} == {
        "worker-0", "worker-1", "worker-2", "worker-4",
    }  # fmt: skip


def test_settings_that_cannot_be_used_change_nothing(supervise: Supervise) -> None:
    cluster = supervise().ready()
    cluster.renew(error="limpet.toml:3: ping_interval='soon': expected a duration")
    error = refused(cluster, "reload")
    assert error.exit_code == 3
    assert "limpet.toml:3: ping_interval='soon'" in str(error)
    assert len(cluster.journal("worker", "start")) == 2


def test_new_code_that_ends_soon_after_it_was_ready_replaces_no_further_worker(
    supervise: Supervise,
) -> None:
    cluster = supervise(ways={"worker-0": "drain until told"}).ready()
    cluster.renew(ways={"worker-2": "end when told"})
    asked = Asked(cluster, "reload")
    until(lambda: ("drain", 0) in asked.steps(), cluster)
    cluster.tell("worker-2")
    until(lambda: "exit" in cluster.status()["worker-2"]["ends"], cluster)
    cluster.tell("worker-0")
    error = asked.wait().error
    assert error is not None
    assert error.exit_code == 75
    assert "worker-2 came up, but ended with exit code 3 soon after" in str(error)
    assert "Old code: w1." in str(error)
    assert cluster.status()["worker-1"]["restarts"] == 0


def test_who_asks_for_a_reload_by_signal_during_one_gets_another(supervise: Supervise) -> None:
    cluster = supervise(ways={"worker-0": "drain until told"}).ready()
    cluster.process.send_signal(signal.SIGHUP)
    until(lambda: "draining w0" in cluster.text, cluster)
    cluster.renew(mark="new")
    for _ in range(5):
        cluster.process.send_signal(signal.SIGHUP)
    assert cluster.status()["worker-0"]["state"] == "stopping"  # signals are taken before it asks
    cluster.tell("worker-0")
    until(lambda: cluster.text.count("w0 and w1 run the new code") == 2, cluster)
    time.sleep(0.3)
    assert workers(cluster) == {"0": "ready", "1": "ready"}
    assert len(cluster.journal("worker-0", "start")) == 3, "five are one"
    assert len(cluster.journal("worker-0", "start new")) == 1


def test_a_worker_that_crashes_during_a_reload(supervise: Supervise) -> None:
    cluster = supervise(ways={"worker-0": "drain until told"}).ready()
    asked = Asked(cluster, "reload")
    until(lambda: ("drain", 0) in asked.steps(), cluster)
    os.kill(cluster.pid("worker-1"), signal.SIGKILL)  # one that serves meanwhile
    os.kill(cluster.pid("worker-2"), signal.SIGKILL)  # the spare
    for name in ("worker-1", "worker-2"):
        until(partial(is_back, cluster, name), cluster)
    cluster.tell("worker-0")
    asked.wait()
    assert asked.answer is not None, asked.error
    assert asked.answer["slots"] == [0, 1]
    assert workers(cluster) == {"0": "ready", "1": "ready"}
    assert cluster.status()["worker-1"]["ends"].keys() == {"signal", "reload"}


def test_a_worker_that_crashes_while_it_drains_is_gone(supervise: Supervise) -> None:
    cluster = supervise(ways={"worker-1": "drain 30"}).ready()
    asked = Asked(cluster, "scale", workers=1)
    until(lambda: cluster.journal("worker-1", "term"), cluster)
    os.kill(cluster.pid("worker-1"), signal.SIGKILL)
    asked.wait()
    assert asked.answer is not None
    assert workers(cluster) == {"0": "ready"}


def test_a_drain_may_take_longer_than_stop_timeout_and_tells_how_far_it_is(
    supervise: Supervise,
) -> None:
    ways = {"worker-1": "drain until told"}
    cluster = supervise(ways=ways, policy={"stop_timeout": 3.0}).ready()
    asked = Asked(cluster, "scale", workers=1)
    until(lambda: ("drain", 1) in asked.steps(), cluster)
    until(lambda: sum("left" in one for one in list(asked.told)) >= 2, cluster)
    time.sleep(2.0)  # four seconds in all
    assert asked.answer is None
    cluster.tell("worker-1")
    assert asked.wait().answer is not None
    left = [one["left"] for one in asked.told if "left" in one]
    assert sorted(left, reverse=True) == left
    assert "did not end in time" not in cluster.text


def test_a_deaf_worker_is_killed_at_its_deadline_and_the_operation_goes_on(
    supervise: Supervise,
) -> None:
    cluster = supervise(ways={"worker-1": "deaf"}, policy={"stop_timeout": 0.5}).ready()
    assert cluster.ask("scale", workers=1)["slots"] == [0]
    assert "scale: w1 did not end in time and was killed" in cluster.text
    assert "worker-1 (pid" in cluster.text
    assert "did not end in time; it is killed" in cluster.text
    cluster.renew(policy={"stop_timeout": 20.0})  # the others are not deaf, only slow perhaps
    cluster.ask("restart", what=["hub"])
    cluster.process.send_signal(signal.SIGTERM)
    assert cluster.ended() == 0, "that was no failure of the end"


@pytest.mark.parametrize("name", ["hub", "balancer"])
def test_a_deaf_part_is_killed_and_its_successor_waited_for(
    supervise: Supervise, name: str
) -> None:
    cluster = supervise(ways={name: "deaf once"}, policy={"stop_timeout": 0.5}).ready()
    before = cluster.pid(name)
    cluster.ask("restart", what=[name])
    assert cluster.status()[name]["state"] == "ready"
    assert cluster.pid(name) != before
    assert f"{name} (pid {before}) did not end in time; it is killed" in cluster.text


def test_a_reload_does_not_wait_for_a_hub_that_cannot_come_up(supervise: Supervise) -> None:
    cluster = supervise(ways={"hub": "refuse later"}, policy={"backoff_first": 10.0}).ready()
    os.kill(cluster.pid("hub"), signal.SIGKILL)
    until(lambda: cluster.status()["hub"]["error"], cluster, 30)
    error = refused(cluster, "reload")
    assert error.exit_code == 1
    assert str(error).startswith("the module is broken\nline 2\n\nThe hub does not come up")
    assert "`limpet restart hub` starts it at once" in str(error)
    cluster.renew(ways={})
    cluster.ask("restart", what=["hub"])
    cluster.ask("reload")


def test_one_operation_at_a_time_and_stop_interrupts_it(supervise: Supervise) -> None:
    cluster = supervise(ways={"worker-1": "drain 30"}, at_once=10).ready()
    asked = Asked(cluster, "scale", workers=1)
    until(lambda: cluster.journal("worker-1", "term"), cluster)
    error = refused(cluster, "reload")
    words = r"a scale has been running for \d+ s \(draining w1\): one at a time"
    assert re.search(words, str(error)), error
    assert ask(cluster.directory, "status")["operation"]["verb"] == "scale"
    assert cluster.ask("stop", quick=True) == {"forced": False}
    asked.wait()
    assert asked.error is not None
    assert "scale was interrupted: the cluster is being stopped" in str(asked.error)
    assert cluster.ended() == 0


def test_operations_are_refused_before_the_cluster_is_ready(supervise: Supervise) -> None:
    cluster = supervise(ways={"worker-1": "start when told"})
    until(lambda: cluster.journal("worker-0", "start"), cluster)
    assert "still starting" in str(refused(cluster, "reload"))
    cluster.tell("worker-1")
    cluster.ready()
    cluster.ask("scale", workers=1)


def test_stop_waits_for_the_end_and_says_so(supervise: Supervise) -> None:
    cluster = supervise(ways={"worker-0": "drain until told"}).ready()
    pids = [one["pid"] for one in cluster.status().values()]
    asked = Asked(cluster, "stop")
    waiting = "waiting for hub, worker-0, balancer"
    until(lambda: waiting in [one["progress"] for one in list(asked.told)], cluster)
    cluster.tell("worker-0")
    assert asked.wait().answer == {"forced": False}
    assert all(map(gone, pids))
    assert cluster.ended() == 0
    with pytest.raises(NoSupervisorError):
        ask(cluster.directory, "stop")
    assert supervisor_pid(cluster.directory) == 0


def test_stop_without_waiting(supervise: Supervise) -> None:
    cluster = supervise().ready()
    assert supervisor_pid(cluster.directory) == cluster.process.pid
    assert cluster.ask("stop", wait=False) == {"started": "stop"}
    assert cluster.ended() == 0


def test_a_quick_stop_of_a_deaf_worker_kills_it(supervise: Supervise) -> None:
    cluster = supervise(ways={"worker-0": "deaf"}, policy={"stop_timeout": 30}).ready()
    began = time.monotonic()
    assert cluster.ask("stop", quick=True) == {"forced": True}
    assert time.monotonic() - began < 15
    assert cluster.ended() == 1


def test_a_quick_stop_does_not_let_a_worker_ask_for_more_time(supervise: Supervise) -> None:
    cluster = supervise(ways={f"worker-{slot}": "drain 30" for slot in (0, 1)}, at_once=10).ready()
    cluster.process.send_signal(signal.SIGTERM)
    until(lambda: len(cluster.journal("worker", "term")) == 2, cluster)
    cluster.process.send_signal(signal.SIGINT)
    assert cluster.ended() == 0


def test_a_third_interrupt_kills_without_waiting(supervise: Supervise) -> None:
    ways = {"hub": "deaf", "worker-0": "deaf", "worker-1": "drain 30"}
    # The second one would come to killing before the third had its turn.
    cluster = supervise(ways=ways, policy={"stop_timeout": 60}, at_once=60).ready()
    draining = cluster.pid("worker-1")
    cluster.process.send_signal(signal.SIGINT)
    until(lambda: cluster.journal("worker-1", "term"), cluster)
    cluster.process.send_signal(signal.SIGINT)
    until(lambda: gone(draining), cluster)  # told to be quick
    cluster.process.send_signal(signal.SIGINT)
    assert cluster.ended() == 1
    assert "did not end in time" not in cluster.text, "that is what the second one comes to"


def test_restart_of_single_parts(supervise: Supervise) -> None:
    cluster = supervise().ready()
    for what in ("hub", "balancer", "w1"):
        before = {name: one["pid"] for name, one in cluster.status().items()}
        cluster.ask("restart", what=[what])
        changed = {n for n, one in cluster.status().items() if one["pid"] != before[n]}
        assert changed == {what.replace("w1", "worker-1")}
        assert {one["state"] for one in cluster.status().values()} == {"ready"}
    assert cluster.status()["hub"]["ends"] == {"restart": 1}
    error = refused(cluster, "restart", what=["w7"])
    assert error.exit_code == 2
    assert str(error) == "'w7': expected hub, balancer, workers or one of w0, w1"


def test_restart_of_everything_goes_in_order(supervise: Supervise) -> None:
    cluster = supervise().ready()
    cluster.renew(mark="new")
    asked = Asked(cluster, "restart").wait()
    assert asked.answer is not None, asked.error
    starts = [one[0] for one in cluster.journal(what="start new")]
    assert starts[:3] == ["hub", "balancer", "worker-2"]
    assert set(starts[3:]) == {"worker-0", "worker-1"}
    ports = {one[1] for one in cluster.journal("balancer", "listens")}
    assert len(ports) == 1, "the sockets were open all the time"


def test_restart_of_a_hub_that_does_not_come_up(supervise: Supervise) -> None:
    cluster = supervise(ways={"hub": "crash later"}).ready()
    error = refused(cluster, "restart", what=["hub", "workers"])
    assert error.exit_code == 75
    assert "hub ended with exit code 3 before it was ready" in str(error)
    assert len(cluster.journal("worker", "start")) == 2


def test_a_dry_run_only_tells(supervise: Supervise) -> None:
    cluster = supervise().ready()
    for verb, more, words in (
        ("scale", {"workers": 1}, ["draining w1", "w1 has ended", "1 worker now: w0"]),
        ("reload", {}, ["starting w2 in the spare slot", "draining w0", "w0 is ready"]),
        ("restart", {"what": ["hub"]}, ["restarting the hub"]),
        ("restart", {"rolling": True}, ["draining w1"]),
        ("stop", {}, ["ending hub, worker-0, worker-1, balancer"]),
    ):
        asked = Asked(cluster, verb, dry_run=True, **more).wait()
        assert asked.answer is not None
        assert asked.answer["dry_run"] is True
        assert set(words) <= {one["progress"] for one in asked.told}
    assert len(cluster.journal(what="start")) == 4
    assert not cluster.journal(what="term")


def test_without_waiting_it_goes_on_alone(supervise: Supervise) -> None:
    cluster = supervise().ready()
    assert cluster.ask("scale", workers=3, wait=False) == {"started": "scale"}
    until(lambda: workers(cluster) == dict.fromkeys("012", "ready"), cluster)


def test_an_operation_survives_the_one_who_asked(supervise: Supervise) -> None:
    cluster = supervise(ways={"worker-1": "drain 1.5"}).ready()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(cluster.directory / "supervisor.sock"))
        connection.sendall(b'{"verb": "scale", "workers": 1}\n')
        assert connection.recv(100)
    until(lambda: workers(cluster) == {"0": "ready"}, cluster)


def test_an_interrupted_command_says_that_the_operation_goes_on(supervise: Supervise) -> None:
    cluster = supervise(ways={"worker-0": "drain until told"}).ready()
    asking = subprocess.Popen(
        [sys.executable, "-m", "limpet", "reload", f"--run-dir={cluster.directory}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    until(lambda: "draining w0" in cluster.text, cluster)
    asking.send_signal(signal.SIGINT)
    _, errors = asking.communicate(timeout=20)
    assert asking.returncode == 130
    assert b"reload goes on; limpet status tells how it goes" in errors
    cluster.tell("worker-0")
    until(lambda: "w0 and w1 run the new code" in cluster.text, cluster)


def test_signals(supervise: Supervise) -> None:
    cluster = supervise(ways={"worker-2": "start when told"}).ready()
    cluster.process.send_signal(signal.SIGTTIN)
    until(lambda: cluster.journal("worker-2", "start"), cluster)
    cluster.process.send_signal(signal.SIGTTIN)  # its turn comes when the first is done
    cluster.process.send_signal(signal.SIGUSR1)
    cluster.process.send_signal(signal.SIGUSR2)
    assert workers(cluster)["2"] == "starting"  # signals are taken before it answers
    cluster.tell("worker-2")
    until(lambda: workers(cluster) == dict.fromkeys("0123", "ready"), cluster)
    assert re.search(r"INFO balancer: ready, pid \d+, restarts: 0, at work", cluster.text)
    cluster.process.send_signal(signal.SIGTTOU)
    until(lambda: workers(cluster) == dict.fromkeys("012", "ready"), cluster)
    cluster.renew(mark="new")
    cluster.process.send_signal(signal.SIGHUP)
    until(lambda: "reload: w0, w1 and w2 run the new code" in cluster.text, cluster)
    until(lambda: workers(cluster) == dict.fromkeys("012", "ready"), cluster)
    for left in (2, 1):  # one at a time: two of a kind that wait are one
        cluster.process.send_signal(signal.SIGTTOU)
        until(partial(_are_left, cluster, left), cluster)
    assert "to end the cluster there is stop" not in cluster.text
    cluster.process.send_signal(signal.SIGTTOU)
    until(lambda: "to end the cluster there is stop" in cluster.text, cluster)
    assert workers(cluster) == {"0": "ready"}


def _are_left(cluster: Supervised, count: int) -> bool:
    return list(workers(cluster).values()) == ["ready"] * count


def test_in_development_code_may_change_during_a_reload(
    supervise: Supervise, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text("")
    development = {"stall_after": 0.0, "start_timeout": 0.0}
    ways = {"worker-0": "drain until told"}
    cluster = supervise(watch=str(tmp_path), ways=ways, policy=development).ready()
    asked = Asked(cluster, "reload")
    until(lambda: ("drain", 0) in asked.steps(), cluster)
    rewrite(tmp_path / "app.py", "x = 1")
    until(lambda: "app.py changed" in cluster.text, cluster)
    cluster.tell("worker-0")
    asked.wait()
    assert asked.answer is not None, asked.error
    assert asked.answer["slots"] == [0, 1]
    until(lambda: workers(cluster) == {"0": "ready", "1": "ready"}, cluster)


def test_reasons_of_an_end(supervise: Supervise) -> None:
    ways = {"worker-2": "crash later when told"}
    cluster = supervise(workers=3, ways=ways, policy={"stall_after": 3.0}).ready()

    def ends() -> dict[str, Any]:
        return {name: one["last_end"] for name, one in cluster.status().items() if one["last_end"]}

    os.kill(cluster.pid("worker-0"), signal.SIGSTOP)
    until(lambda: "worker-0" in ends(), cluster)
    os.kill(cluster.pid("worker-1"), signal.SIGKILL)
    os.kill(cluster.pid("worker-2"), signal.SIGSEGV)
    until(lambda: len(ends()) == 3, cluster)
    assert ends()["worker-0"].startswith("was silent for too long; was killed by ")
    assert ends()["worker-1"] == "was killed by SIGKILL"
    assert ends()["worker-2"] == "was killed by SIGSEGV"
    assert ask(cluster.directory, "status")["worker_ends"] == {"signal": 2, "stalled": 1}
    cluster.tell("worker-2")
    until(lambda: ends()["worker-2"] == "ended with exit code 3", cluster)
