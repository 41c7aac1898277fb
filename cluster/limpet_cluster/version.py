"""Which limpet this is, and on what it runs."""

from __future__ import annotations

import platform
import re
import subprocess
from importlib import import_module, metadata
from pathlib import Path

_LIBRARIES = ("aiohttp", "click", "httptools", "msgspec", "orjson", "pyzmq", "uvloop", "websockets")


def version() -> str:
    """Return the version of the installed package."""
    return metadata.version("limpet")


def installed_at() -> float | None:
    """Return when the package was installed, wall time in seconds; None where nothing tells."""
    files = metadata.distribution("limpet").files or ()
    for file in files:
        if file.name in {"METADATA", "RECORD"}:
            try:
                return Path(str(file.locate())).stat().st_mtime
            except OSError:
                continue
    return None


def versions() -> dict[str, str | None]:
    """Return what a bug report needs; None for what is not installed."""
    found: dict[str, str | None] = {
        "limpet": version(),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.platform(),
        "kernel": platform.release(),
        "systemd": systemd_version(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        # Imported here: the balancer has no need of it.
        "libzmq": import_module("zmq").zmq_version(),
    }
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = None
    return found


def systemd_version() -> str | None:
    """Return the version of systemd; None where there is none."""
    try:
        output = subprocess.run(
            ("systemctl", "--version"),  # noqa: S607 - wherever it is
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.match(r"systemd (\S+)(?: \((\S+)\))?", output)
    return (match[2] or match[1]) if match else None
