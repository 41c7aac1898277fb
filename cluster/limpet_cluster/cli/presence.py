"""`limpet presence`: who is connected to the cluster, and in which room."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import wraps
from typing import Any, Final, TypeVar

import click

from limpet_cluster.api_client import ApiClient, ApiError, NoAnswerError, NotReachableError
from limpet_cluster.cli import options
from limpet_cluster.cli.acting import answered, client_of
from limpet_cluster.cli.tables import Column, dump, plain, table

F = TypeVar("F", bound=Callable[..., Any])

_USERS: Final = Column("USERS", right=True, shrink=0)
_CONNECTIONS: Final = Column("CONNECTIONS", right=True, shrink=0)


class Output:
    """How a command prints what it found.

    Args:
        form: ``table`` for people; ``json``, one document; ``ndjson``, a line for each item.
    """

    __slots__ = ("form",)

    def __init__(self, form: str) -> None:
        self.form = form

    def items(
        self,
        header: Sequence[str | Column],
        found: Iterable[Any],
        row: Callable[[Any], Sequence[object]],
    ) -> None:
        """Print a list, in a table with the row that each item makes."""
        if self.form == "json":
            click.echo(dump(list(found)))
        elif self.form == "ndjson":
            for one in found:
                click.echo(line(one))
        else:
            table(header, map(row, found))

    def document(self, found: Any, show: Callable[[Any], None]) -> None:
        """Print one thing, for people with ``show``."""
        if self.form == "table":
            show(found)
        else:
            click.echo(dump(found) if self.form == "json" else line(found))


def line(document: object) -> str:
    """Return a document as JSON on one line."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _asking(command: F) -> F:
    """Add the options of a command that asks the API; it gets ``api`` and ``output``."""

    @wraps(command)
    def wrapped(
        *, run_dir: str | None, name: str, timeout: float, as_json: bool, form: str, **rest: Any
    ) -> Any:
        form = "json" if as_json else form
        options.answer_as_json(form != "table")
        with answered():
            api = client_of(run_dir, name, timeout)
            return command(api=api, output=Output(form), **rest)

    result: Any = wrapped
    result = click.option(
        "-o",
        "--output",
        "form",
        type=click.Choice(("table", "json", "ndjson")),
        default="table",
        show_default=True,
        help="ndjson: a line of JSON for each item.",
    )(result)
    placed: F = options.place(options.as_json(options.timeout(result)))
    return placed


def _namespace(command: F) -> F:
    return click.option(
        "-n", "--namespace", default="/", show_default=True, help="The namespace looked at."
    )(command)


def _most(command: F) -> F:
    return click.option(
        "--limit",
        "most",
        type=click.IntRange(1),
        default=1000,
        show_default=True,
        help="How many to show at most.",
    )(command)


@click.group()
def presence() -> None:
    """Show who is connected, and in which room."""


@presence.command()
@click.option("--prefix", help="Only rooms whose name begins so.")
@click.option(
    "--sort",
    type=click.Choice(("name", "users", "-users", "connections", "-connections")),
    default="name",
    show_default=True,
)
@_namespace
@_most
@_asking
def rooms(
    *,
    api: ApiClient,
    output: Output,
    namespace: str,
    prefix: str | None,
    sort: str,
    most: int,
) -> None:
    """List the occupied rooms of a namespace."""
    output.items(
        ("ROOM", _USERS, _CONNECTIONS),
        api.pages("rooms", most=most, namespace=namespace, prefix=prefix, sort=sort),
        lambda one: (one["room"], one["occupancy"]["users"], one["occupancy"]["connections"]),
    )


@presence.command()
@click.argument("room")
@_namespace
@_most
@_asking
def members(*, api: ApiClient, output: Output, room: str, namespace: str, most: int) -> None:
    """List who is in a room."""
    output.items(
        ("USER", _CONNECTIONS, Column("SINCE", shrink=0), Column("WORKERS", shrink=2)),
        api.pages("rooms", room, "members", most=most, namespace=namespace),
        lambda one: (
            one["user"],
            one["connection_count"],
            one["joined_at"],
            " ".join(sorted({connection["worker"] for connection in one["connections"]})),
        ),
    )


@presence.command()
@click.argument("user")
@_asking
def user(*, api: ApiClient, output: Output, user: str) -> None:
    """Show whether a user is online, and where."""
    output.document(api.get("users", user), _show_user)


def _show_user(found: Mapping[str, Any]) -> None:
    name = plain(found["user"])
    if not found["online"]:
        click.echo(f"{name} is offline")
        return
    click.echo(f"{name} is online\n")
    table(
        (Column("SOCKET", shrink=0), "NAMESPACE", "WORKER", Column("TRANSPORT", shrink=2), "SINCE"),
        (
            (
                one["socket_id"],
                one["namespace"],
                one["worker"],
                one["transport"],
                one["connected_at"],
            )
            for one in found["connections"]
        ),
    )
    click.echo()
    table(
        ("ROOM", "NAMESPACE", Column("SINCE", shrink=0)),
        ((one["room"], one["namespace"], one["joined_at"]) for one in found["rooms"]),
    )


@presence.command()
@click.argument("room", required=False)
@click.option("-n", "--namespace", help="The namespace of the room, / unless said; or only this.")
@_asking
def count(*, api: ApiClient, output: Output, room: str | None, namespace: str | None) -> None:
    """Count who is in a room, or in each namespace."""
    if room is not None:
        output.document(api.get("rooms", room, namespace=namespace or "/"), _show_count)
        return
    found = (
        one for one in api.pages("namespaces") if namespace is None or one["namespace"] == namespace
    )
    output.items(
        ("NAMESPACE", Column("ROOMS", right=True, shrink=0), _USERS, _CONNECTIONS),
        found,
        lambda one: (
            one["namespace"],
            one["rooms"],
            one["occupancy"]["users"],
            one["occupancy"]["connections"],
        ),
    )


def _show_count(found: Mapping[str, Any]) -> None:
    occupancy = found["occupancy"]
    click.echo(f"{occupancy['users']} users on {occupancy['connections']} connections")


# --- watching ---------------------------------------------------------------

Seen = dict[str, tuple[int, int]]
"""Users and connections of each room; of a room each user, who is one, and the connections."""


@presence.command()
@click.argument("room", required=False)
@_namespace
@click.option(
    "--every",
    type=options.Duration(0.1),
    default="1s",
    show_default=True,
    help="How often to look; what came and went in between is not seen.",
)
@click.option("--changes", type=click.IntRange(1), help="End after so many.")
@_asking
def watch(
    *,
    api: ApiClient,
    output: Output,
    room: str | None,
    namespace: str,
    every: float,
    changes: int | None,
) -> None:
    """Tell who enters and leaves a room, or how the rooms of a namespace change, until Ctrl-C.

    It begins with what is there. A hub that is gone for a while is waited for.
    """
    place = _Place(api, room, namespace)
    try:
        for change in place.changes(every, changes):
            _tell(change, output)
    except KeyboardInterrupt:
        return


class _Place:
    """A room, or all rooms of a namespace, looked at again and again."""

    def __init__(self, api: ApiClient, room: str | None, namespace: str) -> None:
        self._api = api
        self._room = room
        self._namespace = namespace

    def changes(self, every: float, most: int | None) -> Iterator[dict[str, Any]]:
        """Return what is there, then each change as it is seen."""
        seen, version = self._look()
        yield from differences({}, seen, of_room=self._room is not None, first=True)
        told = 0
        waiting = False  # for a hub that is gone
        while most is None or told < most:
            time.sleep(every)
            try:
                if self._version() == version:
                    waiting = False
                    continue
                now, version = self._look()
            except (NotReachableError, NoAnswerError, ApiError) as error:
                if not waiting:
                    click.echo(f"limpet: {error}", err=True)
                waiting = True
                continue
            for change in differences(seen, now, of_room=self._room is not None):
                yield change
                told += 1
            seen = now

    def _version(self) -> Any:
        """Return what changes whenever the content does: a small answer instead of all of it."""
        if self._room is not None:
            return self._api.get("rooms", self._room, namespace=self._namespace)["version"]
        return self._api.get("rooms", namespace=self._namespace, limit=1)["version"]

    def _look(self) -> tuple[Seen, Any]:
        version = self._version()  # first: what changes meanwhile is seen the next time
        if self._room is not None:
            found = self._api.pages("rooms", self._room, "members", namespace=self._namespace)
            return {one["user"]: (1, one["connection_count"]) for one in found}, version
        seen = {}
        for one in self._api.pages("rooms", namespace=self._namespace):
            occupancy = one["occupancy"]
            seen[one["room"]] = (occupancy["users"], occupancy["connections"])
        return seen, version


def differences(
    before: Seen, now: Seen, *, of_room: bool, first: bool = False
) -> Iterator[dict[str, Any]]:
    """Return what changed, by name: ``here``, ``join``, ``leave`` and ``update``.

    Args:
        before: what was seen the last time.
        now: what is seen now.
        of_room: whether the names are users; else they are rooms.
        first: whether nothing was seen before.
    """
    what = "user" if of_room else "room"
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if old is None:
            event = "here" if first else "join" if of_room else "open"
        elif new is None:
            event = "leave" if of_room else "close"
        else:
            event = "update"
        users, connections = new or (0, 0)
        counts = (
            {"connections": connections}
            if of_room
            else {"users": users, "connections": connections}
        )
        yield {"event": event, what: name, **counts}


def _tell(change: dict[str, Any], output: Output) -> None:
    moment = datetime.now().astimezone()
    if output.form != "table":
        click.echo(line({"at": moment.isoformat(timespec="milliseconds"), **change}))
        return
    name = plain(change.get("user") or change["room"])
    users = f"{change['users']} users, " if "users" in change else ""
    click.echo(
        f"{moment:%H:%M:%S}  {change['event']:<6}  {name}  ({users}{change['connections']} "
        "connections)"
    )
