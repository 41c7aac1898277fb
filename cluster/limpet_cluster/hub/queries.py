"""Query parameters, cursors and ETags of the HTTP API; read strictly: no typo widens a query."""

from __future__ import annotations

import difflib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Collection, Mapping
from hashlib import blake2b
from typing import Final, TypeVar
from urllib.parse import quote, urlencode

import msgspec
from aiohttp import web

from limpet_cluster.hub.problems import Detail, Problem, invalid

T = TypeVar("T")

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 1000
_CURSOR_LENGTH: Final = 32_768


class Query:
    """The query parameters of one request.

    Raises:
        Problem: one is unknown, given twice, or is no text.
    """

    __slots__ = ("_values", "path")

    def __init__(self, request: web.Request, allowed: Collection[str]) -> None:
        self.path = request.rel_url.raw_path
        self._values: dict[str, str] = {}
        errors = []
        for name, value in request.query.items():
            if name not in allowed:
                errors.append(Detail(_unknown(name, allowed), name[:100]))
            elif name in self._values:
                errors.append(Detail("given twice", name))
            elif not _is_text(value):
                errors.append(Detail("not valid UTF-8", name))
            else:
                self._values[name] = value
        if errors:
            first = errors[0]
            raise Problem(
                "invalid-parameter", f"{first.parameter}: {first.detail}", tuple(errors[:20])
            )

    def text(self, name: str, default: str) -> str:
        """Return a parameter as it is."""
        return self._values.get(name, default)

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """Return a parameter that is a whole number within bounds."""
        value = self._values.get(name)
        if value is None:
            return default
        if value.isascii() and value.isdigit() and len(value) <= 18 and least <= int(value) <= most:
            return int(value)
        raise invalid(name, f"{value[:40]!r}: expected a whole number from {least} to {most}")

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """Return a parameter that is one of some words; the first is the default."""
        value = self._values.get(name, choices[0])
        if value in choices:
            return value
        raise invalid(name, f"{value[:40]!r}: expected one of {', '.join(choices)}")

    @property
    def limit(self) -> int:
        """How many items a page may have."""
        return self.number("limit", LIMIT_DEFAULT, 1, LIMIT_MAX)

    def cursor(self, key: type[T], scope: tuple[object, ...]) -> T | None:
        """Return the position that the cursor names, None when there is no cursor.

        Args:
            key: type of the position.
            scope: what the cursor was made for: it fits no other query.
        """
        text = self._values.get("cursor")
        if text is None:
            return None
        try:
            raw = urlsafe_b64decode(text[:_CURSOR_LENGTH] + "=" * (-len(text) % 4))
            found, position = msgspec.msgpack.decode(raw, type=tuple[bytes, msgspec.Raw])
            if found == _fingerprint(scope):
                return msgspec.msgpack.decode(position, type=key)
        except (ValueError, RecursionError, msgspec.MsgspecError):
            raise invalid("cursor", "not a cursor of this API") from None
        raise Problem(
            "cursor-mismatch",
            "cursor: made for a query with another path or other parameters; "
            "repeat those of the first page, only limit may differ",
            (Detail("made for another query", "cursor"),),
        )

    def link(self, cursor: str | None) -> dict[str, str]:
        """Return the header that leads to the next page (RFC 8288), if there is one."""
        if cursor is None:
            return {}
        parameters = urlencode({**self._values, "cursor": cursor}, quote_via=quote, safe="")
        return {"Link": f'<{self.path}?{parameters}>; rel="next"'}

    def representation(self) -> Mapping[str, str]:
        """Return all that was asked for: part of an ETag."""
        return self._values


def make_cursor(position: object, scope: tuple[object, ...]) -> str:
    """Return the opaque name of a position in the list that ``scope`` describes."""
    raw = msgspec.msgpack.encode((_fingerprint(scope), position))
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def etag_of(digest: int, *representation: object) -> str:
    """Return a weak ETag from a content digest and what else makes the answer what it is."""
    content = msgspec.msgpack.encode(representation)
    return f'W/"{digest:016x}-{blake2b(content, digest_size=6).hexdigest()}"'


def etag_of_body(body: bytes) -> str:
    """Return a weak ETag from the content itself."""
    return f'W/"{blake2b(body, digest_size=12).hexdigest()}"'


def matches(request: web.Request, version: str) -> bool:
    """Tell whether the client has this version already (If-None-Match, weak comparison)."""
    value = version.removeprefix("W/").strip('"')
    return any(tag.value in {value, "*"} for tag in request.if_none_match or ())


def path_name(request: web.Request, part: str) -> str:
    """Return a part of the path, decoded.

    Raises:
        Problem: it is no UTF-8.
    """
    name = request.match_info[part]
    if not _is_text(name):
        raise Problem("invalid-parameter", f"{part}: not valid UTF-8", (Detail(f"{part} in path"),))
    return name


def _is_text(value: str) -> bool:
    """Tell whether percent-decoding gave text: bytes that are none come as surrogates."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unknown(name: str, allowed: Collection[str]) -> str:
    near = difflib.get_close_matches(name[:100], allowed, 1)
    if near:
        return f"unknown parameter; {near[0]} is meant?"
    if not allowed:
        return "unknown parameter; this resource has none"
    return f"unknown parameter; this resource has {', '.join(sorted(allowed))}"


def _fingerprint(scope: tuple[object, ...]) -> bytes:
    return blake2b(msgspec.msgpack.encode(scope), digest_size=6).digest()
