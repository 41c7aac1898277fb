"""Clients that are closed after each test, with nothing left of them, and servers for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from client_rig import NewClient
from client_servers import ClientServer
from limpet_client.client import Client
from limpet_client.connection import Connection


@pytest.fixture(scope="session", params=["limpet", "node"])
def server(request: pytest.FixtureRequest) -> Iterator[ClientServer]:
    """Each of the two servers, shared by the session: do not break it."""
    one = ClientServer(request.param)
    one.start()
    yield one
    one.stop()
    one.discard()


@pytest.fixture(scope="session")
def node() -> Iterator[ClientServer]:
    """The official server with state recovery, shared by the session."""
    one = ClientServer("node")
    one.start()
    yield one
    one.stop()
    one.discard()


@pytest.fixture
def spawn() -> Iterator[Callable[..., ClientServer]]:
    """Return ``spawn(kind, options)``: servers of this test alone."""
    mine: list[ClientServer] = []

    def start(kind: str, options: dict[str, Any] | None = None) -> ClientServer:
        one = ClientServer(kind, options)
        mine.append(one)
        one.start()
        return one

    yield start
    for one in mine:
        one.discard()


@pytest.fixture
async def new_client() -> AsyncIterator[NewClient]:
    """Return a maker of clients; after the test no task of theirs may be left."""
    before = asyncio.all_tasks()
    clients: list[Client] = []

    def make(url: str, **options: Any) -> Client:
        client = Client(url, **options)
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.close()
        await client.manager.finish(1)
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left, f"tasks were left: {left}"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, bool]]:
    """Every Socket.IO packet that any client sends, and whether it may be compressed."""
    packets: list[tuple[Any, bool]] = []
    original = Connection.send

    def send(self: Connection, packet: Any, *, compress: bool = True) -> None:
        packets.append((packet, compress))
        original(self, packet, compress=compress)

    monkeypatch.setattr(Connection, "send", send)
    return packets
