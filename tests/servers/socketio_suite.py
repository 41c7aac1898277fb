"""A server of one process for the official Socket.IO suite; it prints where it listens.

python tests/servers/socketio_suite.py --port 3000
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

import uvloop

from limpet_worker.single import serving

sys.path.insert(0, str(Path(__file__).parent.parent))  # when this is run as a file

from servers.suite_app import io


async def _serve(host: str, port: int) -> None:
    async with serving(io, host, port) as addresses:
        for address in addresses:
            print(f"socketio suite ready on {address[0]}:{address[1]}", flush=True)
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="Server for the official Socket.IO suite")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    parser.add_argument("--debug", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.DEBUG if arguments.debug else logging.INFO)
    factory = uvloop.new_event_loop if arguments.loop == "uvloop" else asyncio.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(_serve(arguments.host, arguments.port))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
