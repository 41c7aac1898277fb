"""Figures of one process: counters, gauges and histograms by their full names, labels bounded.

A full name is what a line of the metrics begins with: ``limpet_sessions_closed_total{reason="ping
timeout"}``. Each family has `MOST_SERIES` of them at most, so that no client can make the figures
grow: what comes on top is counted with ``other`` in place of what there is so much of.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

MOST_SERIES: Final = 200
"""Different sets of label values that a family has at most, ``other`` not counted."""
_LONGEST_VALUE: Final = 128
_MANY: Final = frozenset(("namespace", "reason", "route"))
"""Labels of which an application or its clients may make many; where a family has one of them,
only that becomes ``other``."""

counters: Counter[str] = Counter()
"""Every counter of this process by its full name."""
gauges: dict[str, float] = {}
"""Every gauge of this process by its full name, as it was set last."""
histograms: dict[str, Histogram] = {}
"""Every histogram of this process by its full name."""

_known: dict[str, str] = {}  # full names by how they were asked for; they differ when escaped
_families: Counter[str] = Counter()  # series of each family

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds for what should take milliseconds."""


class Histogram:
    """How often a figure was up to each of some bounds.

    Args:
        bounds: upper bounds of the buckets, rising; one without a bound comes on top of them.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        """How many fell into each bucket: between its bound and the one below, not added up."""
        self.total = 0.0
        """Sum of all figures."""

    def observe(self, value: float) -> None:
        """Add a figure."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


def count(name: str, amount: int = 1, **labels: str) -> None:
    """Add to a counter. Labels must be of a small fixed set: never a room, a user or an id."""
    if labels:
        name = series(name, labels)
    counters[name] += amount


def gauge(name: str, value: float | None, **labels: str) -> None:
    """Set a gauge; None takes it away."""
    if labels:
        name = series(name, labels)
    if value is None:
        gauges.pop(name, None)
    else:
        gauges[name] = value


def histogram(name: str, bounds: Sequence[float] = SECONDS, **labels: str) -> Histogram:
    """Return the histogram of this name, made when it is new: to be kept by who observes often."""
    if labels:
        name = series(name, labels)
    found = histograms.get(name)
    if found is None:
        found = histograms[name] = Histogram(bounds)
    return found


def observe(name: str, value: float, bounds: Sequence[float] = SECONDS, **labels: str) -> None:
    """Add a figure to a histogram; ``bounds`` are those of its first figure."""
    histogram(name, bounds, **labels).observe(value)


def series(name: str, labels: dict[str, str]) -> str:
    """Return the full name of a family's series, within the bound of the family."""
    inner = ",".join([f'{key}="{value}"' for key, value in labels.items()])
    asked = f"{name}{{{inner}}}"
    return _known.get(asked) or _admit(name, asked, labels)


def _admit(name: str, asked: str, labels: dict[str, str]) -> str:
    if _families[name] >= MOST_SERIES:
        counters["limpet_series_refused_total"] += 1
        many = _MANY & labels.keys() or labels.keys()
        return full_name(
            name, {key: "other" if key in many else value for key, value in labels.items()}
        )
    _families[name] += 1
    _known[asked] = full_name(name, labels)
    return _known[asked]


def full_name(name: str, labels: dict[str, str]) -> str:
    """Return a name with its labels, escaped as the metrics formats have it."""
    pairs = [f'{key}="{escaped(value[:_LONGEST_VALUE])}"' for key, value in labels.items()]
    return f"{name}{{" + ",".join(pairs) + "}" if pairs else name


def escaped(value: str) -> str:
    """Return a label's value as it stands between quotes."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def reports() -> Iterator[tuple[str, tuple[float, ...], list[int], float]]:
    """Return name, bounds, counts and sum of each histogram that has seen something."""
    for name, one in histograms.items():
        if any(one.counts):
            yield name, one.bounds, one.counts, one.total
