"""The herd's application, whose workers count aloud."""

from __future__ import annotations

import asyncio

from servers.herd_app import LIFE, io

__all__ = ["io"]

PERIOD = 0.05
"""Seconds between two numbers of a worker, each said once to all and once to a room."""

_counting: list[asyncio.Task[None]] = []


@io.on_startup
async def begin() -> None:
    _counting.append(asyncio.create_task(_count()))


@io.on_shutdown
async def end() -> None:
    _counting.pop().cancel()


async def _count() -> None:
    number = 0
    while True:
        number += 1
        io.emit("n", LIFE, number)
        io.to("everybody").emit("n", f"{LIFE} room", number)
        await asyncio.sleep(PERIOD)
