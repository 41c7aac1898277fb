"""The catalogue of scenarios: what each does, what its figures mean, what is to be reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from scripts.benchmark import broadcasting, connecting, echoing, polling
from scripts.benchmark.stage import Stage

CPU: Final = "µs"
"""The figure that is CPU time of all server processes per operation."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure of limpet should not exceed: a value, or a ratio to Node's cluster."""

    limit: float
    ratio: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One row, or several, of the report."""

    name: str
    title: str
    play: Callable[[Stage], None]
    goals: dict[str, Goal] = field(default_factory=dict)
    """By figure: `CPU` or the name of a value."""
    only_limpet: bool = False
    fresh: bool = False
    """Wants a server that has done nothing else."""
    environment: dict[str, str] = field(default_factory=dict)
    """What the server is told besides the usual; implies `fresh`."""
    once: bool = False
    """Takes long and counts more than it measures: the first round is enough."""
    usual: bool = True
    """Whether it runs when no scenario is named."""


MAX_MESSAGE: Final = 4 << 20

SCENARIOS: Final = (
    Scenario(
        name="connect",
        title="connect over WebSocket",
        play=connecting.connect,
        goals={CPU: Goal(0.35)},
    ),
    Scenario(
        name="upgrade",
        title="connect by polling, then upgrade",
        play=connecting.upgrade,
        goals={CPU: Goal(0.25)},
    ),
    Scenario(
        name="echo-1",
        title="echo, 1 outstanding",
        play=partial(echoing.echo, outstanding=1),
        goals={CPU: Goal(0.8)},
    ),
    Scenario(
        name="echo-8",
        title="echo, 8 outstanding",
        play=partial(echoing.echo, outstanding=8),
        goals={CPU: Goal(0.6)},
    ),
    Scenario(
        name="broadcast-8",
        title="broadcast to 1,000, 8 in flight (per delivery)",
        play=partial(broadcasting.broadcast, members=1000, in_flight=8),
        goals={CPU: Goal(0.5)},
    ),
    Scenario(
        name="broadcast-paced",
        title="broadcast to 1,000, 20 a second (per delivery)",
        play=partial(broadcasting.broadcast, members=1000, rate=20.0),
        goals={CPU: Goal(0.6)},
    ),
    Scenario(
        name="rooms-32",
        title="200 rooms of 10, 32 in flight (per delivery)",
        play=partial(broadcasting.rooms, in_flight=32),
    ),
    Scenario(
        name="rooms-paced",
        title="200 rooms of 10, 500 a second (per delivery)",
        play=partial(broadcasting.rooms, rate=500.0),
        goals={CPU: Goal(0.5)},
    ),
    Scenario(
        name="polling-echo",
        title="echo over polling",
        play=polling.polling_echo,
        goals={CPU: Goal(0.1)},
    ),
    Scenario(
        name="latency",
        title="broadcast to 20, 100 a second (per delivery)",
        play=broadcasting.latency,
        goals={"other worker p50 ms": Goal(0.5)},
    ),
    Scenario(
        name="binary-16k",
        title="binary echo, 16 KiB",
        play=partial(echoing.binary, size=16384, clients=50),
        goals={CPU: Goal(0.6)},
    ),
    Scenario(
        name="text-1m",
        title="text echo, 1 MiB",
        play=partial(echoing.echo, outstanding=1, clients=4, payload=1 << 20),
        goals={CPU: Goal(0.5)},
    ),
    Scenario(
        name="binary-1m",
        title="binary echo, 1 MiB",
        play=partial(echoing.binary, size=1 << 20, clients=4),
        goals={CPU: Goal(0.3)},
    ),
    Scenario(
        name="idle",
        title="5,000 idle connections",
        play=connecting.idle,
        goals={"KiB per connection": Goal(5.0, ratio=False)},
        fresh=True,
    ),
    Scenario(
        name="idle-10k",
        title="10,000 idle connections",
        play=partial(connecting.idle, connections=10_000),
        goals={"KiB per connection": Goal(5.0, ratio=False)},
        fresh=True,
        usual=False,
    ),
    Scenario(
        name="heartbeat",
        title="heartbeat, 5,000 connections (per ping and pong)",
        play=connecting.heartbeat,
        goals={CPU: Goal(15.0, ratio=False)},
        environment={"BENCH_PING_INTERVAL": "5"},
    ),
    Scenario(
        name="burst",
        title="50,000 connections in bursts of 500",
        play=connecting.burst,
        goals={"most of 20 on one worker": Goal(11.0, ratio=False)},
        once=True,
    ),
    Scenario(
        name="pool",
        title="polling echo over a shared pool of connections",
        play=polling.pool,
        only_limpet=True,
    ),
)
BY_NAME: Final = {each.name: each for each in SCENARIOS}


def chosen(names: list[str]) -> list[Scenario]:
    """Return the scenarios named, in the order of the catalogue; the usual ones when none is.

    A name also stands for all that start with it and a hyphen: ``echo`` for both echoes.

    Raises:
        ValueError: a name fits no scenario; the message lists them.
    """
    if not names:
        return [each for each in SCENARIOS if each.usual]
    found = set()
    for name in names:
        fitting = {name} & BY_NAME.keys() or {
            each for each in BY_NAME if each.startswith(f"{name}-")
        }
        if not fitting:
            raise ValueError(f"scenario {name!r}: expected one of {', '.join(BY_NAME)}")
        found |= fitting
    return [each for each in SCENARIOS if each.name in found]
