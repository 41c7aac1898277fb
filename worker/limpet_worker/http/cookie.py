"""The cookie that the handshake response of polling may set, for balancers that want one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from math import isfinite
from typing import Final

from limpet_worker.errors import OptionError

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_ATTRIBUTE: Final = re.compile(r"[\x20-\x3a\x3c-\x7e]+").fullmatch
_SAME_SITE: Final = {"lax": "Lax", "strict": "Strict", "none": "None"}
_DEFAULTS: Final[Mapping[str, object]] = {
    "name": "io",
    "path": "/",
    "httponly": True,
    "samesite": "lax",
}
_KNOWN: Final = (
    "name, path, domain, expires, max_age, http_only, secure, partitioned, priority, same_site"
)


def cookie_line(option: bool | str | Mapping[str, object]) -> tuple[bytes, bytes] | None:
    """Return the ``Set-Cookie`` line as what stands before the sid and what follows it.

    ``False`` is None: no cookie. ``True`` means ``io=<sid>; Path=/; HttpOnly; SameSite=Lax``,
    a string is another name, a mapping has attributes that are laid over these defaults (their
    names in snake case or as JavaScript writes them; ``max_age`` in seconds).

    Raises:
        OptionError: An attribute is unknown or has a wrong value.
    """
    if option is False:
        return None
    given: Mapping[str, object]
    if option is True:
        given = {}
    elif isinstance(option, str):
        given = {"name": option}
    else:
        for key in option:
            if not isinstance(key, str):
                raise OptionError(f"cookie {key!r}: expected the name of an attribute")
        given = {key.replace("_", "").replace("-", "").lower(): option[key] for key in option}
    values = {**_DEFAULTS, **given}

    name = values.pop("name")
    if not isinstance(name, str) or not _TOKEN(name):
        raise OptionError(f"cookie name={name!r}: expected a cookie name such as 'io'")
    parts = [
        *_age(values.pop("maxage", None)),
        *_text("Domain", values.pop("domain", None)),
        *_text("Path", values.pop("path")),
        *_expires(values.pop("expires", None)),
        *_flag("HttpOnly", values.pop("httponly")),
        *_flag("Secure", values.pop("secure", None)),
        *_flag("Partitioned", values.pop("partitioned", None)),
        *_priority(values.pop("priority", None)),
        *_same_site(values.pop("samesite")),
    ]
    if values:
        raise OptionError(f"cookie {next(iter(values))!r}: unknown attribute; known are {_KNOWN}")
    tail = "".join(f"; {part}" for part in parts)
    return f"Set-Cookie: {name}=".encode("ascii"), f"{tail}\r\n".encode("ascii")


def _text(name: str, value: object) -> list[str]:
    if value is None or value is False:
        return []
    if not isinstance(value, str) or not _ATTRIBUTE(value):
        raise OptionError(f"cookie {name.lower()}={value!r}: expected text without ';'")
    return [f"{name}={value}"]


def _flag(name: str, value: object) -> list[str]:
    if value is not None and not isinstance(value, bool):
        raise OptionError(f"cookie {name}={value!r}: expected True or False")
    return [name] if value else []


def _age(value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise OptionError(f"cookie max_age={value!r}: expected seconds")
    return [f"Max-Age={int(value)}"]


def _expires(value: object) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise OptionError(f"cookie expires={value!r}: expected a datetime with a time zone")
    return [f"Expires={format_datetime(value.astimezone(UTC), usegmt=True)}"]


def _priority(value: object) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, str) or value.lower() not in {"low", "medium", "high"}:
        raise OptionError(f"cookie priority={value!r}: expected 'low', 'medium' or 'high'")
    return [f"Priority={value.capitalize()}"]


def _same_site(value: object) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return ["SameSite=Strict"]
    if not isinstance(value, str) or value.lower() not in _SAME_SITE:
        raise OptionError(f"cookie same_site={value!r}: expected 'lax', 'strict' or 'none'")
    return [f"SameSite={_SAME_SITE[value.lower()]}"]
