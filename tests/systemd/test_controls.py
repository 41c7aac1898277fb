"""What the commands do that change a cluster of units, with units that are only pretended."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from limpet_cluster.cli import limpet
from limpet_cluster.fleet.controls import Controls, find_fleet
from limpet_cluster.fleet.fleet import FleetError, Say
from limpet_cluster.supervisor.commands import CommandError, NoAnswerInTimeError
from limpet_cluster.units import systemctl

PATIENCE = 100.0
"""Seconds that whoever asks waits, of a clock that `Units` puts forward."""


class Units:
    """The units of two workers; they start at once, and drain when they are let."""

    def __init__(self) -> None:
        self.running = [1, 2]
        self.enabled = [1, 2]
        self.journal: list[str] = []
        self.parted = False
        """Whether the target is stopped as soon as anybody drains."""
        self.slow: set[int] = set()
        """Slots whose workers never end their drain."""
        self.overdue: set[int] = set()
        """Slots whose workers still drain when the time of who asked is up."""
        self.idle: list[int] = []
        """Slots whose workers were drained."""
        self._stopped = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        self.journal.append("turn")
        yield

    async def watch(self) -> None:
        self._stopped = False

    async def stopped(self) -> bool:
        return self._stopped

    async def slots(self) -> list[int]:
        return sorted(self.running)

    async def drained(self) -> list[int]:
        return self.idle

    async def start(self, slot: int) -> None:
        if self._stopped:
            raise FleetError("the cluster is being stopped")
        self.journal.append(f"start {slot}")
        self.running.append(slot)

    async def drain(self, slot: int) -> None:
        self.journal.append(f"drain {slot}")
        if slot in self.running:
            self.running.remove(slot)
        self._stopped = self.parted
        if slot in self.overdue:
            # The time is up now, and was not a moment earlier, however slow this machine is.
            loop = asyncio.get_running_loop()
            clock = loop.time
            loop.time = lambda: clock() + PATIENCE  # type: ignore[method-assign]
        if slot in self.overdue | self.slow:
            await asyncio.sleep(600)

    async def check(self, slot: int) -> None:
        pass

    async def home(self) -> list[int]:
        return self.enabled

    async def keep(self, slots: Iterable[int]) -> None:
        self.enabled = sorted(slots)

    async def ask_for(self, slots: Iterable[int]) -> None:
        self.journal.append(f"ask for {list(slots)}")

    async def restart(self, what: list[str], say: Say) -> None:
        self.journal.append(f"restart {what}")


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> Units:
    units = Units()
    monkeypatch.setattr(systemctl, "installed", lambda: True)
    monkeypatch.setattr(systemctl, "SystemdFleet", lambda: units)
    return units


@pytest.fixture
def controls(units: Units, tmp_path: Path) -> Controls:
    return find_fleet(tmp_path)


def ask(
    controls: Controls, verb: str, timeout: float | None = None, **asked: Any
) -> tuple[Any, list[str]]:
    """Return what came of it, and what was said."""
    said: list[str] = []
    try:
        answer: Any = controls.ask(
            verb, timeout=timeout, heard=lambda told: said.append(told["progress"]), **asked
        )
    except CommandError as error:
        answer = error
    return answer, said


def test_relative_numbers_count_the_workers_that_are_to_be_there(
    units: Units, controls: Controls
) -> None:
    units.running = [1, 2, 3]  # the last is the spare of a reload that stopped half way
    answer, _ = ask(controls, "scale", workers="+1")
    assert answer["slots"] == units.enabled == [1, 2, 3]
    units.running, units.enabled = [1, 2, 3], [1, 2]
    answer, _ = ask(controls, "scale", workers="-1", dry_run=True)
    assert answer["slots"] == [1]
    answer, _ = ask(controls, "scale", workers="-1")
    assert answer["slots"] == units.enabled == [1]


@pytest.mark.parametrize("workers", ["-2", "+254", "0", "300", "many"])
def test_numbers_that_cannot_be_are_wrong_usage(
    units: Units, controls: Controls, workers: str
) -> None:
    answer, _ = ask(controls, "scale", workers=workers)
    assert answer.exit_code == 2
    assert units.journal == ["turn"]


@pytest.mark.parametrize("workers", ["0", "=0", "256", "300"])
def test_numbers_that_can_never_be_are_refused_before_anybody_is_asked(workers: str) -> None:
    done = CliRunner().invoke(limpet, ["scale", workers, "--run-dir=/nowhere"])
    assert done.exit_code == 2
    assert f"{workers}: expected to come to 1 to 255 workers" in done.output


def test_a_drained_worker_is_not_what_stays(units: Units, controls: Controls) -> None:
    units.idle = [1]
    answer, _ = ask(controls, "scale", workers="1", dry_run=True)
    assert answer["slots"] == [1]
    assert units.journal == []
    answer, _ = ask(controls, "scale", workers="1")
    assert answer["slots"] == units.enabled == [1]
    assert units.journal == ["turn", "drain 1", "start 1", "drain 2"]


@pytest.mark.parametrize(
    ("verb", "asked"),
    [("reload", {}), ("restart", {"what": ["workers"], "rolling": True}), ("restart", {})],
)
def test_who_is_interrupted_leaves_no_worker_stopped(
    units: Units, controls: Controls, verb: str, asked: dict[str, Any]
) -> None:
    units.overdue = {1}
    answer, said = ask(controls, verb, PATIENCE, **asked)
    assert isinstance(answer, NoAnswerInTimeError)
    assert any(line.startswith("interrupted. New code: ") for line in said)
    assert said[-1] == "w1 starts again as soon as it has ended"
    assert units.journal[-1] == "ask for [1]"
    assert units.enabled == [1, 2]


def test_a_scale_that_is_interrupted_says_who_runs(units: Units, controls: Controls) -> None:
    units.overdue = {2}
    answer, said = ask(controls, "scale", PATIENCE, workers="1")
    assert isinstance(answer, NoAnswerInTimeError)
    assert said[-1] == "interrupted. Running: w1. Draining: w2."
    assert units.enabled == [1], "as was asked for"


def test_a_scale_that_is_interrupted_brings_back_whom_it_renews(
    units: Units, controls: Controls
) -> None:
    units.idle, units.overdue = [1], {1}
    _, said = ask(controls, "scale", PATIENCE, workers="1")
    assert units.journal[-1] == "ask for [1]"
    assert said[-1] == "w1 starts again as soon as it has ended"
    assert units.enabled == [1, 2]


def test_a_scale_whose_renewed_worker_fails_was_done_in_part(
    units: Units, controls: Controls, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_slot: int) -> None:
        raise FleetError("no database")

    units.idle = [1]
    monkeypatch.setattr(units, "start", fails)
    answer, _ = ask(controls, "scale", workers="1")
    assert answer.exit_code == 75
    assert "no database" in str(answer)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order(
    units: Units, controls: Controls, number: signal.Signals
) -> None:
    """As when the terminal goes in which it runs, which takes no more text either."""
    units.slow = {1}
    gone: list[bool] = []

    def heard(told: Mapping[str, Any]) -> None:
        if told["progress"] == "draining w1":
            os.kill(os.getpid(), number)
            gone.append(True)
        if gone:
            raise BrokenPipeError

    with pytest.raises(CommandError, match=f"reload was ended by {number.name}") as told:
        controls.ask("reload", timeout=20.0, heard=heard)
    assert told.value.exit_code == 128 + number
    assert units.journal[-1] == "ask for [1]"


def test_that_a_command_changes_the_units_can_be_seen(tmp_path: Path) -> None:
    assert not systemctl.busy(tmp_path)
    lock = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert systemctl.busy(tmp_path)
    os.close(lock)
    assert not systemctl.busy(tmp_path)
    assert not systemctl.busy(tmp_path / "none")


def test_restart_is_about_the_workers_that_are_to_be_there(
    units: Units, controls: Controls
) -> None:
    units.running = [3]
    ask(controls, "restart", what=["workers"])
    assert sorted(units.running) == [1, 2]
    units.running = [2, 3]
    ask(controls, "restart", what=["w1"])
    assert sorted(units.running) == [1, 2]
    units.running = [1, 2, 3]
    ask(controls, "restart", what=["workers"], rolling=True)
    assert sorted(units.running) == [1, 2]


@pytest.mark.parametrize(
    ("verb", "asked"), [("reload", {}), ("restart", {}), ("scale", {"workers": "1"})]
)
def test_a_stop_interrupts_what_goes_on(
    units: Units, controls: Controls, verb: str, asked: dict[str, Any]
) -> None:
    units.parted = True
    answer, _ = ask(controls, verb, **asked)
    assert str(answer) == f"{verb} was interrupted: the cluster is being stopped"
    assert answer.exit_code == 1
    assert [one for one in units.journal if one.startswith("start")] in ([], ["start 3"])
    assert units.enabled == [1, 2], "they are to be there when it is started again"
