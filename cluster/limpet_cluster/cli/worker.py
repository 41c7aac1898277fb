"""`limpet worker`: one process of a cluster, run by the supervisor or by systemd."""

from __future__ import annotations

import click

from limpet_adapters.rundir import RunDirectoryError
from limpet_client.assets import browser_files
from limpet_cluster import appload, child
from limpet_cluster.cli import options
from limpet_cluster.settings.config import Common, Resolved
from limpet_cluster.settings.table import WORKER
from limpet_worker.drain import DrainOptions
from limpet_worker.errors import OptionError
from limpet_worker.process import WorkerConfig, run_worker
from limpet_worker.socketio.server import Server


@click.command()
@click.option(
    "--slot",
    type=click.IntRange(0, 255),
    required=True,
    metavar="N",
    help="Its place on this host, 0 to 255.",
)
@options.settings(WORKER)
def worker(*, resolved: Resolved, slot: int) -> None:
    """Run one worker: the clients' sessions and the application."""
    settings = resolved.settings
    with options.told():
        common = Common.of(settings)
    life = child.enter(f"worker-{slot}", common)
    if not life.supervised:
        options.warn(resolved)

    def load_app() -> Server:
        server = appload.load(settings.app, settings.app_dir, Server)
        server.override(
            ping_interval=settings.ping_interval,
            ping_timeout=settings.ping_timeout,
            max_sessions=settings.max_sessions,
            max_http_buffer_size=settings.max_http_buffer_size,
        )
        return server

    with options.told(), life.errors_told():
        config = WorkerConfig(
            run=common.open(),
            slot=slot,
            node=common.node,
            name=common.name,
            path=common.path,
            buckets=settings.buckets,
            linger=settings.linger,
            drain=DrainOptions(
                grace=settings.drain_grace,
                window=settings.drain_window,
                budget=settings.drain_budget,
                handler_grace=settings.handler_grace,
            ),
        )

        async def main() -> int:
            try:
                return await run_worker(
                    config,
                    load_app,
                    life.notifier.ready,
                    browser_files(),
                    notifier=life.notifier,
                )
            except (appload.AppError, OptionError, RunDirectoryError):
                raise
            except Exception as error:
                text = appload.users_traceback(error)
                raise appload.AppError(f"{settings.app} failed\n\n{text}") from error

        raise SystemExit(child.run(main, life, child.fast_loop))
