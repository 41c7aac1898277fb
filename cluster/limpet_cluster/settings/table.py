"""The settings of a cluster, one line of a table each: what they are called, take and mean.

A setting has one name everywhere: ``stall_after`` in a file is ``LIMPET_STALL_AFTER`` in the
environment and ``--stall-after`` on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from limpet_cluster import logs
from limpet_cluster.appload import BUILT_IN
from limpet_cluster.settings import values
from limpet_cluster.settings.values import Kind

MOST_WORKERS: Final = 255
"""One slot of the 256 stays free, for the spare worker of a reload."""

START: Final = "start"
HUB: Final = "hub"
BALANCER: Final = "balancer"
WORKER: Final = "worker"
EVERYONE: Final = (START, HUB, BALANCER, WORKER)


class Applies(StrEnum):
    """When a setting that is changed while the cluster runs takes effect."""

    NOW = "applied"
    """With `limpet reload`, in the supervisor itself."""
    WORKERS = "workers"
    """With the workers that a reload starts."""
    SCALE = "limpet scale"
    HUB = "limpet restart hub"
    BALANCER = "limpet restart balancer"
    CLUSTER = "restart"
    """With a stop and a start of the cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table."""

    name: str
    kind: Kind
    default: Any
    help: str
    """One sentence or two, for ``--help`` and the documentation."""
    group: str
    """The heading it stands under."""
    commands: tuple[str, ...]
    """Those of `EVERYONE` that use it and take it as a flag."""
    applies: Applies
    unset: str
    """The default in words, where it is no value that could be written down."""
    example: str
    """Then a value in TOML."""
    short: str
    """A one-letter flag, or empty."""

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return f"LIMPET_{self.name.upper()}"

    @property
    def flag(self) -> str:
        """How the command line takes it; the application is an argument."""
        return self.kind.metavar if self.argument else f"--{self.name.replace('_', '-')}"

    @property
    def argument(self) -> bool:
        """Whether it is an argument of the command line instead of a flag."""
        return self.name == "app"

    def written(self, value: Any) -> str:
        """Return a value as a flag takes it."""
        return "" if value is None else self.kind.write(value)

    def shown(self, value: Any) -> str:
        """Return a value for people."""
        if self.unset and value == self.default:
            return self.unset
        return self.kind.write(value) or "none"


def _row(
    group: str,
    kind: Kind,
    text: str,
    commands: tuple[str, ...],
    applies: Applies,
    *,
    unset: str = "",
    example: str = "",
    short: str = "",
) -> dict[str, Any]:
    return {
        "group": group,
        "kind": kind,
        "help": text,
        "commands": commands,
        "applies": applies,
        "unset": unset,
        "example": example,
        "short": short,
    }


_place = partial(_row, "The cluster on this host")
_application = partial(_row, "The application and its workers")
_public = partial(_row, "The public port")
_inside = partial(_row, "The hub, its API and the bus")
_patience = partial(_row, "Patience")
_drain = partial(_row, "Drain")
_clients = partial(_row, "Clients")

_OF_APP: Final = "what the application's Server has"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A value for each setting. The fields are the table: `SETTINGS` is made from them."""

    name: str = field(
        default="default",
        metadata=_place(
            values.matching(
                "[A-Za-z0-9][A-Za-z0-9_.-]{0,31}",
                "1 to 32 letters, digits, '.', '_' or '-', the first a letter or digit",
                "NAME",
            ),
            "Name of the cluster; clusters of different names on one host share nothing.",
            EVERYONE,
            Applies.CLUSTER,
        ),
    )
    run_dir: Path | None = field(
        default=None,
        metadata=_place(
            values.file_name("DIR"),
            "Where the processes of one cluster meet: sockets and locks, mode 0700.",
            EVERYONE,
            Applies.CLUSTER,
            unset="$RUNTIME_DIRECTORY, else $XDG_RUNTIME_DIR/limpet/NAME, else below /run or /tmp",
            example='"/run/limpet"',
        ),
    )
    node: int | None = field(
        default=None,
        metadata=_place(
            values.whole(0, 65_535),
            "Number of this host; no two hosts of a cluster have the same.",
            EVERYONE,
            Applies.CLUSTER,
            unset="from the host name",
            example="1",
        ),
    )
    path: str = field(
        default="/socket.io/",
        metadata=_place(
            values.url_path("/socket.io/"),
            "The Engine.IO path, the same as in the application's Server(path=…).",
            EVERYONE,
            Applies.CLUSTER,
        ),
    )
    log_level: str = field(
        default="info",
        metadata=_place(
            values.choice(*logs.LEVELS),
            "The least important messages that are logged.",
            EVERYONE,
            Applies.WORKERS,
        ),
    )
    log_format: str = field(
        default="auto",
        metadata=_place(
            values.choice(*logs.FORMATS),
            "How messages are logged; auto: for people on a terminal, JSON elsewhere.",
            EVERYONE,
            Applies.WORKERS,
        ),
    )
    app: str = field(
        default=BUILT_IN,
        metadata=_application(
            values.application(),
            "The Server that the workers run: attribute io of module app is app:io. The default is "
            "a small chat.",
            (START, WORKER),
            Applies.WORKERS,
        ),
    )
    app_dir: Path = field(
        default=Path(),
        metadata=_application(
            values.file_name("DIR"),
            "Where the application's module lies.",
            (START, WORKER),
            Applies.WORKERS,
            unset="the current folder",
            example='"/srv/app"',
        ),
    )
    workers: int | str = field(
        default="auto",
        metadata=_application(
            values.workers(MOST_WORKERS),
            "Worker processes; auto: one for each processor that they may use.",
            (START,),
            Applies.SCALE,
            short="w",
        ),
    )
    dev: bool = field(
        default=False,
        metadata=_application(
            values.flag(),
            "For development: restart the workers when the code changes, and replace nobody "
            "who is silent.",
            (START,),
            Applies.CLUSTER,
        ),
    )
    bind: tuple[str, ...] = field(
        default=("127.0.0.1:8080",),
        metadata=_public(
            values.addresses(),
            "Where clients connect, one address or several; sockets passed by systemd replace it.",
            (START, BALANCER),
            Applies.CLUSTER,
            short="b",
        ),
    )
    health_path: str = field(
        default="/healthz",
        metadata=_public(
            values.url_path("/healthz", empty=True),
            "Answered on the public port, for load balancers; empty for none.",
            (START, BALANCER),
            Applies.BALANCER,
        ),
    )
    api: str | None = field(
        default=None,
        metadata=_inside(
            values.tcp_address(),
            "Serve the API on TCP too, for those who have a token; it is always on a socket in the "
            "run directory.",
            (START, HUB),
            Applies.HUB,
            unset="not on TCP",
            example='"127.0.0.1:9090"',
        ),
    )
    api_token_file: Path | None = field(
        default=None,
        metadata=_inside(
            values.file_name("FILE"),
            "The bearer tokens of the API on TCP, one per line, mode 0600.",
            (START, HUB),
            Applies.HUB,
            unset="none",
            example='"/etc/limpet/tokens"',
        ),
    )
    buckets: int = field(
        default=1024,
        metadata=_inside(
            values.whole(1, 65_536),
            "Parts of the bus that rooms are divided into; the same in the whole cluster.",
            (START, HUB, WORKER),
            Applies.CLUSTER,
        ),
    )
    linger: float = field(
        default=10.0,
        metadata=_inside(
            values.seconds(),
            "How long a worker stays subscribed to a part of the bus after its last room there.",
            (START, WORKER),
            Applies.WORKERS,
        ),
    )
    start_timeout: float = field(
        default=60.0,
        metadata=_patience(
            values.seconds(0.1),
            "How long a process may take until it is ready.",
            (START,),
            Applies.NOW,
        ),
    )
    stop_timeout: float = field(
        default=10.0,
        metadata=_patience(
            values.seconds(0.1),
            "How long a process may take to end before it is killed; a drain has its own time.",
            (START,),
            Applies.NOW,
        ),
    )
    stall_after: float = field(
        default=15.0,
        metadata=_patience(
            values.seconds(),
            "Silence after which a process is replaced, at least 3s; 0 for never.",
            (START, HUB),
            Applies.NOW,
        ),
    )
    drain_grace: float = field(
        default=0.5,
        metadata=_drain(
            values.seconds(),
            "From the announcement of a drain to the first client that is closed.",
            (START, WORKER),
            Applies.WORKERS,
        ),
    )
    drain_window: float = field(
        default=120.0,
        metadata=_drain(
            values.seconds(),
            "The longest time over which a draining worker closes its clients.",
            (START, WORKER),
            Applies.WORKERS,
        ),
    )
    drain_budget: float = field(
        default=500.0,
        metadata=_drain(
            values.number(),
            "Reconnects per second that the others are to bear; a drain takes sessions / budget.",
            (START, WORKER),
            Applies.WORKERS,
        ),
    )
    handler_grace: float = field(
        default=10.0,
        metadata=_drain(
            values.seconds(),
            "How long a drained worker waits for handlers that still run.",
            (START, WORKER),
            Applies.WORKERS,
        ),
    )
    ping_interval: float | None = field(
        default=None,
        metadata=_clients(
            values.seconds(0.001),
            "From a client's pong to the next ping.",
            (START, BALANCER, WORKER),
            Applies.WORKERS,
            unset=_OF_APP,
            example='"25s"',
        ),
    )
    ping_timeout: float | None = field(
        default=None,
        metadata=_clients(
            values.seconds(0.001),
            "From a ping to the end of a client that does not answer.",
            (START, BALANCER, WORKER),
            Applies.WORKERS,
            unset=_OF_APP,
            example='"20s"',
        ),
    )
    max_sessions: int | None = field(
        default=None,
        metadata=_clients(
            values.whole(1),
            "Sessions of one worker; beyond it new ones are refused.",
            (START, WORKER),
            Applies.WORKERS,
            unset=_OF_APP,
            example="20000",
        ),
    )
    max_http_buffer_size: int | None = field(
        default=None,
        metadata=_clients(
            values.byte_size(),
            "Largest message of a client.",
            (START, WORKER),
            Applies.WORKERS,
            unset=_OF_APP,
            example='"1MB"',
        ),
    )


SETTINGS: Final = MappingProxyType(
    {
        one.name: Setting(name=one.name, default=one.default, **one.metadata)
        for one in fields(Settings)
    }
)
"""All settings by name, in the order in which people are shown them."""
