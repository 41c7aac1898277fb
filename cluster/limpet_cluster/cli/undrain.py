"""`limpet undrain`: a drained worker takes sessions again."""

from __future__ import annotations

import click

from limpet_cluster.cli import options
from limpet_cluster.cli.acting import answered, client_of
from limpet_cluster.cli.tables import dump


@click.command()
@click.argument("worker")
@options.timeout
@options.as_json
@options.place
def undrain(*, run_dir: str | None, name: str, worker: str, timeout: float, as_json: bool) -> None:
    """Have WORKER (name or slot), which was drained, take sessions again."""
    with answered():
        answer = client_of(run_dir, name, timeout).post("workers", worker, "undrain")
    title, left = answer["worker"]["name"], answer["sessions_left"]
    if as_json:
        click.echo(dump({"ok": True, "worker": title, "sessions": left}))
    else:
        click.echo(f"{title} takes sessions again, and keeps {left}")
