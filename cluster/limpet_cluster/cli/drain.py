"""`limpet drain`: a worker's clients are sent to the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import click

from limpet_cluster.api_client import ApiClient, NotReachableError
from limpet_cluster.cli import options
from limpet_cluster.cli.acting import answered, client_of
from limpet_cluster.cli.tables import dump, progress
from limpet_cluster.settings.values import duration

_LOOK_EACH: Final = 0.25
_HUB_AWAY: Final = 10.0
"""Seconds without an answer that are no reason to give up."""


@click.command()
@click.argument("worker")
@click.option(
    "--window",
    type=options.Duration(),
    help="Close the clients over so long.  [default: as the budget of reconnects wants it]",
)
@click.option(
    "--grace",
    type=options.Duration(),
    help="How long to wait before the first.  [default: as configured]",
)
@click.option("--force", is_flag=True, help="Even if no other worker would take the clients.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; do nothing.")
@click.option(
    "--wait/--no-wait",
    default=True,
    help="Whether to wait until the worker is empty.  [default: wait]",
)
@click.option(
    "--timeout",
    type=options.Duration(),
    help="How long to wait; then the exit code is 5.  [default: as long as it takes]",
)
@options.as_json
@options.place
def drain(
    *,
    run_dir: str | None,
    name: str,
    worker: str,
    window: float | None,
    grace: float | None,
    force: bool,
    dry_run: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Send the clients of WORKER (name or slot) to the other workers.

    Each is closed at a random instant and comes back to another worker after its own back-off;
    those whose handlers run are waited for. The worker stays, empty, and takes no new sessions
    until `limpet undrain`.
    """
    with answered():
        api = client_of(run_dir, name)
        if dry_run:
            found = _find(api, worker)
            if not force:
                _need_others(api, found)
            _tell_plan(found, as_json=as_json)
            return
        order = {
            key: value for key, value in (("window", window), ("grace", grace)) if value is not None
        }
        began = time.monotonic()
        answer = api.post(
            "workers", worker, "drain", body=order or None, force="true" if force else None
        )
        title = answer["worker"]["name"]
        total = left = answer["sessions_left"]
        if wait and left:
            with progress(f"draining {title}", quiet=as_json) as bar:
                bar.set(left=left, total=total)
                for left in _progress(api, answer["worker"]["id"], title, total, timeout):
                    bar.set(left=left, total=total)
        took = time.monotonic() - began
    if as_json:
        document = {
            "ok": True,
            "worker": title,
            "sessions": total,
            "sessions_left": left,
            "seconds": round(took, 3),
        }
        click.echo(dump(document))
    elif left:
        most = duration(float(round(answer["seconds_left"]) or 1))
        click.echo(f"{title} drains {_sessions(left)} within about {most}")
    else:
        click.echo(f"{title} is empty ({_sessions(total)} in {took:.1f} s)")


def _progress(
    api: ApiClient, id_: str, title: str, left: int, timeout: float | None
) -> Iterator[int]:
    """Yield how many sessions are left, until none is.

    Raises:
        options.TimedOut: not in time.
        options.Failure: somebody took the worker back.
    """
    until = None if timeout is None else time.monotonic() + timeout
    heard = time.monotonic()
    while left:
        if until is not None and time.monotonic() >= until:
            raise options.TimedOut(
                f"{title} has {_sessions(left)} left after {duration(timeout or 0.0)}; "
                "it goes on draining"
            )
        time.sleep(_LOOK_EACH)
        try:
            page = api.get("workers")
            heard = time.monotonic()
        except NotReachableError:  # the hub may be replaced meanwhile: the worker drains on
            if time.monotonic() - heard > _HUB_AWAY:
                raise
            continue
        found = next((one for one in page["data"] if one["id"] == id_), None)
        if found is None and not page["complete"]:
            continue  # a hub that has just started is yet to hear of it
        if found is None or found["state"] == "gone":
            yield 0  # it has ended: nobody is left there
            return
        if found["state"] == "starting" or found["figures_age_seconds"] is None:
            continue  # such a hub again: nor does it know how many are left
        if found["state"] != "draining":
            raise options.Failure(f"{title} was taken back meanwhile: it takes sessions again")
        left = found["session_count"]
        yield left


def _find(api: ApiClient, worker: str) -> Any:
    found = _one(api, lambda one: worker in {one["name"], str(one["slot"]), one["id"]})
    if found is None or found["state"] == "gone":
        raise options.Failure(f"no worker {worker!r}")
    return found


def _need_others(api: ApiClient, worker: Any) -> None:
    """Refuse what the hub would refuse: somebody else must take the clients."""
    if worker["state"] != "draining" and not _one(
        api, lambda one: one["id"] != worker["id"] and one["state"] in {"starting", "ready"}
    ):
        raise options.Failure(
            f"no other worker would take the clients of {worker['name']}; with --force it drains "
            "nevertheless"
        )


def _one(api: ApiClient, fits: Callable[[Any], bool]) -> Any:
    return next(filter(fits, api.get("workers")["data"]), None)


def _tell_plan(worker: Any, *, as_json: bool) -> None:
    if as_json:
        document = {
            "ok": True,
            "dry_run": True,
            "worker": worker["name"],
            "sessions": worker["session_count"],
        }
        click.echo(dump(document))
    else:
        click.echo(f"{worker['name']} would be drained: {_sessions(worker['session_count'])}")


def _sessions(count: int) -> str:
    return "1 session" if count == 1 else f"{count} sessions"
