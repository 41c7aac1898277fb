"""`limpet status`: the processes, workers and sessions of the cluster on this host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from limpet_cluster import commands
from limpet_cluster.api_client import ApiClient, NoAnswerError, NotReachableError
from limpet_cluster.cli import options
from limpet_cluster.cli.presence import answered
from limpet_cluster.cli.tables import dump, span, table


@click.command()
@options.place
@options.as_json
@options.timeout
def status(*, run_dir: str | None, name: str, as_json: bool, timeout: float) -> None:
    """Show the processes, workers and sessions of the cluster on this host."""
    directory = options.run_directory(run_dir, name)
    api = ApiClient(directory / "api.sock", timeout)
    try:
        supervisor: dict[str, Any] | None = commands.ask(directory, "status", timeout)
    except commands.CommandError:
        supervisor = None  # under systemd there is none
    with answered():
        try:
            workers = api.get("workers")["data"]
            cluster = api.get("cluster")
        except (NotReachableError, NoAnswerError):
            if supervisor is None:
                raise
            workers, cluster = [], None  # the hub is just being replaced
    if as_json:
        click.echo(dump({"supervisor": supervisor, "workers": workers, "cluster": cluster}))
        return
    if supervisor is not None:
        _show_supervisor(supervisor)
    _show_workers(workers, cluster, directory)


def _show_supervisor(supervisor: dict[str, Any]) -> None:
    state = "ready" if supervisor["ready"] else supervisor["phase"].replace("_", " ")
    click.echo(
        f"{supervisor['name']}: {state}, limpet {supervisor['version']}, "
        f"{supervisor['application']} on {' and '.join(supervisor['urls'])}\n"
    )
    table(
        ("PROCESS", "PID", "STATE", "UP", "RESTARTS", "STATUS"),
        (
            (
                one["name"],
                one["pid"] or "-",
                one["state"],
                span(one["seconds"]),
                one["restarts"],
                one["error"].strip().rpartition("\n")[2] or one["status"],
            )
            for one in supervisor["processes"]
        ),
    )


def _show_workers(workers: list[Any], cluster: Any, directory: Path) -> None:
    if cluster is None:
        click.echo(f"\nthe hub at {directory} does not answer yet")
        return
    click.echo()
    table(
        ("WORKER", "SLOT", "STATE", "SESSIONS", "CONNECTIONS", "LOOP LAG", "MEMORY"),
        (
            (
                one["name"],
                one["slot"],
                one["state"],
                one["session_count"],
                one["connections"],
                f"{one['loop_lag_seconds'] * 1000:.1f} ms",
                f"{one['rss_bytes'] / 2**20:.0f} MiB",
            )
            for one in workers
        ),
    )
    occupancy = cluster["occupancy"]
    click.echo(f"\n{occupancy['users']} users on {occupancy['connections']} connections")
