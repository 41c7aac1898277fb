"""Options: what is refused is named, with its value and what would be right."""

from __future__ import annotations

import pytest

from limpet_worker.engineio.options import EngineOptions
from limpet_worker.errors import OptionError


def test_defaults_are_the_protocols() -> None:
    options = EngineOptions()
    assert (options.ping_interval, options.ping_timeout) == (25.0, 20.0)
    assert options.max_http_buffer_size == 1_000_000
    assert options.transports == ("polling", "websocket")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("path", "socket.io"),
        ("path", ""),
        ("ping_interval", 0),
        ("ping_interval", "25"),
        ("ping_timeout", -1.0),
        ("ping_timeout", float("nan")),
        ("upgrade_timeout", True),
        ("close_timeout", 1e9),
        ("soft_seconds", None),
        ("max_http_buffer_size", 0),
        ("max_http_buffer_size", 1e6),
        ("http_compression_threshold", -1),
        ("http_compression", 1),
        ("allow_upgrades", "yes"),
        ("transports", ()),
        ("transports", ("polling", "webtransport")),
        ("transports", ("polling", "polling")),
        ("transports", "polling"),
        ("max_payload_packets", 0),
        ("max_sessions", 0),
        ("max_sessions", "many"),
        ("soft_limit", 0),
        ("soft_packets", 0),
        ("hard_limit", 1000),
        ("bulk_slice", 0),
        ("cookie", 5),
        ("allow_request", "no"),
    ],
)
def test_wrong_values(name: str, value: object) -> None:
    with pytest.raises(OptionError) as caught:
        EngineOptions(**{name: value})  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"{name}={value!r}: expected ")


def test_a_list_of_transports_will_do() -> None:
    options = EngineOptions(transports=["websocket"])  # type: ignore[arg-type]
    assert options.transports == ("websocket",)
