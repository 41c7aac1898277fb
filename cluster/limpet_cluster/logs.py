"""How the processes of a cluster log: lines for people on a terminal, JSON elsewhere.

A record is never lost and never ends what wrote it: arguments that do not fit, values that cannot
be shown and values without end are described instead. What a handler of the app logs carries the
socket it runs for. Session ids are cut to their beginning, since they are secrets.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import sys
import threading
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, TextIO

import orjson

from limpet_adapters.counters import count
from limpet_adapters.identity import redact
from limpet_cluster.repeats import Repeats
from limpet_worker import running

FORMATS: Final = ("auto", "human", "json")
LEVELS: Final = ("debug", "info", "warning", "error")
LONGEST: Final = 16 * 1024
"""Characters of a message, and of a traceback; what is beyond is cut and its length told."""

_LONGEST_LINE: Final = 64 * 1024
_MOST_BYTES: Final = 128 * 1024
_MOST_IN_JOURNAL: Final = 48_000
"""The journal breaks longer lines (LineMax=48K), and half an object can be read by nobody."""
_LONGEST_VALUE: Final = 1024
_LONGEST_ABOUT: Final = 4096
_LONGEST_KIND: Final = 200

_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {
    "message",
    "asctime",
    "taskName",
}
_OURS: Final = frozenset(("ts", "level", "msg", "node", "process", "pid", "logger", "err", "stack"))
"""Fields that an ``extra`` of the same name does not replace."""
_PRIORITY: Final = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}
_NOT_FOR_PEOPLE: Final = frozenset(("worker", "eio_sid", "repeated"))
"""Fields that the line shows elsewhere already, or that only a search needs."""
_NOBODYS: Final = frozenset(
    (
        "asyncio",
        "limpet.bus",
        "limpet.channel",
        "limpet.child",
        "limpet.control",
        "limpet.engineio",
        "limpet.http",
        "limpet.notify",
        "limpet.presence",
        "limpet.worker",
    )
)
"""Loggers of the machinery. It works for all clients at once, from timers that a handler may have
begun: the socket in the context is not whom their records are about."""
_URL_SID: Final = re.compile(r"([?&]sid=[A-Za-z0-9_-]{6})[A-Za-z0-9_-]+")
_CONTROLS: Final = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
}
"""What could move the cursor of a terminal or colour what follows."""


class HumanFormatter(logging.Formatter):
    """``14:03:07.120 worker-1  WARNING text``, then who it is about."""

    def __init__(self, process: str, *, journal: bool = False) -> None:
        super().__init__()
        self._process = process
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback below it when there is one."""
        moment = datetime.fromtimestamp(record.created, UTC).astimezone()
        stamp = f"{moment:%H:%M:%S}.{int(record.msecs):03d}"
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        about = {**_about(record), **_extras(record)}
        known = " ".join(
            f"{key}={_shown(value)}" for key, value in about.items() if key not in _NOT_FOR_PEOPLE
        )
        known = known[:_LONGEST_ABOUT] + _rest(known, _LONGEST_ABOUT)
        text = _message(record).replace("\n", "\n    ")
        text = f"{stamp} {self._process:<10} {level}{text}{'  [' + known + ']' if known else ''}"
        for below in (_traceback(record), _stack(record)):
            if below:
                text += f"\n{below}"
        text = _hide(text).translate(_CONTROLS)
        if self._journal:
            return prefixed(text, record.levelname)
        return text


class JsonFormatter(logging.Formatter):
    """One JSON object per line; what a call passes as ``extra`` becomes fields of it."""

    def __init__(self, process: str, *, node: str = "", journal: bool = False) -> None:
        super().__init__()
        role, _, slot = process.partition("-")
        self._process: dict[str, object] = {"node": node} if node else {}
        if role == "worker" and slot:
            self._process["worker"] = f"w{slot}"
        self._process["process"] = process
        self._journal = journal
        """Whether systemd's journal reads along: it takes the priority from a prefix."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "msg": _message(record),
            **self._process,
            "pid": record.process,
            "logger": record.name,
            **_about(record),
            **_extras(record),
        }
        if err := _traceback(record):
            fields["err"] = err
        if stack := _stack(record):
            fields["stack"] = stack
        line = _hide(_dumps(fields, _MOST_IN_JOURNAL if self._journal else _MOST_BYTES))
        if self._journal:
            return f"<{_PRIORITY.get(record.levelname, 6)}>{line}"
        return line


_Kind = tuple[str, int, str, str]
"""Logger, level, template (of records with a traceback: where they were logged) and error."""


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes records, but of each kind of warning and error only so many per minute.

    What was left out is summed up once, at the end of that minute or of the process.
    """

    def __init__(self, stream: TextIO, repeats: Repeats[_Kind] | None = None) -> None:
        super().__init__(stream)
        self._repeats: Repeats[_Kind] = Repeats() if repeats is None else repeats
        self._timer: threading.Timer | None = None
        """Runs while something is left to be summed up."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it."""
        now = time.monotonic()
        self._sum_up(self._repeats.due(now))
        if record.levelno < logging.WARNING or self._repeats.admit(_kind(record), now):
            super().emit(record)
            return
        count("limpet_log_records_left_out_total")
        if self._timer is None:
            self._wake_later(now)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Count a record that could not be written: there is nowhere to say so."""
        count("limpet_log_records_lost_total")

    def close(self) -> None:
        """Write what is left to be summed up."""
        with self.lock or threading.RLock():
            self._sum_up(self._repeats.end())
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        super().close()

    def _wake_later(self, now: float) -> None:
        seconds = self._repeats.wait(now)
        if seconds is not None:
            # A thread, because not every process has an event loop, or one that still turns.
            self._timer = threading.Timer(seconds + 0.01, self._wake)
            self._timer.daemon = True
            self._timer.start()

    def _wake(self) -> None:
        with self.lock or threading.RLock():
            now = time.monotonic()
            self._sum_up(self._repeats.due(now))
            self._timer = None
            self._wake_later(now)

    def _sum_up(self, left_out: list[tuple[_Kind, int]]) -> None:
        for (name, level, template, error), times in left_out:
            what = f"{error} ({template})" if error else template
            super().emit(
                logging.makeLogRecord(
                    {
                        "name": name,
                        "levelno": level,
                        "levelname": logging.getLevelName(level),
                        "msg": "… %d more of these in %g s: %s",
                        "args": (times, self._repeats.window, what),
                        "repeated": times,
                    }
                )
            )


def prefixed(text: str, level: str) -> str:
    """Return a text with the journal's priority before each line."""
    prefix = f"<{_PRIORITY.get(level, 6)}>"
    return "\n".join(prefix + line for line in text.split("\n"))


def resolve(log_format: str) -> str:
    """Return ``human`` or ``json``; ``auto`` is human where stderr is a terminal."""
    if log_format == "auto":
        return "human" if sys.stderr.isatty() else "json"
    return log_format


def set_up(process: str, level: str, log_format: str, *, node: str | None = None) -> None:
    """Log to stderr from now on, under the name of this process.

    Args:
        process: its role, with the slot of a worker: ``worker-0``.
        level: one of ``LEVELS``.
        log_format: one of ``FORMATS``.
        node: name of this host; None: what the system says.
    """
    handler = LogHandler(sys.stderr)
    if resolve(log_format) == "human":
        handler.setFormatter(HumanFormatter(process, journal=to_journal()))
    else:
        if node is None:
            node = platform.node()
        handler.setFormatter(JsonFormatter(process, node=node, journal=to_journal()))
        # A collector that reads JSON lines gets nothing else.
        logging.captureWarnings(True)
        sys.excepthook = _log_uncaught
    root = logging.getLogger()
    for old in root.handlers:
        if isinstance(old, LogHandler):
            old.close()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The access log of the web server would be a line per page; asyncio tells slow callbacks.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        logging.getLogger("limpet").critical("uncaught", exc_info=(kind, error, traceback))


def to_journal() -> bool:
    """Return whether stderr goes to systemd's journal, which reads priorities from prefixes."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


# --- what a record says -------------------------------------------------------


def _message(record: logging.LogRecord) -> str:
    try:
        text = record.getMessage()
    except Exception as error:  # noqa: BLE001 - the caller's arguments
        text = f"{_shown(record.msg)} {_shown(record.args)} (cannot be formatted: {_shown(error)})"
    return _sendable(text[:LONGEST] + _rest(text, LONGEST))


def _traceback(record: logging.LogRecord) -> str:
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    try:
        text = logging.Formatter().formatException(record.exc_info)
    except Exception:  # noqa: BLE001 - the error's own methods are the app's
        text = f"{record.exc_info[0].__qualname__}, which cannot be shown"
    if len(text) > LONGEST:  # the end tells most: the error itself
        half = LONGEST // 2
        text = f"{text[:half]}\n… ({len(text) - 2 * half} characters)\n{text[-half:]}"
    return _sendable(text)


def _stack(record: logging.LogRecord) -> str:
    text = record.stack_info or ""
    return _sendable(text[:LONGEST] + _rest(text, LONGEST))


def _extras(record: logging.LogRecord) -> dict[str, object]:
    extras: dict[str, object] = {}
    for key, value in vars(record).items():
        if key not in _STANDARD:
            extras[f"{key}_" if key in _OURS else _sendable(str(key))] = value
    return extras


def _about(record: logging.LogRecord) -> dict[str, object]:
    """Return what is known of whose code writes the record."""
    fields: dict[str, object] = {}
    socket = running.SOCKET.get()
    if socket is not None and record.name not in _NOBODYS:
        if (event := running.event()) is not None:
            fields["event"] = event
        fields |= running.describe(socket)
    request = running.REQUEST.get()
    if request is not None:
        fields["request_id"] = request
    trace_id = _trace_id()
    if trace_id:
        fields["trace_id"] = trace_id
    return fields


def _trace_id() -> str:
    """Return the id of the trace whose span is current; OpenTelemetry is asked, not imported."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return ""
    try:
        context = trace.get_current_span().get_span_context()
        return f"{context.trace_id:032x}" if context.is_valid else ""
    except Exception:  # noqa: BLE001 - half imported, or another's span
        return ""


def _kind(record: logging.LogRecord) -> _Kind:
    info = record.exc_info
    if not info or info[0] is None:
        return record.name, record.levelno, _shown(record.msg, _LONGEST_KIND), ""
    where, traceback = "", info[2]
    while traceback is not None:  # the innermost frame, where it was raised
        code = traceback.tb_frame.f_code
        where, traceback = f"{code.co_filename}:{traceback.tb_lineno}", traceback.tb_next
    error = f"{info[0].__qualname__} at {where}" if where else info[0].__qualname__
    # Not the template: asyncio's names the task in it.
    return record.name, record.levelno, f"{record.pathname}:{record.lineno}", error


# --- making anything writable -------------------------------------------------


def _dumps(fields: dict[str, object], most: int) -> str:
    """Return fields as JSON of so many bytes at most: what matters least is cut first."""
    option = orjson.OPT_NON_STR_KEYS
    try:
        line = orjson.dumps(fields, default=_shown, option=option)
    except Exception:  # noqa: BLE001 - surrogates, huge numbers, cycles, the app's own methods
        line = b""
    if not line or len(line) > min(most, _LONGEST_LINE):
        line = orjson.dumps({key: _plain(key, value) for key, value in fields.items()})
    longest = LONGEST
    while len(line) > most:
        kept = {key: _plain(key, fields[key]) for key in fields if key in _OURS}
        line = orjson.dumps({key: _ends(value, longest) for key, value in kept.items()})
        longest //= 2
    return line.decode()


def _ends(value: object, longest: int) -> object:
    """Return beginning and end of a text that is too long."""
    if type(value) is not str or len(value) <= longest:
        return value
    half = longest // 2
    return f"{value[:half]}… ({len(value) - 2 * half} characters) …{value[-half:]}"


def _plain(key: str, value: object) -> object:
    if value is None or isinstance(value, (bool, float)):
        return value
    if type(value) is int and -(1 << 63) <= value < 1 << 64:
        return value
    return value if key in _OURS and type(value) is str else _shown(value)


def _shown(value: object, longest: int = _LONGEST_VALUE) -> str:
    """Return a text for anything at all, never too long."""
    try:
        text = value if type(value) is str else repr(value)
    except Exception:  # noqa: BLE001 - the app's own method, or a structure without end
        text = f"<{type(value).__qualname__}, which cannot be shown>"
    return _sendable(text[:longest] + _rest(text, longest))


def _rest(text: str, longest: int) -> str:
    return f"… ({len(text) - longest} characters more)" if len(text) > longest else ""


def _sendable(text: str) -> str:
    """Return the text as it is, but halves of surrogate pairs escaped: they are no UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _hide(text: str) -> str:
    """Return the text without a session id that somebody may take a session over with."""
    socket = running.SOCKET.get()
    if socket is not None and (sid := socket.session.sid) in text:
        text = text.replace(sid, redact(sid))
    return _URL_SID.sub(r"\1…", text) if "sid=" in text else text
