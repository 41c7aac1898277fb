"""The hand-over protocol: messages there and back, bad ones refused, nothing owed gets lost."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from balancer_rig import silent_socket
from limpet_adapters.identity import WorkerAddress
from limpet_balancer import handover
from limpet_balancer.handover import (
    CONNECTION_LIMIT,
    DATA_LIMIT,
    Acknowledge,
    Address,
    Assembler,
    Connection,
    HandoverError,
    Ledger,
    Load,
    Parcel,
    Piece,
    Register,
    Reject,
    Stats,
    decode,
    encode_acknowledge,
    encode_connection,
    encode_load,
    encode_register,
    encode_reject,
    encode_stats,
    split,
)

NUMBERS = st.integers(1, 2**64 - 1)


@pytest.fixture(scope="module")
def sock() -> Iterator[socket.socket]:
    with silent_socket() as sock:
        yield sock


@given(st.binary(max_size=400))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    try:
        decode(data)
    except HandoverError:
        pass


@given(st.sampled_from(range(1, 13)), st.binary(max_size=60))
def test_any_body_of_a_known_kind_is_a_message_or_refused(kind: int, body: bytes) -> None:
    try:
        decode(memoryview(bytes((kind,)) + body))
    except HandoverError:
        pass


@given(
    NUMBERS,
    st.integers(0, 255),
    st.booleans(),
    st.booleans(),
    st.sampled_from(
        [
            (socket.AF_UNIX, "unix"),
            (socket.AF_INET, ("192.0.2.7", 65_535)),
            (socket.AF_INET6, ("fe80::1%eth0", 0)),
        ]
    ),
    st.binary(max_size=2000),
)
def test_connection(  # noqa: PLR0917
    sock: socket.socket,
    number: int,
    hops: int,
    final: bool,
    continued: bool,
    where: tuple[int, Address],
    data: bytes,
) -> None:
    family, address = where
    parcel = Parcel(sock, int(family), address, data, hops=hops, final=final)
    message = encode_connection(number, parcel, continued) + data
    assert decode(message) == Connection(number, hops, final, continued, family, address, data)


@given(st.integers(0, 65_535), st.integers(0, 255), st.integers(0, 255), NUMBERS)
def test_register(node: int, slot: int, incarnation: int, worker_id: int) -> None:
    register = Register(WorkerAddress(node, slot, incarnation), worker_id, 4711, 5000)
    assert decode(encode_register(register)) == register


def test_register_of_another_version() -> None:
    message = bytearray(encode_register(Register(WorkerAddress(1, 2, 3), 4, 5, 6)))
    message[1] += 1
    with pytest.raises(HandoverError, match="version 2, expected 1"):
        decode(bytes(message))


@given(NUMBERS)
def test_small_messages(number: int) -> None:
    assert decode(encode_acknowledge(number)) == Acknowledge(number)
    assert decode(encode_reject(number)) == Reject(number)
    assert decode(encode_load(number % 2**32, True)) == Load(number % 2**32, True)
    assert decode(encode_stats({"n": number})) == Stats({"n": number})
    assert decode(handover.READY_MESSAGE) == handover.Ready()
    with pytest.raises(HandoverError):
        decode(handover.READY_MESSAGE + b"x")


@given(st.integers(0, CONNECTION_LIMIT))
def test_pieces_join_again(size: int) -> None:
    data = bytes(size)
    pieces, last = split(1, data)
    assembler = Assembler()
    for piece in pieces:
        message = decode(piece)
        assert isinstance(message, Piece)
        assert len(message.data) == DATA_LIMIT
        assembler.piece(message)
    end = Connection(1, 0, False, bool(pieces), socket.AF_UNIX, "unix", last)
    assert assembler.connection(end) == data
    assert assembler.received == 1


def test_too_many_bytes_do_not_travel() -> None:
    with pytest.raises(HandoverError, match="too many"):
        split(1, bytes(CONNECTION_LIMIT + 1))


def connection(number: int, *, continued: bool = False) -> Connection:
    return Connection(number, 0, False, continued, socket.AF_UNIX, "unix", b"end")


def test_a_send_that_was_broken_off_begins_anew() -> None:
    assembler = Assembler()
    assembler.piece(Piece(1, 0, b"stale"))
    assembler.piece(Piece(1, 0, b"fresh "))
    assembler.piece(Piece(1, 6, b"and "))
    assert assembler.connection(connection(1, continued=True)) == b"fresh and end"
    assembler.piece(Piece(2, 0, b"left behind"))
    assert assembler.connection(connection(2)) == b"end"
    assert assembler.connection(connection(3)) == b"end"


@pytest.mark.parametrize(
    "piece",
    [Piece(2, 0, b"x"), Piece(1, 1, b"x"), Piece(0, 0, b"x"), Piece(1, 0, bytes(CONNECTION_LIMIT))],
)
def test_pieces_out_of_place(piece: Piece) -> None:
    with pytest.raises(HandoverError):
        Assembler().piece(piece)


def test_connections_out_of_order() -> None:
    assembler = Assembler()
    assembler.connection(connection(1))
    for number in (1, 3, 0):
        with pytest.raises(HandoverError):
            assembler.connection(connection(number))
    with pytest.raises(HandoverError, match="did not come"):
        assembler.connection(connection(2, continued=True))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 200_000), st.booleans()), max_size=20))
def test_pieces_never_grow_without_bound(steps: list[tuple[int, int, bool]]) -> None:
    assembler = Assembler()
    for number, size, restart in steps:
        try:
            offset = 0 if restart else len(assembler._pieces)
            assembler.piece(Piece(number, offset, bytes(size)))
        except HandoverError:
            pass
        assert len(assembler._pieces) <= CONNECTION_LIMIT


class LedgerMachine(RuleBasedStateMachine):
    """A ledger against a plain list: each item comes out exactly once."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger: Ledger[int] = Ledger()
        self.open: dict[int, int] = {}
        self.sent = 0

    @rule(item=st.integers())
    def add(self, item: int) -> None:
        self.sent += 1
        assert self.ledger.next_number == self.sent
        self.open[self.sent] = item
        self.ledger.add(item)

    @rule(back=st.integers(0, 30))
    def acknowledge(self, back: int) -> None:
        upto = max(0, self.sent - back)
        expected = [self.open.pop(n) for n in sorted(self.open) if n <= upto]
        assert self.ledger.acknowledge(upto) == expected

    @rule(ahead=st.integers(1, 5))
    def acknowledge_too_much(self, ahead: int) -> None:
        with pytest.raises(HandoverError):
            self.ledger.acknowledge(self.sent + ahead)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def reject(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.open)))
        assert self.ledger.reject(number) == self.open.pop(number)
        with pytest.raises(HandoverError):
            self.ledger.reject(number)

    @rule()
    def rest(self) -> None:
        expected = [self.open[n] for n in sorted(self.open)]
        self.open.clear()
        assert self.ledger.rest() == expected

    @invariant()
    def figures(self) -> None:
        assert self.ledger.count == len(self.open)
        oldest = self.open[min(self.open)] if self.open else None
        assert self.ledger.oldest == oldest


TestLedger = LedgerMachine.TestCase
