"""`limpet hub`: one process of a cluster, run by the supervisor or by systemd."""

from __future__ import annotations

from typing import Final

import click

from limpet_balancer.listening import BindError
from limpet_cluster import child
from limpet_cluster.cli import options
from limpet_cluster.hub.process import HubConfig, HubConfigError, run_hub
from limpet_cluster.settings.config import Common, ConfigError, Resolved
from limpet_cluster.settings.table import HUB
from limpet_cluster.settings.tokens import TokenFileError

_NEVER: Final = 3600.0
"""Seconds that stand for never: the hub remembers what it sent for as long as it waits."""


@click.command()
@options.settings(HUB)
def hub(*, resolved: Resolved) -> None:
    """Run the hub of this host: bus, presence and API."""
    settings = resolved.settings
    with options.told():
        common = Common.of(settings)
    life = child.enter("hub", common)
    if not life.supervised:
        options.warn(resolved)
    with options.told(), life.errors_told():
        try:
            config = HubConfig(
                run_directory=common.open().path,
                node_number=common.node,
                buckets=settings.buckets,
                api_bind=settings.api,
                api_token_file=settings.api_token_file,
                stall_after=settings.stall_after or _NEVER,
                supervised=life.supervised,
            )
            code = child.run(lambda: run_hub(config, life.notifier.ready), life, child.fast_loop)
        except (HubConfigError, TokenFileError) as error:
            raise ConfigError(str(error)) from None
        except OSError as error:
            if settings.api is None:
                raise
            raise BindError(f"--api {settings.api}: {error.strerror or error}") from None
        raise SystemExit(code)
