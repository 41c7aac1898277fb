"""The supervisor's own socket: one line of JSON asks, lines of progress and one answer come back.

::

    {"verb": "scale", "workers": "+2"}
    {"progress": "starting w4", "step": "start", "slot": 4}
    {"progress": "w4 is ready (0.7 s)", "step": "ready", "slot": 4, "seconds": 0.69}
    {"ok": true, "workers": 5, "slots": [0, 1, 2, 3, 4]}
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from limpet_cluster.fleet.fleet import Say

NAME: Final = "supervisor.sock"
"""Its file in the run directory."""
_LONGEST_LINE: Final = 65_536
_PATIENCE: Final = 5.0
"""Seconds a client may take for its line, and to read ours at the end."""
_UNREAD: Final = 262_144
"""Bytes that wait for a client who does not read; further lines of progress are left out."""
_CREDENTIALS: Final = struct.Struct("3i")

Answer = dict[str, Any]
Handler = Callable[[Mapping[str, Any], Say], Answer | Awaitable[Answer]]
Heard = Callable[[dict[str, Any]], None]


class CommandError(Exception):
    """The supervisor could not be asked, or refused; the message says which.

    Args:
        message: for the operator.
        exit_code: what the command line ends with.
        answer: what else the supervisor told.
    """

    def __init__(
        self, message: str, exit_code: int = 1, answer: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.answer = dict(answer or {})


class NoSupervisorError(CommandError):
    """Nobody listens in the run directory."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 4)


class NoAnswerInTimeError(CommandError):
    """The answer did not come in time; what was asked for may still be done."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 5)


class CommandServer:
    """Answers ``{"verb": …}`` lines with ``{"ok": true, …}`` or ``{"ok": false, "error": …}``.

    A handler that raises `CommandError` refuses. What it says meanwhile goes out line by line; a
    client that goes away does not end what it has asked for. Who may speak is settled by the run
    directory's mode: its owner alone gets to the socket.
    """

    def __init__(self, path: Path, verbs: Mapping[str, Handler]) -> None:
        self.path = path
        self._verbs = verbs
        self._server: asyncio.Server | None = None  # while it listens
        self._serving: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen from now on; a socket left by an earlier supervisor is replaced."""
        with suppress(FileNotFoundError):
            self.path.unlink()
        self._server = await asyncio.start_unix_server(
            self._serve, os.fspath(self.path), limit=_LONGEST_LINE
        )
        self.path.chmod(0o600)

    async def finish(self, within: float = 3.0) -> None:
        """Give those who wait for an answer the time to get it."""
        if self._serving:
            await asyncio.wait(self._serving, timeout=within)

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            self._server = None
            with suppress(FileNotFoundError):
                self.path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        try:
            line = await asyncio.wait_for(reader.readline(), _PATIENCE)
            if line:
                # Only from here on there is an answer to wait for.
                self._serving.add(task)
                _write(writer, await self._answer(line, writer))
                await asyncio.wait_for(writer.drain(), _PATIENCE)
        except (OSError, ValueError, TimeoutError):  # ValueError: a line without an end
            pass
        finally:
            self._serving.discard(task)
            writer.close()

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> Answer:
        try:
            asked = json.loads(line)
        except ValueError:
            return {"ok": False, "error": "not a line of JSON"}
        verb = asked.get("verb") if isinstance(asked, dict) else None
        handler = self._verbs.get(verb) if isinstance(verb, str) else None
        if handler is None:
            return {"ok": False, "error": f"verb={verb!r}: expected {' or '.join(self._verbs)}"}

        def say(text: str, /, **figures: object) -> None:
            if not writer.is_closing() and writer.transport.get_write_buffer_size() < _UNREAD:
                _write(writer, {"progress": text, **figures})

        try:
            answer = handler(asked, say)
            if not isinstance(answer, dict):
                answer = await answer
        except CommandError as error:
            return {**error.answer, "ok": False, "error": str(error), "exit_code": error.exit_code}
        return {"ok": True, **answer}


def _write(writer: asyncio.StreamWriter, document: Mapping[str, Any]) -> None:
    writer.write(json.dumps(document).encode() + b"\n")


def ask(
    run_directory: Path,
    verb: str,
    timeout: float | None = 5.0,
    on_progress: Heard | None = None,
    **arguments: object,
) -> Answer:
    """Ask the supervisor of a run directory and return its answer.

    Args:
        run_directory: where the supervisor listens.
        verb: what to do, for example ``status``.
        timeout: seconds to wait for the answer; None: as long as it takes.
        on_progress: gets each line of progress, a document with at least ``progress``.
        arguments: further fields of the request.

    Raises:
        NoSupervisorError: nobody listens.
        NoAnswerInTimeError: no answer in time.
        CommandError: the supervisor refused, or what was asked for failed.
    """
    path = run_directory / NAME
    deadline = None if timeout is None else time.monotonic() + timeout
    line = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(os.fspath(path))
            connection.sendall(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as stream:
                while line := stream.readline():
                    if deadline is not None:
                        connection.settimeout(max(0.001, deadline - time.monotonic()))
                    if not line.startswith(b'{"progress"'):
                        break
                    if on_progress is not None:
                        on_progress(json.loads(line))
    except TimeoutError:
        raise NoAnswerInTimeError(
            f"the supervisor at {path} did not answer in {timeout:g} s"
        ) from None
    except OSError as error:
        raise NoSupervisorError(f"no supervisor at {path}: {error.strerror or error}") from None
    try:
        answer: Answer = json.loads(line)
    except ValueError:
        raise CommandError(f"the supervisor at {path} ended before it answered") from None
    if not answer.pop("ok", False):
        error_text = str(answer.pop("error", "refused"))
        exit_code = answer.pop("exit_code", 1)
        raise CommandError(error_text, exit_code if isinstance(exit_code, int) else 1, answer)
    return answer


def supervisor_pid(run_directory: Path) -> int:
    """Return the pid of the supervisor that listens, as the kernel knows it; 0 when nobody does."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            connection.connect(os.fspath(run_directory / NAME))
            credentials = connection.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
            )
    except OSError:
        return 0
    return int(_CREDENTIALS.unpack(credentials)[0])
