"""Small parts: the formula of the delays, options, compression, the inbox."""

from __future__ import annotations

import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet_client.backoff import Backoff
from limpet_client.client import Client
from limpet_client.deflate import Deflate, agreed
from limpet_client.errors import TransportError
from limpet_client.inbox import KEPT, Inbox
from limpet_client.options import make
from limpet_worker.errors import OptionError
from limpet_worker.websocket.frames import FrameError


def test_delays_double_up_to_the_longest() -> None:
    backoff = Backoff(1.0, 5.0, 0.0)
    assert [backoff.next() for _ in range(5)] == [1, 2, 4, 5, 5]
    backoff.reset()
    assert backoff.next() == 1
    backoff.attempts = 10_000
    assert backoff.next() == 5


@pytest.mark.parametrize(
    ("chance", "seconds"), [(0.0, 1.0), (0.19, 1.095), (0.2, 0.9), (0.99, 1.495), (0.89, 0.555)]
)
def test_chance_decides_how_far_and_to_which_side(chance: float, seconds: float) -> None:
    assert Backoff(1.0, 5.0, 0.5, lambda: chance).next() == pytest.approx(seconds)


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 20))
def test_a_delay_is_within_its_bounds(chance: float, attempts: int) -> None:
    backoff = Backoff(1.0, 5.0, 0.5, lambda: chance)
    backoff.attempts = attempts
    assert min(0.5 * 2**attempts, 5.0) <= backoff.next() <= min(1.5 * 2**attempts, 5.0)


@pytest.mark.parametrize(
    "options",
    [
        {"transports": []},
        {"transports": ["polling", "polling"]},
        {"transports": "polling"},
        {"transports": ["webtransport"]},
        {"path": "socket.io"},
        {"timeout": -1},
        {"timeout": True},
        {"reconnection_delay": "1"},
        {"reconnection_attempts": -1},
        {"reconnection_attempts": 1.5},
        {"randomization_factor": 2},
        {"retries": -1},
        {"ack_timeout": -0.1},
        {"query": {"a": 1}},
        {"extra_headers": ["a"]},
        {"max_message_size": 0},
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any]) -> None:
    [(name, value)] = options.items()
    with pytest.raises(OptionError) as caught:
        Client("http://localhost", **options)
    assert str(caught.value).startswith(f"{name}={value!r}: expected ")


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match="unknown option 'reconection'"):
        Client("http://localhost", reconection=False)


def test_the_path_gets_its_slash() -> None:
    assert make({"path": "/socket.io"}).endpoint == "/socket.io/"
    assert make({"path": "/x/", "add_trailing_slash": False}).endpoint == "/x"


def test_compression_goes_both_ways() -> None:
    deflate = Deflate()
    message = b"limpet " * 1000
    packed = deflate.deflate(message)
    assert len(packed) < 100
    assert deflate.inflate(packed, len(message)) == message
    with pytest.raises(FrameError, match="too big"):
        deflate.inflate(packed, len(message) - 1)
    with pytest.raises(FrameError, match="expanded"):
        deflate.inflate(b"\xff\xff", 100)


def test_a_server_may_keep_its_context() -> None:
    compressor = zlib.compressobj(wbits=-15)

    def message(text: bytes) -> bytes:
        return (compressor.compress(text) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]

    deflate = agreed("permessage-deflate")
    assert deflate is not None
    for _ in range(3):
        assert deflate.inflate(message(b"the same again"), 100) == b"the same again"


@pytest.mark.parametrize(
    ("extensions", "fine"),
    [
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", True),
        ("permessage-deflate;server_max_window_bits=10", True),
        ("permessage-deflate; client_max_window_bits=10", False),
        ("permessage-deflate; server_no_context_takeover=1", False),
        ("x-webkit-deflate-frame", False),
    ],
)
def test_only_what_was_offered_is_taken(extensions: str, fine: bool) -> None:
    if fine:
        assert agreed(extensions) is not None
    else:
        with pytest.raises(TransportError, match="not offered"):
            agreed(extensions)


async def test_nothing_is_kept_for_nobody() -> None:
    inbox = Inbox()
    for number in range(KEPT + 1):
        inbox.put(["event", number])
    assert len(inbox) == 0
    inbox.put(["event", 0])
    assert len(inbox) == 0
    inbox.started = True
    inbox.put(["event", 7])
    assert await anext(inbox) == ("event", (7,))
    inbox.end()
    with pytest.raises(StopAsyncIteration):
        await anext(inbox)
