"""`limpet top`: what the workers do right now, again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, Final

import click

from limpet_cluster.api_client import ApiClient
from limpet_cluster.cli import options
from limpet_cluster.cli.acting import answered
from limpet_cluster.cli.overview import Overview, look
from limpet_cluster.cli.presence import line
from limpet_cluster.cli.rates import Meter, Rates
from limpet_cluster.cli.screen import Screen, full_screen
from limpet_cluster.cli.status import state
from limpet_cluster.cli.tables import Column, layout, memory, plain
from limpet_cluster.place import api_socket

_ROOMS: Final = 10
"""Rooms shown at most."""
_ORDERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Any]]] = {
    "slot": lambda one: one["slot"],
    "sessions": lambda one: -one["session_count"],
    "lag": lambda one: -one["loop_lag_seconds"],
    "memory": lambda one: -one["rss_bytes"],
}
_HELP: Final = "q quit   o order   space now"


@click.command()
@options.place
@options.timeout
@options.as_json
@click.option(
    "-d",
    "--delay",
    type=options.Duration(0.1),
    default="2s",
    show_default=True,
    help="Time between two looks.",
)
@click.option("-b", "--batch", is_flag=True, help="Print one look after the other.")
@click.option(
    "-n",
    "--looks",
    type=click.IntRange(1),
    metavar="NUMBER",
    help="End after so many looks; rates need two.",
)
@click.option(
    "-o",
    "--order",
    type=click.Choice(tuple(_ORDERS)),
    default="slot",
    show_default=True,
    help="What the workers are sorted by.",
)
@click.option(
    "--namespace", default="/", show_default=True, help="The namespace whose rooms are shown."
)
def top(
    *,
    run_dir: str | None,
    name: str,
    timeout: float,
    as_json: bool,
    delay: float,
    batch: bool,
    looks: int | None,
    order: str,
    namespace: str,
) -> None:
    """Watch the workers and the biggest rooms of the cluster on this host.

    On a terminal the whole of it is used: q quits, o changes the order, space looks at once.
    Elsewhere, or with --batch, one look follows the other; with --json each is one line.
    """
    directory = options.run_directory(run_dir, name)
    view = View(directory, api_socket(directory, name), timeout, order, namespace)
    with answered():
        view.update()  # what is wrong from the beginning is better said on the normal screen
    if as_json:
        _print(view, delay, looks, lambda: [line(view.document(_now()))])
        return
    if batch or not (sys.stdin.isatty() and sys.stdout.isatty()):
        _print(view, delay, looks, lambda: [*view.lines(None, _now()), ""])
        return
    with full_screen() as screen:
        _watch(view, screen, delay, looks)


class View:
    """What is shown, and where it comes from."""

    def __init__(
        self, directory: Path, api: Path, timeout: float, order: str, namespace: str
    ) -> None:
        self.directory = directory
        self.order = order
        self.overview: Overview | None = None
        """The last that could be had."""
        self.error = ""
        """Why there is none newer; empty when all is well."""
        self.rooms: list[Any] = []
        self.meter = Meter()
        self._api = api
        self._timeout = timeout
        self._namespace = namespace

    def update(self) -> None:
        """Look again.

        Raises:
            NotReachableError, NoAnswerError, ApiError: nobody answers.
        """
        self.overview = look(self.directory, self._timeout, self._api)
        self.meter.read(self.overview)
        if self.overview.cluster is not None:
            api = ApiClient(self._api, self._timeout)
            self.rooms = list(
                api.pages("rooms", most=_ROOMS, namespace=self._namespace, sort="-users")
            )

    def try_update(self) -> None:
        """Look again; what goes wrong is shown."""
        try:
            with answered():
                self.update()
            self.error = ""
        except options.Failure as error:
            self.error = error.format_message()

    def next_order(self) -> None:
        """Sort by the next column."""
        names = list(_ORDERS)
        self.order = names[(names.index(self.order) + 1) % len(names)]

    def document(self, now: datetime) -> dict[str, Any]:
        """Return what ``--json`` prints of a look."""
        overview, rates = self.overview, self.meter.rates
        found = [] if overview is None else sorted(overview.workers, key=_ORDERS[self.order])
        return {
            "at": now.isoformat(timespec="milliseconds"),
            "error": self.error or None,
            "rates": asdict(self.meter.sum()),
            "workers": [
                {**one, "rates": asdict(rates[one["id"]]) if one["id"] in rates else None}
                for one in found
            ],
            "rooms": self.rooms,
            "missing": [] if overview is None else overview.missing(),
        }

    def lines(self, width: int | None, now: datetime) -> list[str]:
        """Return what is shown."""
        head = [f"limpet top  {now:%H:%M:%S}  {self.directory}"]
        if self.error:
            head.append(plain(self.error))
        if self.overview is None:
            return head
        return [
            *head,
            *summary(self.overview, self.meter.sum()),
            "",
            *workers(self.overview.workers, self.meter.rates, self.order, width),
            "",
            *rooms(self.rooms, width),
        ]


def summary(overview: Overview, rates: Rates) -> list[str]:
    """Return the lines on the cluster as a whole."""
    lines = []
    cluster = overview.cluster
    if cluster is not None:
        occupancy = cluster["occupancy"]
        sessions = sum(cluster["sessions"].values())
        lines.append(
            f"{sessions} sessions, {occupancy['users']} users on "
            f"{occupancy['connections']} connections"
        )
    lines.append(
        f"{_rate(rates.connects)} connects/s, {_rate(rates.messages_in)} messages/s in, "
        f"{_rate(rates.messages_out)} out, {_rate(rates.events)} events/s"
    )
    if overview.balancer is not None:
        balancer = overview.balancer
        lines.append(
            f"balancer {balancer['health']}, {balancer['waiting']} waiting, "
            f"{sum(balancer['refused'].values())} refused"
        )
    if missing := overview.missing():
        lines.append(f"not whole: {plain(', '.join(missing))}")
    return lines


def workers(
    found: Sequence[Mapping[str, Any]],
    rates: Mapping[str, Rates],
    order: str,
    width: int | None,
) -> list[str]:
    """Return the table of the workers."""
    rows = []
    for one in sorted(found, key=_ORDERS[order]):
        of_one = rates.get(one["id"])
        rows.append(
            (
                one["name"],
                state(dict(one)),
                one["session_count"],
                *(
                    ("-",) * 4
                    if of_one is None
                    else map(
                        _rate,
                        (of_one.connects, of_one.messages_in, of_one.messages_out, of_one.events),
                    )
                ),
                f"{one['loop_lag_seconds'] * 1000:.0f} ms",
                memory(one["rss_bytes"]),
            )
        )
    right = ("SESSIONS", "CONNECT/S", "IN/S", "OUT/S", "EVENTS/S", "LAG", "MEMORY")
    header = (
        Column("WORKER"),
        Column("STATE", shrink=2),
        *(Column(title, right=True, shrink=0) for title in right),
    )
    return layout(header, rows, width)


def rooms(found: Sequence[Mapping[str, Any]], width: int | None) -> list[str]:
    """Return the table of the biggest rooms."""
    header = (
        Column("BIGGEST ROOMS"),
        Column("USERS", right=True, shrink=0),
        Column("CONNECTIONS", right=True, shrink=0),
    )
    rows = (
        (one["room"], one["occupancy"]["users"], one["occupancy"]["connections"]) for one in found
    )
    return layout(header, rows, width)


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def _print(view: View, delay: float, looks: int | None, lines: Callable[[], Sequence[str]]) -> None:
    """Print one look after the other, until Ctrl-C or the last."""
    try:
        for number in count(1):
            for one in lines():
                click.echo(one)
            if number == looks:
                return
            time.sleep(delay)
            view.try_update()
    except KeyboardInterrupt:
        return


def _watch(view: View, screen: Screen, delay: float, looks: int | None) -> None:
    """Draw one look over the other, until somebody quits."""
    try:
        for number in count(1):
            until = time.monotonic() + delay
            while (left := until - time.monotonic()) > 0:
                columns, rows = screen.size
                lines = view.lines(columns, _now())
                screen.draw([*lines[: rows - 1], *[""] * (rows - 1 - len(lines)), _foot(view)])
                key = screen.key(left)
                if key in {"q", "Q", "\x03", "\x04"}:
                    return
                if key == "o":
                    view.next_order()
                elif key != "resize":
                    break
            if number == looks:
                return
            view.try_update()
    except KeyboardInterrupt:
        return


def _foot(view: View) -> str:
    return f"{_HELP}   sorted by {view.order}"


def _now() -> datetime:
    return datetime.now().astimezone()
