"""What the processes log: JSON and lines for people, whose code it is, repeats, bad records."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import wait_until
from limpet_adapters.counters import counters
from limpet_cluster import logs
from limpet_cluster.repeats import Repeats
from log_sink import Sink


def _fail(sink: Sink, error: Exception, text: str = "failed") -> None:
    try:
        raise error
    except type(error):
        sink.logger.exception(text)


# --- the form of a record -----------------------------------------------------


def test_a_record_is_one_json_object_in_one_line(sink: Sink) -> None:
    sink.logger.info("first\nsecond %d", 2, extra={"duration_ms": 1.5})
    assert len(sink.lines) == 1
    record = sink.last
    stamp = record.pop("ts")
    assert stamp.endswith("+00:00")
    assert len(stamp) == len("2026-01-02T03:04:05.678+00:00")
    assert record == {
        "level": "info",
        "msg": "first\nsecond 2",
        "node": "here",
        "worker": "w3",
        "process": "worker-3",
        "pid": os.getpid(),
        "logger": sink.logger.name,
        "duration_ms": 1.5,
    }


def test_only_a_worker_has_the_field_worker() -> None:
    one = Sink(logs.JsonFormatter("balancer", node="here"))
    one.logger.info("hello")
    assert "worker" not in one.last
    assert one.last["process"] == "balancer"


def test_a_traceback_is_in_the_field_err(sink: Sink) -> None:
    _fail(sink, ValueError("no such thing"))
    assert sink.last["err"].endswith("ValueError: no such thing")
    assert "Traceback" in sink.last["err"]
    sink.logger.error("outside of any", exc_info=True)  # noqa: LOG014
    assert "err" not in sink.last


def test_an_extra_does_not_replace_what_the_record_says(sink: Sink) -> None:
    sink.logger.info("text", extra={"ts": 1, "level": "x", "err": "mine", "sid": "mine"})
    record = sink.last
    assert record["level"] == "info"
    assert record["ts"] != 1
    assert (record["ts_"], record["level_"], record["err_"]) == (1, "x", "mine")
    assert record["sid"] == "mine"


@pytest.mark.parametrize(
    ("level", "priority"),
    [("debug", 7), ("info", 6), ("warning", 4), ("error", 3), ("critical", 2)],
)
def test_the_journal_is_told_the_priority(level: str, priority: int) -> None:
    one = Sink(logs.JsonFormatter("hub", journal=True))
    one.logger.log(getattr(logging, level.upper()), "text")
    assert one.lines[0].startswith(f"<{priority}>{{")
    assert json.loads(one.lines[0][3:])["msg"] == "text"


@pytest.mark.parametrize("character", ["a", "😀", "\x00", '"'])
def test_the_journal_never_gets_a_line_that_it_would_break(character: str) -> None:
    one = Sink(logs.JsonFormatter("hub", journal=True))
    extra: dict[str, object] = {character * 60_000: 1}
    extra |= {f"{character * 50}{number}": character * 2000 for number in range(50)}
    error = ValueError(character * 20_000)
    one.logger.error(character * 20_000, exc_info=error, extra=extra, stack_info=True)
    (line,) = one.lines
    assert len(line.encode()) < 48 * 1024
    record = json.loads(line[3:])
    assert record["msg"].startswith(character * 100)
    assert record["err"].startswith("ValueError")
    assert record["process"] == "hub"


def test_each_line_of_a_record_for_people_has_the_journals_priority() -> None:
    one = Sink(logs.HumanFormatter("hub", journal=True))
    one.logger.error("two\nlines")
    assert [line[:3] for line in one.lines] == ["<3>", "<3>"]


def test_people_read_a_line_and_who_it_is_about(human: Sink) -> None:
    human.logger.info("ready")
    human.logger.warning("slow", extra={"user": "ann"})
    assert human.lines[0].split(" ", 1)[1] == "worker-3   ready"
    assert human.lines[1].split(" ", 1)[1] == "worker-3   warning: slow  [user=ann]"


def test_a_client_cannot_write_lines_or_colours_of_its_own(human: Sink) -> None:
    human.logger.info("name: %s", "\x1b[31mred\n14:00:00.000 worker-0  all is well\x9b2J")
    assert "\x1b" not in human.stream.getvalue()
    assert "\x9b" not in human.stream.getvalue()
    assert "\\x1b[31mred" in human.lines[0]
    assert human.lines[1].startswith("    14:00:00")


# --- nothing a call can do loses its record or raises ---------------------------


class Nasty:
    """Raises whatever is asked of it."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __repr__


def _endless() -> object:
    endless: list[object] = []
    endless.append(endless)
    return endless


EXTRAS: dict[str, dict[Any, object]] = {
    "an object": {"a": object()},
    "a nasty one": {"a": Nasty()},
    "a nasty one in others": {"a": {"deep": [Nasty()]}},
    "a huge number": {"a": 1 << 70},
    "half a surrogate pair": {"a": "half \ud800"},
    "a strange key": {"half \ud800": 1},
    "a cycle": {"a": _endless()},
    "keys of other types": {"a": {1: {("x",): 2}}},
    "no number": {"a": float("nan")},
    "bytes": {"a": b"\xff"},
    "a long text": {"a": "x" * 100_000},
    "many fields": {f"field {n}": "x" * 1000 for n in range(1000)},
    "a class": {"a": int},
}


@pytest.mark.parametrize("form", ["json", "human"])
@pytest.mark.parametrize("name", EXTRAS)
def test_any_extra_can_be_logged(form: str, name: str, request: Any) -> None:
    one: Sink = request.getfixturevalue("sink" if form == "json" else "human")
    one.logger.info("text", extra=EXTRAS[name])
    assert "text" in one.lines[-1]
    assert len(one.stream.getvalue()) < 140_000
    one.stream.getvalue().encode()
    if form == "json":
        assert one.last["msg"] == "text"
        assert len(one.lines) == 1


MISFITS: dict[str, tuple[Any, tuple[Any, ...], str]] = {
    "too few": ("%d of %d", (1,), "%d of %d"),
    "another type": ("%d", ("x",), "%d"),
    "too many": ("none", (1, 2), "none"),
    "a nasty one": ("%s", (Nasty(),), "%s"),
    "another name": ("%(name)s", ({"other": 1},), "%(name)s"),
    "half a surrogate pair": ("half \ud800 %s", ("\udfff",), "half \\ud800 \\udfff"),
    "no text": (Nasty(), (), "cannot be shown"),
    "no text, with arguments": (Nasty(), (1,), "cannot be shown"),
}


@pytest.mark.parametrize("name", MISFITS)
@pytest.mark.parametrize("form", ["json", "human"])
def test_arguments_that_do_not_fit_are_shown_as_they_are(
    form: str, name: str, request: Any
) -> None:
    text, arguments, shown = MISFITS[name]
    one: Sink = request.getfixturevalue("sink" if form == "json" else "human")
    one.logger.error(text, *arguments)
    one.stream.getvalue().encode()
    assert shown in (one.last["msg"] if form == "json" else one.lines[-1])


def test_an_error_that_cannot_be_shown_is_named(sink: Sink) -> None:
    class UnspeakableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    _fail(sink, UnspeakableError())
    assert "UnspeakableError" in sink.last["err"]


def test_long_messages_and_tracebacks_are_cut(sink: Sink) -> None:
    sink.logger.info("%s", "m" * 100_000)
    assert sink.last["msg"].startswith("m" * logs.LONGEST + "…")
    assert len(sink.last["msg"]) < logs.LONGEST + 100
    assert "83616 characters more" in sink.last["msg"]
    _fail(sink, ValueError("e" * 100_000))
    assert sink.last["err"].startswith("Traceback")
    assert sink.last["err"].endswith("eee")
    assert len(sink.last["err"]) < logs.LONGEST + 100


def test_a_stream_that_is_gone_is_counted(sink: Sink) -> None:
    before = counters["limpet_log_records_lost_total"]
    sink.stream.close()
    sink.logger.info("text")
    assert counters["limpet_log_records_lost_total"] == before + 1
    sink.handler.setStream(io.StringIO())


# --- repeats --------------------------------------------------------------------


def test_ten_of_a_kind_are_admitted_and_the_others_counted() -> None:
    repeats: Repeats[str] = Repeats(most=10, window=60)
    assert [repeats.admit("a", 0.0) for _ in range(250)].count(True) == 10
    assert repeats.admit("b", 1.0)
    assert repeats.due(59.9) == []
    assert repeats.wait(59.0) == 1.0
    assert repeats.due(60.0) == [("a", 240)]
    assert repeats.due(60.0) == []
    assert repeats.wait(60.0) is None
    assert repeats.admit("a", 60.0)


def test_kinds_without_repeats_have_nothing_to_sum_up() -> None:
    repeats: Repeats[int] = Repeats(most=10, window=60)
    assert all(repeats.admit(kind, 0.0) for kind in range(100))
    assert repeats.wait(1.0) is None
    assert repeats.due(61.0) == []
    assert repeats.end() == []


def test_memory_is_bounded_and_what_is_forgotten_is_summed_up_before() -> None:
    repeats: Repeats[int] = Repeats(most=2, window=60, room=100)
    for _ in range(5):
        repeats.admit(-1, 0.0)
    assert all(repeats.admit(kind, 1.0) for kind in range(100_000))
    assert len(repeats._seen) == 100
    assert repeats.wait(1.0) == 0.0
    assert repeats.due(1.0) == [(-1, 3)]


def test_the_end_sums_up_what_is_left() -> None:
    repeats: Repeats[str] = Repeats(most=1, window=60)
    for _ in range(3):
        repeats.admit("a", 0.0)
    assert repeats.end() == [("a", 2)]
    assert repeats.wait(0.0) is None


def test_a_repeated_warning_is_summed_up_once_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    # The window is not over before we say so, however long a pause takes.
    now = [100.0]
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: now[0]))
    one = Sink(logs.JsonFormatter("worker-0"), repeats=Repeats(most=10, window=0.2))
    for number in range(50):
        one.logger.warning("slow consumer %d", number)
    one.logger.warning("another")
    assert len(one.lines) == 11
    now[0] += 1
    wait_until(lambda: len(one.lines) == 12, 15.0, "no summary")
    assert one.last["msg"] == "… 40 more of these in 0.2 s: slow consumer %d"
    assert (one.last["repeated"], one.last["level"]) == (40, "warning")
    assert one.last["logger"] == one.logger.name
    one.handler.close()
    assert len(one.lines) == 12


def test_what_was_left_out_is_told_at_the_end_of_the_process(sink: Sink) -> None:
    for _ in range(12):
        sink.logger.error("again")
    sink.handler.close()
    assert len(sink.lines) == 11
    assert sink.last["repeated"] == 2


def test_information_is_never_left_out(sink: Sink) -> None:
    for _ in range(50):
        sink.logger.info("the same")
        sink.logger.debug("the same")
    assert len(sink.lines) == 100


def test_errors_with_a_traceback_are_one_kind_where_they_were_raised(sink: Sink) -> None:
    for number in range(40):
        _fail(sink, (ValueError if number % 2 else KeyError)(number), f"another text: {number}")
    assert len(sink.lines) == 20
    sink.handler.close()
    assert {record["repeated"] for record in map(json.loads, sink.lines[20:])} == {10}
    assert "ValueError at " in sink.stream.getvalue().splitlines()[-1]


# --- processes -------------------------------------------------------------


def _child(code: str, tmp_path: Path, *, journal: bool, form: str = "json") -> str:
    """Run a process whose stderr is a file, which the journal claims to be or does not."""
    path = tmp_path / "stderr"
    with path.open("wb") as stderr:
        status = os.fstat(stderr.fileno())
        env = {name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"}
        inode = status.st_ino if journal else status.st_ino + 1
        env["JOURNAL_STREAM"] = f"{status.st_dev}:{inode}"
        subprocess.run(
            [sys.executable, "-c", f"{SET_UP.format(form=form)}\n{code}"],
            check=False,
            stderr=stderr,
            env=env,
            timeout=30,
        )
    return path.read_text(encoding="utf-8")


SET_UP = """
import logging, warnings
from limpet_cluster import logs
logs.set_up("hub", "debug", "{form}", node="here")
log = logging.getLogger("app")
"""


def test_a_process_of_the_journal_writes_priorities(tmp_path: Path) -> None:
    code = "log.warning('watch out'); log.debug('nothing')"
    lines = _child(code, tmp_path, journal=True).splitlines()
    assert [line[:4] for line in lines] == ["<4>{", "<7>{"]
    assert json.loads(lines[0][3:])["node"] == "here"
    lines = _child(code, tmp_path, journal=False).splitlines()
    assert [json.loads(line)["msg"] for line in lines] == ["watch out", "nothing"]
    lines = _child(code, tmp_path, journal=True, form="human").splitlines()
    assert [line[:3] for line in lines] == ["<4>", "<7>"]


def test_warnings_and_uncaught_errors_are_records_too(tmp_path: Path) -> None:
    code = "warnings.warn('old'); raise SystemError('the end \\ud800')"
    lines = _child(code, tmp_path, journal=False).splitlines()
    old, end = (json.loads(line) for line in lines)
    assert (old["logger"], old["level"]) == ("py.warnings", "warning")
    assert "UserWarning: old" in old["msg"]
    assert (end["msg"], end["level"]) == ("uncaught", "critical")
    assert end["err"].endswith("SystemError: the end \\ud800")


def test_a_process_ends_though_it_left_records_out(tmp_path: Path) -> None:
    lines = _child("for n in range(30): log.error('bad %d', n)", tmp_path, journal=False)
    assert len(lines.splitlines()) == 11
    assert json.loads(lines.splitlines()[-1])["repeated"] == 20
