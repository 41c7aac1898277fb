"""A terminal for tests: runs a command on a pty and shows what a person would see."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_SEQUENCE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])")
_MARK = "\0"
"""What no command writes."""


class Terminal:
    """One command on a terminal of its own.

    Understands what `limpet top` writes: the cursor home, the rest of a line or of the screen
    cleared, the other screen.
    """

    def __init__(self, command: Sequence[str | Path], columns: int = 100, lines: int = 30) -> None:
        self.columns, self.lines = columns, lines
        self.raw = ""
        """Everything that was written."""
        # One read may end within a character.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._parent, self._child = pty.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(self._child)
        """How the terminal was set."""
        environment = {
            key: value for key, value in os.environ.items() if key not in {"COLUMNS", "LINES"}
        }
        self.process = subprocess.Popen(
            # It leads a session of its own, whose terminal this is: as in a window.
            ["setsid", "--ctty", *(os.fspath(one) for one in command)],
            stdin=self._child,
            stdout=self._child,
            stderr=self._child,
            env={**environment, "TERM": "xterm"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._parent)
        os.close(self._child)

    @property
    def settings(self) -> object:
        """How the terminal is set now, for a comparison with ``before``."""
        return termios.tcgetattr(self._child)

    def resize(self, columns: int, lines: int) -> None:
        """Change the size, as a window manager does."""
        self.columns, self.lines = columns, lines
        fcntl.ioctl(self._parent, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._parent, text.encode())

    def signal(self, number: signal.Signals) -> None:
        """Send the process a signal."""
        self.process.send_signal(number)

    def read(self, timeout: float = 0.05) -> str:
        """Read what comes within a time; return the screen."""
        until = time.monotonic() + timeout
        while select.select([self._parent], [], [], max(0.0, until - time.monotonic()))[0]:
            self.raw += self._decoder.decode(os.read(self._parent, 65_536))
        return self.screen

    def wait_for(self, text: str, timeout: float = 20.0) -> str:
        """Wait until a text is on the screen; return the screen."""
        return self.wait_until(lambda screen: text in screen, f"{text!r} did not come", timeout)

    def wait_until(
        self, condition: Callable[[str], object], what: str, timeout: float = 20.0
    ) -> str:
        """Wait until a condition holds, reading meanwhile; return the screen that fulfils it."""
        until = time.monotonic() + timeout
        while not condition(screen := self.read()):
            if time.monotonic() > until:
                raise AssertionError(f"{what}:\n{self.screen}")
        return screen

    def wait(self, timeout: float = 20.0) -> int:
        """Wait for the end, read all that was written before it, and return the exit code."""
        until = time.monotonic() + timeout
        while self.process.poll() is None:
            self.read()
            assert time.monotonic() < until, f"it does not end:\n{self.screen}"
        # The kernel passes on what was written a moment later, in its order.
        os.write(self._child, _MARK.encode())
        self.wait_until(lambda _screen: _MARK in self.raw, "the last output did not come")
        self.raw = self.raw.replace(_MARK, "")
        return int(self.process.returncode)

    @property
    def screen(self) -> str:
        """What is to be seen."""
        lines = [""]
        column = 0
        row = 0
        text = self.raw
        while text:
            match = _SEQUENCE.match(text)
            if match is not None:
                text = text[match.end() :]
                if match[3] == "H" or (match[1] and match[2] == "1049"):
                    row = column = 0
                    if match[1]:
                        lines = [""]
                elif match[3] == "K":
                    lines[row] = lines[row][:column]
                elif match[3] == "J":
                    lines[row] = lines[row][:column]
                    del lines[row + 1 :]
                continue
            character, text = text[0], text[1:]
            if character == "\r":
                column = 0
            elif character == "\n":
                row += 1
                if row == len(lines):
                    lines.append("")
            else:
                line = lines[row].ljust(column)
                lines[row] = line[:column] + character + line[column + 1 :]
                column += 1
        return "\n".join(lines)
