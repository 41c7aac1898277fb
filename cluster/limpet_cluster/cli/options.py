"""What the commands share: options, and how an error becomes a message and an exit code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from limpet_adapters.rundir import RunDirectoryError
from limpet_balancer.config import ConfigError as BalancerConfigError
from limpet_balancer.listening import BindError
from limpet_cluster import config, logs
from limpet_cluster.appload import BUILT_IN, AppError
from limpet_worker.errors import OptionError

F = TypeVar("F", bound=Callable[..., Any])


class Failure(click.ClickException):
    """Ends the command with one message and exit code 1."""

    def show(self, file: Any = None) -> None:
        """Print the message to stderr."""
        click.echo(f"limpet: {self.format_message()}", err=True, file=file)


class Invalid(Failure):
    """The configuration cannot be used."""

    exit_code = 3


class Unreachable(Failure):
    """Nobody is there to be asked."""

    exit_code = 4


class TimedOut(Failure):
    """No answer in time."""

    exit_code = 5


@contextmanager
def told() -> Iterator[None]:
    """Turn the errors that a user can mend into one message and an exit code."""
    try:
        yield
    except (config.ConfigError, BalancerConfigError) as error:
        raise Invalid(str(error)) from None
    except (AppError, BindError, OptionError, RunDirectoryError) as error:
        raise Failure(str(error)) from None


def run_directory(run_dir: str | None, name: str) -> Path:
    """Return where the cluster that the options name meets."""
    try:
        return config.find_run_directory(run_dir, name)
    except config.ConfigError as error:
        raise click.UsageError(str(error)) from None


def place(command: F) -> F:
    """Add the options that say which cluster on this host is meant."""
    command = click.option(
        "--name",
        envvar="LIMPET_NAME",
        default="default",
        show_default=True,
        help="Name of the cluster; clusters of different names share nothing.",
    )(command)
    return click.option(
        "--run-dir",
        envvar="LIMPET_RUN_DIR",
        metavar="DIR",
        help="Where the processes of one cluster meet: sockets and locks, mode 0700.",
    )(command)


_COMMON = (
    click.option(
        "--node",
        envvar="LIMPET_NODE",
        type=click.IntRange(0, 65_535),
        help="Number of this host.  [default: from the host name]",
    ),
    click.option(
        "--path",
        envvar="LIMPET_PATH",
        default="/socket.io/",
        show_default=True,
        metavar="PATH",
        help="The Engine.IO path, as in the application's Server(path=…).",
    ),
    click.option(
        "--log-level",
        envvar="LIMPET_LOG_LEVEL",
        type=click.Choice(logs.LEVELS),
        default="info",
        show_default=True,
    ),
    click.option(
        "--log-format",
        envvar="LIMPET_LOG_FORMAT",
        type=click.Choice(logs.FORMATS),
        default="auto",
        help="auto: for people on a terminal, JSON elsewhere.",
    ),
)


def common(command: F) -> F:
    """Add the options that all processes share; the command gets them as one ``common``."""

    @wraps(command)
    def wrapped(
        *,
        run_dir: str | None,
        name: str,
        node: int | None,
        path: str,
        log_level: str,
        log_format: str,
        **rest: Any,
    ) -> Any:
        if not path.startswith("/") or not path.strip("/"):
            raise click.UsageError(f"--path {path!r}: expected a path such as /socket.io/")
        shared = config.Common(
            run_directory=run_directory(run_dir, name),
            name=name,
            node=config.node_number(node),
            path=path,
            log_level=log_level,
            log_format=logs.resolve(log_format),
        )
        return command(common=shared, **rest)

    result: Any = wrapped
    for option in reversed(_COMMON):
        result = option(result)
    placed: F = place(result)
    return placed


def application(command: F) -> F:
    """Add what says which application the workers run."""
    command = click.option(
        "--app-dir",
        envvar="LIMPET_APP_DIR",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        default=".",
        help="Where the application's module lies.  [default: here]",
    )(command)
    return click.argument("application", default=BUILT_IN, metavar="[MODULE:ATTRIBUTE]")(command)


def api(command: F) -> F:
    """Add the options of the API on TCP."""
    command = click.option(
        "--api-token-file",
        envvar="LIMPET_API_TOKEN_FILE",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The bearer tokens of the API on TCP, one per line, mode 0600.",
    )(command)
    return click.option(
        "--api",
        envvar="LIMPET_API",
        metavar="HOST:PORT",
        help="Serve the API on TCP too; it is always on a socket in the run directory.",
    )(command)


def buckets(command: F) -> F:
    """Add into how many parts the bus divides the rooms."""
    return click.option(
        "--buckets",
        envvar="LIMPET_BUCKETS",
        type=click.IntRange(1, 65_536),
        default=1024,
        show_default=True,
        help="Parts of the bus that rooms are divided into; the same in the whole cluster.",
    )(command)


def linger(command: F) -> F:
    """Add how long a worker keeps listening to a part of the bus it has no room in any more."""
    return click.option(
        "--linger",
        envvar="LIMPET_LINGER",
        type=click.FloatRange(0),
        default=10.0,
        show_default=True,
        metavar="SECONDS",
        help="How long a bus subscription outlives its last room.",
    )(command)


def health(command: F) -> F:
    """Add the option of the health path."""
    return click.option(
        "--health-path",
        envvar="LIMPET_HEALTH_PATH",
        default="/healthz",
        show_default=True,
        metavar="PATH",
        help="Answered on the public port for load balancers; empty for none.",
    )(command)


def as_json(command: F) -> F:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")(command)


def timeout(command: F) -> F:
    """Add ``--timeout``."""
    return click.option(
        "--timeout",
        type=click.FloatRange(0.01),
        default=5.0,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for an answer.",
    )(command)
