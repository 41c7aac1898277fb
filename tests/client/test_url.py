"""URLs: the block "url" of the official client's suite, and what cannot be."""

from __future__ import annotations

import pytest

from limpet_client.address import parse
from limpet_worker.errors import OptionError


def test_no_protocol() -> None:
    """works with no protocol"""
    address = parse("localhost:3000")
    assert (address.host, address.port, address.scheme) == ("localhost", 3000, "https")


def test_no_schema() -> None:
    """works with no schema"""
    address = parse("//localhost:3000")
    assert (address.host, address.port, address.scheme) == ("localhost", 3000, "https")


def test_ids() -> None:
    """forces ports for unique url ids"""
    first, second = parse("http://google.com:80/"), parse("http://google.com/")
    third, fourth = parse("https://google.com/"), parse("http://google.com/", "/test")
    assert first.id == second.id == "http://google.com:80/socket.io/"
    assert len({first.id, third.id, fourth.id}) == 3


@pytest.mark.parametrize(
    ("url", "namespace"),
    [
        ("http://host/woot", "/woot"),
        ("http://host", "/"),
        ("http://host/", "/"),
        ("http://host/a/b?x=y", "/a/b"),
        ("http://host/größe", "/größe"),
    ],
)
def test_namespace(url: str, namespace: str) -> None:
    """identifies the namespace"""
    assert parse(url).namespace == namespace


def test_ipv6() -> None:
    """works with ipv6"""
    address = parse("http://[::1]", "")
    assert (address.host, address.port, address.id) == ("::1", 80, "http://[::1]:80")


def test_custom_path() -> None:
    """works with a custom path"""
    address = parse("https://woot.com/some-namespace", "/some-path")
    assert address.id == "https://woot.com:443/some-path"
    assert address.namespace == "/some-namespace"


def test_websocket_schemes_mean_http() -> None:
    assert parse("ws://host").id == parse("http://host").id
    assert parse("WSS://host").id == parse("https://host").id


def test_query_is_decoded() -> None:
    assert parse("http://host/?a=%26b&c=&woot").query == (("a", "&b"), ("c", ""), ("woot", ""))


@pytest.mark.parametrize(
    "url",
    ["/test", "", "ftp://host", "http://", "http://host:port", "http://[::1", "http://h:99999"],
)
def test_what_cannot_be_is_refused_by_name(url: str) -> None:
    with pytest.raises(OptionError, match="url="):
        parse(url)
