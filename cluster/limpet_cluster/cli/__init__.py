"""The command line: each command is a module of its own, imported when it is asked for."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from limpet_cluster.failures import Ended

_COMMANDS: Final = {
    "start": "limpet_cluster.cli.start",
    "stop": "limpet_cluster.cli.stop",
    "status": "limpet_cluster.cli.status",
    "top": "limpet_cluster.cli.top",
    "scale": "limpet_cluster.cli.scale",
    "reload": "limpet_cluster.cli.reload",
    "restart": "limpet_cluster.cli.restart",
    "drain": "limpet_cluster.cli.drain",
    "undrain": "limpet_cluster.cli.undrain",
    "presence": "limpet_cluster.cli.presence",
    "disconnect": "limpet_cluster.cli.disconnect",
    "config": "limpet_cluster.cli.config",
    "doctor": "limpet_cluster.cli.doctor",
    "systemd": "limpet_cluster.cli.systemd",
    "bench": "limpet_cluster.cli.bench",
    "completion": "limpet_cluster.cli.completion",
    "version": "limpet_cluster.cli.version",
    "hub": "limpet_cluster.cli.hub",
    "balancer": "limpet_cluster.cli.balancer",
    "worker": "limpet_cluster.cli.worker",
}

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells count it: 128 and the number of the signal."""
BROKEN_PIPE: Final = 141
"""Exit code when nobody reads what is printed any more."""


class _Commands(click.Group):
    """A group that imports a command's module on use: a balancer has no need of the worker's.

    Every error is one message that begins with ``limpet:``.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(import_module(_COMMANDS[cmd_name]), cmd_name)
        assert isinstance(command, click.Command)  # noqa: S101
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands that begin so, without importing them: a Tab key waits for it."""
        found = [CompletionItem(name) for name in _COMMANDS if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> int:
        """Run the command; return the exit code."""
        try:
            super().invoke(ctx)
        except click.ClickException as error:
            options = import_module("limpet_cluster.cli.options")
            if not isinstance(error, options.Failure) or not options.answers_as_json(ctx):
                raise
            document = {"ok": False, "error": error.message, "exit_code": error.exit_code}
            click.echo(json.dumps(document, ensure_ascii=False, indent=2))
            return int(error.exit_code)
        except BrokenPipeError:
            # What the interpreter flushes at its end must not find the broken pipe again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        return 0

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode, **extra)
        why = ""
        try:
            code = super().main(args, prog_name, complete_var, False, **extra)
        except click.ClickException as error:
            _show(error)
            code, why = error.exit_code, error.format_message()
        except (KeyboardInterrupt, click.Abort) as error:  # Click turns the one into the other
            asked = isinstance(error, click.Abort) and error.__cause__ is None  # at a prompt
            code = 1 if asked else INTERRUPTED
        raise Ended(code, why)


def _show(error: click.ClickException) -> None:
    """Print what was wrong, and for a wrong usage also how the command is used."""
    if type(error).show not in {click.ClickException.show, click.UsageError.show}:
        error.show()
        return
    message = error.format_message()
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    if ctx is not None:
        click.echo(ctx.get_usage(), err=True)
        click.echo(f"'{ctx.command_path} --help' tells more.\n", err=True)
        if "No such command" in message and "Did you mean" not in message:
            message += _nearest(ctx, message)
    click.echo(f"limpet: {message}", err=True)


def _nearest(ctx: click.Context, message: str) -> str:
    """Return which command may be meant; Click says so itself from 8.4."""
    name = message.partition("'")[2].partition("'")[0]
    known = ctx.command.list_commands(ctx) if isinstance(ctx.command, click.Group) else ()
    near = difflib.get_close_matches(name, known, 1)
    return f" Did you mean '{near[0]}'?" if near else ""


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="limpet", message="limpet %(version)s")
def limpet() -> None:
    """Serve Socket.IO on every core of a machine.

    Exit codes: 0 done, 1 failure, 2 usage, 3 configuration invalid, 4 not reachable, 5 timed out,
    75 only a part of the cluster is there.
    """


def main() -> None:
    """Run the command line."""
    limpet(prog_name="limpet")
