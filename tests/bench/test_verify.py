"""The generator's judge: a lost, a doubled and a reordered delivery must not pass."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts.benchmark.broadcasting import Broadcasts, Member, RoomMember, Rooms
from scripts.benchmark.crowd import Stream
from scripts.benchmark.echoing import BinaryEcho, Echo, EchoScript
from scripts.benchmark.frames import (
    BINARY,
    ENGINE_PING,
    ENGINE_PONG,
    FrameReader,
    masked,
    server_frame,
)
from scripts.benchmark.polling import PollingEcho
from scripts.benchmark.verify import CYCLE, Findings, Sequence


class FakeClient:
    """Stands for a client: what is sent to it is fed by the test, what it sends is kept."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.reader = FrameReader()
        self.send = self.sent.append
        self.wire = SimpleNamespace(send=self.sent.append, on_data=None)


def judged(numbers: list[int], sent: int) -> Findings:
    findings = Findings()
    sequence = Sequence(findings)
    for number in numbers:
        sequence.take_digits(number % CYCLE)
    sequence.finish(sent)
    return findings


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([0, 1, 2, 3], Findings(delivered=4)),
        ([0, 1, 3], Findings(delivered=3, lost=1)),
        ([0, 1, 2], Findings(delivered=3, lost=1)),
        ([], Findings(lost=4)),
        ([0, 1, 1, 2, 3], Findings(delivered=4, doubled=1)),
        ([0, 2, 1, 3], Findings(delivered=4, reordered=1)),
        ([0, 2, 1, 1, 3], Findings(delivered=4, reordered=1, doubled=1)),
        ([3, 2, 1, 0], Findings(delivered=4, reordered=3)),
        ([0, 1, 2, 3, 4], Findings(delivered=5, corrupt=1)),
    ],
)
def test_each_fault_is_told_apart(numbers: list[int], expected: Findings) -> None:
    assert judged(numbers, 4) == expected


@given(start=st.integers(0, 3 * CYCLE), lost=st.sets(st.integers(1, 38)))
def test_numbers_go_on_over_the_end_of_the_digits(start: int, lost: set[int]) -> None:
    findings = Findings()
    sequence = Sequence(findings)
    sequence.next = start
    for number in range(start, start + 40):
        if number - start not in lost:
            sequence.take_digits(number % CYCLE)
    sequence.finish(start + 40)
    assert findings == Findings(delivered=40 - len(lost), lost=len(lost))


@given(st.permutations(range(12)), st.integers(0, 11))
def test_no_order_but_the_right_one_is_without_fault(order: list[int], again: int) -> None:
    assert (judged(order, 12).faults == 0) == (order == sorted(order))
    assert judged([*order, again], 12).doubled == 1


def test_faults_are_described() -> None:
    findings = Findings(delivered=7, lost=2, doubled=1)
    assert findings.faults == 3
    assert findings.describe() == "2 lost, 1 doubled"
    assert not Findings(delivered=7).describe()


# --- each driver, fed with what a server could send ---------------------------


def echo_replies(count: int, client: int = 3) -> tuple[FakeClient, Echo, Findings, list[bytes]]:
    fake, findings, script = FakeClient(), Findings(), EchoScript(64)
    driver = Echo(script, fake, client, findings)  # type: ignore[arg-type]
    driver.going = False
    driver.send(count)
    replies = [script.replies[i] + script.tail(client) for i in range(count)]
    return fake, driver, findings, replies


def test_echo_sends_what_it_expects_back() -> None:
    fake, _driver, _findings, replies = echo_replies(2)
    (sent,) = fake.sent
    size = len(sent) // 2
    for request, reply in zip((sent[:size], sent[size:]), replies, strict=True):
        text = masked(request[6:])
        assert text.startswith(b"421000")
        assert text[7:16] == b'["echo","'
        assert reply == server_frame(b"43" + text[2:7] + b'["' + text[16:])
        assert len(text) == 16 + 64 + 2


ORDERS = [
    ([0, 1, 2, 3, 4, 5], Findings(delivered=6)),
    ([0, 1, 3, 4, 5], Findings(delivered=5, lost=1)),
    ([0, 1, 2, 3, 4], Findings(delivered=5, lost=1)),
    ([0, 1, 1, 2, 3, 4, 5], Findings(delivered=6, doubled=1)),
    ([0, 2, 1, 3, 4, 5], Findings(delivered=6, reordered=1)),
]


def cuts(frames: list[bytes]) -> list[list[bytes]]:
    """The same bytes one frame at a time, all at once, and in awkward pieces with a ping."""
    whole = b"".join(frames)
    pinged = ENGINE_PING + whole
    return [
        frames,
        [whole],
        [pinged[i : i + 7] for i in range(0, len(pinged), 7)],
        [frames[0] + frames[1][:5], b"".join([frames[1][5:], *frames[2:]])],
    ]


@pytest.mark.parametrize(("order", "expected"), ORDERS)
@pytest.mark.parametrize("cut", range(4))
def test_echo_is_judged(order: list[int], expected: Findings, cut: int) -> None:
    fake, driver, findings, replies = echo_replies(6)
    for chunk in cuts([replies[i] for i in order])[cut]:
        driver.receive(chunk)
    driver.sequence.finish(driver.sent)
    assert findings == expected
    assert (ENGINE_PONG in fake.sent) == (cut == 2)


def test_echo_of_another_client_is_corrupt() -> None:
    _fake, driver, findings, _replies = echo_replies(6)
    _other, _driver, _findings, foreign = echo_replies(6, client=4)
    driver.receive(foreign[0])
    driver.sequence.finish(driver.sent)
    assert findings == Findings(lost=6, corrupt=1)


def test_echo_goes_on_over_the_end_of_its_numbers() -> None:
    fake, driver, findings, _replies = echo_replies(0)
    script = EchoScript(64)
    driver.sequence.next = driver.sent = CYCLE - 3
    driver.send(6)
    driver.receive(
        b"".join(script.replies[(CYCLE - 3 + i) % CYCLE] + script.tail(3) for i in range(6))
    )
    driver.sequence.finish(driver.sent)
    assert findings == Findings(delivered=6)
    assert fake.sent


@pytest.mark.parametrize(("order", "expected"), ORDERS)
@pytest.mark.parametrize("cut", range(4))
def test_broadcast_is_judged(order: list[int], expected: Findings, cut: int) -> None:
    fake, findings = FakeClient(), Findings()
    broadcasts = Broadcasts(FakeClient(), 1)  # type: ignore[arg-type]
    member = Member(broadcasts, fake, findings, replace=False)  # type: ignore[arg-type]
    for _ in range(6):
        broadcasts.send()
    size = broadcasts.size
    frames = [broadcasts.stream[i * size : (i + 1) * size] for i in order]
    for chunk in cuts(frames)[cut]:
        member.receive(chunk)
    member.sequence.finish(broadcasts.sent)
    assert findings == expected
    assert broadcasts.complete == expected.delivered


def test_broadcast_with_other_content_is_corrupt() -> None:
    fake, findings = FakeClient(), Findings()
    broadcasts = Broadcasts(FakeClient(), 1)  # type: ignore[arg-type]
    member = Member(broadcasts, fake, findings, replace=False)  # type: ignore[arg-type]
    broadcasts.send()
    member.receive(broadcasts.stream[: broadcasts.size].replace(b"fox", b"cat"))
    member.receive(server_frame(b'42["msg","0000"]'))
    member.sequence.finish(broadcasts.sent)
    assert findings == Findings(lost=1, corrupt=2)


def room_rig() -> tuple[Rooms, RoomMember, Findings, list[FakeClient], dict[int, list[bytes]]]:
    """A member of room 1 of 2 that two senders talk to, and by sender what it should hear."""
    findings = Findings()
    stage: Any = SimpleNamespace(job=SimpleNamespace(seed=1), findings=findings)
    senders = [FakeClient(), FakeClient()]
    rooms = Rooms(stage, senders, 2, 1)  # type: ignore[arg-type]
    rooms.replace = False
    member = RoomMember(rooms, 1, 2, FakeClient(), findings)  # type: ignore[arg-type]
    while min(rooms.sent[1]) < 3:
        rooms.send()
    heard: dict[int, list[bytes]] = {}
    for index, sender in enumerate(senders):
        texts = [masked(each[6:]) for each in sender.sent]
        payloads = [text[text.index(b'","x') + 3 :] for text in texts if b'"r001"' in text]
        heard[index] = [server_frame(b'42["msg","' + each) for each in payloads]
    return rooms, member, findings, senders, heard


def test_rooms_in_order_are_without_fault() -> None:
    _rooms, member, findings, _senders, heard = room_rig()
    for pair in itertools.zip_longest(heard[0], heard[1], fillvalue=b""):
        member.receive(b"".join(pair))
    member.finish()
    assert findings == Findings(delivered=len(heard[0]) + len(heard[1]))


@pytest.mark.parametrize("fault", ["lost", "doubled", "reordered", "corrupt"])
def test_rooms_are_judged(fault: str) -> None:
    _rooms, member, findings, _senders, heard = room_rig()
    frames = heard[0]
    if fault == "lost":
        del frames[1]
    elif fault == "doubled":
        frames.insert(1, frames[1])
    elif fault == "reordered":
        frames[0], frames[1] = frames[1], frames[0]
    else:
        frames.append(frames[0].replace(b"r001", b"r000"))
    for frame in frames + heard[1]:
        member.receive(frame)
    member.finish()
    assert findings.faults == 1
    assert getattr(findings, fault) == 1


@pytest.mark.parametrize(("order", "expected"), ORDERS)
def test_binary_echo_is_judged(order: list[int], expected: Findings) -> None:
    body = bytes(range(256))
    fake, findings = FakeClient(), Findings()
    driver = BinaryEcho(fake, 5, body, masked(body), findings)  # type: ignore[arg-type]
    driver.going = False
    for _ in range(6):
        driver.send()
    for number in order:
        mark = b"c0000005%08d" % number
        packet = b'461-%d[{"num":0,"_placeholder":true}]' % (CYCLE + number)
        driver.receive(server_frame(packet) + server_frame(mark + body, BINARY))
    driver.sequence.finish(driver.sent)
    assert findings == expected


def test_binary_echo_of_another_is_corrupt() -> None:
    body = bytes(range(256))
    fake, findings = FakeClient(), Findings()
    driver = BinaryEcho(fake, 5, body, masked(body), findings)  # type: ignore[arg-type]
    driver.send()
    packet = server_frame(b'461-10000[{"_placeholder":true,"num":0}]')
    driver.receive(packet + server_frame(b"c000000600000000" + body, BINARY))
    driver.receive(server_frame(b'43010000["what"]'))
    driver.sequence.finish(driver.sent)
    assert findings == Findings(lost=1, corrupt=2)


@pytest.mark.parametrize(("order", "expected"), ORDERS)
def test_polling_echo_is_judged(order: list[int], expected: Findings) -> None:
    findings = Findings()
    stage: Any = SimpleNamespace(findings=findings, note=lambda _text: None)
    posts: list[bytes] = []
    client: Any = SimpleNamespace(posting=False, post=posts.append)
    echo = PollingEcho(stage, client, 9, limit=6)
    for _ in range(6):
        echo.answered = True
        echo.next()
    replies = [b"43" + post[2:7] + b"[" + post[15:] for post in posts]
    echo.stop()
    for number in order:
        client.on_packet(replies[number])
    echo.sequence.finish(echo.sent)
    assert findings == expected


def test_a_stream_tells_what_it_did_not_hear() -> None:
    loop: Any = SimpleNamespace(call_later=lambda _delay, _callback: None)
    member: Any = SimpleNamespace()
    stream = Stream(loop, FakeClient(), member, "near", 10.0)  # type: ignore[arg-type]
    for _ in range(3):
        stream._send()
    for number in (0, 3, 3):
        member.on_message(1, b'42["msg","%d"]' % number)
    assert (stream.lost, stream.doubled) == (2, 1)
