"""`limpet worker`: one process of a cluster, run by the supervisor or by systemd."""

from __future__ import annotations

from pathlib import Path

import click

from limpet_adapters.rundir import RunDirectoryError
from limpet_client.assets import browser_files
from limpet_cluster import appload, child
from limpet_cluster.cli import options
from limpet_cluster.config import Common
from limpet_worker.errors import OptionError
from limpet_worker.process import WorkerConfig, run_worker
from limpet_worker.socketio.server import Server


@click.command()
@options.application
@click.option("--slot", type=click.IntRange(0, 255), required=True, help="Its place on this host.")
@options.buckets
@options.linger
@options.common
def worker(
    *,
    common: Common,
    application: str,
    slot: int,
    app_dir: Path,
    buckets: int,
    linger: float,
) -> None:
    """Run one worker: the clients' sessions and the application."""
    life = child.enter(f"worker-{slot}", common)

    def load_app() -> Server:
        return appload.load(application, app_dir.absolute(), Server)

    with options.told(), life.errors_told():
        config = WorkerConfig(
            run=common.open(),
            slot=slot,
            node=common.node,
            name=common.name,
            path=common.path,
            buckets=buckets,
            linger=linger,
        )

        async def main() -> int:
            try:
                return await run_worker(config, load_app, life.notifier.ready, browser_files())
            except (appload.AppError, OptionError, RunDirectoryError):
                raise
            except Exception as error:
                text = appload.users_traceback(error)
                raise appload.AppError(f"{application} failed\n\n{text}") from error

        raise SystemExit(child.run(main, life, child.fast_loop))
