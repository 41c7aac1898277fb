"""HTTP compression of poll responses: what the client takes, and the compressing."""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import Final

LARGEST: Final = 262_144
"""Bytes of the largest payload that is compressed: a larger one would hold up other clients."""


@lru_cache(maxsize=256)
def negotiate(accept_encoding: bytes) -> str:
    """Return "gzip", "deflate" or "" (neither) for an ``Accept-Encoding`` value.

    The preferred one by weight, gzip first among equals (RFC 9110 section 12.5.3).
    """
    weights: dict[str, float] = {}
    for part in accept_encoding.decode("latin-1").lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        weights[name] = weight
    anything = weights.get("*", 0.0)
    best, best_weight = "", 0.0
    for name in ("gzip", "deflate"):
        weight = weights.get(name, anything)
        if weight > best_weight:
            best, best_weight = name, weight
    return best


def compress(payload: bytes, encoding: str) -> bytes:
    """Return the payload as gzip, or as deflate (which on the web means the zlib format)."""
    compressor = zlib.compressobj(
        level=6 if len(payload) <= 65_536 else 1,
        wbits=zlib.MAX_WBITS | 16 if encoding == "gzip" else zlib.MAX_WBITS,
    )
    return compressor.compress(payload) + compressor.flush()
