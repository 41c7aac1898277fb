"""The command line: each command is a module of its own, imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

_COMMANDS: Final = {
    "start": "limpet_cluster.cli.start",
    "status": "limpet_cluster.cli.status",
    "presence": "limpet_cluster.cli.presence",
    "hub": "limpet_cluster.cli.hub",
    "balancer": "limpet_cluster.cli.balancer",
    "worker": "limpet_cluster.cli.worker",
    "version": "limpet_cluster.cli.version",
}


class _Commands(click.Group):
    """A group that imports a command's module on use: a balancer has no need of the worker's."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(_COMMANDS[cmd_name]), cmd_name)
        assert isinstance(command, click.Command)  # noqa: S101
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="limpet", message="limpet %(version)s")
def limpet() -> None:
    """Serve Socket.IO on every core of a machine.

    Exit codes: 0 done, 1 failure, 2 usage, 3 configuration invalid, 4 not reachable, 5 timed out.
    """


def main() -> None:
    """Run the command line."""
    limpet(prog_name="limpet")
