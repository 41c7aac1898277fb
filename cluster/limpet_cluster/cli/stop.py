"""`limpet stop`: the end of the cluster on this host."""

from __future__ import annotations

from typing import Any

import click

from limpet_cluster.cli.operating import changes, operate


@click.command()
@click.option(
    "--quick/--graceful",
    default=False,
    help="Quick: running handlers are not waited for.  [default: graceful]",
)
@changes
def stop(*, quick: bool, **given: Any) -> None:
    """End the cluster on this host and wait until it is gone.

    The clients are closed at once, there is nobody left to take them; handlers that run are
    waited for.
    """
    operate("stop", quick=quick, **given)
