"""`limpet hub`: one process of a cluster, run by the supervisor or by systemd."""

from __future__ import annotations

from pathlib import Path

import click

from limpet_cluster import child
from limpet_cluster.cli import options
from limpet_cluster.config import Common
from limpet_cluster.hub.process import HubConfig, run_hub


@click.command()
@options.api
@options.common
def hub(*, common: Common, api: str | None, api_token_file: Path | None) -> None:
    """Run the hub of this host: bus, presence and API."""
    life = child.enter("hub", common)
    with options.told(), life.errors_told():
        config = HubConfig(
            run=common.open(),
            node=common.node,
            name=common.name,
            api=api,
            api_token_file=api_token_file,
        )
        raise SystemExit(child.run(lambda: run_hub(config, life.notifier.ready), life))
