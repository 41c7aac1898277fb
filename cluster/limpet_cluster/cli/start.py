"""`limpet start`: a whole cluster on this host, under one supervisor."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from limpet_balancer.listening import BindError, parse_address
from limpet_cluster import appload, config, logs
from limpet_cluster.cli import options
from limpet_cluster.lifecycle import Policy
from limpet_cluster.start import StartOptions, start_cluster
from limpet_cluster.supervisor import StartError


@contextmanager
def _started() -> Iterator[None]:
    try:
        yield
    except StartError as error:
        raise options.Failure(str(error)) from None


@click.command()
@options.application
@click.option(
    "-w",
    "--workers",
    envvar="LIMPET_WORKERS",
    default="auto",
    show_default=True,
    metavar="N|auto",
    help="Worker processes; auto: one for each processor.",
)
@click.option(
    "-b",
    "--bind",
    envvar="LIMPET_BIND",
    multiple=True,
    default=("127.0.0.1:8080",),
    show_default=True,
    metavar="ADDRESS",
    help="HOST:PORT, [IPV6]:PORT or unix:PATH; may be given several times.",
)
@click.option("--dev", is_flag=True, help="Restart the workers when the code changes.")
@options.health
@options.api
@options.buckets
@options.linger
@click.option(
    "--start-timeout",
    type=click.FloatRange(0.1),
    default=60.0,
    help="How long a process may take until it is ready.",
    show_default=True,
    metavar="SECONDS",
)
@click.option(
    "--stop-timeout",
    type=click.FloatRange(0.1),
    default=10.0,
    help="How long a process may take to end before it is killed.",
    show_default=True,
    metavar="SECONDS",
)
@click.option(
    "--stall-after",
    type=click.FloatRange(0),
    default=15.0,
    help="Silence after which a process is replaced; 0 for never.",
    show_default=True,
    metavar="SECONDS",
)
@options.common
def start(
    *,
    common: config.Common,
    application: str,
    app_dir: Path,
    workers: str,
    bind: tuple[str, ...],
    dev: bool,
    health_path: str,
    api: str | None,
    api_token_file: Path | None,
    buckets: int,
    linger: float,
    start_timeout: float,
    stop_timeout: float,
    stall_after: float,
) -> None:
    """Run a cluster on this host: balancer, workers and hub, until TERM or Ctrl-C.

    Without an application it serves a small chat.
    """
    if sys.platform != "linux":
        raise options.Failure(
            "a cluster needs Linux; limpet.run(io) in the application serves it in one process"
        )
    try:
        appload.parse(application)
        count = config.worker_count(workers)
        for address in bind:
            parse_address(address)
        if api is not None:
            parse_address(api)
    except (appload.AppError, BindError, config.ConfigError) as error:
        raise click.UsageError(str(error)) from None
    if api is not None and api_token_file is None:
        raise click.UsageError("--api needs --api-token-file: TCP lets anybody connect")
    if health_path and not health_path.startswith("/"):
        raise click.UsageError(f"--health-path {health_path!r}: expected a path such as /healthz")
    policy = Policy(start_timeout=start_timeout, stop_timeout=stop_timeout, stall_after=stall_after)
    logs.set_up("supervisor", common.log_level, common.log_format)
    with options.told(), _started():
        code = start_cluster(
            StartOptions(
                common=common,
                application=application,
                app_directory=app_dir.absolute(),
                workers=count,
                bind=bind,
                health_path=health_path,
                api=api,
                api_token_file=api_token_file and api_token_file.absolute(),
                buckets=buckets,
                linger=linger,
                dev=dev,
                policy=config.development(policy) if dev else policy,
            )
        )
    raise SystemExit(code)
