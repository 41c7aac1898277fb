"""Tables that fit the terminal, and progress with and without one."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from limpet_cluster.cli.tables import Column, cells, fit, layout, memory, pad, progress, span


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


HEADER = (
    Column("NAME", shrink=0),
    Column("N", right=True, shrink=0),
    Column("ROOM"),
    Column("STATUS", shrink=2),
)
ROW = ("worker-0", 12, "harbour of Hamburg", "a long story of what happened to it")


def test_without_a_terminal_nothing_is_cut() -> None:
    assert layout(HEADER, [ROW]) == [
        "NAME       N  ROOM                STATUS",
        "worker-0  12  harbour of Hamburg  a long story of what happened to it",
    ]


def test_columns_give_way_by_their_priority() -> None:
    assert layout(HEADER, [ROW], 60)[1] == (
        "worker-0  12  harbour of Hamburg  a long story of what happ…"
    )
    assert layout(HEADER, [ROW], 40)[1] == "worker-0  12  harbour of Hamburg  a lon…"
    assert layout(HEADER, [ROW], 32)[1] == "worker-0  12  harbour o…  a lon…"
    assert layout(HEADER, [ROW], 20)[1] == "worker-0  12  har… …", "then the line itself"


def test_the_longest_of_equals_gives_way_first() -> None:
    lines = layout(("A", "B"), [("x" * 20, "y" * 6)], 16)
    assert lines[1] == "xxxxxxx…  yyyyyy"


def test_wide_characters_take_two_cells() -> None:
    assert cells("港口") == 4
    assert cells("e\u0301") == 1
    assert fit("港口abc", 4) == "港…"
    assert pad("港", 4) == "港  "
    assert layout(("ROOM", "N"), [("港口", 1), ("port", 2)]) == ["ROOM  N", "港口  1", "port  2"]


def test_what_could_steer_a_terminal_is_made_visible() -> None:
    assert layout(("ROOM",), [("a\x1b[2Jb\nc",)])[1] == r"a\x1b[2Jb\nc"


@given(st.text(max_size=30), st.integers(0, 40))
def test_a_fitted_text_never_takes_more(text: str, room: int) -> None:
    assert cells(fit(text, room)) <= room
    assert cells(pad(text, room)) == room


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), max_size=4))
def test_no_line_is_wider_than_the_terminal(rows: list[tuple[str, str]]) -> None:
    for width in (5, 20, 33):
        assert all(cells(line) <= width for line in layout(("ONE", "TWO"), rows, width))


def test_figures() -> None:
    assert [span(one) for one in (None, 3.2, 61, 7300, 200_000)] == [
        "-", "3 s", "1 min", "2 h", "2 d",
    ]  # fmt: skip
    assert memory(50 * 2**20) == "50 MiB"
    assert memory(1.5 * 2**30) == "1.5 GiB"


# --- progress -----------------------------------------------------------------


def test_progress_elsewhere_is_some_lines() -> None:
    stream = io.StringIO()
    with progress("draining w1", 120, stream=stream) as bar:
        for left in range(120, -1, -1):
            bar.set(left=left)
        bar.say("w1 is gone")
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["draining w1: 0 of 120", "draining w1: 12 of 120"]
    assert lines[-2:] == ["draining w1: 120 of 120", "w1 is gone"]
    assert len(lines) == 12


def test_progress_on_a_terminal_is_one_bar() -> None:
    stream = Terminal()
    with progress("draining w1", stream=stream) as bar:
        bar.set(left=120)
        bar.set(left=60)
        bar.say("half of it")
    shown = stream.getvalue()
    assert "░" * 30 + " 0/120\r\x1b[K" in shown
    assert "█" * 15 + "░" * 15 + " 60/120\r\x1b[Khalf of it\n" in shown
    assert shown.endswith(" 60/120\n"), "the bar stays below"


def test_quiet_progress_shows_nothing() -> None:
    stream = Terminal()
    with progress("x", 3, stream=stream, quiet=True) as bar:
        bar.set(done=2)
        bar.say("y")
    assert not stream.getvalue()


def test_progress_without_a_total_says_lines_only() -> None:
    stream = io.StringIO()
    with progress("x", stream=stream) as bar:
        bar.set(left=0)
        bar.say("y")
    assert stream.getvalue() == "y\n"
