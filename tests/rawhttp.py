"""A bare HTTP/1.1 client: bytes as they are written, answers taken apart, nothing made nice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


@dataclass
class Answer:
    """One response."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def sid(self) -> str:
        """Of the open packet that is the body."""
        assert self.status == 200, self
        return str(json.loads(self.body[1:].split(b"\x1e")[0])["sid"])


class Raw:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, address: tuple[str, int]) -> Self:
        return cls(*await asyncio.open_connection(*address))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def request(
        self, method: str, target: str, body: bytes | None = None, **headers: str
    ) -> Answer:
        """Send a request and read its answer."""
        await self.send(request(method, target, body, **headers))
        return await self.answer(method)

    async def answer(self, method: str = "GET") -> Answer:
        """Read one answer.

        Raises:
            asyncio.IncompleteReadError: The connection ended before.
        """
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status_line, *lines = head.split("\r\n")[:-2]
            version, status, _ = status_line.split(" ", 2)
            assert version == "HTTP/1.1"
            headers: dict[str, str] = {}
            for line in lines:
                name, colon, value = line.partition(": ")
                assert colon, line
                assert name.lower() not in headers, f"{name} twice"
                headers[name.lower()] = value
            answer = Answer(int(status), headers)
            if method == "HEAD" or answer.status in {100, 101, 204, 304}:
                return answer
            if headers.get("transfer-encoding") == "chunked":
                while size := int(await self.reader.readline(), 16):
                    answer.body += await self.reader.readexactly(size)
                    await self.reader.readexactly(2)
                await self.reader.readexactly(2)
            elif "content-length" in headers:
                answer.body = await self.reader.readexactly(int(headers["content-length"]))
            else:
                answer.body = await self.reader.read()
            return answer

    async def ended(self) -> bytes:
        """Wait for the end of the connection and return what came before it."""
        async with asyncio.timeout(10):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


@asynccontextmanager
async def waiting_poll(address: tuple[str, int], target: str) -> AsyncIterator[Raw]:
    """Open a connection on which a session's poll waits for sure.

    The answer to a POST that does nothing is out, and the poll was read together with that.
    """
    async with await Raw.open(address) as raw:
        await raw.send(request("POST", target, b"6") + request("GET", target))
        posted = await raw.answer("POST")
        assert (posted.status, posted.body) == (200, b"ok")
        yield raw


async def until(condition: Callable[[], object]) -> None:
    """Wait for what a server in the same loop does in its own time."""
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.005)


def request(method: str, target: str, body: bytes | None = None, **headers: str) -> bytes:
    """Return the bytes of a request; underscores in names of headers are dashes."""
    lines = [f"{method} {target} HTTP/1.1", "Host: test.example"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body is not None and "Transfer_Encoding" not in headers and "Content_Length" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def websocket(target: str, **headers: str) -> bytes:
    """Return the bytes of a WebSocket opening handshake."""
    fields = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": KEY,
    }
    return request("GET", target, None, **{**fields, **headers})
