"""How the commands print: columns for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import click


def dump(document: object) -> str:
    """Return a document as indented JSON."""
    return json.dumps(document, indent=2, ensure_ascii=False)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print columns as wide as what is in them; what would not fit a line is made visible."""
    lines = [tuple(header), *(tuple(plain(str(cell)) for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


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
