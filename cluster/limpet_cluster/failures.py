"""What a process that cannot start leaves in the run directory: why, and how often by now.

systemd keeps a line of status at most, and before version 254 its pauses do not grow. So the
process itself waits before it ends, longer after each failure, and whoever asked for it reads here
what the application's author must know.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_FIRST: Final = 0.5
"""Seconds after the second failure in a row; the first is told at once."""
_LONGEST: Final = 30.0
_FORGOTTEN: Final = 120.0
"""Seconds after which a failure no longer counts."""
_LARGEST: Final = 65_536


class Ended(SystemExit):
    """The end of a command.

    Args:
        code: its exit code.
        why: what was wrong, which has been printed; empty when nothing was.
    """

    def __init__(self, code: int | None, why: str = "") -> None:
        super().__init__(code)
        self.why = why


def note_failure(run_directory: Path, title: str, error: str) -> float:
    """Leave word of a failure; return the seconds to wait before the process ends.

    Args:
        run_directory: of the cluster; nothing is left where it cannot be written.
        title: of the process, ``worker-3`` for example.
        error: why, in as many lines as it takes.
    """
    found = _read(run_directory, title)
    now = time.monotonic()
    count = 1
    if found is not None and now - found[1] < _FORGOTTEN:
        count = found[0] + 1
    path = _path(run_directory, title)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        fresh.write_text(f"{count} {now}\n{error}"[:_LARGEST], encoding="utf-8", errors="replace")
        fresh.replace(path)
    except OSError:
        return 0.0
    return 0.0 if count == 1 else min(_LONGEST, _FIRST * 2.0 ** min(count - 2, 30))


@contextmanager
def paced(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Have a process that systemd starts again and again pause also when its settings are wrong.

    They are read before anything else. What is wrong with them was printed by then; it is left here
    as well, as by the time somebody looks for it the journal may tell of the next start already.

    Args:
        arguments: of the command line, the program's name first.
        environ: as the process got it; without NOTIFY_SOCKET nobody starts it again.
    """
    try:
        yield
    except SystemExit as error:
        runtime = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        if error.code and runtime and "NOTIFY_SOCKET" in environ:
            slot = re.search(r"--slot[ =](\d+)", " ".join(arguments))
            title = f"worker-{slot[1]}" if slot else "".join(arguments[1:2])
            why = error.why if isinstance(error, Ended) else ""
            time.sleep(note_failure(Path(runtime), title, why))
        raise


def last_failure(run_directory: Path, title: str, since: float) -> str | None:
    """Return the error that a process left since an instant of the monotonic clock, if any."""
    found = _read(run_directory, title)
    return found[2] if found is not None and found[1] >= since else None


def forget_failure(run_directory: Path, title: str) -> None:
    """Start counting anew: the process came up, or is not wanted any more."""
    with suppress(OSError):
        _path(run_directory, title).unlink()


def _path(run_directory: Path, title: str) -> Path:
    return run_directory / f"failed-{title}"


def _read(run_directory: Path, title: str) -> tuple[int, float, str] | None:
    """Return count, instant and text; None when there is none, or it is not ours to read."""
    try:
        # Root reads what the processes' user wrote: no link leads it elsewhere.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with os.fdopen(os.open(_path(run_directory, title), flags), "rb") as file:
            head, _, text = file.read(_LARGEST).partition(b"\n")
        count, at = head.split()
        return int(count), float(at), text.decode("utf-8", "replace")
    except (OSError, ValueError):
        return None
