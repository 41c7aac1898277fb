"""The stock clients' application, which also remembers what it was told of gaps of the bus."""

from __future__ import annotations

from limpet import Socket
from servers.interop_app import io

__all__ = ["io"]

gaps: list[dict[str, object]] = []


@io.on("bus_gap")
def bus_gap(gap: dict[str, object]) -> None:
    gaps.append(gap)


@io.on("gaps")
def told(_socket: Socket) -> list[dict[str, object]]:
    return gaps
