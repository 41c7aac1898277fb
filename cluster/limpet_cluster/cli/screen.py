"""A terminal drawn in full: what is on it comes back when it ends, whatever ends it."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, NoReturn

from limpet_cluster.cli.tables import fit

_ENTER: Final = "\x1b[?1049h\x1b[?25l"
"""The other screen, no cursor."""
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_REST_OF_LINE: Final = "\x1b[K"
_REST_OF_SCREEN: Final = "\x1b[J"
_ENDS: Final = (signal.SIGTERM, signal.SIGHUP)


class Screen:
    """A terminal that is ours until the end of `full_screen`."""

    def __init__(self) -> None:
        self._input = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._input)
        # A signal ends the wait for a key, also one that comes just before the wait begins.
        self._wake, self._woken = os.pipe()
        for fd in (self._wake, self._woken):
            os.set_blocking(fd, False)
        self._woken_before = signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        return tuple(shutil.get_terminal_size())  # type: ignore[return-value]

    def draw(self, lines: Sequence[str]) -> None:
        """Show lines from the top; what does not fit is left out."""
        columns, rows = self.size
        shown = [fit(line, columns) + _REST_OF_LINE for line in lines[:rows]]
        self._write(_HOME + "\r\n".join(shown) + _REST_OF_SCREEN)

    def key(self, timeout: float) -> str:
        """Wait for a key, a signal that changes what is to be seen, or the end of the time.

        Returns:
            The key, ``resize`` for a signal, or nothing when the time is up; ``q`` for an end of
            input.
        """
        until = time.monotonic() + timeout
        while (left := until - time.monotonic()) > 0:
            ready, _, _ = select.select([self._input, self._wake], [], [], left)
            if self._wake in ready:
                os.read(self._wake, 512)
                return "resize"
            if self._input in ready:
                pressed = os.read(self._input, 64)
                return pressed.decode("utf-8", "replace") if pressed else "q"
        return ""

    def enter(self) -> None:
        """Take the terminal."""
        tty.setcbreak(self._input, termios.TCSADRAIN)
        self._write(_ENTER)

    def leave(self) -> None:
        """Give the terminal back as it was."""
        try:
            self._write(_LEAVE)
            termios.tcsetattr(self._input, termios.TCSADRAIN, self._before)
        except (OSError, termios.error):  # the terminal itself has gone
            pass

    def resized(self, _number: int, _frame: FrameType | None) -> None:
        """Draw anew soon; the handler of SIGWINCH, which has ended the wait for a key."""

    def suspended(self, _number: int, _frame: FrameType | None) -> None:
        """Stop as Ctrl-Z asks, with the terminal given back meanwhile."""
        with _held(signal.SIGTSTP):
            self.leave()
            os.kill(os.getpid(), signal.SIGSTOP)
            self.enter()

    def close(self) -> None:
        """Close what it opened for itself."""
        signal.set_wakeup_fd(self._woken_before)
        os.close(self._wake)
        os.close(self._woken)

    @staticmethod
    def _write(text: str) -> None:
        left = text.encode(sys.stdout.encoding, "replace")
        while left:  # not through sys.stdout, which a signal's handler must not enter twice
            left = left[os.write(sys.stdout.fileno(), left) :]


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


@contextmanager
def _held(*numbers: signal.Signals) -> Iterator[None]:
    """Let signals come only after the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def full_screen() -> Iterator[Screen]:
    """Take the terminal for as long as the block runs."""
    screen = Screen()
    handlers: dict[signal.Signals, Any] = {
        signal.SIGWINCH: screen.resized,
        signal.SIGTSTP: screen.suspended,
        **dict.fromkeys(_ENDS, _end),
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        screen.enter()
        yield screen
    finally:
        with _held(signal.SIGINT, *handlers):  # another of them would leave it half done
            screen.leave()
            for number, handler in before.items():
                signal.signal(number, handler)
            screen.close()
