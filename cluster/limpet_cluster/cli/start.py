"""`limpet start`: a whole cluster on this host, under one supervisor."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from limpet_cluster import logs
from limpet_cluster.cli import options
from limpet_cluster.settings.config import Resolved
from limpet_cluster.settings.table import START
from limpet_cluster.supervisor.start import StartOptions, start_cluster
from limpet_cluster.supervisor.supervisor import StartError


@contextmanager
def _started() -> Iterator[None]:
    try:
        yield
    except StartError as error:
        raise options.Failure(str(error)) from None


@click.command()
@options.settings(START)
def start(*, resolved: Resolved) -> None:
    """Run a cluster on this host: balancer, workers and hub, until TERM or Ctrl-C.

    Without an application it serves a small chat.
    """
    if sys.platform != "linux":
        raise options.Failure(
            "a cluster needs Linux; limpet.run(io) in the application serves it in one process"
        )
    with options.told(), _started():
        chosen = StartOptions.of(resolved)
        logs.set_up("supervisor", chosen.common.log_level, chosen.common.log_format)
        options.warn(resolved)
        code = start_cluster(chosen)
    raise SystemExit(code)
