"""The metrics formats without I/O: figures of several processes in, one text out.

Two formats are written: Prometheus text 0.0.4 and OpenMetrics 1.0. A family is what has one name,
one type and one help text; whoever has figures (a *source*) adds labels that say whose they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, Literal, NamedTuple, TypeAlias

from limpet_adapters.counters import full_name
from limpet_cluster.hub.catalogue import HELP

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
Report: TypeAlias = tuple[str, Sequence[float], Sequence[int], float]
"""Of a histogram: full name, bounds, counts (not added up), sum."""

_FULL_NAME: Final = re.compile(
    r'([a-z_][a-z0-9_]*)(?:\{((?:[a-z_][a-z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"(?:,(?=[a-z_])|(?=\})))+)\})?'
)
_MOST_BUCKETS: Final = 64


class Source(NamedTuple):
    """The figures of one process, and the labels that tell it from others."""

    labels: Mapping[str, str]
    counters: Mapping[str, float]
    gauges: Mapping[str, float]
    histograms: Iterable[Report]


class _Family:
    __slots__ = ("kind", "lines")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.lines: list[str] = []


def render(sources: Iterable[Source], *, openmetrics: bool = False) -> bytes:
    """Return all figures as text, by family; what is no proper name is left out."""
    families: dict[str, _Family] = {}
    for source in sources:
        extra = full_name("", dict(source.labels))[1:-1]
        for figures in (source.counters, source.gauges):
            for name, value in figures.items():
                base, labels = split(name)
                if base:
                    kind: Kind = "counter" if base.endswith("_total") else "gauge"
                    family = _family(families, base, kind)
                    if family is not None:
                        family.lines.append(f"{base}{_braces(labels, extra)} {number(value)}")
        for report in source.histograms:
            base, labels = split(report[0])
            family = _family(families, base, "histogram") if base else None
            if family is not None:
                family.lines += _buckets(base, labels, extra, report)
    text: list[str] = []
    for name in sorted(families):
        family = families[name]
        shown = name.removesuffix("_total") if openmetrics and family.kind == "counter" else name
        text += (
            f"# HELP {shown} {HELP.get(name, 'Not described.')}",
            f"# TYPE {shown} {family.kind}",
            *family.lines,
        )
    if openmetrics:
        text.append("# EOF")
    return ("\n".join(text) + "\n").encode()


def _family(families: dict[str, _Family], name: str, kind: Kind) -> _Family | None:
    """Return the family of a name; None when another kind has taken the name (other versions)."""
    family = families.get(name)
    if family is None:
        family = families[name] = _Family(kind)
    return family if family.kind == kind else None


def _buckets(name: str, labels: str, extra: str, report: Report) -> list[str]:
    _, bounds, counts, total = report
    if len(counts) != len(bounds) + 1 or len(counts) > _MOST_BUCKETS:
        return []
    inner = f"{labels},{extra}" if labels and extra else labels or extra
    before = f"{inner}," if inner else ""
    lines = []
    so_far = 0
    for bound, count in zip(bounds, counts, strict=False):
        so_far += count
        lines.append(f'{name}_bucket{{{before}le="{float(bound)!r}"}} {so_far}')
    so_far += counts[-1]
    braces = f"{{{inner}}}" if inner else ""
    lines += (
        f'{name}_bucket{{{before}le="+Inf"}} {so_far}',
        f"{name}_sum{braces} {number(total)}",
        f"{name}_count{braces} {so_far}",
    )
    return lines


def _braces(labels: str, extra: str) -> str:
    if labels and extra:
        return f"{{{labels},{extra}}}"
    return f"{{{labels}{extra}}}" if labels or extra else ""


@lru_cache(maxsize=16_384)
def split(name: str) -> tuple[str, str]:
    """Return the family's name and the labels of a full name; empty when it is none."""
    match = _FULL_NAME.fullmatch(name)
    return ("", "") if match is None else (match[1], match[2] or "")


def number(value: float) -> str:
    """Return a figure as both formats have it."""
    if isinstance(value, int):
        return str(value)
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def wants_openmetrics(accept: str) -> bool:
    """Tell from an ``Accept`` header whether OpenMetrics is liked better than plain text."""
    liked = {"openmetrics": 0.0, "text": 0.0}
    for part in accept[:4096].split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        version = "1.0.0"
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                weight = _weight(value)
            elif name.strip() == "version":
                version = value.strip().strip('"')
        if kind == "application/openmetrics-text" and version == "1.0.0":
            liked["openmetrics"] = max(liked["openmetrics"], weight)
        elif kind in {"text/plain", "text/*"}:
            liked["text"] = max(liked["text"], weight)
    return liked["openmetrics"] > 0 and liked["openmetrics"] >= liked["text"]


def _weight(value: str) -> float:
    try:
        weight = float(value.strip())
    except ValueError:
        return 0.0
    return weight if 0.0 <= weight <= 1.0 else 0.0
