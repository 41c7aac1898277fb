"""What a balancer is told at its start, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from limpet_adapters.rundir import RunDirectory
from limpet_balancer.listening import BACKLOG, parse_address
from limpet_balancer.placing import Limits

HEAD_LIMIT: Final = 16_384
"""Bytes a request head may have."""


class ConfigError(ValueError):
    """A value that cannot be used; the message names it and says what would be right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BalancerConfig:
    """Configuration of one balancer; times in seconds.

    Raises:
        ConfigError: a value is out of range.
        BindError: an address is malformed.
    """

    run: RunDirectory
    """Where its workers register, and where the locks of their slots are."""
    node: int
    """Number of this host, 0 to 65,535."""
    bind: tuple[str, ...] = ()
    """Public addresses; those passed as ``LISTEN_FDS`` come first and replace them."""
    engine_path: str = "/socket.io/"
    health_path: str = "/healthz"
    """Answered by the balancer itself; empty for none."""
    ping_interval: float = 25.0
    ping_timeout: float = 20.0
    backlog: int = BACKLOG
    head_timeout: float = 10.0
    """How long a request head may take to come."""
    heads: int = 4096
    """Connections whose head may be incomplete at a time; one more drops the oldest."""
    limits: Limits = field(default_factory=Limits)
    finish_timeout: float = 2.0
    """How long an ending balancer waits until what it holds has been taken over."""

    def __post_init__(self) -> None:
        if not 0 <= self.node <= 65_535:
            raise ConfigError(f"node={self.node}: expected 0 to 65535")
        for name in ("engine_path", "health_path"):
            value = getattr(self, name)
            if not value.startswith("/") and (value or name == "engine_path"):
                raise ConfigError(f"{name}={value!r}: expected a path that begins with /")
        if self.engine_path.strip("/") == "":
            raise ConfigError(f"engine_path={self.engine_path!r}: expected more than a slash")
        for name in ("ping_interval", "ping_timeout", "head_timeout", "finish_timeout"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds > 0):
                raise ConfigError(f"{name}={seconds}: expected seconds > 0")
        for name in ("backlog", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: expected at least 1")
        for address in self.bind:
            parse_address(address)
