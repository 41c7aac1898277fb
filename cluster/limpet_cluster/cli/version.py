"""`limpet version`: what a bug report needs."""

from __future__ import annotations

import json

import click

from limpet_cluster.cli import options
from limpet_cluster.version import versions


@click.command()
@options.as_json
def version(*, as_json: bool) -> None:
    """Show the version of limpet and of what it runs on."""
    found = versions()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        click.echo(f"{name:<15} {value or 'not installed'}")
