"""The supervisor's own socket: one line of JSON asks, one line of JSON answers."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

NAME: Final = "supervisor.sock"
"""Its file in the run directory."""
_LONGEST_LINE: Final = 65_536
_PATIENCE: Final = 5.0
"""Seconds a client may take for its line."""

Answer = dict[str, Any]
Handler = Callable[[Mapping[str, Any]], Answer | Awaitable[Answer]]


class CommandError(Exception):
    """The supervisor could not be asked, or refused; the message says which."""


class CommandServer:
    """Answers ``{"verb": …}`` lines with ``{"ok": true, …}`` or ``{"ok": false, "error": …}``.

    Who may speak is settled by the run directory's mode: its owner alone gets to the socket.
    """

    def __init__(self, path: Path, verbs: Mapping[str, Handler]) -> None:
        self.path = path
        self._verbs = verbs
        self._server: asyncio.Server | None = None  # while it listens

    async def start(self) -> None:
        """Listen from now on; a socket left by an earlier supervisor is replaced."""
        with suppress(FileNotFoundError):
            self.path.unlink()
        self._server = await asyncio.start_unix_server(
            self._serve, os.fspath(self.path), limit=_LONGEST_LINE
        )
        self.path.chmod(0o600)

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            self._server = None
            with suppress(FileNotFoundError):
                self.path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), _PATIENCE)
            if line:
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await asyncio.wait_for(writer.drain(), _PATIENCE)
        except (OSError, ValueError, TimeoutError):  # ValueError: a line without an end
            pass
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> Answer:
        try:
            asked = json.loads(line)
        except ValueError:
            return {"ok": False, "error": "not a line of JSON"}
        verb = asked.get("verb") if isinstance(asked, dict) else None
        handler = self._verbs.get(verb) if isinstance(verb, str) else None
        if handler is None:
            return {"ok": False, "error": f"verb={verb!r}: expected {' or '.join(self._verbs)}"}
        answer = handler(asked)
        if not isinstance(answer, dict):
            answer = await answer
        return {"ok": True, **answer}


def ask(run_directory: Path, verb: str, timeout: float = 5.0, **arguments: object) -> Answer:
    """Ask the supervisor of a run directory and return its answer.

    Args:
        run_directory: where the supervisor listens.
        verb: what to do, for example ``status``.
        timeout: seconds to wait for the answer.
        arguments: further fields of the request.

    Raises:
        CommandError: nobody listens, no answer in time, or the supervisor refused.
    """
    path = run_directory / NAME
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(os.fspath(path))
            connection.sendall(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
    except TimeoutError:
        raise CommandError(f"the supervisor at {path} did not answer in {timeout:g} s") from None
    except OSError as error:
        raise CommandError(f"no supervisor at {path}: {error.strerror or error}") from None
    try:
        answer: Answer = json.loads(line)
    except ValueError:
        raise CommandError(f"the supervisor at {path} ended before it answered") from None
    if not answer.pop("ok", False):
        raise CommandError(str(answer.get("error", "refused")))
    return answer
