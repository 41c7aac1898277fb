"""The 25 titles of the official Engine.IO v4 suite, in our own words, against any base URL.

A test module makes a class of them with a fixture ``base``: the host and port of a server that
behaves as ``tests/servers/engineio_echo.py`` does, be it one worker or a whole cluster; a fixture
``calm_base``: another one, whose heartbeats are far apart; and a fixture ``patient_base``: a third
one that pings as often as the first but waits long for the answer. On the calm one the titles run
that are not about heartbeats: no ping comes between what they expect, however slow the machine is.
On the patient one run those whose client answers, however late.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from rawhttp import Raw, waiting_poll

PING_INTERVAL = 0.3
PING_TIMEOUT = 0.2

Base = tuple[str, int]


def handshake_of(packet: str | bytes) -> dict[str, Any]:
    """Check an open packet and return what it says."""
    text = packet if isinstance(packet, str) else packet.decode()
    assert text[0] == "0"
    handshake: dict[str, Any] = json.loads(text[1:])
    assert set(handshake) == {"sid", "upgrades", "pingInterval", "pingTimeout", "maxPayload"}
    assert isinstance(handshake["sid"], str)
    assert handshake["pingInterval"] == 300
    assert handshake["pingTimeout"] == 200
    assert handshake["maxPayload"] == 1_000_000
    return handshake


class Polling:
    """Requests of polling clients, over a pool of connections as real clients have."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.url = f"http://{base[0]}:{base[1]}/engine.io/"
        self.client = aiohttp.ClientSession()

    async def request(self, method: str, body: str | None = None, **params: str) -> tuple[int, str]:
        given = {"EIO": "4", "transport": "polling", **params}
        query = {name: value for name, value in given.items() if value}
        async with self.client.request(method, self.url, params=query, data=body) as answer:
            return answer.status, await answer.text()

    async def open(self) -> str:
        status, body = await self.request("GET")
        assert (status, body[0]) == (200, "0")
        return str(json.loads(body[1:])["sid"])

    async def get(self, sid: str) -> tuple[int, str]:
        return await self.request("GET", sid=sid)

    async def post(self, sid: str, body: str) -> tuple[int, str]:
        return await self.request("POST", body, sid=sid)

    def waiting(self, sid: str) -> AbstractAsyncContextManager[Raw]:
        """Another connection, on which a poll waits."""
        return waiting_poll(self.base, f"/engine.io/?EIO=4&transport=polling&sid={sid}")


def websocket(base: Base, query: str = "EIO=4&transport=websocket") -> connect:
    return connect(f"ws://{base[0]}:{base[1]}/engine.io/?{query}", proxy=None)


async def closed(socket: ClientConnection) -> None:
    """Wait for the end, whatever comes before."""
    async with asyncio.timeout(20):
        await socket.wait_closed()


async def refused(base: Base, query: str) -> None:
    """The handshake fails, or the WebSocket is closed at once."""
    try:
        async with websocket(base, query) as socket:
            await closed(socket)
    except InvalidStatus as fault:
        status = fault.response.status_code
    else:
        status = 400
    assert status == 400


class EngineIoTitles:
    """Each method is one title; what stands before it in the name is its group."""

    @pytest.fixture
    async def polling(self, base: Base) -> AsyncIterator[Polling]:
        polling = Polling(base)
        yield polling
        await polling.client.close()

    @pytest.fixture
    async def calmly(self, calm_base: Base) -> AsyncIterator[Polling]:
        polling = Polling(calm_base)
        yield polling
        await polling.client.close()

    @pytest.fixture
    async def patiently(self, patient_base: Base) -> AsyncIterator[Polling]:
        polling = Polling(patient_base)
        yield polling
        await polling.client.close()

    # handshake

    async def test_handshake_polling_opens_a_session(self, polling: Polling) -> None:
        status, body = await polling.request("GET")
        assert status == 200
        assert handshake_of(body)["upgrades"] == ["websocket"]

    @pytest.mark.parametrize("eio", ["", "abc"])
    async def test_handshake_polling_fails_with_an_invalid_eio(
        self, polling: Polling, eio: str
    ) -> None:
        assert (await polling.request("GET", EIO=eio))[0] == 400

    @pytest.mark.parametrize("transport", ["", "abc"])
    async def test_handshake_polling_fails_with_an_invalid_transport(
        self, polling: Polling, transport: str
    ) -> None:
        assert (await polling.request("GET", transport=transport))[0] == 400

    @pytest.mark.parametrize("method", ["POST", "PUT"])
    async def test_handshake_polling_fails_with_an_invalid_method(
        self, polling: Polling, method: str
    ) -> None:
        assert (await polling.request(method))[0] == 400

    async def test_handshake_websocket_opens_a_session(self, base: Base) -> None:
        async with websocket(base) as socket:
            assert handshake_of(await socket.recv())["upgrades"] == []

    @pytest.mark.parametrize("query", ["transport=websocket", "EIO=abc&transport=websocket"])
    async def test_handshake_websocket_fails_with_an_invalid_eio(
        self, base: Base, query: str
    ) -> None:
        await refused(base, query)

    @pytest.mark.parametrize("query", ["EIO=4", "EIO=4&transport=abc"])
    async def test_handshake_websocket_fails_with_an_invalid_transport(
        self, base: Base, query: str
    ) -> None:
        await refused(base, query)

    # message, polling

    async def test_message_polling_one_text_packet(self, calmly: Polling) -> None:
        sid = await calmly.open()
        assert await calmly.post(sid, "4hello") == (200, "ok")
        assert await calmly.get(sid) == (200, "4hello")

    async def test_message_polling_several_text_packets(self, calmly: Polling) -> None:
        sid = await calmly.open()
        payload = "4test1\x1e4test2\x1e4test3"
        assert await calmly.post(sid, payload) == (200, "ok")
        assert await calmly.get(sid) == (200, payload)

    async def test_message_polling_text_and_binary_packets(self, calmly: Polling) -> None:
        sid = await calmly.open()
        payload = "4hello\x1ebAQIDBA=="
        assert await calmly.post(sid, payload) == (200, "ok")
        assert await calmly.get(sid) == (200, payload)

    async def test_message_polling_an_invalid_packet_closes(self, calmly: Polling) -> None:
        sid = await calmly.open()
        status, _ = await calmly.post(sid, "abc")
        assert status in {200, 400}
        assert (await calmly.get(sid))[0] == 400

    async def test_message_polling_a_duplicate_poll_closes(self, calmly: Polling) -> None:
        sid = await calmly.open()
        async with calmly.waiting(sid) as first:
            status, _ = await calmly.get(sid)
            assert status == 400
            answer = await first.answer()
        assert (answer.status, answer.body) == (200, b"1")
        assert (await calmly.get(sid))[0] == 400

    async def test_message_polling_a_cancelled_poll_closes(self, calmly: Polling) -> None:
        sid = await calmly.open()
        async with calmly.waiting(sid):
            pass  # the connection is closed
        async with asyncio.timeout(20):
            # Not by a poll: while the first one waits, that is refused as well.
            while (await calmly.post(sid, "6"))[0] == 200:
                await asyncio.sleep(0.01)
        assert (await calmly.get(sid))[0] == 400

    # message, WebSocket

    async def test_message_websocket_a_text_packet(self, calm_base: Base) -> None:
        async with websocket(calm_base) as socket:
            await socket.recv()
            await socket.send("4hello")
            assert await socket.recv() == "4hello"

    async def test_message_websocket_a_binary_packet(self, calm_base: Base) -> None:
        async with websocket(calm_base) as socket:
            await socket.recv()
            await socket.send(b"\x01\x02\x03\x04")
            assert await socket.recv() == b"\x01\x02\x03\x04"

    async def test_message_websocket_an_invalid_packet_closes(self, calm_base: Base) -> None:
        async with websocket(calm_base) as socket:
            await socket.recv()
            await socket.send("abc")
            await closed(socket)

    # heartbeat

    async def test_heartbeat_polling_pings(self, patiently: Polling) -> None:
        sid = await patiently.open()
        for _ in range(3):
            assert await patiently.get(sid) == (200, "2")
            assert await patiently.post(sid, "3") == (200, "ok")

    async def test_heartbeat_polling_no_pong_closes(self, polling: Polling) -> None:
        sid = await polling.open()
        await asyncio.sleep(PING_INTERVAL + PING_TIMEOUT)
        async with asyncio.timeout(20):  # a poll that came early takes the ping along
            while (await polling.get(sid))[0] != 400:
                pass

    async def test_heartbeat_websocket_pings(self, patient_base: Base) -> None:
        async with websocket(patient_base) as socket:
            await socket.recv()
            for _ in range(3):
                assert await socket.recv() == "2"
                await socket.send("3")

    async def test_heartbeat_websocket_no_pong_closes(self, base: Base) -> None:
        async with websocket(base) as socket:
            await closed(socket)

    # close

    async def test_close_polling(self, calmly: Polling) -> None:
        sid = await calmly.open()
        async with calmly.waiting(sid) as waiting:
            assert await calmly.post(sid, "1") == (200, "ok")
            answer = await waiting.answer()
        assert (answer.status, answer.body) == (200, b"6")
        assert (await calmly.get(sid))[0] == 400

    async def test_close_websocket(self, calm_base: Base) -> None:
        async with websocket(calm_base) as socket:
            await socket.recv()
            await socket.send("1")
            await closed(socket)

    # upgrade

    async def test_upgrade_from_polling_to_websocket(
        self, calm_base: Base, calmly: Polling
    ) -> None:
        sid = await calmly.open()
        async with websocket(calm_base, f"EIO=4&transport=websocket&sid={sid}") as socket:
            await socket.send("2probe")
            assert await socket.recv() == "3probe"
            assert await calmly.get(sid) == (200, "6")
            await socket.send("5")
            await socket.send("4hello")
            assert await socket.recv() == "4hello"

    async def test_upgrade_later_polls_are_refused(self, calm_base: Base, calmly: Polling) -> None:
        sid = await calmly.open()
        async with websocket(calm_base, f"EIO=4&transport=websocket&sid={sid}") as socket:
            await socket.send("2probe")
            await socket.recv()
            await socket.send("5")
            await socket.send("4upgraded?")  # a poll on its own connection might be read first
            assert await socket.recv() == "4upgraded?"
            assert (await calmly.get(sid))[0] == 400
            await socket.send("4hello")
            assert await socket.recv() == "4hello"

    async def test_upgrade_later_websockets_are_closed(
        self, calm_base: Base, calmly: Polling
    ) -> None:
        sid = await calmly.open()
        query = f"EIO=4&transport=websocket&sid={sid}"
        async with websocket(calm_base, query) as socket:
            await socket.send("2probe")
            await socket.recv()
            await socket.send("5")
            async with websocket(calm_base, query) as second:
                await closed(second)
            await socket.send("4hello")
            assert await socket.recv() == "4hello"
