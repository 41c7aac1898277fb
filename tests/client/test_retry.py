"""Events that are sent until they are acknowledged, and connections that are taken up again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from client_rig import Heard, NewClient, cut
from client_servers import ClientServer
from limpet_client.errors import AckTimeout

# The first of them may have to install the official server.
pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]


async def test_order(
    server: ClientServer, new_client: NewClient, sent: list[tuple[Any, bool]]
) -> None:
    """should preserve the order of the packets"""
    client, answers = new_client(server.url, retries=1, ack_timeout=30), Heard()
    client.connect()
    for number in (1, 2, 3):
        client.emit("echo", number, ack=lambda *args: answers(*args, client.core.queued))
        assert client.core.queued == number
    assert await answers.wait(3) == [(None, 1, 2), (None, 2, 1), (None, 3, 0)]
    client.disconnect()
    assert [packet for packet, _ in sent] == [
        b"0",
        b'20["echo",1]',
        b'21["echo",2]',
        b'22["echo",3]',
        b"1",
    ]


async def test_no_answer(
    server: ClientServer, new_client: NewClient, sent: list[tuple[Any, bool]]
) -> None:
    """should fail when the server does not acknowledge the packet"""
    client = new_client(server.url, retries=3, ack_timeout=0.02)
    client.connect()
    with pytest.raises(AckTimeout):
        await client.emit_with_ack("ack")
    assert [packet for packet, _ in sent[1:]] == [b'2%d["ack"]' % number for number in range(4)]
    assert client.core.queued == 0


async def test_waits_for_the_connection(
    server: ClientServer, new_client: NewClient, sent: list[tuple[Any, bool]]
) -> None:
    """should not drain the queue while the socket is disconnected"""
    client = new_client(server.url, retries=3, ack_timeout=30)
    answer = asyncio.create_task(client.emit_with_ack("echo", 1))
    await asyncio.sleep(0.1)
    assert not client.core.acks
    assert not client.core.send_buffer
    client.connect()
    assert await answer == 1
    assert [packet for packet, _ in sent] == [b"0", b'20["echo",1]']


async def test_not_twice(
    server: ClientServer, new_client: NewClient, sent: list[tuple[Any, bool]]
) -> None:
    """should not emit a packet twice in the 'connect' handler"""
    client, packets = new_client(server.url, retries=3), Heard()
    client.on("connect", lambda: client.emit("echo", None))
    client.manager.on("packet", packets)
    client.connect()
    await packets.wait(2)
    await asyncio.sleep(0.05)
    assert [packet for packet, _ in sent] == [b"0", b'20["echo",null]']
    assert [packet.data for (packet,) in packets.calls[1:]] == [[None]]


async def test_again_after_a_reconnection(server: ClientServer, new_client: NewClient) -> None:
    client = new_client(server.url, retries=5, reconnection_delay=0.01)
    await client.connect()
    answers = [asyncio.create_task(client.emit_with_ack("echo", number)) for number in range(20)]
    await asyncio.sleep(0)
    cut(client)
    assert await asyncio.gather(*answers) == list(range(20))


async def test_given_up_is_logged(
    server: ClientServer, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = new_client(server.url, retries=1, ack_timeout=0.01)
    await client.connect()
    client.emit("unknown")
    async with asyncio.timeout(15):
        while client.core.queued:
            await asyncio.sleep(0.01)
    assert "'unknown' was given up" in caplog.text


async def test_recovery(node: ClientServer, new_client: NewClient) -> None:
    """recovery: should have an accessible socket id equal to the server-side socket id
    (default namespace)
    """
    client, hi, connected = new_client(node.url, reconnection_delay=0.01), Heard(), Heard()
    client.on("hi", hi)
    await client.connect()
    recovered = [client.recovered]
    client.on("connect", connected)
    client.emit("hi")  # before the first event there is no offset
    await hi.wait()
    id_ = client.id
    cut(client)
    await connected.wait()
    recovered.append(client.recovered)
    assert recovered == [False, True]
    assert client.id == id_


@pytest.mark.parametrize("transport", ["polling", "websocket"])
async def test_nothing_is_missed(node: ClientServer, transport: str, new_client: NewClient) -> None:
    options = {"reconnection_delay": 0.01, "transports": [transport]}
    client, got = new_client(node.url, **options), Heard()

    @client.on("item")
    def item(number: int, _text: str) -> None:  # takes no offset, which the server adds
        got(number)
        if number % 100 == 50 and len(got.calls) < 250:
            cut(client)

    await client.connect()
    client.emit("items", 300, "x")
    await got.wait(300)
    assert [number for (number,) in got.calls] == list(range(300))
    assert client.recovered


async def test_no_recovery_after_too_long(node: ClientServer, new_client: NewClient) -> None:
    client, connected = new_client(node.url, reconnection_delay=0.01), Heard()
    await client.connect()
    client.on("connect", connected)
    client.core.pid, client.core.offset = "unknown-to-the-server", "likewise"
    cut(client)
    await connected.wait()
    assert not client.recovered
