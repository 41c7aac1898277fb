"""How the values of settings are written: in TOML, as text (flags, environment), and back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from limpet_balancer.listening import BindError, TcpAddress, parse_address
from limpet_cluster import appload

LONGEST: Final = 86_400.0
"""Seconds that any duration may have at most: a day."""

_DURATION: Final = re.compile(
    r"(?P<number>[0-9]{1,18}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})\s*(?P<unit>ms|s|min|h)?"
)
_SECONDS: Final = {"s": 1.0, "min": 60.0, "h": 3600.0}
_SIZE: Final = re.compile(
    r"(?P<number>[0-9]{1,18}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})\s*(?P<unit>[kmg]?i?b)?",
    re.IGNORECASE,
)
_BYTES: Final = {
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
}
_WORDS: Final = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What values a setting takes, and how they are written."""

    expected: str
    """What would be right, to follow the word "expected"."""
    metavar: str
    """How a value is named in a usage line."""
    brief: str = ""
    """``expected`` without examples, where there are any."""
    words: tuple[str, ...] = ()
    """What a shell may offer."""
    of_text: Callable[[str], Any] = str
    """Reads text; raises ValueError where it cannot."""
    check: Callable[[Any], Any] = lambda value: value
    """Returns a value of the right type; raises ValueError when it is out of range."""
    types: tuple[type, ...] = ()
    """What TOML may hold instead of text."""
    quoted: bool = True
    """Whether TOML may hold the value as text."""
    write: Callable[[Any], str] = str
    """Writes a value as ``of_text`` reads it."""
    toml: Callable[[Any], str] = lambda value: quote(str(value))
    """Writes a value as TOML."""
    several: bool = False
    """Whether a flag may be given several times, and TOML may hold a list."""

    def parse(self, text: str) -> Any:
        """Return the value of a flag or of an environment variable.

        Raises:
            ValueError: it is none; with a message where ``expected`` is not all there is to say.
        """
        return self.check(self.of_text(text))

    def read(self, value: object) -> Any:
        """Return the value that TOML holds.

        Raises:
            ValueError: see `parse`.
        """
        if isinstance(value, str):
            if not self.quoted:
                raise ValueError(f"expected {self.expected}, without quotes")
            return self.parse(value)
        if type(value) not in self.types:
            raise ValueError
        return self.check(value)


# --- units ------------------------------------------------------------------


def seconds_of(text: str) -> float:
    """Read a duration: ``1.5``, ``1.5s``, ``250ms``, ``2min``, ``1h``.

    Raises:
        ValueError: it is none.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError
    number, unit = float(match["number"]), match["unit"]
    return number / 1000 if unit == "ms" else number * _SECONDS[unit or "s"]


def duration(seconds: float) -> str:
    """Write seconds as people do; `seconds_of` reads the same number back."""
    for unit in ("h", "min"):
        count = int(seconds / _SECONDS[unit])
        if count >= 1 and count * _SECONDS[unit] == seconds:
            return f"{count}{unit}"
    thousandths = round(seconds * 1000)
    if 0 < seconds < 1 and thousandths / 1000 == seconds:
        return f"{thousandths}ms"
    return f"{_plain(seconds)}s"


def _plain(value: float) -> str:
    """Write a number as short as it can be read back, without an exponent."""
    return f"{Decimal(repr(float(value))):f}".removesuffix(".0")


def bytes_of(text: str) -> int:
    """Read a size: ``65536``, ``64KiB``, ``16MiB``, ``1MB`` (which is 1,000,000).

    Raises:
        ValueError: it is none, or no whole number of bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    factor = _BYTES.get((match["unit"] or "b").lower()) if match else None
    if match is None or factor is None:
        raise ValueError
    number = match["number"]
    size = int(number) * factor if number.isdecimal() else float(number) * factor
    if size != int(size):
        raise ValueError
    return int(size)


def size(count: int) -> str:
    """Write bytes in the largest unit that divides them; `bytes_of` reads the same number back."""
    for unit in ("GiB", "MiB", "KiB"):
        factor = _BYTES[unit.lower()]
        if count and count % factor == 0:
            return f"{count // factor}{unit}"
    return str(count)


def quote(text: str) -> str:
    """Return a TOML string: JSON's, but that DEL is escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


# --- kinds ------------------------------------------------------------------


def matching(pattern: str, expected: str, metavar: str) -> Kind:
    """Text of a certain form."""
    fullmatch = re.compile(pattern).fullmatch

    def check(text: str) -> str:
        if fullmatch(text) is None:
            raise ValueError
        return text

    return Kind(expected=expected, metavar=metavar, check=check)


def url_path(example: str, *, empty: bool = False) -> Kind:
    """The path of a URL, with more than slashes in it; perhaps nothing, which means none."""
    return matching(
        r"(/(?=.*[^/])[!$-.0-;=@-Z_a-z~%/]*)" + ("?" if empty else ""),
        f"a path such as {example}" + (", or nothing for none" if empty else ""),
        "PATH",
    )


def choice(*words: str) -> Kind:
    """One of a few words."""

    def check(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return Kind(
        expected=f"{', '.join(words[:-1])} or {words[-1]}",
        metavar="|".join(words),
        words=words,
        check=check,
    )


def file_name(metavar: str) -> Kind:
    """A file or a folder."""

    def of_text(text: str) -> Path:
        if not text or "\0" in text:
            raise ValueError
        return Path(text)

    return Kind(expected="a path", metavar=metavar, of_text=of_text)


def application() -> Kind:
    """``module:attribute``."""

    def check(text: str) -> str:
        try:
            appload.parse(text)
        except appload.AppError as error:
            hint = str(error).rpartition("': ")[2]
            raise ValueError(hint if len(hint) < 200 and hint.isprintable() else "") from None
        return text

    return Kind(
        expected="module:attribute, for example app:io", metavar="MODULE:ATTRIBUTE", check=check
    )


def addresses() -> Kind:
    """Where a server listens: one address or several, in one text with blanks or commas between."""
    expected = "HOST:PORT, [IPV6]:PORT or unix:PATH"

    def check(found: list[object]) -> tuple[str, ...]:
        if not found:
            raise ValueError("expected at least one address, " + expected)
        for one in found:
            if not isinstance(one, str):
                raise ValueError  # noqa: TRY004 - as for all that cannot be a value
            try:
                parse_address(one)
            except BindError as error:
                raise ValueError(str(error).rpartition("': ")[2]) from None
        return tuple(map(str, found))

    return Kind(
        expected=expected,
        metavar="ADDRESS",
        of_text=lambda text: re.findall(r"[^\s,]+", text),
        check=check,
        types=(list,),
        write=" ".join,
        toml=lambda value: f"[{', '.join(map(quote, value))}]",
        several=True,
    )


def tcp_address() -> Kind:
    """Where one TCP server listens."""

    def check(text: str) -> str:
        try:
            found = parse_address(text)
        except BindError:
            raise ValueError from None
        if not isinstance(found, TcpAddress) or not found.host:
            raise ValueError
        return text

    return Kind(
        expected="HOST:PORT or [IPV6]:PORT, for example 127.0.0.1:9090",
        metavar="HOST:PORT",
        check=check,
    )


def whole(least: int, most: int | None = None) -> Kind:
    """A whole number."""

    def check(number: int) -> int:
        if number < least or (most is not None and number > most):
            raise ValueError
        return number

    return Kind(
        expected=f"{least} to {most}" if most else f"a whole number of at least {least}",
        metavar="N",
        of_text=_whole,
        check=check,
        types=(int,),
        quoted=False,
        toml=str,
    )


def _whole(text: str) -> int:
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text):
        raise ValueError
    return int(text)


def workers(most: int) -> Kind:
    """A number of workers, or ``auto``."""

    def check(number: int | str) -> int | str:
        if isinstance(number, int) and not 1 <= number <= most:
            raise ValueError
        return number

    return Kind(
        expected=f"1 to {most}, or auto",
        metavar="N|auto",
        words=("auto",),
        of_text=lambda text: text if text == "auto" else _whole(text),
        check=check,
        types=(int,),
        toml=lambda value: quote(value) if isinstance(value, str) else str(value),
    )


def number() -> Kind:
    """A number above zero, whole or not."""

    def check(value: float) -> float:
        if not 0 < value <= 1e9:  # as it is with nan, too
            raise ValueError
        return float(value)

    return Kind(
        expected="a number above 0",
        metavar="N",
        of_text=_number,
        check=check,
        types=(int, float),
        quoted=False,
        write=_plain,
        toml=_plain,
    )


def _number(text: str) -> float:
    if not re.fullmatch(r"\s*[0-9.e+-]{1,400}\s*", text):
        raise ValueError
    try:
        return float(text)
    except ValueError:
        raise ValueError from None  # without Python's words


def seconds(least: float = 0.0) -> Kind:
    """A duration: a number of seconds, or text with a unit."""

    def check(value: float) -> float:
        if not least <= value <= LONGEST:  # as it is with nan, too
            raise ValueError
        return float(value)

    brief = f"a duration from {duration(least) if least else '0'} to 24h"
    return Kind(
        expected=f'{brief}, such as 20, "1.5s", "250ms" or "2min"',
        brief=brief,
        metavar="DURATION",
        of_text=seconds_of,
        check=check,
        types=(int, float),
        write=duration,
        toml=lambda value: quote(duration(value)),
    )


def byte_size() -> Kind:
    """A number of bytes above zero, or text with a unit."""

    def check(value: int) -> int:
        if value < 1:
            raise ValueError
        return value

    return Kind(
        expected='a size above 0, in bytes or such as "64KiB" or "16MiB"',
        brief="a size above 0",
        metavar="SIZE",
        of_text=bytes_of,
        check=check,
        types=(int,),
        write=size,
        toml=lambda value: quote(size(value)),
    )


def flag() -> Kind:
    """Yes or no."""

    def of_text(text: str) -> bool:
        try:
            return _WORDS[text.strip().lower()]
        except KeyError:
            raise ValueError from None

    def write(value: bool) -> str:
        return "true" if value else "false"

    return Kind(
        expected="true or false",
        metavar="true|false",
        of_text=of_text,
        types=(bool,),
        quoted=False,
        write=write,
        toml=write,
    )
