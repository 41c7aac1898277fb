"""How the commands print: columns that fit the terminal, progress, JSON for programs."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TextIO

import click

_GAP: Final = "  "
_BAR: Final = 30
"""Characters of a progress bar."""
_LINES: Final = 10
"""Lines that a progress writes where there is no terminal to draw on."""


def dump(document: object) -> str:
    """Return a document as indented JSON."""
    return json.dumps(document, indent=2, ensure_ascii=False)


# --- columns ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """How one column of a table behaves."""

    title: str
    right: bool = False
    """Figures stand to the right."""
    shrink: int = 1
    """Where there is no room, the columns of the highest number give way first; 0: none at all."""


def table(header: Sequence[str | Column], rows: Iterable[Sequence[object]]) -> None:
    """Print columns as wide as what is in them, on a terminal no wider than that.

    What would not fit a line is made visible; see `layout`.
    """
    for line in layout(header, rows, terminal_width()):
        click.echo(line)


def layout(
    header: Sequence[str | Column],
    rows: Iterable[Sequence[object]],
    width: int | None = None,
) -> list[str]:
    """Return the lines of a table.

    Columns give way in the order of their ``shrink``, the longest cells first, down to the width
    of their title; a cell that is cut ends with ``…``.

    Args:
        header: titles, or columns where more is to be said of them.
        rows: as many cells each.
        width: characters of a line at most; None: whatever it takes.
    """
    columns = [one if isinstance(one, Column) else Column(one) for one in header]
    lines = [
        tuple(one.title for one in columns),
        *(tuple(plain(str(cell)) for cell in row) for row in rows),
    ]
    widths = [max(map(cells, column)) for column in zip(*lines, strict=True)]
    if width is not None:
        _shrink(columns, widths, width)
    return [
        fit(
            _GAP.join(
                pad(cell, room, right=column.right)
                for cell, room, column in zip(line, widths, columns, strict=True)
            ).rstrip(),
            width,
        )
        for line in lines
    ]


def _shrink(columns: Sequence[Column], widths: list[int], width: int) -> None:
    """Make columns narrower until a line has room, or nothing is left to be taken."""
    over = sum(widths) + len(_GAP) * (len(widths) - 1) - width
    for level in sorted({one.shrink for one in columns if one.shrink}, reverse=True):
        givers = [n for n, one in enumerate(columns) if one.shrink == level]
        while over > 0:
            widest = max(givers, key=lambda n: widths[n] - cells(columns[n].title))
            if widths[widest] <= cells(columns[widest].title):
                break
            widths[widest] -= 1
            over -= 1


def terminal_width() -> int | None:
    """Return the characters of a line on stdout; None where it is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def cells(text: str) -> int:
    """Return how many cells of a terminal a text takes: two for wide characters."""
    if text.isascii():
        return len(text)
    return sum(map(_cells, text))


def _cells(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def fit(text: str, room: int | None) -> str:
    """Return a text that takes so many cells at most; one that is cut ends with ``…``."""
    if room is None or cells(text) <= room:
        return text
    taken = 1
    for end, character in enumerate(text):
        taken += _cells(character)
        if taken > room:
            return text[:end] + "…" if room > 0 else ""
    return text


def pad(text: str, room: int, *, right: bool = False) -> str:
    """Return a text that takes exactly so many cells."""
    text = fit(text, room)
    blanks = " " * (room - cells(text))
    return blanks + text if right else text + blanks


def plain(text: str) -> str:
    """Return a name without what could steer a terminal: clients choose room names."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def span(seconds: float | None) -> str:
    """Return a time in its largest unit."""
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def memory(size: float) -> str:
    """Return a number of bytes for people."""
    if size < 2**20:
        return f"{size / 2**10:.0f} KiB"
    return f"{size / 2**20:.0f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"


# --- progress ---------------------------------------------------------------


class Progress:
    """Shows on stderr how far something has come: a bar on a terminal, some lines elsewhere.

    Made by `progress`.
    """

    __slots__ = ("_drawn", "_quiet", "_stream", "_told", "done", "label", "total")

    def __init__(self, label: str, total: int | None, stream: TextIO, *, quiet: bool) -> None:
        self.label = label
        self.total = total
        """All there is to be done; None as long as nobody knows."""
        self.done = 0
        self._quiet = quiet
        self._stream = stream
        self._drawn = False  # whether the cursor stands behind a bar
        self._told = -1  # lines' worth of progress that were told where nothing can be drawn

    def set(
        self, *, done: int | None = None, left: int | None = None, total: int | None = None
    ) -> None:
        """Show how much is done, or left, of ``total``."""
        if total is not None:
            self.total = total
        if left is not None:
            self.total = max(self.total or 0, left)
            done = self.total - left
        if done is not None:
            self.done = done
        self._show()

    def say(self, text: str) -> None:
        """Print a line; a bar stays below it."""
        if self._quiet:
            return
        self._clear()
        click.echo(text, file=self._stream)
        if self._stream.isatty():
            self._show()

    def close(self) -> None:
        """Leave what was shown last."""
        if self._drawn:
            self._drawn = False
            click.echo(file=self._stream)

    def _show(self) -> None:
        if self._quiet or not self.total:
            return
        if self._stream.isatty():
            full = _BAR * min(self.done, self.total) // self.total
            bar = "█" * full + "░" * (_BAR - full)
            self._clear()
            line = f"{self.label} {bar} {self.done}/{self.total}"
            click.echo(fit(line, shutil.get_terminal_size().columns - 1), self._stream, nl=False)
            self._drawn = True
            return
        step = _LINES * self.done // self.total
        if step != self._told:
            self._told = step
            click.echo(f"{self.label}: {self.done} of {self.total}", file=self._stream)

    def _clear(self) -> None:
        if self._drawn:
            self._drawn = False
            click.echo("\r\x1b[K", file=self._stream, nl=False)


@contextmanager
def progress(
    label: str, total: int | None = None, *, quiet: bool = False, stream: TextIO | None = None
) -> Iterator[Progress]:
    """Show how far something comes while the block runs.

    ::

        with progress("draining w1", total=120) as bar:
            bar.set(left=80)
            bar.say("w1: 80 sessions left")

    Args:
        label: what is going on.
        total: all there is to be done; may be told later.
        quiet: show nothing, for ``--json``.
        stream: stderr unless given.
    """
    shown = Progress(label, total, stream or sys.stderr, quiet=quiet)
    try:
        yield shown
    finally:
        shown.close()
