"""What the commands that change a cluster share: options, progress, answers and exit codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import click

from limpet_cluster.cli import options
from limpet_cluster.cli.tables import dump, progress
from limpet_cluster.fleet.controls import find_fleet
from limpet_cluster.supervisor.commands import Answer, CommandError, NoAnswerInTimeError

F = TypeVar("F", bound=Callable[..., Any])


class _Misused(options.Failure):
    """What was asked for makes no sense in this cluster."""

    exit_code = 2


_ERRORS = {
    error.exit_code: error
    for error in (
        _Misused,
        options.Invalid,
        options.Unreachable,
        options.TimedOut,
        options.Partial,
    )
}


def changes(command: F) -> F:
    """Add the options of a command that changes a cluster; `operate` takes them."""
    for option in reversed(
        (
            click.option("--dry-run", is_flag=True, help="Say what would be done; do nothing."),
            click.option(
                "--wait/--no-wait",
                default=True,
                help="Whether to wait until it is done.  [default: wait]",
            ),
            click.option(
                "--timeout",
                type=options.Duration(0.01),
                help="How long to wait; then the exit code is 5.  [default: as long as it takes]",
            ),
            options.as_json,
        )
    ):
        command = option(command)
    placed: F = options.place(command)
    return placed


def operate(
    verb: str,
    *,
    run_dir: str | None,
    name: str,
    as_json: bool,
    timeout: float | None,
    wait: bool,
    dry_run: bool,
    **arguments: object,
) -> None:
    """Have a cluster do something, show how it goes, and end the command as it went.

    Args:
        verb: of the supervisor's socket.
        run_dir: as the operator named it.
        name: of the cluster.
        as_json: one document on stdout instead of lines.
        timeout: seconds to wait.
        wait: for the end of it.
        dry_run: only say what would be done.
        arguments: what the verb takes.
    """
    directory = options.run_directory(run_dir, name)
    named = run_dir is not None or name != "default"
    with progress("draining", quiet=as_json) as bar:
        shown = _Shown(bar.say, bar.set)
        outlived = False
        try:
            controls = find_fleet(directory, named=named)
            outlived = controls.outlived and not dry_run
            answer = controls.ask(
                verb, timeout=timeout, heard=shown, wait=wait, dry_run=dry_run, **arguments
            )
        except KeyboardInterrupt:
            bar.close()
            if outlived:
                click.echo(f"{verb} goes on; limpet status tells how it goes", err=True)
            raise
        except CommandError as error:
            bar.close()
            if outlived and isinstance(error, NoAnswerInTimeError):
                message = f"{verb}: not done in time; it may go on, limpet status tells"
                error = NoAnswerInTimeError(message)
            _refuse(error, shown.steps, as_json=as_json)
    if as_json:
        click.echo(dump({"ok": True, **answer, "steps": shown.steps}))
    else:
        click.echo(_closing(verb, answer, shown.last))


class _Shown:
    """Takes what an operation tells: steps as lines, the sessions that are left as a bar."""

    def __init__(self, say: Callable[[str], None], draw: Callable[..., None]) -> None:
        self.steps: list[dict[str, Any]] = []
        self.last = ""
        """The closing line, once there is one."""
        self._say = say
        self._draw = draw
        self._left: dict[int, int] = {}  # sessions by slot, as told last
        self._most: dict[int, int] = {}  # and as told first

    def __call__(self, told: dict[str, Any]) -> None:
        text: str = told["progress"]
        slot: int = told.get("slot", -1)
        if "left" in told:
            self._left[slot] = told["left"]
            self._most[slot] = max(self._most.get(slot, 0), told["left"])
        else:
            self.steps.append(told)
            if told.get("step") == "done":
                self.last = text
            else:
                self._say(text)
            if slot not in self._left or told.get("step") != "ended":
                return
            self._left[slot] = 0
        self._draw(left=sum(self._left.values()), total=sum(self._most.values()))


def _closing(verb: str, answer: Answer, last: str) -> str:
    if answer.get("dry_run"):
        return "nothing was done: this was --dry-run"
    if "started" in answer:
        return f"{verb} has begun; limpet status tells how it goes"
    if answer.get("forced"):
        return "stopped; not all processes ended in time, some were killed"
    if verb == "stop":
        return "stopped"
    seconds = answer.get("seconds")
    return (last or "done") + (f" ({seconds:.1f} s)" if seconds is not None else "")


def _refuse(error: CommandError, steps: list[dict[str, Any]], *, as_json: bool) -> NoReturn:
    message = str(error)
    if not as_json:
        raise _ERRORS.get(error.exit_code, options.Failure)(message)
    document = {**error.answer, "ok": False, "error": message, "exit_code": error.exit_code}
    click.echo(dump({**document, "steps": steps}))
    raise SystemExit(error.exit_code)
