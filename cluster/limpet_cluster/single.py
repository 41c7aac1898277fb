"""`limpet.run`: one process, with the client for browsers."""

from __future__ import annotations

from limpet_client.assets import browser_files
from limpet_worker import single
from limpet_worker.socketio.server import Server


def run(io: Server, host: str | None = "127.0.0.1", port: int = 8080) -> None:
    """Serve an application in this process until INT or TERM comes.

    Without a balancer and a hub, so without other workers; everything else is the same.

    Args:
        io: the application.
        host: address to listen on; None for every one.
        port: port to listen on; 0 lets the system choose.

    Raises:
        OSError: the address cannot be used.
    """
    single.run(io, host, port, files=browser_files())
