"""`limpet reload`: new code and configuration, worker after worker."""

from __future__ import annotations

from typing import Any

import click

from limpet_cluster.cli.operating import changes, operate


@click.command()
@changes
def reload(**given: Any) -> None:
    """Replace the workers one after the other by ones with the new code and configuration.

    The first starts in a spare slot: when it does not come up, nothing has changed, its error is
    shown and the exit code is 1. Exit code 75: it stopped half way; the message says who runs what.
    """
    operate("reload", **given)
