"""Reading the configuration file: flat TOML, and on which line each key stands."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

LARGEST: Final = 1 << 20
"""Bytes that a file may have."""

_HEADER: Final = re.compile(r"\s*\[")
_ENDS: Final = re.compile(r"[]}]|\"{3}|'{3}")
"""Without one of these on it no line ends a value that began on an earlier line."""
_LOOKED_AT: Final = 4 * LARGEST
"""Characters that are read to find lines; whoever writes more riddles gets no line numbers."""
_PLACE: Final = re.compile(
    r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$"
)


class ConfigFileError(ValueError):
    """A file that cannot be read at all; the message names it, and the line."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a file says."""

    path: Path
    shown: str
    """The path as messages name it."""
    values: Mapping[str, Any]
    lines: Mapping[str, int]
    """Of each key, counted from 1."""

    def origin(self, key: str) -> str:
        """Return ``FILE:LINE`` of a key."""
        return f"{self.shown}:{self.lines[key]}" if key in self.lines else self.shown

    def unknown(self, known: Collection[str]) -> list[tuple[int, str]]:
        """Return line and message for each key that is none of the known."""
        return [
            (
                self.lines.get(key, 0),
                f"{self.origin(key)}: {_unknown(key, self.values[key], known)}",
            )
            for key in self.values
            if key not in known
        ]


def read(path: Path, directory: Path) -> ConfigFile:
    """Read a file.

    Args:
        path: the file.
        directory: where the user is: messages name files below it by their relative path.

    Raises:
        ConfigFileError: there is none, it may not be read, or it is no TOML.
    """
    near = path.is_relative_to(directory) and directory != Path("/")
    shown = str(path.relative_to(directory) if near else path)
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigFileError(f"{shown}: {error.strerror or error}") from None
    if len(raw) > LARGEST:
        raise ConfigFileError(f"{shown}: larger than 1 MiB; is it the right file?")
    try:
        text = raw.decode("utf-8-sig")  # some editors begin a file with a mark nobody sees
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigFileError(f"{shown}:{line}: not UTF-8") from None
    try:
        values = tomllib.loads(text)
    except ValueError as error:  # also numbers longer than Python reads
        raise ConfigFileError(_not_toml(shown, text, str(error))) from None
    except RecursionError:
        raise ConfigFileError(f"{shown}:1: lists in lists, too deep to be read") from None
    return ConfigFile(path, shown, values, _lines(text, values))


def _not_toml(shown: str, text: str, message: str) -> str:
    match = _PLACE.search(message)
    line = int(match["line"]) if match and match["line"] else text.count("\n") + 1
    reason = message[: match.start()] if match else message
    return (
        f"{shown}:{line}: not TOML: {reason[:1].lower()}{reason[1:]}; "
        'a setting is a line such as stall_after = "15s"'
    )


def _lines(text: str, values: Mapping[str, Any]) -> dict[str, int]:
    """Find the line on which each key begins: TOML's reader does not tell.

    What only looks like a key, inside a text or list of several lines, is no matter: each key is
    read with its whole value, and the next one looked for behind that.
    """
    found: dict[str, int] = {}
    lines = text.replace("\r\n", "\n").split("\n")
    left = _LOOKED_AT
    in_table = False
    first = 0
    while first < len(lines) and len(found) < len(values):
        statement, end = lines[first], first + 1
        while (read := _read(statement)) is None:
            while end < len(lines) and _ENDS.search(lines[end]) is None:
                end += 1
            end += 1
            statement = "\n".join(lines[first:end])
            left -= len(statement)
            if left < 0 or end > len(lines):
                return found
        header = _HEADER.match(statement) is not None
        if header or not in_table:
            for key in read:
                found.setdefault(key, first + 1)
        in_table = in_table or header
        left -= len(statement)
        first = end
    return found


def _read(statement: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(statement)
    except (ValueError, RecursionError):
        return None


def _unknown(key: str, value: object, known: Collection[str]) -> str:
    if isinstance(value, dict):
        for part in value:
            for name in (f"{key}_{part}", part):
                if name in known:
                    return f"table {key!r}: settings stand outside of tables; write {name} = …"
        return f"table {key!r}: settings stand outside of tables"
    return f"unknown setting {key!r}{suggestion(key, known)}"


def suggestion(word: str, known: Collection[str]) -> str:
    """Return "; did you mean …?" when a known word is near."""
    near = difflib.get_close_matches(word.replace("-", "_"), known, 1)
    return f"; did you mean {near[0]}?" if near else "; limpet config default lists all"
