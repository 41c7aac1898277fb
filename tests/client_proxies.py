"""What stands between a client and a server in tests: pipes, TLS ends, proxies, silent servers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from harness import require

Head = bytes
Decide = Callable[[Head], tuple[str, int] | None]
"""Says from the head of a connection's first request where it goes; None: nowhere."""


async def _pipe(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        target.close()


class Between:
    """A TCP server that passes connections on, and counts them."""

    def __init__(self, decide: Decide, slow: float = 0.0) -> None:
        self.decide = decide
        self.slow = slow
        """Seconds that a WebSocket's opening is held up."""
        self.heads: list[Head] = []
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        method, target, _ = head.split(b" ", 2)
        address = self.decide(head)
        if address is None:
            return
        if b"Upgrade: websocket" in head:
            await asyncio.sleep(self.slow)
        other, behind = await asyncio.open_connection(*address)
        self._writers.add(behind)
        if method == b"CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        elif target.startswith(b"http"):  # as proxies get it
            parts = urlsplit(target.decode())
            head = head.replace(target, f"{parts.path}?{parts.query}".encode(), 1)
            if b"Upgrade: websocket" not in head:  # only the first request is looked at
                head = head[:-2] + b"Connection: close\r\n\r\n"
            behind.write(head)
        else:
            behind.write(head)
        try:
            await asyncio.gather(_pipe(reader, behind), _pipe(other, writer))
        finally:
            self._writers.discard(behind)
            behind.close()

    def cut(self) -> None:
        """Drop every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def finish(self) -> None:
        """Drop every connection, and wait until nothing is left."""
        self.cut()
        for task in list(self._tasks):
            with contextlib.suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def between(
    decide: Decide, context: ssl.SSLContext | None = None, slow: float = 0.0
) -> AsyncIterator[Between]:
    """Listen for as long as the context lasts; with a TLS context, speak TLS."""
    one = Between(decide, slow)
    server = await asyncio.start_server(one.accept, "127.0.0.1", 0, ssl=context)
    one.port = server.sockets[0].getsockname()[1]
    try:
        yield one
    finally:
        server.close()
        await one.finish()
        await asyncio.sleep(0)


@asynccontextmanager
async def deaf_server() -> AsyncIterator[str]:
    """Serve WebSockets that are welcomed and never read from; yield the URL."""
    writers: list[asyncio.StreamWriter] = []

    async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        [key] = re.findall(r"sec-websocket-key: (\S+)", head, re.IGNORECASE)
        digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
        accept = base64.b64encode(digest).decode()
        writer.write(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )
        hello = '0{"sid":"abc","upgrades":[],"pingInterval":5000,"pingTimeout":5000}'
        for packet in (hello, '40{"sid":"abc"}'):
            writer.write(bytes((0x81, len(packet))) + packet.encode())
        writer.transport.pause_reading()  # type: ignore[attr-defined]

    server = await asyncio.start_server(welcome, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


def certificate(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a TLS server on 127.0.0.1 and of clients that trust it."""
    require("openssl", shutil.which("openssl"))
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)),
        ],
        check=True,
        capture_output=True,
    )
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(cert, key)
    return serving, ssl.create_default_context(cafile=str(cert))
