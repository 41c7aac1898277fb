"""A logger that writes into a string, with the handler and the format of a worker."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

from limpet_cluster import logs


class Sink:
    """A logger of its own, with the handler and the format of a worker."""

    def __init__(self, formatter: logging.Formatter, **options: Any) -> None:
        self.stream = io.StringIO()
        self.handler = logs.LogHandler(self.stream, **options)
        self.handler.setFormatter(formatter)
        # Not getLogger: pytest hangs its own handler, which raises, on every logger known by name.
        self.logger = logging.Logger(f"app{id(self)}", logging.DEBUG)  # noqa: LOG001
        self.logger.addHandler(self.handler)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    @property
    def last(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.lines[-1])
        return found
