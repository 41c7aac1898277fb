"""`limpet hub`: one process of a cluster, run by the supervisor or by systemd."""

from __future__ import annotations

from pathlib import Path

import click

from limpet_balancer.listening import BindError
from limpet_cluster import child
from limpet_cluster.cli import options
from limpet_cluster.config import Common, ConfigError
from limpet_cluster.hub.access import TokenFileError
from limpet_cluster.hub.process import HubConfig, HubConfigError, run_hub


@click.command()
@options.buckets
@options.api
@options.common
def hub(*, common: Common, api: str | None, api_token_file: Path | None, buckets: int) -> None:
    """Run the hub of this host: bus, presence and API."""
    life = child.enter("hub", common)
    with options.told(), life.errors_told():
        try:
            config = HubConfig(
                run_directory=common.open().path,
                node_number=common.node,
                buckets=buckets,
                api_bind=api,
                api_token_file=api_token_file,
            )
            code = child.run(lambda: run_hub(config, life.notifier.ready), life, child.fast_loop)
        except (HubConfigError, TokenFileError) as error:
            raise ConfigError(str(error)) from None
        except OSError as error:
            if api is None:
                raise
            raise BindError(f"--api {api}: {error.strerror or error}") from None
        raise SystemExit(code)
