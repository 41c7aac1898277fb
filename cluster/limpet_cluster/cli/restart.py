"""`limpet restart`: new processes for the hub, the balancer or workers."""

from __future__ import annotations

from typing import Any

import click

from limpet_cluster.cli.operating import changes, operate


@click.command()
@click.argument("what", nargs=-1, metavar="[hub|balancer|workers|wN]...")
@click.option("--rolling", is_flag=True, help="Workers one after the other, as reload does.")
@changes
def restart(*, what: tuple[str, ...], rolling: bool, **given: Any) -> None:
    """Restart processes of the cluster, all of them unless some are named.

    First the hub, then the balancer, then the workers all at once, or one after the other with
    --rolling. Connections are accepted all the time: new clients wait a moment for a worker.
    """
    operate("restart", what=list(what), rolling=rolling, **given)
