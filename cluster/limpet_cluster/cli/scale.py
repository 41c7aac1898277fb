"""`limpet scale`: more or fewer workers in a running cluster."""

from __future__ import annotations

from typing import Any

import click

from limpet_cluster.cli.operating import changes, operate
from limpet_cluster.fleet import rolling
from limpet_cluster.fleet.fleet import FleetError


# Else -1 would be taken for an option.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("workers", metavar="N|+N|-N")
@changes
def scale(*, workers: str, **given: Any) -> None:
    """Change the number of workers to N, by +N or by -N.

    New workers take new sessions as soon as they are ready; those that leave drain: their clients
    come back to the others.
    """
    try:
        rolling.check_count(workers)
    except FleetError as error:
        raise click.UsageError(str(error)) from None
    operate("scale", workers=workers, **given)
