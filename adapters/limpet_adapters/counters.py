"""Counters of one process: what was refused, lost or closed, and why."""

from __future__ import annotations

from collections import Counter

counters: Counter[str] = Counter()
"""Every counter of this process by its full name, for example
``limpet_sessions_closed_total{reason="ping timeout"}``."""


def count(name: str, amount: int = 1, **labels: str) -> None:
    """Add to a counter. Labels must be of a small fixed set: never a room, a user or an id."""
    if labels:
        inner = ",".join(f'{key}="{value}"' for key, value in labels.items())
        name = f"{name}{{{inner}}}"
    counters[name] += amount
