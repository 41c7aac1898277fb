"""One process runs where Linux's sockets, pidfds and epoll are missing, as on macOS."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import asyncio, os, select, socket
for name in ("SOCK_SEQPACKET", "MSG_CMSG_CLOEXEC", "SO_PEERCRED", "SO_PASSCRED",
             "SCM_CREDENTIALS", "TCP_DEFER_ACCEPT", "TCP_USER_TIMEOUT"):
    if hasattr(socket, name):
        delattr(socket, name)
for name in ("pidfd_open", "sched_getaffinity", "memfd_create", "eventfd"):
    if hasattr(os, name):
        delattr(os, name)

import aiohttp
import limpet
from limpet_worker.single import serving

async def main():
    io = limpet.Server()
    async with serving(io, "127.0.0.1", 0) as [(host, port)], aiohttp.ClientSession() as http:
        url = f"http://{host}:{port}/socket.io/?EIO=4&transport=polling"
        async with http.get(url) as answer:
            print(answer.status, (await answer.text())[:8])

asyncio.run(main())
"""


def test_one_process_without_what_only_linux_has() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.stdout == '200 0{"sid":\n', done.stderr
