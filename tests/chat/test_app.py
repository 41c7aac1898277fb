"""The server's side of the chat: what it takes, what it tells, and what it keeps to itself."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
import pytest_asyncio
import socketio

from limpet_adapters.presence_ops import CountAnswer
from limpet_cluster.chat import app as chat
from limpet_cluster.chat import people as chat_people
from limpet_cluster.chat import pictures as chat_pictures
from limpet_cluster.chat.page import content_policy
from limpet_cluster.chat.pictures import PIECE, SIZE, Picture, PictureError
from limpet_worker.presence import LocalPresence, PresenceUnavailable
from limpet_worker.single import serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

PNG = b"\x89PNG\r\n\x1a\n"
EVENTS = (
    "entered", "left", "renamed", "people", "said", "typing", "shown", "picture", "piece",
    "missing", "welcome", "gap",
)  # fmt: skip


class Guest:
    """A stock client in the chat, and what it heard."""

    def __init__(self) -> None:
        self.client = socketio.AsyncClient(reconnection=False)
        self.heard: list[tuple[str, Any]] = []
        for event in EVENTS:
            self.client.on(event, lambda what=None, event=event: self.heard.append((event, what)))

    @property
    def id(self) -> str:
        return str(self.client.get_sid())

    async def call(self, event: str, *values: object) -> Any:
        return await self.client.call(event, values, timeout=20)

    async def refused(self, event: str, *values: object) -> str:
        """Return why a request was refused."""
        answer = await self.call(event, *values)
        assert answer["ok"] is False, answer
        return str(answer["error"])

    def all(self, event: str) -> list[Any]:
        return [what for name, what in self.heard if name == event]

    async def hears(self, event: str, count: int = 1) -> Any:
        """Return what was told last, once it was told so many times."""
        async with asyncio.timeout(15):
            while len(self.all(event)) < count:
                await asyncio.sleep(0.005)
        return self.all(event)[-1]

    async def knows(self, room: str, *users: str) -> None:
        """Wait until the differences it was told make up these users."""
        async with asyncio.timeout(15):
            while self.known(room) != set(users):
                await asyncio.sleep(0.005)

    def known(self, room: str) -> set[str]:
        users: set[str] = set()
        for event, what in self.heard:
            if not isinstance(what, dict) or what.get("room") != room:
                continue
            if event == "people":
                users = set(what["users"])
            elif event == "entered":
                users.add(what["user"])
            elif event == "left":
                users.discard(what["user"])
            elif event == "renamed":
                users = users - {what["from"]} | {what["to"]}
        return users


Enter = Callable[..., Awaitable[Guest]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address() -> AsyncIterator[tuple[str, int]]:
    """The chat in this process, asked of presence more often than usual."""
    interval, chat.people.interval = chat.people.interval, 0.1
    async with serving(chat.io, port=0) as [where]:
        assert not isinstance(where, str)
        yield where
    chat.people.interval = interval


@pytest_asyncio.fixture(loop_scope="module")
async def enter(address: tuple[str, int]) -> AsyncIterator[Enter]:
    """``await enter(name, room, …)``: a client in these rooms."""
    guests: list[Guest] = []

    async def enter(name: object, *rooms: str) -> Guest:
        guest = Guest()
        guests.append(guest)
        url = "http://{}:{}".format(*address)
        await guest.client.connect(
            url, auth={"name": name}, transports=["websocket"], wait_timeout=20
        )
        for room in rooms:
            assert (await guest.call("enter", room))["ok"]
        return guest

    yield enter
    for guest in guests:
        await guest.client.disconnect()
        await guest.client.shutdown()
    async with asyncio.timeout(15):
        while chat.io.sockets:
            await asyncio.sleep(0.005)


@pytest.fixture
def presence(address: tuple[str, int]) -> Iterator[LocalPresence]:
    """What the process says of who is there, to be changed as other workers would."""
    source = chat.io.presence.source
    assert isinstance(source, LocalPresence)
    yield source
    chat.io.presence.source = source


# --- requests -------------------------------------------------------------


async def test_a_client_is_told_what_it_may(enter: Enter) -> None:
    welcome = await (await enter("Ada")).hears("welcome")
    assert welcome["user"] == "Ada"
    assert welcome["worker"] == "w0"
    assert welcome["limits"]["piece"] == PIECE
    assert chat.io.options.max_http_buffer_size > PIECE * 4 / 3
    assert (await (await enter(7)).hears("welcome"))["user"].startswith("guest-")


async def test_what_is_said_reaches_the_others_with_its_id(enter: Enter) -> None:
    ada, grace, far = await enter("Ada", "a"), await enter("Grace", "a"), await enter("Far", "b")
    answer = await ada.call("say", "a", " <i>Hello</i>\n ", "once-1")
    assert answer["ok"]
    assert answer["id"] == "once-1"
    said = await grace.hears("said")
    assert said == {
        "room": "a", "user": "Ada", "from": ada.id, "text": "<i>Hello</i>",
        "id": "once-1", "at": answer["at"],
    }  # fmt: skip
    ids = {(await ada.call("say", "a", "again"))["id"] for _ in range(3)}
    assert len(ids) == 3
    await grace.hears("said", 4)
    assert not ada.all("said")
    assert not far.all("said")


async def test_typing(enter: Enter) -> None:
    ada, grace = await enter("Ada", "a"), await enter("Grace", "a")
    await ada.call("typing", "a")
    assert (await grace.hears("typing"))["on"] is True
    await ada.call("typing", "a", False)
    assert await grace.hears("typing", 2) == {"room": "a", "user": "Ada", "on": False}


async def test_a_sender_is_told_once_that_somebody_saw_it(enter: Enter) -> None:
    ada, *others = [await enter(name, "a") for name in ("Ada", "Grace", "Edsger")]
    for other in others:
        assert (await other.call("shown", "a", ada.id, ["m1", "m2"]))["ok"]
    await others[1].call("shown", "a", ada.id, ["m2", "m3"])
    await ada.hears("shown", 2)
    assert [one["ids"] for one in ada.all("shown")] == [["m1", "m2"], ["m3"]]
    assert ada.all("shown")[0]["user"] == "Grace"


async def test_receipts_are_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_RECEIPTS", 3)
    told = chat.Told()
    assert [told.first("x", id_) for id_ in "aabcd"] == [True, False, True, True, True]
    assert len(told.seen) == 3
    assert told.first("x", "a")


BAD: list[tuple[str, list[object], str]] = [
    ("enter", [], "room: expected some text"),
    ("enter", [7], "room: expected some text"),
    ("enter", ["x" * 81], "room: at most 80 characters"),
    ("name", [{"a": 1}], "name: expected some text"),
    ("name", ["x" * 41], "name: at most 40 characters"),
    ("say", ["elsewhere", "x"], "you are not in elsewhere"),
    ("say", ["a", " \n "], "text: expected some text"),
    ("say", ["a", "x" * 4001], "text: at most 4000 characters"),
    ("say", ["a", b"bytes"], "text: expected some text"),
    ("say", ["a", "x", "no id!"], "id: expected 1 to 40 letters, digits, - or _"),
    ("say", ["a", "x", 7], "id: expected 1 to 40 letters, digits, - or _"),
    ("typing", ["elsewhere"], "you are not in elsewhere"),
    ("leave", ["elsewhere"], "you are not in elsewhere"),
    ("who", [None], "room: expected some text"),
    ("shown", ["a", "nobody", ["m"]], "expected the id of a client"),
    ("shown", ["a", "x" * 20, []], "ids: expected a list of 1 to 50"),
    ("shown", ["a", "x" * 20, ["m"] * 51], "ids: expected a list of 1 to 50"),
    ("shown", ["a", "x" * 20, [["m"]]], "id: expected 1 to 40 letters, digits, - or _"),
    ("picture", ["a"], "id: expected 1 to 40 letters, digits, - or _"),
    ("picture", ["a", {"id": "p"}], "name: expected some text"),
    ("picture", ["a", {"id": "p", "name": "n", "type": "image/svg+xml"}], "type: expected one of"),
    ("picture", ["a", {"id": "p", "name": "n", "type": ["image/png"]}], "type: expected one of"),
    ("picture", ["b", {"id": "p", "name": "n"}], "you are not in b"),
    ("piece", ["p", 0, b"x"], "no such picture was announced"),
    ("piece", [], "id: expected 1 to 40 letters, digits, - or _"),
    ("missing", ["a", "x" * 20, "p", "all"], "numbers: expected a list of 1 to 50"),
    ("missing", ["a", "harbour", "p", [1]], "expected the id of a client"),
]


async def test_what_cannot_be_is_refused_with_a_reason(
    enter: Enter, caplog: pytest.LogCaptureFixture
) -> None:
    guest = await enter("Ada", "a")
    with caplog.at_level(logging.WARNING):
        for event, values, why in BAD:
            assert (await guest.refused(event, *values)).startswith(why), (event, values)
        # More than is asked for is no harm.
        assert (await guest.call("say", "a", "x", "m", 1, 2, 3))["ok"]
    assert not caplog.records


async def test_nobody_enters_what_is_anothers_own(enter: Enter) -> None:
    ada, grace = await enter("Ada"), await enter("Grace")
    assert (await grace.refused("enter", ada.id)).endswith("is the id of a client")
    assert (await grace.refused("say", grace.id, "x")).startswith("you are not in")
    assert (await grace.call("enter", "a-room-of-20-letters"))["ok"]


async def test_rooms_are_limited(enter: Enter) -> None:
    guest = await enter("Ada", *(f"r{number}" for number in range(chat.ROOMS)))
    assert await guest.refused("enter", "one more") == "you are in 20 rooms already"
    assert (await guest.call("enter", "r0"))["ok"]
    assert (await guest.call("leave", "r0"))["ok"]
    assert (await guest.call("enter", "one more"))["ok"]


# --- who is there ---------------------------------------------------------


async def test_coming_and_going_is_told(enter: Enter) -> None:
    ada = await enter("Ada", "a")
    grace = await enter("Grace")
    answer = await grace.call("enter", "a")
    assert answer == {"ok": True, "room": "a", "users": ["Ada", "Grace"], "count": 2}
    assert await ada.hears("entered") == {"room": "a", "user": "Grace"}
    assert not grace.all("entered")
    await grace.call("name", "Hopper")
    assert await ada.hears("renamed") == {"room": "a", "from": "Grace", "to": "Hopper"}
    assert (await ada.call("who", "a"))["users"] == ["Ada", "Hopper"]
    await grace.call("leave", "a")
    assert await ada.hears("left") == {"room": "a", "user": "Hopper"}
    assert (await grace.call("who", "a"))["users"] == ["Ada"]


async def test_two_tabs_are_one_person(enter: Enter) -> None:
    ada, one = await enter("Ada", "a"), await enter("Grace", "a")
    two = await enter("Grace", "a")
    await ada.hears("entered")
    await one.client.disconnect()
    await asyncio.sleep(0.3)
    assert not ada.all("left")
    assert len(ada.all("entered")) == 1
    await two.call("name", "Hopper")
    await ada.hears("renamed")
    await two.client.disconnect()
    assert await ada.hears("left") == {"room": "a", "user": "Hopper"}


async def test_a_tab_that_is_renamed_leaves_the_other(enter: Enter) -> None:
    ada, _one, two = await enter("Ada", "a"), await enter("G", "a"), await enter("G", "a")
    await two.call("name", "Hopper")
    assert await ada.hears("entered", 2) == {"room": "a", "user": "Hopper"}
    assert not ada.all("renamed")
    assert not ada.all("left")


class Others:
    """People on workers that are not here."""

    def __init__(self, presence: LocalPresence) -> None:
        self.presence = presence

    def come(self, *names: str, room: str = "a") -> None:
        for name in names:
            self.presence.connected("/", name, name, "websocket")
            self.presence.joined("/", name, room)

    def go(self, *names: str) -> None:
        for name in names:
            self.presence.disconnected("/", name)


async def test_what_nobody_told_is_found_out(enter: Enter, presence: LocalPresence) -> None:
    others = Others(presence)
    ada = await enter("Ada", "a")
    others.come("Ghost")
    assert await ada.hears("entered") == {"room": "a", "user": "Ghost"}
    others.go("Ghost")
    assert await ada.hears("left") == {"room": "a", "user": "Ghost"}
    many = [f"n{number}" for number in range(chat_people._CHANGES + 1)]
    others.come(*many)
    told = await ada.hears("people")
    assert told == {"room": "a", "users": sorted(["Ada", *many]), "count": len(many) + 1}
    others.go(*many[1:])
    await ada.hears("left", 2)
    others.go(many[0])


async def test_a_crowd_is_counted(
    enter: Enter, presence: LocalPresence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_people, "CROWD", 3)
    others = Others(presence)
    ada = await enter("Ada", "a")
    others.come("x", "y", "z")
    assert await ada.hears("people") == {"room": "a", "users": None, "count": 4}
    grace = await enter("Grace")
    answer = await grace.call("enter", "a")
    assert (answer["users"], answer["count"]) == (None, 5)
    assert await ada.hears("people", 2) == {"room": "a", "users": None, "count": 5}
    assert (await grace.call("who", "a"))["users"] is None
    others.go("x", "y", "z")
    assert await ada.hears("people", 3) == {"room": "a", "users": ["Ada", "Grace"], "count": 2}


class Asked:
    """Presence that counts the questions, and may have no answer, or half of one."""

    def __init__(self, presence: LocalPresence, *, away: bool = False) -> None:
        self.presence = presence
        self.questions: list[str] = []
        self.away = away
        self.complete = True

    async def count(self, room: str, namespace: str = "/", *, timeout: float = 5.0) -> CountAnswer:
        self.questions.append(room)
        if self.away:
            raise PresenceUnavailable("away")
        return await self.presence.count(room)

    async def list(self, room: str, namespace: str = "/", *, timeout: float = 5.0) -> Any:
        users = await self.presence.list(room)
        users.complete = self.complete
        return users

    async def user(self, user: str | int, *, timeout: float = 5.0) -> Any:
        raise NotImplementedError


async def nobody_watches() -> None:
    async with asyncio.timeout(15):
        while chat.people.watching:
            await asyncio.sleep(0.01)


async def test_nothing_is_asked_while_nobody_is_in_a_room(
    enter: Enter, presence: LocalPresence
) -> None:
    chat.io.presence.source = asked = Asked(presence)
    ada = await enter("Ada")
    await nobody_watches()
    asked.questions.clear()
    await asyncio.sleep(0.3)
    assert not asked.questions
    for room in ("a", "b"):
        await ada.call("enter", room)
        await (await enter("Grace")).call("enter", room)
    assert chat.people.watching
    asked.questions.clear()
    began = time.monotonic()
    async with asyncio.timeout(15):
        while asked.questions.count("a") < 5:
            await asyncio.sleep(0.005)
    # Once a round for each room, whoever is in it; of the five one may be due to who came last.
    assert time.monotonic() - began >= 0.29
    assert abs(asked.questions.count("a") - asked.questions.count("b")) <= 1


async def test_without_presence_people_can_still_talk(
    enter: Enter, presence: LocalPresence
) -> None:
    ada = await enter("Ada", "a")
    chat.io.presence.source = asked = Asked(presence, away=True)
    grace = await enter("Grace")
    answer = await grace.call("enter", "a")
    assert (answer["ok"], answer["users"]) == (True, ["Ada", "Grace"])
    assert await ada.hears("entered") == {"room": "a", "user": "Grace"}
    answer = await grace.call("enter", "nowhere")
    assert (answer["ok"], answer["users"], answer["count"]) == (True, None, None)
    await grace.call("name", "Hopper")
    assert await ada.hears("renamed") == {"room": "a", "from": "Grace", "to": "Hopper"}
    assert await grace.refused("who", "a") == "away"
    await ada.call("say", "a", "Hello")
    await grace.hears("said")
    await grace.call("leave", "a")
    asked.away = False
    assert await grace.hears("people") == {"room": "nowhere", "users": ["Hopper"], "count": 1}
    assert await ada.hears("left") == {"room": "a", "user": "Hopper"}


async def test_a_hub_that_knows_not_all_yet_makes_nobody_leave(
    enter: Enter, presence: LocalPresence
) -> None:
    others = Others(presence)
    ada = await enter("Ada", "a")
    others.come("Ghost")
    await ada.hears("entered")
    chat.io.presence.source = asked = Asked(presence)
    asked.complete = False
    others.go("Ghost")
    others.come("New")
    await ada.hears("entered", 2)
    assert not ada.all("left")
    asked.complete = True
    assert (await ada.hears("left"))["user"] == "Ghost"
    others.go("New")
    await ada.hears("left", 2)


# --- pictures -------------------------------------------------------------


async def announce(guest: Guest, data: bytes, id_: str = "p1", **more: object) -> Any:
    about = {"id": id_, "type": "image/png", "size": len(data), "name": "rock.png", **more}
    return await guest.call("picture", "a", about)


async def test_a_picture_passes_in_pieces(enter: Enter) -> None:
    ada, grace = await enter("Ada", "a"), await enter("Grace", "a")
    data = PNG + bytes(range(256)) * 1200
    answer = await announce(ada, data)
    told = await grace.hears("picture")
    assert told == {
        "room": "a", "user": "Ada", "from": ada.id, "id": "p1", "at": answer["at"],
        "name": "rock.png", "type": "image/png", "size": len(data), "piece": PIECE, "next": 0,
    }  # fmt: skip
    pieces = [data[at : at + PIECE] for at in range(0, len(data), PIECE)]
    assert len(pieces) == 3
    for number, piece in enumerate(pieces):
        passed = await ada.call("piece", "p1", number, piece)
        assert passed == {"ok": True, "got": min(len(data), (number + 1) * PIECE)}
        assert await grace.hears("piece", number + 1) == {
            "room": "a", "id": "p1", "from": ada.id, "number": number, "data": piece
        }  # fmt: skip
    assert await ada.refused("piece", "p1", 3, b"x") == "piece: expected number 3 of 3"
    assert not ada.all("piece")

    # Somebody missed one.
    late = await enter("Late", "a")
    assert (await late.call("missing", "a", ada.id, "p1", [1, 2]))["ok"]
    asked = await ada.hears("missing")
    assert asked == {"room": "a", "id": "p1", "by": late.id, "numbers": [1, 2]}
    assert not grace.all("missing")
    assert (await late.call("missing", "a", None, "p1", [1]))["ok"]
    assert (await ada.hears("missing", 2))["numbers"] == [1]
    await grace.hears("missing")
    assert (await ada.call("piece", "p1", 1, pieces[1], late.id))["got"] == len(data)
    assert (await late.hears("piece"))["data"] == pieces[1]
    assert len(grace.all("piece")) == 3


async def test_a_picture_must_be_what_it_says(enter: Enter) -> None:
    ada, grace = await enter("Ada", "a"), await enter("Grace", "a")
    await announce(ada, bytes(PIECE + 10))
    assert await ada.refused("piece", "p1", 0, bytes(PIECE)) == "type: this is no image/png"
    assert await ada.refused("piece", "p1", 1, bytes(10)) == "piece: expected number 0 of 2"
    assert await ada.refused("piece", "p1", 0, PNG) == f"piece 0: expected {PIECE} bytes"
    assert await ada.refused("piece", "p1", 0, "text") == f"piece 0: expected {PIECE} bytes"
    assert (await ada.refused("piece", "p1", 0, PNG, grace.id)).startswith("piece: expected a")
    assert (await announce(ada, bytes(0)))["error"] == f"size: expected 1 to {SIZE} bytes"
    assert (await announce(ada, bytes(SIZE + 1)))["ok"] is False
    assert (await ada.call("piece", "p1", 0, PNG.ljust(PIECE)))["ok"]
    await grace.hears("piece")
    await ada.call("leave", "a")
    assert await ada.refused("piece", "p1", 1, bytes(10)) == "you are not in a"
    assert len(grace.all("piece")) == 1


async def test_a_picture_goes_on_after_a_new_connection(enter: Enter) -> None:
    grace = await enter("Grace", "a")
    data = PNG.ljust(2 * PIECE) + b"the rest"
    ada = await enter("Ada", "a")
    await announce(ada, data)
    await ada.call("piece", "p1", 0, data[:PIECE])
    await ada.client.disconnect()
    ada = await enter("Ada", "a")
    assert (await announce(ada, data, next=1))["ok"]
    told = await grace.hears("picture", 2)
    assert (told["from"], told["next"]) == (ada.id, 1)
    assert (await ada.call("piece", "p1", 1, data[PIECE : 2 * PIECE]))["got"] == 2 * PIECE
    # What passed over the first connection may be asked for, and is looked at like the first time.
    assert await ada.refused("piece", "p1", 0, bytes(PIECE), grace.id) == (
        "type: this is no image/png"
    )
    assert (await ada.call("piece", "p1", 0, data[:PIECE], grace.id))["ok"]
    assert (await ada.call("piece", "p1", 2, b"the rest"))["got"] == len(data)
    for wrong in (-1, 4, True, "1"):
        assert (await announce(ada, data, next=wrong))["error"] == "next: expected 0 to 3"


async def test_few_pictures_are_remembered_and_none_is_anothers(enter: Enter) -> None:
    ada, grace = await enter("Ada", "a"), await enter("Grace", "a")
    for number in range(chat.PICTURES + 1):
        assert (await announce(ada, PNG, f"p{number}"))["ok"]
    assert await ada.refused("piece", "p0", 0, PNG) == "no such picture was announced"
    assert await grace.refused("piece", "p1", 0, PNG) == "no such picture was announced"
    assert (await ada.call("piece", "p1", 0, PNG))["ok"]
    # Announced again, it begins anew.
    assert (await announce(ada, PNG, "p1"))["ok"]
    assert (await ada.call("piece", "p1", 0, PNG))["ok"]


@pytest.mark.parametrize(
    ("type_", "head"),
    [
        ("image/png", PNG),
        ("image/jpeg", b"\xff\xd8\xff\xe0"),
        ("image/gif", b"GIF89a"),
        ("image/webp", b"RIFF\0\0\0\0WEBPVP8 "),
        ("image/avif", b"\0\0\0\x1cftypavif"),
    ],
)
async def test_types_are_known_by_their_first_bytes(type_: str, head: bytes) -> None:
    for other in chat_pictures.TYPES:
        picture = Picture("a", other, len(head))
        if other == type_:
            picture.take(0, head)
            assert (picture.got, picture.next) == (len(head), 1)
        else:
            with pytest.raises(PictureError, match=f"this is no {other}"):
                picture.take(0, head)


@pytest.mark.parametrize("number", [True, 0.0, "0", None, -1])
async def test_the_number_of_a_piece_is_a_number(number: object) -> None:
    picture = Picture("a", "image/png", len(PNG))
    if number == 0:
        picture.take(0, PNG)
    with pytest.raises(PictureError):
        picture.take(number, PNG)
    with pytest.raises(PictureError):
        picture.again(None if number == 0 else number, PNG)


# --- the worker -----------------------------------------------------------


async def test_a_gap_is_told_once(enter: Enter) -> None:
    ada = await enter("Ada", "a")
    for _ in range(5):
        chat.io.tell("bus_gap", {"kind": "lost", "count": 1})
    await ada.hears("gap")
    await ada.call("who", "a")
    assert len(ada.all("gap")) == 1


# --- the pages ------------------------------------------------------------


async def get(
    address: tuple[str, int], path: str, **headers: str
) -> tuple[int, dict[str, str], str]:
    def fetch() -> tuple[int, dict[str, str], str]:
        connection = HTTPConnection(*address, timeout=20)
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, body

    return await asyncio.to_thread(fetch)


async def test_the_page_has_nothing_inline(address: tuple[str, int]) -> None:
    status, headers, body = await get(address, "/")
    assert status == 200
    policy = headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert "ws://{}:{}".format(*address) in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", body)
    for url in re.findall(r'(?:src|href)="([^"]+)"', body):
        assert url.startswith("/")
        if not url.startswith("/socket.io/"):
            assert (await get(address, url))[0] == 200, url


async def test_a_browser_asks_whether_a_file_has_changed(address: tuple[str, int]) -> None:
    for path in ("/", "/chat/main.js", "/chat/chat.css", "/chat/icon.svg"):
        status, headers, body = await get(address, path)
        assert (status, headers["cache-control"]) == (200, "no-cache")
        assert headers["x-content-type-options"] == "nosniff"
        status, again, nothing = await get(address, path, **{"If-None-Match": headers["etag"]})
        assert (status, nothing, again["etag"]) == (304, "", headers["etag"])
        assert (await get(address, path, **{"If-None-Match": '"other"'}))[2] == body
    assert (await get(address, "/chat/chat.py"))[0] == 404
    assert (await get(address, "/chat/../chat.py"))[0] == 404


async def test_the_page_about_escapes_what_the_request_says(address: tuple[str, int]) -> None:
    _, headers, body = await get(address, "/about", Host="evil<script>")
    assert "<script>" not in body
    assert headers["content-security-policy"].startswith("default-src 'none'")
    _, _, body = await get(address, "/about")
    assert 'io("http://{}:{}"'.format(*address) in body
    assert "worker w0" in body


@pytest.mark.parametrize(
    ("host", "named"),
    [
        ("localhost:8080", True),
        ("chat.example.org", True),
        ("[::1]:8080", True),
        ("a; script-src *", False),
        ("a b", False),
        ("", False),
    ],
)
async def test_the_policy_names_only_what_is_a_host(host: str, named: bool) -> None:
    policy = content_policy(host)
    assert (f"ws://{host} wss://{host}" in policy) is named
    assert "script-src *" not in policy
