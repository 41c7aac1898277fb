"""Requests for another worker: the connection moves, with what was read and nothing lost."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from limpet_adapters.identity import WorkerAddress, address_of
from limpet_worker.http.cors import CorsOptions
from limpet_worker.http.polling import MAX_HOPS
from limpet_worker.http.request import HeadParser, find_head, parse_query
from rawhttp import Raw, request, until, websocket
from servers.engineio_echo import EchoServer

PATH = "/engine.io/?EIO=4&transport=polling"

EITHER_LOOP = pytest.mark.parametrize(
    "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


class Channel:
    """One worker's way back: a socketpair to a router, as between a worker and its balancer."""

    def __init__(self, router: Router, address: WorkerAddress) -> None:
        self.router = router
        self.address = address
        self.connected = True
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.far.setblocking(False)
        asyncio.get_running_loop().add_reader(self.far, self._readable)
        self.moved: list[tuple[bytes, object, int]] = []

    def owns(self, sid: str) -> bool:
        return address_of(sid) == self.address

    def migrate(
        self, sock: socket.socket, data: bytes, address: tuple[str, int] | str, hops: int
    ) -> bool:
        if not self.connected:
            return False
        self.moved.append((data, address, hops))
        socket.send_fds(self.near, [data], [sock.fileno()])
        sock.close()
        return True

    def _readable(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self.far, 200_000, 1)
        except BlockingIOError:
            return
        _, address, hops = self.moved[-1]
        self.router.route(socket.socket(fileno=fds[0]), data, address, hops)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.far)
        self.near.close()
        self.far.close()


class Router:
    """Two workers and what a balancer does between them."""

    def __init__(self, **options: Any) -> None:
        self.servers: list[EchoServer] = []
        self.channels: list[Channel] = []
        self.next = 0
        for slot in (0, 1):
            address = WorkerAddress(1, slot, 7)
            channel = Channel(self, address)
            self.channels.append(channel)
            settings = {"ping_interval": 25.0, "ping_timeout": 20.0, **options}
            self.servers.append(EchoServer(address=address, migrator=channel, **settings))

    def route(self, sock: socket.socket, data: bytes, address: Any, hops: int) -> None:
        """Give a connection to the worker of its sid; final to any, when the sid is nobody's."""
        end = find_head(data)
        if not end:  # nothing to go by yet; a balancer would wait for the rest
            self.servers[1].doorway.adopt(sock, data, address)
            return
        head = HeadParser().parse(data[:end])
        sid = parse_query(head.query).get("sid", "")
        owner = address_of(sid)
        final = False
        if owner is not None and owner.node == 1 and owner.slot < 2 and owner.incarnation == 7:
            slot = owner.slot
        else:
            final = bool(sid)
            self.next = slot = (self.next + 1) % 2
        self.servers[slot].doorway.adopt(sock, data, address, hops + 1, final)

    async def connect(self, slot: int, data: bytes, *, hops: int = 0, final: bool = False) -> Raw:
        """Open a connection whose first bytes come to a worker of our choice."""
        listener = socket.create_server(("127.0.0.1", 0))
        raw = await Raw.open(listener.getsockname())
        accepted, address = listener.accept()
        listener.close()
        self.servers[slot].doorway.adopt(accepted, data, address, hops, final)
        return raw

    async def close(self) -> None:
        for server in self.servers:
            await server.close()
        for channel in self.channels:
            channel.close()


def run(factory: Callable[[], asyncio.AbstractEventLoop], main: Callable[[], Any]) -> None:
    async def watched() -> None:
        faults: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        await main()
        await asyncio.sleep(0.02)
        assert not faults

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(watched())


async def two_sessions(router: Router, raw: Raw) -> list[str]:
    """Open one session in each worker over one connection; return the targets of its requests."""
    targets = ["", ""]
    while not all(targets):
        sid = (await raw.request("GET", PATH)).sid
        owner = address_of(sid)
        assert owner is not None
        targets[owner.slot] = f"{PATH}&sid={sid}"
    return targets


async def alternate(times: int) -> None:
    router = Router()
    async with await router.connect(0, b"") as raw:
        targets = await two_sessions(router, raw)
        for turn in range(times // 4):
            for target in targets:
                message = f"4{turn} {target}".encode()
                assert (await raw.request("POST", target, message)).body == b"ok"
            for target in targets:
                assert (await raw.request("GET", target)).body == f"4{turn} {target}".encode()
    moves = sum(len(channel.moved) for channel in router.channels)
    assert moves >= times - 1
    # A request served starts anew: however often a connection moves, no request moved twice.
    assert {hops for channel in router.channels for _, _, hops in channel.moved} == {0}
    await router.close()


@EITHER_LOOP
def test_alternating_requests(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    run(loop_factory, lambda: alternate(200))


@pytest.mark.slow
@EITHER_LOOP
def test_thousands_of_requests(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    run(loop_factory, lambda: alternate(4000))


@EITHER_LOOP
def test_the_last_answer_is_out_first(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """A large answer that nobody has read yet is not cut by the move behind it."""

    async def main() -> None:
        router = Router(max_http_buffer_size=20_000_000)
        message = b"4" + bytes(range(32, 127)) * 100_000
        async with await router.connect(0, b"") as raw:
            targets = await two_sessions(router, raw)
            await raw.request("POST", targets[0], message)
            await raw.request("POST", targets[1], b"4small")
            await raw.send(request("GET", targets[0]) + request("GET", targets[1]))
            await asyncio.sleep(0.1)
            assert (await raw.answer()).body == message
            assert (await raw.answer()).body == b"4small"
        await router.close()

    run(loop_factory, main)


@EITHER_LOOP
def test_a_body_in_pieces_travels_along(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        router = Router()
        async with await router.connect(0, b"") as raw:
            targets = await two_sessions(router, raw)
            for number, target in enumerate(targets * 3):
                body = f"4{number}-".encode() + b"x" * 500
                data = request("POST", target, body)
                cut = len(data) - 300
                await raw.send(data[:cut])
                await asyncio.sleep(0.01)
                await raw.send(data[cut:])
                assert (await raw.answer()).body == b"ok"
                assert (await raw.request("GET", target)).body == body
        await router.close()

    run(loop_factory, main)


@EITHER_LOOP
def test_pipelined_requests_of_two_workers(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        router = Router()
        async with await router.connect(0, b"") as raw:
            first, second = await two_sessions(router, raw)
            await raw.send(
                request("POST", first, b"4a")
                + request("POST", second, b"4b")
                + request("GET", first)
                + request("GET", second)
            )
            assert [(await raw.answer()).body for _ in range(4)] == [b"ok", b"ok", b"4a", b"4b"]
        await router.close()

    run(loop_factory, main)


@EITHER_LOOP
def test_an_upgrade_moves(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        router = Router()
        async with await router.connect(0, b"") as raw:
            targets = await two_sessions(router, raw)
            for target in targets:
                await raw.request("POST", target, b"4a")
            here = address_of(targets[0].partition("&sid=")[2])
            assert here is not None
            # The connection is at worker 1 now: both posts were answered, the last one there.
            await raw.send(websocket(targets[0].replace("polling", "websocket")))
            assert (await raw.answer()).status == 101
            await raw.send(bytes((0x81, 0x86)) + bytes(4) + b"2probe")
            assert await raw.reader.readexactly(8) == b"\x81\x063probe"
        await router.close()

    run(loop_factory, main)


class TestDecisions:
    """When a request moves, and when it is answered where it is."""

    async def test_new_sessions(self) -> None:
        """The first request of a connection was placed here; a later one is placed anew."""
        router = Router()
        async with await router.connect(0, request("GET", PATH)) as raw:
            assert address_of((await raw.answer()).sid) == router.channels[0].address
            assert not router.channels[0].moved
            assert address_of((await raw.request("GET", PATH)).sid) == router.channels[1].address
            assert len(router.channels[0].moved) == 1
            data, address, hops = router.channels[0].moved[0]
            assert data == request("GET", PATH)
            assert address == raw.writer.get_extra_info("sockname")
            assert hops == 0
        await router.close()

    async def test_what_is_wrong_anyway_does_not_move(self) -> None:
        router = Router()
        async with await router.connect(0, b"") as raw:
            own = (await raw.request("GET", PATH)).sid
            gone = own[:-1] + ("A" if own[-1] != "A" else "B")
            for method, target, code in [
                ("GET", f"{PATH}&sid={gone}", 1),
                ("GET", f"{PATH}&sid=malformed", 1),
                ("GET", "/engine.io/?EIO=4&transport=pigeon", 0),
                ("POST", PATH, 2),
            ]:
                assert (await raw.request(method, target)).json["code"] == code
            assert (await raw.request("GET", "/elsewhere")).status == 404
        assert not router.channels[0].moved
        await router.close()

    async def test_final(self) -> None:
        """Nobody has the session: refused here, with the headers that let a page read it."""
        router = Router(cors=CorsOptions())
        foreign = f"{PATH}&sid=AAkAAbm6lul2WwPUtO65"
        data = request("GET", foreign, Origin="https://a.example")
        async with await router.connect(0, data, final=True) as raw:
            answer = await raw.answer()
            assert answer.json == {"code": 1, "message": "Session ID unknown"}
            assert answer.headers["access-control-allow-origin"] == "*"
            assert not router.channels[0].moved
            # Only that one request was final. The router finds no owner and says so again.
            assert (await raw.request("GET", foreign)).json["code"] == 1
            assert len(router.channels[0].moved) == 1
        await router.close()

    async def test_hops(self) -> None:
        """A request that comes back again and again is answered in the end."""
        router = Router()
        foreign = request("GET", f"{PATH}&sid=AAkAAbm6lul2WwPUtO65")
        async with await router.connect(0, foreign, hops=MAX_HOPS - 1) as raw:
            assert (await raw.answer()).json["code"] == 1
            assert [hops for _, _, hops in router.channels[0].moved] == [MAX_HOPS - 1]
        async with await router.connect(1, foreign, hops=MAX_HOPS) as raw:
            assert (await raw.answer()).json["code"] == 1
            assert not router.channels[1].moved
        await router.close()

    async def test_no_balancer(self) -> None:
        router = Router()
        async with await router.connect(0, b"") as raw:
            targets = await two_sessions(router, raw)
            # Be at worker 0.
            await raw.request("POST", targets[0], b"4a")
            router.channels[0].connected = False
            for target in (PATH, targets[1]):
                answer = await raw.request("GET", target)
                assert answer.status == 503
                assert answer.headers["retry-after"] == "1"
                assert answer.json == {"code": 503, "message": "No worker available"}
            answer = await raw.request("POST", targets[1], b"4lost")
            assert answer.status == 503
            # What is here is served.
            assert (await raw.request("GET", targets[0])).body == b"4a"
            await raw.send(websocket(targets[1].replace("polling", "websocket")))
            answer = await raw.answer()
            assert (answer.status, answer.headers["connection"]) == (503, "close")
            assert await raw.ended() == b""
        await router.close()

    async def test_a_channel_that_fails(self, caplog: pytest.LogCaptureFixture) -> None:
        router = Router()
        router.channels[0].near.close()
        async with await router.connect(0, b"") as raw:
            await raw.request("GET", PATH)
            assert (await raw.request("GET", PATH)).status == 503
        assert "could not be moved" in caplog.text
        await router.close()

    async def test_no_descriptor_is_left(self) -> None:
        """The connection ends for the client when its last owner closes it."""
        router = Router()
        async with await router.connect(0, b"") as raw:
            targets = await two_sessions(router, raw)
            for target in targets * 2:
                await raw.request("POST", target, b"4a")
            await asyncio.sleep(0.02)
            assert sum(server.doorway.connections for server in router.servers) == 1
            await raw.send(request("GET", "/", Connection="close"))
            assert (await raw.answer()).status == 404
            assert await raw.ended() == b""
        await router.close()

    async def test_adopting_a_dead_connection(self) -> None:
        router = Router()
        ours, theirs = socket.socketpair()
        theirs.close()
        doorway = router.servers[0].doorway
        doorway.adopt(ours, request("GET", PATH), "unix", 0, False)
        await until(lambda: not doorway.arriving and not doorway.connections)
        await router.close()


# --- draining -----------------------------------------------------------------------------------


@EITHER_LOOP
def test_a_draining_worker_opens_no_session(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        router = Router()
        router.servers[0].doorway.draining = True
        for _ in range(4):
            async with await router.connect(0, b"") as raw:
                owner = address_of((await raw.request("GET", PATH)).sid)
                assert owner == router.channels[1].address
        # Nobody takes it, again and again: better here for a moment than nowhere.
        async with await router.connect(0, b"", hops=MAX_HOPS) as raw:
            owner = address_of((await raw.request("GET", PATH)).sid)
            assert owner == router.channels[0].address
        await router.close()

    run(loop_factory, main)


@EITHER_LOOP
def test_idle_connections_are_given_back(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        router = Router()
        doorway = router.servers[0].doorway
        fresh, used, begun, waiting = [await router.connect(0, b"") for _ in range(4)]
        sid = (await used.request("GET", PATH)).sid
        poll = (await waiting.request("GET", PATH)).sid
        half = request("GET", PATH)
        await begun.send(half[:40])
        await waiting.send(request("GET", f"{PATH}&sid={poll}"))
        # Both have been read: a poll that waits, and half a head.
        await until(lambda: router.servers[0].engine.sessions[poll].writable)
        await until(lambda: any(door._buffer == half[:40] for door in doorway._doors))
        assert doorway.give_back(2) == 2
        assert doorway.give_back(10) == 1  # the one with a poll that is not answered
        await begun.send(half[40:])
        for raw in (fresh, used, begun):
            answer = await (raw.answer() if raw is begun else raw.request("GET", PATH))
            assert address_of(answer.sid) == router.channels[1].address
        # Its session has stayed, and is found from there.
        assert (await used.request("POST", f"{PATH}&sid={sid}", b"4a")).body == b"ok"
        router.servers[0].engine.sessions[poll].send("x")
        assert (await waiting.answer()).body == b"4x"
        assert doorway.give_back(10) == 0
        for raw in (fresh, used, begun, waiting):
            await raw.close()
        await router.close()

    run(loop_factory, main)


@EITHER_LOOP
def test_an_idle_connection_that_nobody_takes_is_closed(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        router = Router()
        router.channels[0].connected = False
        async with await router.connect(0, b"") as raw:
            assert (await raw.request("GET", PATH)).status == 200
            router.servers[0].doorway.give_back(10)
            assert await raw.ended() == b""
        await router.close()

    run(loop_factory, main)
