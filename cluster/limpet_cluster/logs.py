"""How the processes of a cluster log: lines for people on a terminal, JSON elsewhere."""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime
from typing import Final

import orjson

FORMATS: Final = ("auto", "human", "json")
LEVELS: Final = ("debug", "info", "warning", "error")

_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {
    "message",
    "asctime",
    "taskName",
}
_PRIORITY: Final = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


class HumanFormatter(logging.Formatter):
    """``14:03:07.120 worker-1  WARNING text``."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback below it when there is one."""
        moment = datetime.fromtimestamp(record.created, UTC).astimezone()
        stamp = f"{moment:%H:%M:%S}.{int(record.msecs):03d}"
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = f"{stamp} {self._process:<10} {level}{record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class JsonFormatter(logging.Formatter):
    """One JSON object per line; what a call passes as ``extra`` becomes fields of it."""

    def __init__(self, process: str, *, journal: bool = False) -> None:
        super().__init__()
        self._process = process
        self._journal = journal
        """Whether systemd's journal reads along: it takes the priority from a prefix."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": record.process,
            "logger": record.name,
            "msg": record.getMessage(),
        }
        fields |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            fields["err"] = self.formatException(record.exc_info)
        line = orjson.dumps(fields, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()
        if self._journal:
            return f"<{_PRIORITY.get(record.levelname, 6)}>{line}"
        return line


def resolve(log_format: str) -> str:
    """Return ``human`` or ``json``; ``auto`` is human where stderr is a terminal."""
    if log_format == "auto":
        return "human" if sys.stderr.isatty() else "json"
    return log_format


def set_up(process: str, level: str, log_format: str) -> None:
    """Log to stderr from now on, under the name of this process."""
    handler = logging.StreamHandler(sys.stderr)
    if resolve(log_format) == "human":
        handler.setFormatter(HumanFormatter(process))
    else:
        handler.setFormatter(JsonFormatter(process, journal=_to_journal()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The access log of the web server would be a line per page; asyncio tells slow callbacks.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def _to_journal() -> bool:
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))
