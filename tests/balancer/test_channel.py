"""The worker's end of the channel against a balancer played by the test."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from limpet_adapters.counters import counters
from limpet_adapters.identity import IdFactory, WorkerAddress
from limpet_balancer import channel as channel_module
from limpet_balancer.channel import WorkerChannel, ask_stats
from limpet_balancer.handover import (
    CONNECTION_LIMIT,
    Acknowledge,
    Address,
    AskStats,
    Assembler,
    Bye,
    Connection,
    Draining,
    HandoverError,
    Load,
    Message,
    Parcel,
    Piece,
    Ready,
    Register,
    Reject,
    Undrain,
    encode_acknowledge,
    encode_connection,
    encode_load,
    encode_reject,
    encode_stats,
)
from limpet_balancer.transfer import MESSAGES_PER_TURN, EndOfLink, Link, Sent, meeting_point

ADDRESS = WorkerAddress(3, 2, 1)


class Balancer:
    """The other end: accepts channels and reads messages one by one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.meeting: socket.socket | None = None
        self.links: list[Link] = []
        self.listen()

    def listen(self) -> None:
        self.meeting = meeting_point(self.path)

    async def link(self, registered: bool = True) -> Link:
        assert self.meeting is not None
        sock, _ = await asyncio.get_running_loop().sock_accept(self.meeting)
        # What asking for 1 MiB gives on a stock kernel: the largest connection must still fit.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212_992)
        link = Link(sock)
        self.links.append(link)
        if registered:
            assert isinstance((await read(link))[0], Register)
            assert isinstance((await read(link))[0], Load)
            assert (await read(link))[0] == Ready()
        return link

    def die(self) -> None:
        if self.meeting is not None:
            self.meeting.close()
            self.meeting = None
        for link in self.links:
            link.close()
        self.links.clear()


async def read(link: Link) -> tuple[Message, int]:
    """Return the next message; a test that gets none fails."""
    async with asyncio.timeout(20):
        while True:
            received = link.receive()
            if received is not None:
                return received
            await asyncio.sleep(0.002)


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


class Worker:
    """A channel and what it adopted."""

    def __init__(self, path: Path) -> None:
        self.adopted: list[tuple[socket.socket, bytes, Address, int, bool]] = []
        self.sessions = 0
        self.channel = WorkerChannel(
            path, ADDRESS, 99, self.adopt, lambda: self.sessions, limit=1000
        )

    def adopt(
        self, sock: socket.socket, data: bytes, address: Address, hops: int, final: bool
    ) -> None:
        self.adopted.append((sock, data, address, hops, final))

    def end(self) -> None:
        self.channel.close()
        for sock, *_ in self.adopted:
            sock.close()


@pytest.fixture(autouse=True)
def _no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """The load is told when it is asked for alone: a report each second would come in between
    where a test is held up for one."""
    monkeypatch.setattr(channel_module, "REPORT_INTERVAL", 60.0)


@pytest.fixture
async def balancer() -> AsyncIterator[Balancer]:
    with tempfile.TemporaryDirectory(prefix="limpet-") as folder:
        balancer = Balancer(Path(folder) / "b")
        yield balancer
        balancer.die()


@pytest.fixture
async def worker(balancer: Balancer) -> AsyncIterator[Worker]:
    worker = Worker(balancer.path)
    yield worker
    worker.end()


@pytest.fixture
async def link(balancer: Balancer, worker: Worker) -> Link:
    worker.channel.start()
    return await balancer.link()


def pair() -> tuple[socket.socket, socket.socket]:
    """Return a client's socket and the server's."""
    client, server = socket.socketpair()
    client.setblocking(False)
    server.setblocking(False)
    return client, server


def hand_over(link: Link, number: int, data: bytes = b"head", hops: int = 0) -> socket.socket:
    """Send a connection and return the client's end of it."""
    client, server = pair()
    parcel = Parcel(server, int(socket.AF_UNIX), "unix", data, hops=hops)
    assert link.send_connection(number, parcel) is Sent.YES
    server.close()
    return client


async def test_registration(balancer: Balancer, worker: Worker) -> None:
    worker.sessions = 12
    worker.channel.start(ready=False)
    link = await balancer.link(registered=False)
    register = (await read(link))[0]
    assert isinstance(register, Register)
    assert (register.address, register.worker_id, register.limit) == (ADDRESS, 99, 1000)
    assert (await read(link))[0] == Load(12, False)
    worker.channel.set_ready()
    assert (await read(link))[0] == Ready()
    worker.channel.set_full(True)
    assert (await read(link))[0] == Load(12, True)
    worker.channel.set_draining()
    assert (await read(link))[0] == Draining()
    worker.channel.close()
    assert (await read(link))[0] == Bye()
    with pytest.raises(EndOfLink):
        await read(link)


async def test_undrained(balancer: Balancer, worker: Worker, link: Link) -> None:
    worker.channel.set_draining()
    assert (await read(link))[0] == Draining()
    worker.channel.undrain()
    assert (await read(link))[0] == Undrain()


async def test_a_balancer_that_does_not_know_undrain_hears_it_all_the_same(
    balancer: Balancer, worker: Worker, link: Link
) -> None:
    worker.channel.set_draining()
    assert (await read(link))[0] == Draining()
    worker.channel.undrain()
    await read(link)
    link.close()  # what it does about a kind that it does not know
    again = await balancer.link()  # Register, Load, Ready, and no Draining
    worker.channel.session_ended()
    assert (await read(again))[0] == Load(0, False)


async def test_connections_go_back_after_bye(
    balancer: Balancer, worker: Worker, link: Link
) -> None:
    worker.channel.leave()
    worker.channel.leave()
    assert (await read(link))[0] == Bye()
    client, server = pair()
    before = worker.channel.room
    assert worker.channel.migrate(server, b"", "unix", 0)
    assert (worker.channel.room, worker.channel.unsent) == (before - 1, 0)
    worker.channel.close()
    _, data, sock = await take(link, Assembler())
    assert data == b""
    sock.close()
    assert closed(client)
    client.close()
    with pytest.raises(EndOfLink):
        await read(link)  # BYE was said once


async def test_load_is_reported(
    balancer: Balancer, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "REPORT_INTERVAL", 0.02)
    worker.channel.start()
    link = await balancer.link()
    worker.sessions = 5
    assert (await read(link))[0] == Load(5, False)
    worker.sessions = 6
    while (message := (await read(link))[0]) == Load(5, False):
        pass  # one more may have been on its way
    assert message == Load(6, False)


async def test_one_acknowledgement_for_a_batch(worker: Worker, link: Link) -> None:
    large = bytes(CONNECTION_LIMIT)
    clients = [hand_over(link, 1), hand_over(link, 2, large, hops=3), hand_over(link, 3)]
    assert (await read(link))[0] == Acknowledge(3)
    await eventually(lambda: len(worker.adopted) == 3)
    sock, data, address, hops, final = worker.adopted[1]
    assert (data, address, hops, final) == (large, "unix", 3, False)
    assert sock.gettimeout() == 0
    assert not sock.get_inheritable()
    sock.send(b"answer")
    assert clients[1].recv(10) == b"answer"
    for client in clients:
        client.close()


async def test_nothing_is_adopted_before_its_acknowledgement_is_sent(
    worker: Worker, link: Link
) -> None:
    own = worker.channel._link
    assert own is not None
    while own.send_now(encode_load(1, False)) is Sent.YES:
        pass
    client = hand_over(link, 1)
    await asyncio.sleep(0.1)
    assert worker.adopted == []
    while True:
        message = (await read(link))[0]
        if isinstance(message, Acknowledge):
            break
    await eventually(lambda: worker.adopted)
    second = hand_over(link, 2)
    assert (await read(link))[0] == Acknowledge(2)
    client.close()
    second.close()


async def test_sessions_that_end_are_reported_soon_and_together(
    balancer: Balancer, worker: Worker
) -> None:
    worker.channel.start()
    link = await balancer.link()
    for left in (2, 1, 0):
        worker.sessions = left
        worker.channel.session_ended()
    worker.sessions = 7
    soon = worker.channel._soon_handle
    assert soon is not None
    assert soon.when() <= asyncio.get_running_loop().time() + channel_module.REPORT_SOON
    assert (await read(link))[0] == Load(7, False)
    await asyncio.sleep(2 * channel_module.REPORT_SOON)
    assert link.receive() is None
    worker.channel.session_ended()
    assert (await read(link))[0] == Load(7, False)


async def test_unread_hand_overs_of_a_dead_balancer_are_adopted(
    balancer: Balancer, worker: Worker, link: Link
) -> None:
    clients = [hand_over(link, number) for number in (1, 2)]
    worker.channel.set_draining()  # unread at the other end: the kernel tells ECONNRESET
    balancer.die()
    await eventually(lambda: len(worker.adopted) == 2)
    for client in clients:
        client.close()


async def test_failing_adoption_closes_the_connection(
    balancer: Balancer, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no")

    channel = WorkerChannel(balancer.path, ADDRESS, 1, refuse, lambda: 0)
    channel.start()
    link = await balancer.link()
    client = hand_over(link, 1)
    assert (await read(link))[0] == Acknowledge(1)
    await eventually(lambda: closed(client))
    assert "could not be adopted" in caplog.text
    channel.close()
    client.close()


def closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False


async def take(link: Link, assembler: Assembler) -> tuple[Connection, bytes, socket.socket]:
    """Return a migrated connection with all its bytes."""
    while True:
        message, fd = await read(link)
        if isinstance(message, Piece):
            assembler.piece(message)
        elif isinstance(message, Connection):
            return message, assembler.connection(message), socket.socket(fileno=fd)


async def test_migration_is_kept_until_acknowledged(worker: Worker, link: Link) -> None:
    client, server = pair()
    data = bytes(range(256)) * 800
    assert worker.channel.migrate(server, data, ("192.0.2.1", 80), 2)
    connection, received, sock = await take(link, Assembler())
    assert (received, connection.hops, connection.family) == (data, 2, socket.AF_UNIX)
    assert server.fileno() >= 0
    link.send(encode_acknowledge(1))
    await eventually(lambda: server.fileno() < 0)
    sock.close()
    assert closed(client)
    client.close()


async def test_rejected_migration_is_sent_again(worker: Worker, link: Link) -> None:
    client, server = pair()
    assert worker.channel.migrate(server, b"head", "unix", 0)
    assembler = Assembler()
    (await take(link, assembler))[2].close()
    link.send(encode_reject(1))
    link.send(encode_acknowledge(1))
    connection, data, sock = await take(link, assembler)
    assert (connection.number, data) == (2, b"head")
    link.send(encode_acknowledge(2))
    await eventually(lambda: server.fileno() < 0)
    sock.close()
    client.close()


async def test_migration_outlives_the_balancer(
    balancer: Balancer, worker: Worker, link: Link
) -> None:
    pairs = [pair() for _ in range(3)]
    assert worker.channel.migrate(pairs[0][1], b"0", "unix", 0)
    (await take(link, Assembler()))[2].close()
    balancer.die()
    await eventually(lambda: not worker.channel.connected)
    for number in (1, 2):
        assert worker.channel.migrate(pairs[number][1], b"%d" % number, "unix", 0)
    balancer.listen()
    link = await balancer.link()
    assembler = Assembler()
    for number in range(3):
        _, data, sock = await take(link, assembler)
        assert data == b"%d" % number
        sock.close()
    link.send(encode_acknowledge(3))
    await eventually(lambda: all(server.fileno() < 0 for _, server in pairs))
    for client, _ in pairs:
        client.close()


async def test_migration_without_a_balancer_is_answered_in_the_end(
    balancer: Balancer, worker: Worker, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "MIGRATION_PATIENCE", 60.0)
    balancer.die()
    await eventually(lambda: not worker.channel.connected)
    client, server = pair()
    idle, other = pair()
    assert worker.channel.migrate(server, b"head", "unix", 0)
    assert worker.channel.migrate(other, b"", "unix", 0)
    # Only now is it short: they had to come in before it was over.
    monkeypatch.setattr(channel_module, "MIGRATION_PATIENCE", 0.1)
    for migration in worker.channel._unsent:
        assert migration.until <= time.monotonic() + 60.0
        migration.until -= 59.9
    await eventually(lambda: server.fileno() < 0 and other.fileno() < 0)
    assert client.recv(100).startswith(b"HTTP/1.1 503 ")
    assert idle.recv(100) == b""  # it asked nothing
    idle.close()
    client.close()
    client, server = pair()
    assert not worker.channel.migrate(server, b"head", "unix", 0)
    assert server.fileno() >= 0  # still the caller's
    server.close()
    client.close()
    assert counters["limpet_migrations_lost_total"] >= 1


async def test_migration_with_too_many_bytes_is_refused(worker: Worker, link: Link) -> None:
    client, server = pair()
    assert not worker.channel.migrate(server, bytes(CONNECTION_LIMIT + 1), "unix", 0)
    client.close()
    server.close()


async def test_owns(worker: Worker) -> None:
    assert worker.channel.owns(IdFactory(ADDRESS)())
    assert not worker.channel.owns(IdFactory(ADDRESS._replace(incarnation=2))())
    assert not worker.channel.owns("nonsense")


async def test_broken_balancer_is_left_and_another_found(
    balancer: Balancer, worker: Worker, link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    link.send(b"\xff")
    again = await balancer.link()
    assert "unknown kind 255" in caplog.text
    again.send(encode_load(1, False))  # only workers report
    third = await balancer.link()
    client, server = pair()
    parcel = Parcel(server, int(socket.AF_UNIX), "unix", b"")
    third._send([encode_connection(7, parcel)], rights(server))
    server.close()
    await eventually(lambda: closed(client))  # out of order: nothing is adopted, nothing leaks
    assert worker.adopted == []
    client.close()


def rights(sock: socket.socket) -> list[tuple[int, int, bytes]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, sock.fileno().to_bytes(4, "little"))]


async def test_descriptor_without_a_connection_is_refused(
    balancer: Balancer, worker: Worker, link: Link
) -> None:
    client, server = pair()
    link._send([encode_acknowledge(0)], rights(server))
    server.close()
    await eventually(lambda: closed(client))
    await balancer.link()
    client.close()


async def test_connection_without_a_descriptor_is_rejected(worker: Worker, link: Link) -> None:
    client, server = pair()
    parcel = Parcel(server, int(socket.AF_UNIX), "unix", b"")
    link._send([encode_connection(1, parcel)], [])
    second = hand_over(link, 2)
    assert (await read(link))[0] == Reject(1)
    assert isinstance((await read(link))[0], Acknowledge)
    await eventually(lambda: len(worker.adopted) == 1)
    for sock in (client, server, second):
        sock.close()


async def test_acknowledgements_left_in_a_dead_channel_can_be_read() -> None:
    ours, theirs = (Link(s) for s in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    for number in (1, 2):
        theirs.send(encode_acknowledge(number))
    ours.send(encode_load(1, False))  # never read
    theirs.close()
    assert ours.receive() == (Acknowledge(1), -1)
    assert ours.receive() == (Acknowledge(2), -1)
    with pytest.raises(EndOfLink):
        ours.receive()
    assert ours.send(encode_load(1, False)) is Sent.GONE
    ours.close()


async def test_too_large_a_message_is_refused() -> None:
    ours, theirs = (Link(s) for s in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    theirs.sock.send(bytes(70_000))
    with pytest.raises(HandoverError, match="more than"):
        ours.receive()
    ours.close()
    theirs.close()


async def test_ask_stats(balancer: Balancer) -> None:
    asking = asyncio.create_task(ask_stats(balancer.path, 20))
    link = await balancer.link(registered=False)
    assert (await read(link))[0] == AskStats()
    link.send(encode_stats({"accepted": 7}))
    assert await asking == {"accepted": 7}
    asking = asyncio.create_task(ask_stats(balancer.path, 20))
    await balancer.link(registered=False)
    balancer.die()
    with pytest.raises(ConnectionResetError):
        await asking
    with pytest.raises(OSError):
        await ask_stats(balancer.path)


def test_a_dead_balancer_is_noticed_behind_however_many_hand_overs(tmp_path: Path) -> None:
    """On uvloop: it polls no more once the kernel has told of an end with bytes unread."""
    count = 3 * MESSAGES_PER_TURN

    async def story() -> None:
        balancer = Balancer(tmp_path / "b")
        worker = Worker(balancer.path)
        worker.channel.start()
        link = await balancer.link(registered=False)
        clients = [hand_over(link, number) for number in range(1, count + 1)]
        balancer.die()  # what the worker said is still unread
        try:
            await eventually(lambda: len(worker.adopted) == count)
            balancer.listen()
            await balancer.link()
        finally:
            worker.end()
            balancer.die()
            for client in clients:
                client.close()

    uvloop.run(story())
