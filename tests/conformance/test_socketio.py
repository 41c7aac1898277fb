"""The 32 titles of the official Socket.IO v5 suite, in our own code, against a base URL.

Each test runs against one worker in this process and through the balancer of a cluster of two.
Those that are not about time have a server whose heartbeats are far apart: no ping comes between
what they expect, however slow the machine is. Those about answers to pings have one that waits for
them longer than the machine may stand still.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from conftest import SpawnCluster
from harness import RunningCluster
from limpet_worker.single import serving
from rawhttp import waiting_poll
from servers.suite_app import PING_INTERVAL, PING_TIMEOUT, calm, io, patient

BINARY = (b"\x01\x02\x03", b"\x04\x05\x06")


SERVERS = {"quick": io, "calm": calm, "patient": patient}
CLUSTERS = {"quick": "cluster", "calm": "calm_cluster", "patient": "patient_cluster"}


@pytest.fixture
def pace() -> str:
    """Which of the servers it is; "quick" is the one with the suite's times."""
    return "calm"


QUICK = pytest.mark.parametrize("pace", ["quick"])
PATIENT = pytest.mark.parametrize("pace", ["patient"])


@pytest.fixture(scope="session")
def patient_cluster(_new_cluster: SpawnCluster) -> RunningCluster:
    """The suites' application with many heartbeats, whose answers may come late."""
    return _new_cluster("servers.suite_app:patient", 2)


@pytest.fixture(params=["worker", pytest.param("cluster", marks=pytest.mark.processes)])
async def base_url(request: pytest.FixtureRequest, pace: str) -> AsyncIterator[str]:
    if request.param == "cluster":
        yield request.getfixturevalue(CLUSTERS[pace]).url
        return
    async with serving(SERVERS[pace], "127.0.0.1", 0) as addresses:
        yield f"http://127.0.0.1:{addresses[0][1]}"


@pytest.fixture
async def http(base_url: str) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=30)
    # A new connection for each request, as the official suite's client makes them.
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(base_url, timeout=timeout, connector=connector) as session:
        yield session


async def poll(http: aiohttp.ClientSession, sid: str) -> tuple[int, str]:
    async with http.get(f"/socket.io/?EIO=4&transport=polling&sid={sid}") as response:
        return response.status, await response.text()


async def post(http: aiohttp.ClientSession, sid: str, body: str) -> tuple[int, str]:
    url = f"/socket.io/?EIO=4&transport=polling&sid={sid}"
    async with http.post(url, data=body) as response:
        return response.status, await response.text()


async def open_polling(http: aiohttp.ClientSession) -> str:
    async with http.get("/socket.io/?EIO=4&transport=polling") as response:
        assert response.status == 200
        opened = json.loads((await response.text())[1:])
    return str(opened["sid"])


def websocket(base_url: str, query: str = "EIO=4&transport=websocket") -> connect:
    url = base_url.replace("http://", "ws://")
    return connect(f"{url}/socket.io/?{query}", open_timeout=20, close_timeout=2)


async def receive(socket: ClientConnection, timeout: float = 20.0) -> str | bytes:
    async with asyncio.timeout(timeout):
        return await socket.recv()


async def packet(socket: ClientConnection) -> str | bytes:
    """Return the next message that is no ping."""
    while True:
        message = await receive(socket)
        if message != "2":
            return message
        await socket.send("3")


async def until_closed(socket: ClientConnection, timeout: float = 20.0) -> list[str | bytes]:
    """Return what came before the connection was closed."""
    came = []
    async with asyncio.timeout(timeout):
        try:
            while True:
                came.append(await socket.recv())
        except ConnectionClosed:
            return came


async def open_socketio(socket: ClientConnection) -> None:
    await receive(socket)  # open
    await socket.send("40")
    assert str(await packet(socket)).startswith("40{")
    assert await packet(socket) == '42["auth",{}]'


@QUICK
class TestEngineHandshakePolling:
    async def test_should_successfully_open_a_session(self, http: aiohttp.ClientSession) -> None:
        async with http.get("/socket.io/?EIO=4&transport=polling") as response:
            assert response.status == 200
            content = await response.text()
        assert content[0] == "0"
        opened = json.loads(content[1:])
        assert set(opened) == {"sid", "upgrades", "pingInterval", "pingTimeout", "maxPayload"}
        assert isinstance(opened["sid"], str)
        assert opened["upgrades"] == ["websocket"]
        assert opened["pingInterval"] == PING_INTERVAL * 1000
        assert opened["pingTimeout"] == PING_TIMEOUT * 1000
        assert opened["maxPayload"] == 1_000_000

    @pytest.mark.parametrize("query", ["transport=polling", "EIO=abc&transport=polling"])
    async def test_should_fail_with_an_invalid_eio_query_parameter(
        self, http: aiohttp.ClientSession, query: str
    ) -> None:
        async with http.get(f"/socket.io/?{query}") as response:
            assert response.status == 400

    @pytest.mark.parametrize("query", ["EIO=4", "EIO=4&transport=abc"])
    async def test_should_fail_with_an_invalid_transport_query_parameter(
        self, http: aiohttp.ClientSession, query: str
    ) -> None:
        async with http.get(f"/socket.io/?{query}") as response:
            assert response.status == 400

    @pytest.mark.parametrize("method", ["POST", "PUT"])
    async def test_should_fail_with_an_invalid_request_method(
        self, http: aiohttp.ClientSession, method: str
    ) -> None:
        async with http.request(method, "/socket.io/?EIO=4&transport=polling") as response:
            assert response.status == 400


@QUICK
class TestEngineHandshakeWebSocket:
    async def test_should_successfully_open_a_session(self, base_url: str) -> None:
        async with websocket(base_url) as socket:
            content = await receive(socket)
        assert isinstance(content, str)
        assert content[0] == "0"
        opened = json.loads(content[1:])
        assert set(opened) == {"sid", "upgrades", "pingInterval", "pingTimeout", "maxPayload"}
        assert opened["upgrades"] == []
        assert opened["pingInterval"] == PING_INTERVAL * 1000

    @pytest.mark.parametrize("query", ["transport=websocket", "EIO=abc&transport=websocket"])
    async def test_should_fail_with_an_invalid_eio_query_parameter(
        self, base_url: str, query: str
    ) -> None:
        with pytest.raises(Exception, match="400"):
            async with websocket(base_url, query):
                pass

    @pytest.mark.parametrize("query", ["EIO=4", "EIO=4&transport=abc"])
    async def test_should_fail_with_an_invalid_transport_query_parameter(
        self, base_url: str, query: str
    ) -> None:
        with pytest.raises(Exception, match="400"):
            async with websocket(base_url, query):
                pass


class TestEngineHeartbeat:
    @PATIENT
    async def test_polling_should_send_ping_pong_packets(self, http: aiohttp.ClientSession) -> None:
        sid = await open_polling(http)
        for _ in range(3):
            assert await poll(http, sid) == (200, "2")
            assert await post(http, sid, "3") == (200, "ok")

    @QUICK
    async def test_polling_should_close_the_session_upon_ping_timeout(
        self, http: aiohttp.ClientSession
    ) -> None:
        sid = await open_polling(http)
        await asyncio.sleep(PING_INTERVAL + PING_TIMEOUT + 0.1)
        async with asyncio.timeout(20):  # a poll that came early takes the ping along
            while (await poll(http, sid))[0] != 400:
                pass

    @PATIENT
    async def test_websocket_should_send_ping_pong_packets(self, base_url: str) -> None:
        async with websocket(base_url) as socket:
            await receive(socket)
            for _ in range(3):
                assert await receive(socket) == "2"
                await socket.send("3")

    @PATIENT  # on the quick one it might also be for not connecting
    async def test_websocket_should_close_the_session_upon_ping_timeout(
        self, base_url: str
    ) -> None:
        async with websocket(base_url) as socket:
            await receive(socket)
            assert await until_closed(socket) == ["2"]


class TestEngineClose:
    async def test_polling_should_forcefully_close_the_session(
        self, base_url: str, http: aiohttp.ClientSession
    ) -> None:
        sid = await open_polling(http)
        place = urlsplit(base_url)
        address = str(place.hostname), int(place.port or 0)
        target = f"/socket.io/?EIO=4&transport=polling&sid={sid}"
        async with waiting_poll(address, target) as waiting:
            assert await post(http, sid, "1") == (200, "ok")
            answer = await waiting.answer()
        assert (answer.status, answer.body) == (200, b"6")
        status, _ = await poll(http, sid)
        assert status == 400

    async def test_websocket_should_forcefully_close_the_session(self, base_url: str) -> None:
        async with websocket(base_url) as socket:
            await receive(socket)
            await socket.send("1")
            assert await until_closed(socket) == []


class TestEngineUpgrade:
    async def test_should_successfully_upgrade_from_http_long_polling_to_websocket(
        self, base_url: str, http: aiohttp.ClientSession
    ) -> None:
        sid = await open_polling(http)
        async with websocket(base_url, f"EIO=4&transport=websocket&sid={sid}") as socket:
            await socket.send("2probe")
            assert await receive(socket) == "3probe"
            await socket.send("5")
            await socket.send("40")
            assert str(await packet(socket)).startswith('40{"sid":')

    async def test_should_ignore_http_requests_with_same_sid_after_upgrade(
        self, base_url: str, http: aiohttp.ClientSession
    ) -> None:
        sid = await open_polling(http)
        async with websocket(base_url, f"EIO=4&transport=websocket&sid={sid}") as socket:
            await socket.send("2probe")
            assert await receive(socket) == "3probe"
            await socket.send("5")
            await socket.send("40")  # a poll on its own connection might be read before the 5
            assert str(await packet(socket)).startswith('40{"sid":')
            status, _ = await poll(http, sid)
            assert status == 400

    async def test_should_ignore_websocket_connection_with_same_sid_after_upgrade(
        self, base_url: str, http: aiohttp.ClientSession
    ) -> None:
        sid = await open_polling(http)
        query = f"EIO=4&transport=websocket&sid={sid}"
        async with websocket(base_url, query) as socket:
            await socket.send("2probe")
            assert await receive(socket) == "3probe"
            await socket.send("5")
            async with websocket(base_url, query) as second:
                assert await until_closed(second) == []


class TestConnect:
    @pytest.mark.parametrize(
        ("sent", "prefix", "auth"),
        [
            pytest.param("40", "40", '42["auth",{}]', id="to the main namespace"),
            pytest.param(
                '40{"token":"123"}',
                "40",
                '42["auth",{"token":"123"}]',
                id="to the main namespace with a payload",
            ),
            pytest.param(
                "40/custom,", "40/custom,", '42/custom,["auth",{}]', id="to a custom namespace"
            ),
            pytest.param(
                '40/custom,{"token":"abc"}',
                "40/custom,",
                '42/custom,["auth",{"token":"abc"}]',
                id="to a custom namespace with a payload",
            ),
        ],
    )
    async def test_should_allow_connection(
        self, base_url: str, sent: str, prefix: str, auth: str
    ) -> None:
        async with websocket(base_url) as socket:
            await receive(socket)
            await socket.send(sent)
            answer = await packet(socket)
            assert isinstance(answer, str)
            assert re.fullmatch(re.escape(prefix) + r'\{"sid":"[\w-]{20}"\}', answer)
            assert await packet(socket) == auth

    async def test_should_disallow_connection_to_an_unknown_namespace(self, base_url: str) -> None:
        async with websocket(base_url) as socket:
            await receive(socket)
            await socket.send("40/random")
            assert await packet(socket) == '44/random,{"message":"Invalid namespace"}'

    async def test_should_disallow_connection_with_an_invalid_handshake(
        self, base_url: str
    ) -> None:
        async with websocket(base_url) as socket:
            await receive(socket)
            await socket.send("4abc")
            assert await until_closed(socket) == []

    @QUICK
    async def test_should_close_the_connection_if_no_handshake_is_received(
        self, base_url: str
    ) -> None:
        async with websocket(base_url) as socket:
            await receive(socket)
            with pytest.raises(ConnectionClosed):
                await packet(socket)  # answers pings: alive, but in no namespace


class TestDisconnect:
    @PATIENT
    async def test_should_disconnect_from_the_main_namespace(self, base_url: str) -> None:
        async with websocket(base_url) as socket:
            await open_socketio(socket)
            await socket.send("41")
            assert await receive(socket) == "2"

    async def test_should_connect_then_disconnect_from_a_custom_namespace(
        self, base_url: str
    ) -> None:
        async with websocket(base_url) as socket:
            await open_socketio(socket)
            await socket.send("40/custom")
            assert str(await packet(socket)).startswith('40/custom,{"sid":')
            assert await packet(socket) == '42/custom,["auth",{}]'
            await socket.send("41/custom")
            await socket.send('42["message","message to main namespace"]')
            assert await packet(socket) == '42["message-back","message to main namespace"]'


class TestMessage:
    async def test_should_send_a_plain_text_packet(self, base_url: str) -> None:
        async with websocket(base_url) as socket:
            await open_socketio(socket)
            await socket.send('42["message",1,"2",{"3":[true]}]')
            assert await packet(socket) == '42["message-back",1,"2",{"3":[true]}]'

    async def test_should_send_a_packet_with_binary_attachments(self, base_url: str) -> None:
        placeholders = '{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}'
        async with websocket(base_url) as socket:
            await open_socketio(socket)
            await socket.send(f'452-["message",{placeholders}]')
            for attachment in BINARY:
                await socket.send(attachment)
            assert await packet(socket) == f'452-["message-back",{placeholders}]'
            assert (await packet(socket), await packet(socket)) == BINARY

    async def test_should_send_a_plain_text_packet_with_an_ack(self, base_url: str) -> None:
        async with websocket(base_url) as socket:
            await open_socketio(socket)
            await socket.send('42456["message-with-ack",1,"2",{"3":[false]}]')
            assert await packet(socket) == '43456[1,"2",{"3":[false]}]'

    async def test_should_send_a_packet_with_binary_attachments_and_an_ack(
        self, base_url: str
    ) -> None:
        placeholders = '{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}'
        async with websocket(base_url) as socket:
            await open_socketio(socket)
            await socket.send(f'452-789["message-with-ack",{placeholders}]')
            for attachment in BINARY:
                await socket.send(attachment)
            assert await packet(socket) == f"462-789[{placeholders}]"
            assert (await packet(socket), await packet(socket)) == BINARY

    @pytest.mark.parametrize(
        "sent",
        [
            pytest.param("4abc", id="unknown packet type"),
            pytest.param("42{}", id="invalid payload format"),
            pytest.param('42abc["message-with-ack",1,"2",{"3":[false]}]', id="invalid ack id"),
        ],
    )
    async def test_should_close_the_connection_upon_invalid_format(
        self, base_url: str, sent: str
    ) -> None:
        async with websocket(base_url) as socket:
            await open_socketio(socket)
            await socket.send(sent)
            # Because of that, and not of a ping that was not answered.
            assert await until_closed(socket) == []
