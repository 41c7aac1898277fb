"""Many idle clients in one process: what each costs. Prints one line of JSON.

python tests/client/idle.py URL AMOUNT TRANSPORT [uvloop]
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from limpet_client.client import Client

BATCH = 100


def resident() -> int:
    """Return the bytes of this process's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def connect(url: str, amount: int, options: dict[str, Any]) -> list[Client]:
    clients: list[Client] = []
    while len(clients) < amount:
        batch = [Client(url, **options) for _ in range(min(BATCH, amount - len(clients)))]
        await asyncio.gather(*[client.connect() for client in batch])
        clients += batch
    return clients


async def upgraded(clients: list[Client], transport: str) -> None:
    """Wait for those that upgrade; they take their time for it."""
    async with asyncio.timeout(60):
        while transport == "upgrade" and any(one.transport_name != "websocket" for one in clients):
            await asyncio.sleep(0.05)


async def main(url: str, amount: int, transport: str) -> None:
    options: dict[str, Any] = {} if transport == "upgrade" else {"transports": [transport]}
    first = await connect(url, 20, options)
    await upgraded(first, transport)
    gc.collect()
    before, started = resident(), time.process_time()
    clients = await connect(url, amount, options)
    seconds = time.process_time() - started
    await upgraded(clients, transport)
    await asyncio.sleep(1)
    gc.collect()
    after = resident()
    answers = await asyncio.gather(*[client.emit_with_ack("getId") for client in clients])
    assert answers == [client.id for client in clients]
    print(
        json.dumps(
            {
                "clients": amount,
                "transport": clients[0].transport_name,
                "kib_each": round((after - before) / amount / 1024, 1),
                "cpu_us_each": round(seconds / amount * 1e6),
                "tasks": len(asyncio.all_tasks()),
            }
        ),
        flush=True,
    )
    await asyncio.gather(*[client.close() for client in clients + first])


if __name__ == "__main__":
    if "uvloop" in sys.argv:
        import uvloop

        uvloop.install()
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
