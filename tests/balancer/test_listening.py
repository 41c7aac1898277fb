"""Listening sockets: addresses, options that connections inherit, errors that say what to do."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet_balancer.listening import (
    NOT_SENT_LOW_WATER,
    BindError,
    Listener,
    TcpAddress,
    bind,
    describe,
    inherited,
    open_listeners,
    parse_address,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", TcpAddress("127.0.0.1", 8080)),
        ("localhost:0", TcpAddress("localhost", 0)),
        (":8080", TcpAddress("", 8080)),
        ("[::]:8080", TcpAddress("::", 8080)),
        ("[::1%lo]:80", TcpAddress("::1%lo", 80)),
        ("unix:/run/x.sock", Path("/run/x.sock")),
    ],
)
def test_address(text: str, address: object) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "8080", "localhost", "localhost:", "::1:8080", "a:65536", "a:-1", "unix:", "[]:1"]
)
def test_malformed_address(text: str) -> None:
    with pytest.raises(BindError, match="expected HOST:PORT") as caught:
        parse_address(text)
    assert repr(text) in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        parse_address(text)
    except BindError:
        pass


def test_long_unix_path() -> None:
    with pytest.raises(BindError, match="longer than 107"):
        parse_address(f"unix:/{'x' * 107}")


def test_accepted_sockets_inherit_the_options() -> None:
    with bind("127.0.0.1:0", user_timeout=0.5) as listener:
        assert describe(listener) == f"127.0.0.1:{listener.getsockname()[1]}"
        with socket.create_connection(listener.getsockname()) as client:
            client.send(b"x")
            listener.setblocking(True)
            accepted, _ = listener.accept()
        with accepted:
            tcp = socket.IPPROTO_TCP
            assert accepted.getsockopt(tcp, socket.TCP_NODELAY)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert accepted.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 500
            assert accepted.getsockopt(tcp, socket.TCP_NOTSENT_LOWAT) == NOT_SENT_LOW_WATER


def test_taken_port() -> None:
    with bind("127.0.0.1:0") as listener:
        text = describe(listener)
        with pytest.raises(BindError, match="taken by another process") as caught:
            bind(text)
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("192.0.2.1:0", "no such address"),
        ("host.invalid:80", "unknown"),
        ("unix:/nonexistent/x.sock", "folder does not exist"),
    ],
)
def test_address_that_cannot_be_used(text: str, why: str) -> None:
    with pytest.raises(BindError, match=why):
        bind(text)


def test_ipv6() -> None:
    with bind("[::1]:0") as listener:
        assert describe(listener).startswith("[::1]:")
        assert describe(listener) == f"[::1]:{listener.getsockname()[1]}"
    with bind("[::]:0") as both:
        socket.create_connection(("127.0.0.1", both.getsockname()[1])).close()


def test_unix_socket_that_a_killed_server_left(tmp_path: Path) -> None:
    path = Path(os.path.relpath(tmp_path / "x.sock"))
    text = f"unix:{path}"
    with bind(text) as listener:
        assert describe(listener) == text
        with pytest.raises(BindError, match="taken by another process"):
            bind(text)
    bind(text).close()
    path.unlink()
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(BindError, match="is no socket"):
        bind(text)
    assert path.read_text(encoding="utf-8") == "mine"


def test_listener_gives_bare_descriptors() -> None:
    with Listener(bind("127.0.0.1:0")) as listener:
        assert listener.family_number == socket.AF_INET
        with pytest.raises(BlockingIOError):
            listener.accept_fd()


def test_nothing_is_inherited_without_the_variables() -> None:
    assert inherited({}) == []
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDNAMES": "x"}
    assert inherited(environ) == []
    assert environ == {}
    with pytest.raises(BindError, match="expected a number"):
        inherited({"LISTEN_FDS": "many"})


def test_failing_bind_closes_those_before_it(tmp_path: Path) -> None:
    text = f"unix:{os.path.relpath(tmp_path / 'x.sock')}"  # a free port may be anybody's by then
    with bind("127.0.0.1:0") as taken:
        with pytest.raises(BindError, match="taken") as caught:
            open_listeners([text, describe(taken)])
        assert describe(taken) in str(caught.value)
        (again,) = open_listeners([text])
        again.close()
