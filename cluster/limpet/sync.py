"""The client for scripts and threads: ``from limpet.sync import Client``."""

from __future__ import annotations

from limpet_client.sync import Client, Socket

__all__ = ["Client", "Socket"]
