"""What hub and workers say about the bus on the control connection, by kind of message.

| kind | from | body | answer |
|---|---|---|---|
| `hello` | worker | Hello | `bus` in the welcome: BusWelcome |
| `bus.open` | hub | BusOpen | |
| `bus.workers` | hub | BusWorkers | |
| `bus.heard` | worker | number of the beat it read | |
| `bus.repair` | worker | RepairRequest | BusRepair |
"""

from __future__ import annotations

import msgspec


class BusWelcome(msgspec.Struct, frozen=True):
    """The bus's part of the hub's welcome."""

    incarnation: int
    """Random 32-bit number of this life of the hub."""
    buckets: int
    """Into how many topics rooms are hashed; the worker must agree."""


class BusOpen(msgspec.Struct, frozen=True):
    """The hub takes messages now."""

    incarnation: int
    workers: tuple[tuple[int, int, int, int], ...]
    """Node, slot, incarnation and worker id of each live worker."""
    late: bool = False
    """Others may have sent before this worker had subscribed."""


class BusWorkers(msgspec.Struct, frozen=True):
    """The live workers, sent when they change."""

    workers: tuple[tuple[int, int, int, int], ...]


class RepairRequest(msgspec.Struct, frozen=True):
    """A worker asks for frames that it missed, both ends included."""

    topic: bytes
    first: int
    last: int


class BusRepair(msgspec.Struct, frozen=True):
    """What the hub still has of them."""

    frames: tuple[bytes, ...]
    through: int
    """What lies before or at this number and is not among the frames is gone for good."""
