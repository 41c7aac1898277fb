"""Scenarios of echoes: text of any size and binary attachments, in closed loops."""

from __future__ import annotations

import random

import orjson
from scripts.benchmark.clients import WebSocketClient
from scripts.benchmark.frames import (
    BINARY,
    ENGINE_PONG,
    TEXT,
    frame,
    head,
    masked,
    server_frame,
)
from scripts.benchmark.stage import Stage
from scripts.benchmark.verify import CYCLE, Findings, Sequence

_RUN = 64
"""Replies of a chunk that are compared in one go at most."""


class EchoScript:
    """The frames of an echo, prepared: a head for each of 10,000 numbers and a tail per client.

    The number is the acknowledgement's id (10000 to 19999), the tail holds the payload, which
    tells the client. Heads are 16 bytes of text, so that the mask continues in the tail.
    """

    __slots__ = ("fill", "replies", "reply_size", "requests")

    def __init__(self, payload: int) -> None:
        top = head(16 + payload + 2)
        ids = [b"%d" % (CYCLE + i % CYCLE) for i in range(CYCLE + _RUN)]
        self.requests = [top + masked(b"42" + each + b'["echo","') for each in ids]
        whole = server_frame(b"43" + ids[0] + b'["' + bytes(payload) + b'"]')
        self.reply_size = len(whole)
        top = whole[: len(whole) - payload - 2 - 9]
        self.replies = [top + b"43" + each + b'["' for each in ids]
        self.fill = (b"the quick brown fox jumps over the lazy dog; " * (payload // 45 + 1))[
            :payload
        ]

    def tail(self, client: int) -> bytes:
        """Return the end of the client's requests and replies: its payload."""
        return b"c%06d " % client + self.fill[8:] + b'"]'


class Echo:
    """One client that keeps so many echoes outstanding and checks every reply."""

    __slots__ = (
        "_client",
        "_findings",
        "_replies",
        "_request_tail",
        "_script",
        "_tail",
        "going",
        "sent",
        "sequence",
    )

    def __init__(
        self, script: EchoScript, client: WebSocketClient, number: int, findings: Findings
    ) -> None:
        self._script = script
        self._client = client
        self._findings = findings
        self._replies = script.replies
        self._tail = script.tail(number)
        self._request_tail = masked(self._tail)
        self.sequence = Sequence(findings)
        self.sent = 0
        self.going = True
        client.wire.on_data = self.receive

    def send(self, count: int) -> None:
        """Send the next so many requests in one write."""
        first = self.sent % CYCLE
        tail = self._request_tail
        self._client.wire.send(tail.join(self._script.requests[first : first + count]) + tail)
        self.sent += count

    def receive(self, data: bytes) -> None:
        """Compare a chunk with what is to come; anything else is looked at frame by frame."""
        count, rest = divmod(len(data), self._script.reply_size)
        first = self.sequence.next % CYCLE
        tail = self._tail
        if (
            not rest
            and 0 < count <= _RUN
            and not self._client.reader.pending
            and data == tail.join(self._replies[first : first + count]) + tail
        ):
            self.sequence.run(count)
        else:
            count = self._slowly(data)
        if self.going and count:
            self.send(count)

    def _slowly(self, data: bytes) -> int:
        fresh = 0
        for opcode, payload in self._client.reader.feed(data):
            if opcode == TEXT and payload == b"2":
                self._client.wire.send(ENGINE_PONG)
            elif (
                opcode == TEXT
                and payload[:2] == b"43"
                and payload[2:7].isdigit()
                and payload[7:9] == b'["'
                and payload[9:] == self._tail
            ):
                fresh += self.sequence.take_digits(int(payload[3:7])) >= 0
            else:
                self._findings.corrupt += 1
        return fresh


def echo(stage: Stage, *, outstanding: int, clients: int = 200, payload: int = 64) -> None:
    """Run closed loops of echoes on all clients."""
    large = payload > 60_000
    stage.loop.read_size = 262144 if large else 16384
    script = EchoScript(payload)
    opened = stage.open(clients)
    stage.settle()
    echoes = [Echo(script, each, i, stage.findings) for i, each in enumerate(opened)]
    for each in echoes:
        each.send(outstanding)
    stage.loop.run_for(stage.pick(1.0, 0.1))
    stage.window(stage.pick(3.0, 0.4), lambda: stage.findings.delivered)
    for each in echoes:
        each.going = False
    stage.drain(lambda: all(each.sequence.next >= each.sent for each in echoes))
    for each in echoes:
        each.sequence.finish(each.sent)
    stage.close(opened)


class BinaryEcho:
    """One client that echoes a binary attachment, one outstanding."""

    __slots__ = (
        "_body",
        "_client",
        "_findings",
        "_masked_body",
        "_name",
        "_top",
        "_waiting",
        "going",
        "sent",
        "sequence",
    )

    def __init__(
        self,
        client: WebSocketClient,
        number: int,
        body: bytes,
        masked_body: bytes,
        findings: Findings,
    ) -> None:
        self._client = client
        self._findings = findings
        self._body = body
        self._masked_body = masked_body
        self._name = b"c%07d" % number
        self._top = head(16 + len(body), BINARY)
        self._waiting = -1
        self.sequence = Sequence(findings)
        self.sent = 0
        self.going = True
        client.wire.on_data = self.receive

    def send(self) -> None:
        """Send the next request: the packet and its attachment in one write."""
        number = self.sent % CYCLE
        packet = b'451-%d["bin",{"_placeholder":true,"num":0}]' % (CYCLE + number)
        mark = masked(self._name + b"%08d" % number)
        self._client.wire.send(b"".join((frame(packet), self._top, mark, self._masked_body)))
        self.sent += 1

    def receive(self, data: bytes) -> None:
        """Check packet and attachment of the reply."""
        for opcode, payload in self._client.reader.feed(data):
            if opcode == TEXT and payload == b"2":
                self._client.wire.send(ENGINE_PONG)
            elif opcode == TEXT and self._waiting < 0:
                self._waiting = self._number(payload)
            elif opcode == BINARY and self._waiting >= 0:
                digits, self._waiting = self._waiting, -1
                mark = self._name + b"%08d" % digits
                if payload[:16] != mark or payload[16:] != self._body:
                    self._findings.corrupt += 1
                elif self.sequence.take_digits(digits) >= 0 and self.going:
                    self.send()
            else:
                self._findings.corrupt += 1

    def _number(self, payload: bytes) -> int:
        """Return the digits of the acknowledgement that this packet is, -1 if it is none."""
        if payload[:4] == b"461-" and payload[4:9].isdigit():
            try:
                if orjson.loads(payload[9:]) == [{"_placeholder": True, "num": 0}]:
                    return int(payload[5:9])
            except orjson.JSONDecodeError:
                pass
        self._findings.corrupt += 1
        return -1


def binary(stage: Stage, *, size: int, clients: int) -> None:
    """Run closed loops of binary echoes, one outstanding each."""
    stage.loop.read_size = 262144 if size > 60_000 else 65536
    source = random.Random(stage.job.seed)  # noqa: S311 - content, not a secret
    body = source.randbytes(size - 16)
    masked_body = masked(body)
    opened = stage.open(clients)
    stage.settle()
    echoes = [
        BinaryEcho(each, i, body, masked_body, stage.findings) for i, each in enumerate(opened)
    ]
    for each in echoes:
        each.send()
    stage.loop.run_for(stage.pick(1.0, 0.1))
    stage.window(stage.pick(3.0, 0.4), lambda: stage.findings.delivered)
    for each in echoes:
        each.going = False
    stage.drain(lambda: all(each.sequence.next >= each.sent for each in echoes))
    for each in echoes:
        each.sequence.finish(each.sent)
    stage.close(opened)
