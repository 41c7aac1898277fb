"""`limpet top`: the rates, what it shows, and how it leaves a terminal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness import RunningCluster
from limpet_cluster.api_client import NotReachableError
from limpet_cluster.cli import limpet
from limpet_cluster.cli.overview import Overview, total
from limpet_cluster.cli.rates import Meter
from limpet_cluster.cli.top import View, rooms, summary, workers
from terminal import Terminal


def worker(life: str = "a", age: float | None = 0.0) -> dict[str, Any]:
    return {
        "id": life,
        "name": "w0",
        "slot": 0,
        "state": "ready",
        "session_count": 3,
        "loop_lag_seconds": 0.002,
        "rss_bytes": 50 * 2**20,
        "figures_age_seconds": age,
        "counters": {},
    }


def reported(opened: float, at: float, age: float = 0.0, life: str = "a") -> Overview:
    one = worker(life, age)
    one["counters"] = {
        'limpet_sessions_opened_total{transport="polling"}': opened,
        'limpet_transport_messages_total{direction="in",transport="websocket"}': opened * 10,
        'limpet_transport_messages_total{direction="out",transport="polling"}': opened * 20,
        'limpet_events_total{namespace="/",direction="in"}': opened * 5,
        'limpet_events_total{namespace="/",direction="out"}': 999,
    }
    return Overview(workers=[one], at=at)


# --- rates -------------------------------------------------------------------


def test_a_rate_is_the_difference_of_two_reports() -> None:
    meter = Meter()
    meter.read(reported(100, at=10.0))
    assert not meter.rates, "one report says nothing"
    meter.read(reported(104, at=12.0))
    rates = meter.rates["a"]
    assert (rates.connects, rates.messages_in, rates.messages_out, rates.events) == (2, 20, 40, 10)
    assert meter.sum() == rates


def test_the_time_of_a_report_counts_not_that_of_the_look() -> None:
    meter = Meter()
    meter.read(reported(100, at=10.0, age=0.9))  # reported at 9.1
    meter.read(reported(104, at=11.2, age=0.1))  # at 11.1
    assert meter.rates["a"].connects == pytest.approx(2)


def test_a_report_that_was_seen_before_changes_nothing() -> None:
    meter = Meter()
    meter.read(reported(100, at=10.0))
    meter.read(reported(104, at=12.0))
    meter.read(reported(104, at=12.3, age=0.3))
    assert meter.rates["a"].connects == 2


def test_a_new_life_begins_anew() -> None:
    meter = Meter()
    meter.read(reported(100, at=10.0))
    meter.read(reported(104, at=12.0))
    meter.read(reported(1, at=14.0, life="b"))
    assert not meter.rates
    assert meter.sum().connects == 0
    meter.read(reported(3, at=16.0, life="b"))
    assert meter.rates["b"].connects == 1


def test_counters_are_summed_by_label() -> None:
    counters = [
        {'x_total{a="1",b="2"}': 3, 'x_total{a="1",b="3"}': 4, "x_total_more": 100},
        {'x_total{a="2",b="2"}': 5, "x_total": 7},
    ]
    assert total(counters, "x_total") == 19
    assert total(counters, "x_total", a="1") == 7
    assert total(counters, "x_total", a="1", b="2") == 3


# --- what is shown --------------------------------------------------------------


def test_workers_by_their_order() -> None:
    first, second = worker("a"), {**worker("b"), "name": "w1", "slot": 1, "session_count": 9}
    names = [line.split()[0] for line in workers([second, first], {}, "slot", None)]
    assert names == ["WORKER", "w0", "w1"]
    names = [line.split()[0] for line in workers([first, second], {}, "sessions", None)]
    assert names == ["WORKER", "w1", "w0"]


def test_a_draining_worker_tells_what_is_left() -> None:
    lines = workers([{**worker(), "state": "draining"}], {}, "slot", None)
    assert "draining, 3 left" in lines[1]


def test_room_names_cannot_steer_the_terminal() -> None:
    room = {"room": "a\x1b[2J", "occupancy": {"users": 1, "connections": 2}}
    assert "\x1b" not in "".join(rooms([room], 80))


def test_what_is_missing_is_said() -> None:
    found = summary(Overview(workers=[worker()]), Meter().sum())
    assert found[-1] == "not whole: the hub does not answer"


def test_a_hub_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> Overview:
        raise NotReachableError("no hub answers")

    view = View(Path("/nowhere"), Path("/nowhere/api.sock"), 1.0, "slot", "/")
    monkeypatch.setattr("limpet_cluster.cli.top.look", lambda *_: reported(100, at=10.0))
    view.try_update()
    monkeypatch.setattr("limpet_cluster.cli.top.look", away)
    view.try_update()
    lines = view.lines(80, datetime.now(UTC))
    assert lines[1] == "no hub answers"
    assert any(line.startswith("w0") for line in lines), "what was known is still shown"


# --- on a terminal ----------------------------------------------------------------

Open = Callable[..., Terminal]


@pytest.fixture
def top(cluster: RunningCluster) -> Iterator[Open]:
    """Return ``top(*arguments)``: a terminal on which it runs."""
    opened: list[Terminal] = []

    def start(*arguments: str, columns: int = 100, lines: int = 30) -> Terminal:
        command = [sys.executable, "-m", "limpet", "top", f"--run-dir={cluster.run_directory}"]
        terminal = Terminal([*command, *arguments], columns, lines)
        opened.append(terminal)
        return terminal.__enter__()

    yield start
    for terminal in opened:
        terminal.__exit__(None, None, None)


def restored(terminal: Terminal) -> bool:
    """Whether the terminal is as it was: its settings, its screen, its cursor."""
    return terminal.settings == terminal.before and terminal.raw.rstrip().endswith(
        "\x1b[?25h\x1b[?1049l"
    )


@pytest.mark.processes
def test_it_shows_the_workers_until_q(top: Open) -> None:
    terminal = top("--delay=0.2")
    screen = terminal.wait_for("q quit")
    assert "limpet top" in screen
    assert len([line for line in screen.splitlines() if line.startswith(("w0", "w1"))]) == 2
    assert len(screen.splitlines()) == 30
    assert terminal.settings != terminal.before
    terminal.type("o")
    terminal.wait_for("sorted by sessions")
    terminal.type("q")
    assert terminal.wait() == 0
    assert restored(terminal)


@pytest.mark.processes
def test_it_follows_the_size_of_the_terminal(top: Open) -> None:
    terminal = top("--delay=60", columns=120)
    terminal.wait_for("EVENTS/S")
    terminal.resize(50, 8)

    def fits(screen: str) -> bool:
        lines = screen.splitlines()
        return len(lines) == 8 and max(map(len, lines)) <= 50 and "q quit" in lines[-1]

    assert "…" in terminal.wait_until(fits, "it does not fit")


@pytest.mark.processes
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGHUP, 129)],
)
def test_every_end_restores_the_terminal(top: Open, number: signal.Signals, code: int) -> None:
    terminal = top()
    terminal.wait_for("q quit")
    terminal.signal(number)
    assert terminal.wait() == code
    assert restored(terminal)


@pytest.mark.processes
def test_ctrl_z_gives_the_terminal_back_for_a_while(top: Open) -> None:
    terminal = top()
    terminal.wait_for("q quit")
    terminal.signal(signal.SIGTSTP)

    def stands_still(_screen: str) -> bool:
        stat = Path(f"/proc/{terminal.process.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"

    # It gives the terminal back before it stops: a CONT in between would be lost.
    terminal.wait_until(stands_still, "it did not stop")
    terminal.wait_until(lambda _screen: restored(terminal), "the terminal was not given back")
    terminal.signal(signal.SIGCONT)
    terminal.wait_for("q quit")
    terminal.type("q")
    assert terminal.wait() == 0
    assert restored(terminal)


@pytest.mark.processes
def test_elsewhere_it_prints(cluster: RunningCluster) -> None:
    arguments = ["top", f"--run-dir={cluster.run_directory}", "-b", "-n", "2", "-d", "0.1"]
    result = CliRunner().invoke(limpet, arguments)
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert result.output.count("BIGGEST ROOMS") == 2


@pytest.mark.processes
def test_for_programs_each_look_is_a_line(cluster: RunningCluster) -> None:
    place = f"--run-dir={cluster.run_directory}"
    result = CliRunner().invoke(limpet, ["top", place, "--json", "-n", "2", "-d", "0.1"])
    assert result.exit_code == 0, result.output
    first, second = map(json.loads, result.output.splitlines())
    assert first["at"] < second["at"]
    assert [one["name"] for one in second["workers"]] == ["w0", "w1"]
    assert second["error"] is None


@pytest.mark.processes
def test_for_programs_the_rates_come_with_the_second_report(cluster: RunningCluster) -> None:
    command = [sys.executable, "-m", "limpet", "top", "--json", "-d", "0.2"]
    with subprocess.Popen(
        [*command, f"--run-dir={cluster.run_directory}"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        first: dict[str, Any] = json.loads(process.stdout.readline())
        rates = [one["rates"] for one in first["workers"]]
        assert rates == [None, None], "one report says nothing"
        while not (rates and all(rates)):  # as many looks as it takes until all have reported again
            rates = [one["rates"] for one in json.loads(process.stdout.readline())["workers"]]
        process.terminate()
    assert len(rates) == 2
    assert all(one.keys() >= {"connects", "events"} for one in rates)


def test_without_a_cluster_it_says_so(tmp_path: object) -> None:
    result = CliRunner().invoke(limpet, ["top", f"--run-dir={tmp_path}/none"])
    assert result.exit_code == 4
