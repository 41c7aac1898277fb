"""The shared vectors against the Python side: `packets.json` is read by the browser's tests too."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import pytest

from limpet_adapters.packet import EncodedPacket
from limpet_worker.engineio import payload as payloads
from limpet_worker.socketio import packet as packets
from limpet_worker.socketio.errors import PacketError

VECTORS = json.loads((Path(__file__).parent / "packets.json").read_text(encoding="utf-8"))
TYPES = ("open", "close", "ping", "pong", "message", "upgrade", "noop")


def named(kind: str) -> list[Any]:
    return [pytest.param(vector, id=vector["name"]) for vector in VECTORS[kind]]


def alive(value: Any) -> Any:
    """Return a value of the file with its bytes."""
    if isinstance(value, dict):
        if "$bytes" in value:
            return b64decode(value["$bytes"])
        return {name: alive(one) for name, one in value.items()}
    return [alive(one) for one in value] if isinstance(value, list) else value


def decode(vector: dict[str, Any]) -> packets.Packet:
    """Decode as a session does: the text, then what is attached, and nothing may be missing."""
    packet = packets.decode(vector["text"].encode())
    for attachment in vector.get("attachments", []):
        if not packet.missing:
            raise PacketError("got binary data when not reconstructing a packet")
        packet.attach(b64decode(attachment))
    return packet


@pytest.mark.parametrize("vector", named("packets"))
def test_a_packet_is_read(vector: dict[str, Any]) -> None:
    packet = decode(vector)
    wanted = vector["packet"]
    assert packet.missing == 0
    assert packet.type == wanted["type"]
    assert packet.namespace == wanted["nsp"]
    assert packet.id == wanted.get("id")
    assert packet.data == alive(wanted.get("data"))


def encode(wanted: dict[str, Any]) -> bytes | EncodedPacket | None:
    """Encode what a server sends; None for what only clients send."""
    prefix = packets.prefix(wanted["nsp"])
    data = alive(wanted.get("data"))
    match wanted["type"]:
        case packets.EVENT:
            return packets.encode_event(prefix, data, wanted.get("id"))
        case packets.ACK:
            return packets.encode_ack(prefix, wanted["id"], data)
        case packets.DISCONNECT:
            return packets.encode_disconnect(prefix)
        case packets.CONNECT_ERROR:
            return packets.encode_connect_error(prefix, data["message"], data.get("data"))
        case packets.CONNECT if data and "sid" in data:
            return packets.encode_connect(prefix, data["sid"])
    return None


@pytest.mark.parametrize("vector", named("packets"))
def test_a_packet_is_written(vector: dict[str, Any]) -> None:
    encoded = None if vector.get("only") == "decode" else encode(vector["packet"])
    if encoded is None:
        return
    if isinstance(encoded, bytes):
        encoded = EncodedPacket(encoded)
    assert encoded.text.decode() == vector["text"]
    written = [b64encode(attachment).decode() for attachment in encoded.attachments]
    assert written == vector.get("attachments", [])


@pytest.mark.parametrize("vector", named("bad_packets"))
def test_a_bad_packet_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(PacketError):
        decode(vector)


def read_payload(payload: str) -> tuple[list[dict[str, str]], bool]:
    """Return the packets up to the first bad one, and whether there was one."""
    found: list[dict[str, str]] = []
    parts, more = payloads.split(payload.encode(), 1000)
    assert not more
    for part in parts:
        if part[:1] == payloads.BINARY_MESSAGE:
            try:
                data = payloads.binary_of(part)
            except payloads.PayloadError:
                return found, True
            found.append({"type": "message", "bytes": b64encode(data).decode()})
        elif part[:1].isdigit() and int(part[:1]) < len(TYPES):
            found.append({"type": TYPES[int(part[:1])], "data": part[1:].decode()})
        else:
            return found, True
    return found, False


@pytest.mark.parametrize("vector", named("payloads"))
def test_a_payload_is_read(vector: dict[str, Any]) -> None:
    assert read_payload(vector["payload"]) == (vector["packets"], False)


@pytest.mark.parametrize("vector", named("bad_payloads"))
def test_a_bad_payload_is_read_up_to_its_fault(vector: dict[str, Any]) -> None:
    found, bad = read_payload(vector["payload"])
    assert bad
    assert len(found) == vector["good"]


@pytest.mark.parametrize("vector", named("payloads"))
def test_a_payload_is_written(vector: dict[str, Any]) -> None:
    parts = [
        payloads.binary_part(b64decode(packet["bytes"]))
        if "bytes" in packet
        else str(TYPES.index(packet["type"])).encode() + packet["data"].encode()
        for packet in vector["packets"]
    ]
    assert payloads.SEPARATOR.join(parts).decode() == vector["payload"]
