"""What hub and workers say about a worker's work and its end, by kind of control message.

| kind | from | body | answer |
|---|---|---|---|
| `stats` | worker | its figures, each second | |
| `draining` | worker | Draining, at once when a drain begins | |
| `bye` | worker | None: it ends now | |
| `alone` | hub | None: no other worker takes the clients, so an end need not be gentle | |
| `drainers` | hub | how many workers drain at this moment: they share the budget of reconnects | |
| `drain` | hub | DrainOrder | DrainAnswer |
| `undrain` | hub | None | DrainAnswer |
| `disconnect` | hub | DisconnectOrder | whether there is such a socket |

Either end may be older than the other. A message of a kind that the other does not know is
counted and dropped there, a request is refused: a worker that never hears `alone` drains by its
plan.
"""

from __future__ import annotations

import msgspec


class Draining(msgspec.Struct, frozen=True, kw_only=True):
    """A worker sends its clients away."""

    ending: bool
    """It ends afterwards; else it stays, empty, until it is told otherwise."""


class DrainOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Send your clients away, and stay."""

    grace: float | None = None
    """Seconds before the first is closed; None: as configured."""
    window: float | None = None
    """Seconds over which they are closed; None: as long as the budget of reconnects takes."""


class DrainAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """How the worker stands."""

    sessions: int
    """Sessions that are left."""
    seconds: float = 0.0
    """Until the instant of the last of them."""


class DisconnectOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Disconnect one socket."""

    socket_id: str
    close: bool = False
    """The whole client: its other namespaces too, and the connection below."""
