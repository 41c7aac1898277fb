"""The application that the official JavaScript client's own suite expects, and ours with it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from limpet import AckTimeout, ConnectionRefused, Disconnected, Server, Socket

DATA = b"asdfasdf"
TEXTS = ("てすと", "Я Б Г Д Ж Й", "Ä ä Ü ü ß", "utf8 — string", "utf8 — string")


async def slowly(_request: object) -> bool:
    """Let everybody in after 10 ms: tests of connection timeouts need a handshake that lasts."""
    await asyncio.sleep(0.01)
    return True


io = Server(ping_interval=2.0, allow_request=slowly)
foo = io.of("/foo")
for name in ("/timeout_socket", "/valid", "/asd", "/bar"):
    io.of(name)


@io.use
def unless_it_shall_fail(socket: Socket) -> None:
    if socket.handshake.query.get("fail"):
        raise ConnectionRefused("Auth failed (main namespace)")


@io.of("/no").use
def nobody(_socket: Socket) -> None:
    raise ConnectionRefused("Auth failed (custom namespace)")


@io.of("/abc").on("connect")
def show_handshake(socket: Socket) -> None:
    socket.emit("handshake", socket.handshake.as_dict())


@io.on("getId")
@foo.on("getId")
def get_id(socket: Socket) -> str:
    return socket.id


@io.on("getHandshake")
def get_handshake(socket: Socket) -> dict[str, Any]:
    return socket.handshake.as_dict()


@io.on("hi")
def hi(socket: Socket) -> None:
    socket.emit("hi")


@io.on("echo")
def echo(_socket: Socket, value: object = None) -> tuple[object]:
    return (value,)  # a tuple: None too is a value here


@io.on_any
async def ack(socket: Socket, event: str, *_: object) -> None:
    # Not as a handler of the event, which would acknowledge it: the suite wants it left unanswered.
    if event != "ack":
        return
    try:
        answer = await socket.timeout(20).emit_with_ack("ack")
    except (AckTimeout, Disconnected):
        return
    if answer == (5, {"test": True}):
        socket.emit("got it")


@io.on("getAckDate")
def get_ack_date(_socket: Socket, _data: object) -> datetime:
    return datetime.now(UTC)


@io.on("getDate")
def get_date(socket: Socket) -> None:
    socket.emit("takeDate", datetime.now(UTC))


@io.on("getDateObj")
def get_date_object(socket: Socket) -> None:
    socket.emit("takeDateObj", {"date": datetime.now(UTC)})


@io.on("getUtf8")
def get_utf8(socket: Socket) -> None:
    for text in TEXTS:
        socket.emit("takeUtf8", text)


@io.on("false")
def false(socket: Socket) -> None:
    socket.emit("false", False)


@io.on("doge")
def doge(socket: Socket) -> None:
    socket.emit("doge", DATA)


@io.on("getbin")
def get_binary(socket: Socket) -> None:
    socket.emit("takebin", DATA)


@io.on("buffa")
def buffer(socket: Socket, data: object) -> None:
    if isinstance(data, bytes):
        socket.emit("buffack")


@io.on("jsonbuff")
def json_with_buffer(socket: Socket, data: dict[str, object]) -> None:
    if _mixed(data):
        socket.emit("jsonbuff-ack")


@io.on("abuff1")
def first_buffer(socket: Socket, data: object) -> None:
    socket.data["abuff1"] = isinstance(data, bytes)


@io.on("abuff2")
def second_buffer(socket: Socket, _text: str) -> None:
    if socket.data.get("abuff1"):
        socket.emit("abuff2-ack")


@io.on("blob")
def blob(socket: Socket, data: object) -> None:
    if isinstance(data, bytes):
        socket.emit("back")


@io.on("jsonblob")
def json_with_blob(socket: Socket, data: dict[str, object]) -> None:
    if _mixed(data):
        socket.emit("jsonblob-ack")


@io.on("blob1")
def first_blob(socket: Socket, data: object) -> None:
    socket.data["blobs"] = [data]


@io.on("blob2")
def second_blob(socket: Socket, text: str) -> None:
    socket.data["blobs"].append(text)


@io.on("blob3")
def third_blob(socket: Socket, data: object) -> None:
    first, text = socket.data["blobs"]
    if isinstance(first, bytes) and text == "second" and isinstance(data, bytes):
        socket.emit("blob3-ack")


def _mixed(data: dict[str, object]) -> bool:
    """Say whether JSON with a binary part in it came as it was sent."""
    message = data.pop("message", None)
    return isinstance(message, bytes) and data == {"hello": "lol", "goodbye": "gotcha"}
