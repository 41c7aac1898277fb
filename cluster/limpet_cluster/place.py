"""Where the parts of a cluster on this host are found by those who operate it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

SHARED_API: Final = Path("/run/limpet-api.sock")
"""The API's socket that systemd holds (``limpet-api.socket``): open to the group ``limpet``, while
the run directory is the processes' own."""
SYSTEMD_NAME: Final = "default"
"""Name of the cluster that the units run: one to a host."""


def api_socket(run_directory: Path, name: str = SYSTEMD_NAME, shared: Path = SHARED_API) -> Path:
    """Return the socket on which the hub of a run directory answers its HTTP API.

    It is ``api.sock`` in the run directory. Whoever may not enter that, or finds no hub there,
    gets the socket of the units when they run a cluster of that name; where neither exists, the
    former, so that an error names the place that was meant.

    Args:
        run_directory: where the cluster meets.
        name: of the cluster.
        shared: the socket of the units.
    """
    own = run_directory / "api.sock"
    if name != SYSTEMD_NAME or os.access(own, os.R_OK | os.W_OK):
        return own
    # What a test or a second cluster names on its own (--run-dir) is never mistaken for the units'.
    return shared if _usual(run_directory, name) and shared.exists() else own


def which_one(directory: Path, shared: Path = SHARED_API) -> str:
    """Return a question for whoever found nobody in a run directory: was another one meant?"""
    text = "is it the one meant (--name, --run-dir)?"
    if directory.name != SYSTEMD_NAME and shared.exists():
        text += f" That of systemd's units is named {SYSTEMD_NAME}."
    return text


def _usual(run_directory: Path, name: str) -> bool:
    """Whether a run directory is one that nobody named: of this user, or of the units."""
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    return run_directory in {
        Path("/run/limpet"),
        Path("/run/limpet") / name,
        Path(session) / "limpet" / name,
        Path(f"/tmp/limpet-{os.getuid()}-{name}"),  # noqa: S108 - only compared
    }
