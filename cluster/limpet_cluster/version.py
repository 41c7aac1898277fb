"""Which limpet this is, and on what it runs."""

from __future__ import annotations

import platform
from importlib import metadata

_LIBRARIES = ("aiohttp", "httptools", "msgspec", "orjson", "pyzmq", "uvloop", "websockets")


def version() -> str:
    """Return the version of the installed package."""
    return metadata.version("limpet")


def versions() -> dict[str, str | None]:
    """Return what a bug report needs; None for a library that is not installed."""
    found: dict[str, str | None] = {
        "limpet": version(),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.platform(),
    }
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = None
    return found
