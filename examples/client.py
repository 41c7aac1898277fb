"""A visitor of the first app: enters a room, says something, hears what others say.

Start the app with ``limpet start first:io --app-dir examples``, then run this with its URL and a
room: ``python examples/client.py http://127.0.0.1:8080 harbour``. Stop it with Ctrl-C.
"""

from __future__ import annotations

import asyncio
import sys

from limpet import Client, ConnectError


async def visit(url: str, room: str) -> None:
    """Stay in a room until interrupted, over as many connections as it takes."""
    client = Client(url)

    @client.on("connect")
    async def connected() -> None:
        # At each connection: a server that has restarted does not know our rooms.
        present = await client.timeout(5).emit_with_ack("enter", room)
        print(f"in {room}, with {len(present)} present")
        client.emit("say", room, "Hello")

    @client.on("disconnect")
    def disconnected(reason: str) -> None:
        print(f"disconnected: {reason}")

    async with client:
        async for event, args in client:
            print(event, *args)


if __name__ == "__main__":
    try:
        asyncio.run(visit(*sys.argv[1:3]))
    except ConnectError as error:
        sys.exit(f"no connection: {error}")
    except KeyboardInterrupt:
        pass
