"""`limpet disconnect`: one connection is ended."""

from __future__ import annotations

import click

from limpet_cluster.cli import options
from limpet_cluster.cli.acting import answered, client_of
from limpet_cluster.cli.tables import dump


@click.command()
@click.argument("socket_id")
@click.option(
    "--close", is_flag=True, help="The whole client: all its namespaces and the transport."
)
@options.timeout
@options.as_json
@options.place
def disconnect(
    *,
    run_dir: str | None,
    name: str,
    socket_id: str,
    close: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Disconnect the socket SOCKET_ID from its namespace; stock clients do not come back.

    `limpet presence` shows who has which id.
    """
    with answered():
        client_of(run_dir, name, timeout).delete(
            "connections", socket_id, close="true" if close else None
        )
    if as_json:
        click.echo(dump({"ok": True, "socket_id": socket_id, "closed": close}))
    else:
        click.echo(f"{socket_id} is disconnected")
