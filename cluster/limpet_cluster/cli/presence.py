"""`limpet presence`: who is connected to the cluster, and in which room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import click

from limpet_cluster.api_client import ApiClient, ApiError, NoAnswerError, NotReachableError
from limpet_cluster.cli import options
from limpet_cluster.cli.tables import dump, table

F = TypeVar("F", bound=Callable[..., Any])


@contextmanager
def answered() -> Iterator[None]:
    """Turn what may go wrong when the API is asked into a message and an exit code."""
    try:
        yield
    except NotReachableError as error:
        raise options.Unreachable(str(error)) from None
    except NoAnswerError as error:
        raise options.TimedOut(str(error)) from None
    except ApiError as error:
        raise options.Failure(str(error)) from None


def _asking(command: F) -> F:
    """Add the options of a command that asks the API; it gets the client as ``api``."""

    @wraps(command)
    def wrapped(*, run_dir: str | None, name: str, timeout: float, **rest: Any) -> Any:
        directory = options.run_directory(run_dir, name)
        with answered():
            return command(api=ApiClient(directory / "api.sock", timeout), **rest)

    result: Any = wrapped
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
    as_json: bool,
    namespace: str,
    prefix: str | None,
    sort: str,
    most: int,
) -> None:
    """List the occupied rooms of a namespace."""
    found = api.pages("rooms", most=most, namespace=namespace, prefix=prefix, sort=sort)
    if as_json:
        click.echo(dump(list(found)))
        return
    table(
        ("ROOM", "USERS", "CONNECTIONS"),
        (
            (one["room"], one["occupancy"]["users"], one["occupancy"]["connections"])
            for one in found
        ),
    )


@presence.command()
@click.argument("room")
@_namespace
@_most
@_asking
def members(*, api: ApiClient, as_json: bool, room: str, namespace: str, most: int) -> None:
    """List who is in a room."""
    found = api.pages("rooms", room, "members", most=most, namespace=namespace)
    if as_json:
        click.echo(dump(list(found)))
        return
    table(
        ("USER", "CONNECTIONS", "SINCE", "WORKERS"),
        (
            (
                one["user"],
                one["connection_count"],
                one["joined_at"],
                " ".join(sorted({connection["worker"] for connection in one["connections"]})),
            )
            for one in found
        ),
    )


@presence.command()
@click.argument("user")
@_asking
def user(*, api: ApiClient, as_json: bool, user: str) -> None:
    """Show whether a user is online, and where."""
    found = api.get("users", user)
    if as_json:
        click.echo(dump(found))
        return
    if not found["online"]:
        click.echo(f"{user} is offline")
        return
    click.echo(f"{user} is online\n")
    table(
        ("SOCKET", "NAMESPACE", "WORKER", "TRANSPORT", "SINCE"),
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
        ("ROOM", "NAMESPACE", "SINCE"),
        ((one["room"], one["namespace"], one["joined_at"]) for one in found["rooms"]),
    )
