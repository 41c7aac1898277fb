"""What the commands share: options, and how an error becomes a message and an exit code."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from limpet_adapters.rundir import RunDirectoryError
from limpet_balancer.config import ConfigError as BalancerConfigError
from limpet_balancer.listening import BindError
from limpet_cluster import logs
from limpet_cluster.appload import AppError
from limpet_cluster.child import PARENT
from limpet_cluster.settings import config
from limpet_cluster.settings.config import PLACE, Resolved, Sources
from limpet_cluster.settings.table import SETTINGS, Setting
from limpet_cluster.settings.values import LONGEST, duration, seconds_of
from limpet_worker.errors import OptionError

log = logging.getLogger("limpet.config")

F = TypeVar("F", bound=Callable[..., Any])

_JSON: Final = "limpet.json"
"""What the context of a command remembers of ``--json``."""


class Failure(click.ClickException):
    """Ends the command with one message and exit code 1."""

    def show(self, file: Any = None) -> None:
        """Print the message to stderr."""
        text = f"limpet: {self.format_message()}"
        if logs.to_journal():
            text = logs.prefixed(text, "ERROR")
        click.echo(text, err=True, file=file)


class Invalid(Failure):
    """The configuration cannot be used."""

    exit_code = 3


class Unreachable(Failure):
    """Nobody is there to be asked."""

    exit_code = 4


class TimedOut(Failure):
    """No answer in time."""

    exit_code = 5


class Partial(Failure):
    """Done for a part of the cluster; the rest may come later."""

    exit_code = 75


@contextmanager
def told() -> Iterator[None]:
    """Turn the errors that a user can mend into one message and an exit code."""
    try:
        yield
    except config.SettingsError as error:
        if error.usage:
            raise click.UsageError(str(error)) from None
        raise Invalid(str(error)) from None
    except (config.ConfigError, BalancerConfigError) as error:
        raise Invalid(str(error)) from None
    except (AppError, BindError, OptionError, RunDirectoryError) as error:
        raise Failure(str(error)) from None


# --- settings as options ----------------------------------------------------


def settings(command: str) -> Callable[[F], F]:
    """Add an option for each setting that a command takes.

    The command gets them, resolved with file and environment, as ``resolved``.
    """
    taken = [one for one in SETTINGS.values() if command in one.commands]

    def add(function: F) -> F:
        @wraps(function)
        def wrapped(**given: Any) -> Any:
            with told():
                sources = _sources(taken, given)
                resolved = sources.resolve()
            return function(resolved=resolved, **given)

        result: F = _with_options(wrapped, taken)
        return result

    return add


def warn(resolved: Resolved) -> None:
    """Log what is odd about the settings, but keeps nobody from running."""
    for warning in resolved.warnings:
        log.warning("%s", warning)


def place(command: F) -> F:
    """Add the options that say which cluster on this host is meant.

    The command gets them, completed from file and environment, as ``run_dir`` and ``name``.
    """
    return _place(command, lenient=False)


def place_anyway(command: F) -> F:
    """Do as `place`; a file that cannot be read is as good as none."""
    return _place(command, lenient=True)


def _place(command: F, *, lenient: bool) -> F:
    taken = [SETTINGS[name] for name in PLACE]

    @wraps(command)
    def wrapped(**given: Any) -> Any:
        with told():
            sources = _sources(taken, given)
            try:
                found = sources.place()
            except config.SettingsError:
                if not lenient:
                    raise
                found = replace(sources, file="").place()
        run_dir = None if found.run_dir is None else str(found.run_dir)
        return command(run_dir=run_dir, name=found.name, **given)

    result: F = _with_options(wrapped, taken)
    return result


def config_file(command: F) -> F:
    """Add ``--config``."""
    return click.option(
        "--config",
        "config_file",
        metavar="FILE",
        shell_complete=_completing("FILE", ()),
        help=f"The configuration file; empty for none.  [{config.FILE_VARIABLE}; default: "
        f"{config.FILE_NAME} here, else {config.SYSTEM_FILE}]",
    )(command)


def _with_options(command: Any, taken: list[Setting]) -> Any:
    for setting in reversed(taken):
        command = _option(setting)(command)
    return config_file(command)


def _option(setting: Setting) -> Callable[[Any], Any]:
    default = setting.shown(setting.default)
    if setting.argument:
        return click.argument(setting.name, required=False, metavar=f"[{setting.kind.metavar}]")
    flags = [setting.flag] if not setting.short else [f"-{setting.short}", setting.flag]
    more: dict[str, Any] = {
        "metavar": setting.kind.metavar,
        "multiple": setting.kind.several,
        "shell_complete": _completing(setting.kind.metavar, setting.kind.words),
    }
    if setting.default is False:
        flags, more = [f"{setting.flag}/--no-{setting.flag[2:]}"], {"default": None}
    text = f"{setting.help}  [{setting.variable}; default: {default}]"
    return click.option(*flags, setting.name, help=text, **more)


def _completing(metavar: str, words: Sequence[str]) -> Callable[..., list[CompletionItem]]:
    """Return what a shell asks for the words, files or folders that may follow an option."""

    def complete(_context: object, _parameter: object, incomplete: str) -> list[CompletionItem]:
        if metavar in ("FILE", "DIR"):
            return [CompletionItem(incomplete, type=metavar.lower())]
        return [CompletionItem(word) for word in words if word.startswith(incomplete)]

    return complete


def _sources(taken: list[Setting], given: dict[str, Any]) -> Sources:
    """Take the options out of what click hands to a command."""
    flags = {}
    for setting in taken:
        value = given.pop(setting.name)
        if isinstance(value, bool):
            value = setting.written(value)
        if value is not None and value != ():
            flags[setting.name] = (value,) if isinstance(value, str) else tuple(value)
    return Sources(
        flags=flags,
        file=given.pop("config_file"),
        takes=frozenset(setting.name for setting in taken),
        # What our own supervisor starts is told all by flags: they hold what it runs with.
        environ={} if PARENT in os.environ else os.environ,
    )


def run_directory(run_dir: str | None, name: str) -> Path:
    """Return where the cluster that the options name meets."""
    try:
        return config.find_run_directory(run_dir, name)
    except config.ConfigError as error:
        raise click.UsageError(str(error)) from None


# --- what commands that ask have --------------------------------------------


def as_json(command: F) -> F:
    """Add ``--json``; then errors are a document on stdout as well."""

    def remember(_ctx: click.Context, _option: click.Parameter, value: bool) -> bool:
        answer_as_json(value)
        return value

    return click.option(
        "--json", "as_json", is_flag=True, callback=remember, help="As JSON, for programs."
    )(command)


def answer_as_json(asked: bool) -> None:
    """Remember whether a program reads what the present command answers."""
    click.get_current_context().meta[_JSON] = asked


def answers_as_json(ctx: click.Context) -> bool:
    """Return whether a program reads what a command answers."""
    return bool(ctx.meta.get(_JSON))


class Duration(click.ParamType[float]):
    """A time as the settings take it: ``30``, ``1.5s``, ``250ms``, ``2min``; in seconds.

    Args:
        least: seconds that it has at least.
    """

    name = "duration"

    def __init__(self, least: float = 0.0) -> None:
        self._least = least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read what was typed."""
        try:
            found = seconds_of(value) if isinstance(value, str) else float(value)
        except ValueError:
            found = -1.0
        if not self._least <= found <= LONGEST:
            least = duration(self._least) if self._least else "0"
            self.fail(
                f"{value!r}: expected a duration from {least} to {duration(LONGEST)}, "
                "such as 30 or 2min",
                param,
                ctx,
            )
        return found


def timeout(command: F) -> F:
    """Add ``--timeout``."""
    return click.option(
        "--timeout",
        type=Duration(0.01),
        default="5s",
        show_default=True,
        help="How long to wait for an answer.",
    )(command)
