"""Identity of nodes and workers, and the ids that carry it: any process routes any id, no table."""

from __future__ import annotations

import os
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final, NamedTuple

ID_LENGTH: Final = 20
"""Characters of a session id or socket id; other implementations of the protocol rely on it."""

_SECRET: Final = 11
_VALID: Final = re.compile(r"[A-Za-z0-9_-]{20}").fullmatch


class WorkerAddress(NamedTuple):
    """Where a worker is: what an id names, and what a balancer routes by."""

    node: int
    """Number of the host, 0 to 65,535."""
    slot: int
    """Place of the worker on its host, 0 to 255."""
    incarnation: int
    """Which life of the slot, 0 to 255; a routing hint that may wrap around."""

    def pack(self) -> bytes:
        """Return the 4 bytes that open each id of this worker."""
        return self.node.to_bytes(2, "big") + bytes((self.slot, self.incarnation))


class IdFactory:
    """Makes the ids of one worker: 4 bytes of address, 11 bytes (88 bits) of the system's entropy.

    Entropy is drawn for many ids at once: a system call per id costs more than the id.
    """

    __slots__ = ("_at", "_pool", "_prefix")

    _BATCH: Final = 256

    def __init__(self, address: WorkerAddress) -> None:
        self._prefix = address.pack()
        self._pool = b""
        self._at = 0

    def __call__(self) -> str:
        """Return a new id of 20 characters of ``[A-Za-z0-9_-]``."""
        at = self._at
        if at >= len(self._pool):
            self._pool = os.urandom(_SECRET * self._BATCH)
            at = 0
        end = self._at = at + _SECRET
        return urlsafe_b64encode(self._prefix + self._pool[at:end]).decode("ascii")


def address_of(identifier: str) -> WorkerAddress | None:
    """Return the worker that an id names, or None when it is no id at all.

    Says nothing on whether that worker lives, or ever did.
    """
    if _VALID(identifier) is None:
        return None
    raw = urlsafe_b64decode(identifier)
    return WorkerAddress(raw[0] << 8 | raw[1], raw[2], raw[3])


def new_worker_id() -> int:
    """Draw the random 64-bit id of a worker's life: registration, bus origin, presence, purge."""
    return int.from_bytes(os.urandom(8), "big") or 1


def redact(sid: str) -> str:
    """Return what a log may show of a session id: its first 6 characters, never the secret."""
    return sid[:6] + "…"
