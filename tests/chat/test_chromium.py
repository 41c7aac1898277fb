"""The chat in Debian's Chromium: as people use it, on every transport, and how it looks."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import re
import shutil
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Literal

import pytest
import pytest_asyncio

from harness import RunningCluster, require

try:
    from playwright.async_api import Browser, Error, Page, async_playwright, expect
except ImportError:  # it has no wheels for some systems
    async_playwright = None  # type: ignore[assignment]

pytestmark = [
    pytest.mark.processes,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:playwright.*"),
]

CHAT: Final = "limpet_cluster.chat.app:io"
CHROMIUM: Final = shutil.which("chromium")
FLAGS: Final = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE: Final = {"width": 360, "height": 640}
WAIT: Final = 15_000.0
"""Milliseconds in which a page must show what is expected."""
LOST: Final = re.compile(r"WebSocket connection to .* failed|Failed to load resource")
"""What a browser says of itself when the server goes away; anything else is ours."""

NOTE_PROGRESS: Final = """() => {
    window.noted = [];
    new MutationObserver(() => {
        for (const it of document.querySelectorAll("progress")) {
            const name = it.getAttribute("aria-label");
            if (it.checkVisibility() && !noted.includes(name)) noted.push(name);
        }
    }).observe(document.body, { childList: true, subtree: true });
}"""

NOTE_BANNER: Final = """() => {
    window.told = [];
    new MutationObserver((changes) => {
        for (const { addedNodes } of changes)
            for (const it of addedNodes) told.push(it.textContent);
    }).observe(banner, { childList: true });
}"""

rooms = (f"room {number}" for number in itertools.count(1))


class Visitor:
    """One person in a browser of their own, and what went wrong there."""

    def __init__(self, page: Page, name: str) -> None:
        self.page = page
        self.name = name
        self.all_problems: list[str] = []
        self.forgiven: list[re.Pattern[str]] = []
        page.on("pageerror", lambda error: self.all_problems.append(str(error)))
        page.on("console", self._on_console)

    def _on_console(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.all_problems.append(f"{message.type}: {message.text}")

    @property
    def problems(self) -> list[str]:
        """What went wrong and is not forgiven."""
        return [
            problem
            for problem in self.all_problems
            if not any(pattern.search(problem) for pattern in self.forgiven)
        ]

    @property
    def messages(self) -> Any:
        """Everything that was said in the room that is open."""
        return self.page.locator(".log:visible .message")

    async def come_in(self, room: str) -> None:
        await self.page.get_by_label("Your name").first.fill(self.name)
        await self.page.get_by_label("Room", exact=True).fill(room)
        await self.page.keyboard.press("Enter")
        await self.is_in(room)

    async def enter(self, room: str) -> None:
        """Enter another room."""
        await self.page.get_by_label("Enter another room").fill(room)
        await self.page.keyboard.press("Enter")
        await self.is_in(room)

    async def is_in(self, room: str) -> None:
        await expect(self.page.locator("#room-name")).to_have_text(room, timeout=WAIT)
        people = self.page.locator("#people-list")
        await expect(people).to_contain_text(f"{self.name} (you)", timeout=WAIT)

    async def say(self, text: str) -> None:
        await self.page.get_by_label("Message", exact=True).fill(text)
        await self.page.keyboard.press("Enter")

    async def hears(self, text: str, who: str) -> None:
        message = self.messages.filter(has_text=text)
        await expect(message).to_have_count(1, timeout=WAIT)
        await expect(message.locator(".user")).to_have_text(who)

    async def is_understood(self, text: str) -> None:
        """Two ticks: the server has it, and somebody saw it."""
        ticks = self.messages.filter(has_text=text).locator(".ticks")
        await expect(ticks).to_have_text("✓✓", timeout=WAIT)

    async def transport(self) -> str:
        return (await self._connection()).partition(",")[0]

    async def worker(self) -> str:
        return (await self._connection()).rpartition(" ")[2]

    async def _connection(self) -> str:
        shown = self.page.locator("#connection-text")
        await expect(shown).to_contain_text("worker w", timeout=WAIT)
        return await shown.inner_text()

    async def notes_progress(self) -> None:
        """Keep the label of each progress bar that is shown: it may be gone before we look."""
        await self.page.evaluate(NOTE_PROGRESS)

    async def progress(self) -> list[str]:
        """Return the labels of the progress bars there were."""
        return list(await self.page.evaluate("window.noted"))

    async def notes_banner(self) -> None:
        """Keep what the banner says: the connection may be back before we look."""
        await self.page.evaluate(NOTE_BANNER)

    async def is_cut_off(self) -> None:
        """Wait until the banner has said so."""
        async with asyncio.timeout(WAIT / 1000):
            while "Connection lost" not in "".join(await self.page.evaluate("window.told")):
                await asyncio.sleep(0.02)


Visit = Callable[..., Awaitable[Visitor]]


@pytest.fixture(scope="module")
def chat(_new_cluster: Callable[..., RunningCluster]) -> RunningCluster:
    return _new_cluster(CHAT, 2)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    require("chromium", CHROMIUM)
    require("chromium", async_playwright, "playwright is not installed")
    expect.set_options(timeout=WAIT)
    async with async_playwright() as playwright:
        # Its profile is a new folder each time.
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def visit(browser: Browser, chat: RunningCluster) -> AsyncIterator[Visit]:
    """``await visit(name, room)``: a person in that room; a page's error fails the test."""
    everybody: list[Visitor] = []

    async def visit(
        name: str, room: str = "", *, query: str = "", at: str = "", **options: Any
    ) -> Visitor:
        context = await browser.new_context(locale="en-GB", **options)
        context.set_default_timeout(WAIT)
        visitor = Visitor(await context.new_page(), name)
        everybody.append(visitor)
        await visitor.page.goto(f"{at or chat.url}/{query}")
        if room:
            await visitor.come_in(room)
        return visitor

    yield visit
    for visitor in everybody:
        await visitor.page.context.close()
    assert {one.name: one.problems for one in everybody if one.problems} == {}


async def two(visit: Visit, room: str, **options: Any) -> tuple[Visitor, Visitor]:
    """Return two people of one room who are served by different workers."""
    ada = await visit("Ada", room, **options)
    same: list[Visitor] = []
    for name in ("Grace", "Edsger", "Barbara", "Radia", "Frances", "Hedy", "Joan", "Margaret"):
        other = await visit(name, room, **options)
        if await other.worker() != await ada.worker():
            for one in same:  # what happens to a worker later is not theirs to complain of
                await one.page.context.close()
            return ada, other
        same.append(other)
        # Whoever stays connected makes the other worker the next one's choice.
        await other.page.get_by_role("button", name=f"Leave {room}").click()
        # Until the balancer knows who left, this test's people and those of the test before.
        await asyncio.sleep(0.2)
    raise AssertionError("everybody was put on one worker")


def picture_of(size: int) -> bytes:
    """Return a PNG of about so many bytes that cannot be compressed."""
    width = 1024
    height = size // (3 * width) + 1
    dots = random.Random(1)
    lines = b"".join(b"\0" + dots.randbytes(3 * width) for _ in range(height))

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(lines, 0))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


# --- chatting -------------------------------------------------------------


async def test_two_people_chat_across_workers(visit: Visit) -> None:
    room = next(rooms)
    ada, grace = await two(visit, room)
    await expect(ada.page.locator("#people-list li")).to_have_count(2, timeout=WAIT)
    typing = ada.page.locator("#typing")
    async with asyncio.timeout(WAIT / 1000):
        # It is told each two seconds, to whoever can take it just then: one telling may be lost.
        while await typing.inner_text() != f"{grace.name} is typing…":
            await grace.page.get_by_label("Message", exact=True).press_sequentially("Hel")
    await grace.say("<b>Hello</b> & <img src=x onerror=alert(1)>")
    await ada.hears("<b>Hello</b> & <img src=x onerror=alert(1)>", grace.name)
    await grace.is_understood("Hello")
    await expect(typing).to_have_text("")
    for number in range(8):
        await ada.say(f"message {number}.")
    await ada.is_understood("message 7.")
    texts = await grace.messages.locator(".body").all_inner_texts()
    assert texts[1:] == [f"message {number}." for number in range(8)]
    log, people = grace.page.locator(".log:visible"), grace.page.locator("#people-list")
    name = ada.name
    for number in range(1, 20):
        before, name = name, f"Lovelace{number}"
        await ada.page.get_by_label("Your name").last.fill(name)
        await ada.page.keyboard.press("Enter")
        await expect(people).to_contain_text(name)
        # Who asks just then who is there finds somebody who came, before anybody tells of the new
        # name: then once more.
        if f"{before} is now called {name}" in await log.inner_text():
            break
    else:
        raise AssertionError(await log.inner_text())
    await ada.page.close()
    await expect(grace.page.locator("#people-list li")).to_have_count(1, timeout=WAIT)
    await expect(log).to_contain_text(f"{name} left")


async def test_one_tick_until_it_was_on_a_screen(visit: Visit) -> None:
    room, other = next(rooms), next(rooms)
    ada, grace = await visit("Ada", room), await visit("Grace", room)
    await grace.enter(other)
    await ada.say("anybody there?")
    unread = grace.page.get_by_role("button", name=f"{room} 1 new", exact=True)
    await expect(unread).to_be_visible(timeout=WAIT)
    await expect(ada.messages.locator(".ticks")).to_have_text("✓")
    await unread.click()
    await ada.is_understood("anybody there?")
    await expect(grace.page).to_have_title(f"{room} · limpet chat")


@pytest.mark.parametrize(
    ("query", "begins", "ends"),
    [
        ("?transports=polling", "long polling", "long polling"),
        ("?transports=websocket", "WebSocket", "WebSocket"),
        ("", "", "WebSocket"),
    ],
    ids=["polling", "websocket", "upgrade"],
)
async def test_transports(visit: Visit, query: str, begins: str, ends: str) -> None:
    room = next(rooms)
    ada = await visit("Ada", query=query)
    requests: list[str] = []
    ada.page.on("request", lambda request: requests.append(request.url))
    ada.page.on("websocket", lambda socket: requests.append(socket.url))
    await ada.come_in(room)
    grace = await visit("Grace", room, query=query)
    await expect(ada.page.locator("#connection-text")).to_contain_text(ends, timeout=WAIT)
    await ada.say("over and out")
    await grace.hears("over and out", "Ada")
    await ada.is_understood("over and out")
    used = {found for url in requests for found in re.findall(r"transport=(\w+)", url)}
    assert used == {"": {"polling", "websocket"}}.get(
        begins, {"polling" if "poll" in ends else "websocket"}
    )


async def test_a_worker_dies_and_both_come_back(
    spawn_cluster: Callable[..., RunningCluster], visit: Visit, tmp_path: Path
) -> None:
    cluster = spawn_cluster(CHAT, 2)
    ada, grace = await two(visit, "harbour", at=cluster.url)
    for one in (ada, grace):
        one.forgiven.append(LOST)
    await ada.enter("pier")
    await ada.page.get_by_role("button", name="harbour", exact=True).click()
    await ada.is_in("harbour")
    # A picture is under way meanwhile.
    (tmp_path / "rocks.png").write_bytes(picture_of(8_000_000))
    await grace.notes_progress()
    await ada.page.locator("#file").set_input_files(tmp_path / "rocks.png")
    async with asyncio.timeout(WAIT / 1000):  # Playwright's own waiting is against the page's CSP
        while not await grace.progress():
            await asyncio.sleep(0.02)
    for victim in (ada, grace):
        died = await victim.worker()
        hurt = [one for one in (ada, grace) if await one.worker() == died]
        for one in hurt:
            await one.notes_banner()
        cluster.kill_role(died.replace("w", "worker-"))
        await asyncio.gather(*map(comes_back, hurt))
    for one, other in ((ada, grace), (grace, ada)):
        await one.is_in("harbour")
        await expect(one.page.locator("#people-list li")).to_have_count(2, timeout=WAIT)
        await one.say(f"{one.name} is back")
        await other.hears(f"{one.name} is back", one.name)
        await one.is_understood(f"{one.name} is back")
    image = grace.page.get_by_role("img", name="Picture of Ada: rocks.png")
    # Whether its second tick comes is chance: what tells of it may go down with a worker.
    await expect(image).to_be_visible(timeout=3 * WAIT)
    await expect(ada.page.locator("#room-list li")).to_have_count(2)
    await expect(ada.page.locator(".log:visible")).to_contain_text("You were away")


async def comes_back(visitor: Visitor) -> None:
    await visitor.is_cut_off()
    text = f"{visitor.name} was away {random.random()}"
    await visitor.say(text)
    banner = visitor.page.locator("#banner")
    # Both workers may be starting at a time, and attempts become rare.
    await expect(banner).not_to_contain_text("Connection lost", timeout=3 * WAIT)
    await expect(visitor.messages.filter(has_text=text).locator(".ticks")).to_contain_text("✓")


async def test_a_reload_brings_back_name_and_rooms(visit: Visit) -> None:
    room, other = next(rooms), next(rooms)
    ada = await visit("Ada", room)
    await ada.enter(other)
    await ada.page.reload()
    await ada.is_in(other)
    await ada.page.get_by_role("button", name=f"Leave {other}").click()
    await ada.is_in(room)
    await ada.page.get_by_role("button", name=f"Leave {room}").click()
    await expect(ada.page.locator("#room-name")).to_have_text("No room")
    await expect(ada.page.get_by_label("Enter another room")).to_be_focused()
    await ada.page.reload()
    await expect(ada.page.get_by_label("Your name").first).to_have_value("Ada")
    await expect(ada.page.get_by_label("Room", exact=True)).to_be_focused()


# --- pictures -------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "size"),
    [("", 5 << 20), ("?transports=polling", 2 << 20)],
    ids=["websocket", "polling"],
)
async def test_a_picture_arrives_as_it_was(
    visit: Visit, tmp_path: Path, query: str, size: int
) -> None:
    ada, grace = await two(visit, next(rooms), query=query)
    path = tmp_path / "rocks.png"
    path.write_bytes(picture_of(size))
    assert path.stat().st_size >= size
    await grace.notes_progress()
    await ada.page.locator("#file").set_input_files(path)
    progress = grace.page.get_by_role("progressbar", name="Receiving rocks.png")
    image = grace.page.get_by_role("img", name="Picture of Ada: rocks.png")
    await expect(image).to_be_visible(timeout=4 * WAIT)
    await expect(progress).to_be_hidden()
    assert await grace.progress() == ["Receiving rocks.png"]
    async with grace.page.expect_download() as download:
        await grace.page.get_by_role("link", name="Save").click()
    got = Path(await (await download.value).path()).read_bytes()
    assert hashlib.sha256(got).digest() == hashlib.sha256(path.read_bytes()).digest()
    await ada.is_understood("rocks.png")
    await grace.say("what a size")
    await ada.hears("what a size", grace.name)


async def test_what_is_no_picture_is_refused(visit: Visit, tmp_path: Path) -> None:
    ada = await visit("Ada", next(rooms))
    files = {"words.txt": b"words", "big.png": bytes((8 << 20) + 1), "false.png": b"words"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        await ada.page.locator("#file").set_input_files(tmp_path / name)
    log = ada.page.locator(".log:visible")
    await expect(log).to_contain_text("words.txt is not a picture that can be sent.")
    await expect(log).to_contain_text("big.png is too large: at most 8 MiB can be sent.")
    await expect(log).to_contain_text("Not sent. type: this is no image/png", timeout=WAIT)


# --- for everybody --------------------------------------------------------


async def test_by_keyboard_alone(visit: Visit) -> None:
    room = next(rooms)
    ada = await visit("Ada")
    keyboard = ada.page.keyboard
    await expect(ada.page.get_by_label("Your name").first).to_be_focused()
    await keyboard.type("Ada")
    await keyboard.press("Tab")
    await keyboard.press("ControlOrMeta+a")
    await keyboard.type(room)
    await keyboard.press("Enter")
    message = ada.page.get_by_label("Message", exact=True)
    await expect(message).to_be_focused()
    await keyboard.type("one")
    await keyboard.press("Shift+Enter")
    await keyboard.type("two")
    await keyboard.press("Enter")
    await expect(ada.messages.locator(".body")).to_have_text("one\ntwo")
    await expect(message).to_have_value("")
    met: list[str] = []
    for _ in range(12):
        await keyboard.press("Tab")
        met.append(await ada.page.evaluate(NAME_OF_FOCUS))
    expected = ["Change", "Leave " + room, room, "Send a picture", "Messages in " + room]
    assert set(expected) <= set(met), met
    # Whatever has the focus shows it.
    await ada.page.get_by_role("button", name="Change").focus()
    await keyboard.press("Shift+Tab")
    outline = await ada.page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px"


NAME_OF_FOCUS: Final = """() => {
    const it = document.activeElement;
    if (it === document.body) return "body";
    const text = it.innerText.trim() || it.labels?.[0]?.innerText;
    return it.getAttribute("aria-label") || text || it.id;
}"""


async def test_a_screen_reader_finds_its_way(visit: Visit) -> None:
    room = next(rooms)
    ada, grace = await visit("Ada", room), await visit("Grace", room)
    await grace.say("Hello")
    await ada.hears("Hello", "Grace")
    tree = await ada.page.locator("body").aria_snapshot()
    for part in (
        "- status",
        "- banner",
        f'- heading "{room}" [level=1]',
        '- navigation "Rooms"',
        f'- main "{room}"',
        f'- log "Messages in {room}"',
        '- textbox "Message"',
        '- button "Send a picture"',
        '- button "Send"',
        '- complementary "People"',
    ):
        assert part in tree, tree
    assert await ada.page.evaluate(NAMELESS) == []
    assert await ada.page.locator("html").get_attribute("lang") == "en"


NAMELESS: Final = """() => [...document.querySelectorAll("button, input, textarea, a[href], img")]
    .filter((it) => it.checkVisibility() && it.type !== "file")
    .filter((it) => !it.getAttribute("aria-label") && !it.innerText && !it.labels?.length)
    .filter((it) => !it.hasAttribute("alt"))
    .map((it) => it.outerHTML)"""


async def test_on_a_phone(visit: Visit) -> None:
    room = next(rooms)
    ada = await visit("Ada", viewport=PHONE, has_touch=True, is_mobile=True)
    assert await ada.page.evaluate(TOO_WIDE) == []
    await ada.page.get_by_label("Your name").first.fill("Ada")
    await ada.page.get_by_label("Room", exact=True).fill(room)
    await ada.page.get_by_role("button", name="Enter").click()
    await ada.say("W" * 300)
    await expect(ada.messages.locator(".ticks")).to_have_text("✓", timeout=WAIT)
    assert await ada.page.evaluate(TOO_WIDE) == []
    for name in ("People", "Rooms"):
        drawer = ada.page.get_by_role("button", name=name)
        await drawer.click()
        await expect(drawer).to_have_attribute("aria-expanded", "true")
        await expect(ada.page.get_by_role("heading", name=name)).to_be_focused()
        assert await ada.page.evaluate(TOO_WIDE) == []
    await ada.page.keyboard.press("Escape")
    await expect(ada.page.get_by_role("navigation")).to_be_hidden()
    await expect(ada.page.get_by_role("button", name="Rooms")).to_be_focused()
    small = await ada.page.evaluate(SMALL_TARGETS)
    assert small == []


TOO_WIDE: Final = """() => {
    const width = document.documentElement.clientWidth;
    const found = [...document.querySelectorAll("body *")]
        .filter((it) => it.checkVisibility() && it.getBoundingClientRect().right > width + 1);
    for (const it of document.querySelectorAll("html, main, nav, aside, .log"))
        if (it.scrollWidth > it.clientWidth) found.push(it);
    return found.map((it) => `${it.tagName} ${it.id} ${it.className}`);
}"""
SMALL_TARGETS: Final = """() => [...document.querySelectorAll("button, input, textarea")]
    .filter((it) => it.checkVisibility())
    .filter((it) => it.offsetWidth < 32 || it.offsetHeight < 32)
    .map((it) => it.outerHTML)"""


async def test_contrast(visit: Visit) -> None:
    room = next(rooms)
    ada, grace = await visit("Ada"), await visit("Grace", room)
    schemes: tuple[Literal["dark", "light"], ...] = ("dark", "light")
    pale: list[str] = []

    async def look() -> None:
        for scheme in schemes:
            await ada.page.emulate_media(color_scheme=scheme)
            pale.extend(await ada.page.evaluate(PALE))
            ground = await ada.page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", ground))) < 300) is (scheme == "dark")

    await look()
    await ada.come_in(room)
    await ada.say("Hello")
    await grace.say("Hello")
    await expect(ada.messages).to_have_count(2, timeout=WAIT)
    await expect(ada.messages.first.locator(".ticks")).to_have_text("✓✓", timeout=WAIT)
    for kind in ("lost", "back"):
        await ada.page.evaluate(
            "(kind) => { banner.className = `banner ${kind}`; banner.textContent = kind; }", kind
        )
        await look()
    assert pale == []


# Texts whose contrast is below 4.5, and borders of fields below 3 (WCAG 1.4.3 and 1.4.11).
PALE: Final = """() => {
    const parts = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = (color) => parts(color).slice(0, 3)
        .map((one) => one / 255)
        .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
        .reduce((sum, one, at) => sum + one * [0.2126, 0.7152, 0.0722][at], 0);
    const ground = (it) => {
        for (; it; it = it.parentElement) {
            const color = getComputedStyle(it).backgroundColor;
            if (parts(color)[3] !== 0) return color;
        }
        return "rgb(255, 255, 255)";
    };
    const contrast = (one, other) => {
        const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    };
    const found = [];
    for (const it of document.querySelectorAll("body *")) {
        if (!it.checkVisibility() || it.closest("svg, .spoken, :disabled")) continue;
        const text = [...it.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
        const style = getComputedStyle(it);
        if (text && contrast(style.color, ground(it)) < 4.5)
            found.push(`${style.color} on ${ground(it)}: ${it.tagName} ${it.textContent}`);
        if (!it.matches("input, textarea")) continue;
        if (contrast(style.borderTopColor, ground(it.parentElement)) < 3)
            found.push(`border of ${it.id}`);
        if (contrast(getComputedStyle(it, "::placeholder").color, ground(it)) < 4.5)
            found.push(`placeholder of ${it.id}`);
    }
    return found;
}"""


async def test_nothing_comes_from_elsewhere_and_nothing_is_inline(
    visit: Visit, chat: RunningCluster
) -> None:
    ada = await visit("Ada")
    urls: list[str] = []
    ada.page.on("request", lambda request: urls.append(request.url))
    response = await ada.page.reload()
    assert response is not None
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    await ada.come_in(next(rooms))
    assert {url.startswith((chat.url, "blob:")) for url in urls} == {True}
    ada.forgiven.append(re.compile("Trusted|Security"))
    with pytest.raises(Error, match="TrustedHTML"):
        await ada.page.evaluate("document.body.innerHTML = '<b>bold</b>'")
    with pytest.raises(Error, match=r"Content Security Policy|unsafe-eval|TrustedScript"):
        await ada.page.evaluate("setTimeout('1')")


async def test_about(visit: Visit) -> None:
    ada = await visit("Ada", query="about", viewport=PHONE)
    await expect(ada.page.get_by_role("heading", level=1)).to_contain_text("limpet is running")
    assert await ada.page.evaluate(TOO_WIDE.replace("body *", "body > *")) == []
    assert await ada.page.evaluate(PALE) == []
