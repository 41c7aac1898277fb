"""Checks of what an app gives to `Server`."""

from __future__ import annotations

from typing import Any

from limpet_worker.errors import OptionError


def seconds(name: str, value: Any) -> float:
    """Return an option in seconds.

    Raises:
        OptionError: it is none.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0.001 <= value <= 86_400:
        raise OptionError(f"{name}={value!r}: expected seconds from 0.001 to 86400")
    return float(value)


def whole(name: str, value: Any) -> int:
    """Return an option that is a number of things, one at least.

    Raises:
        OptionError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionError(f"{name}={value!r}: expected a whole number of at least 1")
    return value


def flag(name: str, value: Any) -> bool:
    """Return an option that is on or off.

    Raises:
        OptionError: it is none.
    """
    if not isinstance(value, bool):
        raise OptionError(f"{name}={value!r}: expected True or False")
    return value
