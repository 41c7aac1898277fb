"""`limpet status`: the processes, workers and sessions of the cluster on this host."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from limpet_cluster.cli import options
from limpet_cluster.cli.acting import answered
from limpet_cluster.cli.overview import Overview, Process, look, total
from limpet_cluster.cli.tables import Column, dump, memory, plain, span, table
from limpet_cluster.place import api_socket

_CLEAR: Final = "\x1b[H\x1b[2J"


@click.command()
@options.place
@options.as_json
@options.timeout
@click.option(
    "--watch",
    type=options.Duration(0.1),
    is_flag=False,
    flag_value=2.0,
    metavar="[DURATION]",
    help="Show it again and again, every 2 seconds unless said otherwise, until Ctrl-C.",
)
@click.option(
    "--check",
    is_flag=True,
    help="For scripts: exit code 75 when only a part of the cluster is there.",
)
def status(
    *,
    run_dir: str | None,
    name: str,
    as_json: bool,
    timeout: float,
    watch: float | None,
    check: bool,
) -> None:
    """Show the processes, workers and sessions of the cluster on this host.

    The exit code is 0 when the cluster answers at all, and 4 when nobody does.
    """
    directory = options.run_directory(run_dir, name)
    api = api_socket(directory, name)
    if watch is None:
        with answered():
            overview = look(directory, timeout, api)
        if as_json:
            click.echo(dump(document(overview)))
        else:
            _show(overview, directory)
        if check and overview.missing():
            sys.exit(options.Partial.exit_code)
        return
    if check:
        raise click.UsageError("--check looks once; leave out --watch")
    _repeat(lambda: look(directory, timeout, api), directory, watch, as_json=as_json)


def document(overview: Overview) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    return {
        "supervisor": overview.supervisor,
        "units": overview.units,
        "urls": overview.urls,
        "workers": overview.workers,
        "cluster": overview.cluster,
        "balancer": overview.balancer,
        "missing": overview.missing(),
    }


def _repeat(ask: Callable[[], Overview], directory: Path, each: float, *, as_json: bool) -> None:
    """Show the cluster until Ctrl-C; one that is not there may come."""
    on_terminal = sys.stdout.isatty()
    try:
        while True:
            message, overview = "", None
            try:
                with answered():
                    overview = ask()
            except options.Failure as error:
                message = f"limpet: {error.format_message()}"
            if on_terminal and not as_json:
                click.echo(_CLEAR, nl=False)
            if overview is None:
                click.echo(message, err=as_json)
            elif as_json:
                click.echo(json.dumps(document(overview), ensure_ascii=False))
            else:
                _show(overview, directory)
                if not on_terminal:
                    click.echo()
            time.sleep(each)
    except KeyboardInterrupt:
        return


def _show(overview: Overview, directory: Path) -> None:
    if overview.supervisor is not None:
        _show_supervisor(overview.supervisor)
    elif overview.units is not None:
        running = "" if overview.cluster is None else f"limpet {overview.cluster['version']} "
        where = f" on {' and '.join(overview.urls)}" if overview.urls else ""
        click.echo(f"{running}under systemd{where}\n")
    if processes := overview.processes():
        _show_processes(processes)
    if overview.cluster is None:
        click.echo(f"\nthe hub at {directory} does not answer yet")
        return
    if processes:
        click.echo()
    _show_workers(overview.workers)
    click.echo()
    _show_figures(overview, overview.cluster)
    if missing := overview.missing():
        click.echo(f"not whole: {plain(', '.join(missing))}")


def _show_supervisor(supervisor: dict[str, Any]) -> None:
    state = "ready" if supervisor["ready"] else supervisor["phase"].replace("_", " ")
    urls = supervisor.get("urls") or []
    where = f" on {' and '.join(urls)}" if urls else ""
    click.echo(
        f"{supervisor.get('name', 'limpet')}: {state}, limpet {supervisor.get('version', '?')}, "
        f"{supervisor.get('application', '?')}{where}"
    )
    if operation := supervisor.get("operation"):
        click.echo(
            f"{operation['verb']} since {span(operation['seconds'])}: "
            f"{plain(str(operation['said']))}"
        )
    last = supervisor.get("last_reload")
    if last is not None and not last["ok"]:
        if last.get("partly"):
            click.echo("the last reload stopped half way:")
            click.echo(plain(str(last.get("error", "")).rpartition("\n\n")[2]))
        else:
            click.echo("the last reload failed; what ran before still runs")
    click.echo()


def _show_processes(processes: list[Process]) -> None:
    table(
        (
            Column("PROCESS", shrink=0),
            Column("PID", right=True, shrink=0),
            Column("STATE", shrink=0),
            Column("UP", right=True, shrink=0),
            Column("RESTARTS", right=True, shrink=0),
            "STATUS",
        ),
        (
            (one.name, one.pid or "-", one.state, span(one.seconds), one.restarts, one.why)
            for one in processes
        ),
    )


def _show_workers(workers: list[dict[str, Any]]) -> None:
    table(
        (
            Column("WORKER", shrink=2),
            Column("SLOT", right=True, shrink=0),
            Column("STATE", shrink=0),
            Column("SESSIONS", right=True, shrink=0),
            Column("CONNECTIONS", right=True, shrink=0),
            Column("LOOP LAG", right=True, shrink=1),
            Column("MEMORY", right=True, shrink=1),
        ),
        (
            (
                one["name"],
                one["slot"],
                state(one),
                one["session_count"],
                one["connections"],
                f"{one['loop_lag_seconds'] * 1000:.1f} ms",
                memory(one["rss_bytes"]),
            )
            for one in workers
        ),
    )


def state(worker: dict[str, Any]) -> str:
    """Return the state of a worker, with what is left to be drained."""
    if worker["state"] != "draining":
        return str(worker["state"])
    return f"draining, {worker['session_count']} left"


def _show_figures(overview: Overview, cluster: dict[str, Any]) -> None:
    occupancy, bus = cluster["occupancy"], cluster["bus"]
    sessions = sum(cluster["sessions"].values())
    click.echo(
        f"{occupancy['users']} users on {occupancy['connections']} connections, {sessions} sessions"
    )
    counters = list(overview.counters())
    trouble = ", ".join(
        f"{int(total(counters, f'limpet_bus_{what}_total'))} {what}"
        for what in ("lost", "uncertain", "dropped")
    )
    click.echo(
        f"bus {'open' if bus.get('open') else 'not open yet'}, {bus.get('workers', 0)} workers, "
        f"{bus.get('messages', 0)} messages, {memory(bus.get('bytes', 0))}; {trouble}"
    )
    if (balancer := overview.balancer) is not None:
        refused = sum(balancer["refused"].values())
        click.echo(
            f"balancer {balancer['health']}, {balancer['accepted']} accepted, "
            f"{balancer['handed_over']} handed over, {balancer['waiting']} waiting, "
            f"{refused} refused"
        )
