"""What the command line and the environment say, checked and completed."""

from __future__ import annotations

import math
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Final

from limpet_adapters.rundir import RunDirectory, RunDirectoryError
from limpet_cluster.lifecycle import Policy

MOST_WORKERS: Final = 256
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")


class ConfigError(ValueError):
    """A value that cannot be used; the message names option, value, and what would be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What all processes of one cluster on one host share."""

    run_directory: Path
    name: str = "default"
    node: int = 0
    path: str = "/socket.io/"
    """The Engine.IO path; the application's server must have the same."""
    log_level: str = "info"
    log_format: str = "auto"

    def arguments(self) -> list[str]:
        """Return the options that hand this to a child."""
        return [
            f"--run-dir={self.run_directory}",
            f"--name={self.name}",
            f"--node={self.node}",
            f"--path={self.path}",
            f"--log-level={self.log_level}",
            f"--log-format={self.log_format}",
        ]

    def open(self) -> RunDirectory:
        """Return the run directory, made when it is missing.

        Raises:
            ConfigError: it cannot be used.
        """
        try:
            return RunDirectory(self.run_directory)
        except RunDirectoryError as error:
            raise ConfigError(str(error)) from None
        except OSError as error:
            raise ConfigError(
                f"run directory {self.run_directory}: {error.strerror}; choose another --run-dir"
            ) from None


def worker_count(text: str) -> int:
    """Read a number of workers; ``auto`` is one for each processor this process may use.

    Raises:
        ConfigError: it is neither ``auto`` nor 1 to 256.
    """
    if text == "auto":
        return min(MOST_WORKERS, processors())
    if text.isdecimal() and 1 <= int(text) <= MOST_WORKERS:
        return int(text)
    raise ConfigError(f"--workers {text}: expected 1 to {MOST_WORKERS}, or auto")


def processors(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many processors this process may use: its affinity, and a container's limit."""
    count = len(os.sched_getaffinity(0))
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        count = min(count, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or "max": no limit
        pass
    return max(1, count)


def find_run_directory(
    given: str | None, name: str, environ: Mapping[str, str] = os.environ
) -> Path:
    """Return where the cluster of that name meets on this host.

    ``--run-dir``, else ``$RUNTIME_DIRECTORY`` (systemd), else ``$XDG_RUNTIME_DIR/limpet/<name>``,
    else ``/run/limpet/<name>`` for root and a directory of the user's own in ``/tmp`` for others.

    Raises:
        ConfigError: the name has characters that do not belong into a path.
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"--name {name!r}: expected 1 to 32 letters, digits, '.', '_' or '-', "
            "the first a letter or digit"
        )
    if given:
        return Path(given).absolute()
    if runtime := environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]:
        return Path(runtime)
    if session := environ.get("XDG_RUNTIME_DIR"):
        return Path(session) / "limpet" / name
    if os.getuid() == 0:
        return Path("/run/limpet") / name
    directory = Path(f"/tmp/limpet-{os.getuid()}-{name}")  # noqa: S108 - checked to be ours, 0700
    if directory.is_symlink():
        raise ConfigError(f"run directory {directory} is a link; choose another with --run-dir")
    return directory


def node_number(given: int | None) -> int:
    """Return the number of this host: as configured, else derived from its name."""
    if given is not None:
        return given
    digest = blake2b(socket.gethostname().encode(), digest_size=2).digest()
    return int.from_bytes(digest, "big")


def development(policy: Policy) -> Policy:
    """Return the policy for ``--dev``: a process that stands at a breakpoint is not replaced."""
    return replace(policy, stall_after=0.0, start_timeout=0.0)
