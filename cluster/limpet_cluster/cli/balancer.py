"""`limpet balancer`: one process of a cluster, run by the supervisor or by systemd."""

from __future__ import annotations

import click

from limpet_balancer.balancer import run_balancer
from limpet_balancer.config import BalancerConfig
from limpet_cluster import child
from limpet_cluster.cli import options
from limpet_cluster.config import Common


@click.command()
@click.option(
    "-b",
    "--bind",
    envvar="LIMPET_BIND",
    multiple=True,
    metavar="ADDRESS",
    help="HOST:PORT, [IPV6]:PORT or unix:PATH; not needed where systemd passes the sockets.",
)
@options.health
@options.common
def balancer(*, common: Common, bind: tuple[str, ...], health_path: str) -> None:
    """Run the balancer of this host: the public port."""
    life = child.enter("balancer", common)
    with options.told(), life.errors_told():
        config = BalancerConfig(
            run=common.open(),
            node=common.node,
            bind=bind,
            engine_path=common.path,
            health_path=health_path,
        )
        raise SystemExit(
            child.run(lambda: run_balancer(config, life.notifier.ready), life, child.fast_loop)
        )
