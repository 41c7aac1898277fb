"""A hub that has the bus alone, for tests: told on stdin what to drop, answers on stdout.

Usage: bus_hub.py RUN_DIRECTORY [OPTIONS_OF_FORWARDER_AS_JSON]

One more option, ``open_seconds``, is how long it waits for the workers of the hub before it, for
tests in which none may be late.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from limpet_adapters import wire
from limpet_adapters.control import ControlConnection, Hello
from limpet_adapters.rundir import RunDirectory
from limpet_cluster.hub import forwarder as hub_forwarder
from limpet_cluster.hub.control import HubControl
from limpet_cluster.hub.forwarder import Forwarder


def say(message: object) -> None:
    print(json.dumps(message), flush=True)


class LossyForwarder(Forwarder):
    """Loses the next broadcasts on their way to the subscribers, when told to."""

    to_drop = 0
    lag = 0.0
    lagging = False

    def _take_subscriptions(self) -> None:
        """Subscriptions may be made to take effect late."""
        if not self.lag:
            super()._take_subscriptions()
        elif not self.lagging:
            self.lagging = True
            self._loop.call_later(self.lag, self.take_late)

    def take_late(self) -> None:
        self.lagging = False
        super()._take_subscriptions()

    def lose(self, amount: int) -> None:
        self.to_drop = amount
        if self._xpub is None:
            return
        send = wire.sender(self._xpub)

        def lossy(frame: bytes, flags: int) -> object:
            if self.to_drop and frame[3] == wire.BROADCAST:
                self.to_drop -= 1
                return None
            return send(frame, flags)

        self._send = lossy


async def main() -> None:
    rundir = RunDirectory(Path(sys.argv[1]))
    options: dict[str, Any] = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    patience = options.pop("open_seconds", hub_forwarder.OPEN_SECONDS)
    hub_forwarder.OPEN_SECONDS = patience  # type: ignore[misc]
    control = HubControl(rundir.hub)

    def deaf(_connection: ControlConnection, hello: Hello, why: str) -> None:
        say({"deaf": hello.slot, "why": why})

    forwarder = LossyForwarder(rundir, control, on_deaf=deaf, **options)
    await forwarder.start()
    await control.start()
    say({"ready": forwarder.incarnation})
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        command = json.loads(line)
        if command["do"] == "drop":
            forwarder.lose(command["count"])
        elif command["do"] == "lag":
            forwarder.lag = command["seconds"]
        say({"answer": {**forwarder.stats(), "to_drop": forwarder.to_drop}})
    await control.close()
    await forwarder.close()


if __name__ == "__main__":
    asyncio.run(main())
