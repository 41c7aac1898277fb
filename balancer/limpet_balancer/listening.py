"""Listening sockets: addresses as they are written, socket options, inheritance from systemd."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import struct
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import Final, NamedTuple

from limpet_adapters.rundir import PATH_LIMIT

BACKLOG: Final = 4096
NOT_SENT_LOW_WATER: Final = 16_384
"""Bytes the kernel holds unsent before a socket counts as full: the rest stays where it can be
limited (a stuck client pins 30 KB of kernel memory instead of 3.9 MB)."""
_FIRST_INHERITED: Final = 3
_TCP_INFO_SIZE: Final = 104
_LISTENING: Final = struct.Struct("=24xII72x").unpack
"""Of struct tcp_info: tcpi_unacked and tcpi_sacked, which mean the backlog of a listener."""
_HOST_PORT: Final = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<host>[^\[\]:]*)):(?P<port>\d{1,5})")


class Listener(socket.socket):
    """A listening socket whose accept returns the bare descriptor; takes another one over."""

    def __init__(self, listener: socket.socket) -> None:
        family = int(listener.family)
        super().__init__(family, listener.type, listener.proto, listener.detach())
        self.family_number = family
        """The address family as a plain number: asking the socket costs a microsecond."""

    def accept_fd(self) -> tuple[int, object]:
        """Return descriptor and peer address of the next connection.

        Raises:
            BlockingIOError: there is none.
        """
        fd, peer = self._accept()  # type: ignore[attr-defined]
        return fd, peer


def backlog_of(listener: socket.socket) -> tuple[int, int]:
    """Return how many connections wait to be accepted, and how many may (TCP; else zeros)."""
    if listener.family == socket.AF_UNIX:
        return 0, 0
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
    except OSError:
        return 0, 0
    waiting, most = _LISTENING(info)
    return waiting, most


class BindError(Exception):
    """A public address cannot be listened on; the message names it and says why."""


class TcpAddress(NamedTuple):
    """A host (name or number; empty for every interface) and a port (0 for a free one)."""

    host: str
    port: int


def parse_address(text: str) -> TcpAddress | Path:
    """Read ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:PATH``.

    Raises:
        BindError: it is none of these.
    """
    if text.startswith("unix:") and len(text) > len("unix:"):
        path = Path(text.removeprefix("unix:"))
        if len(os.fsencode(path)) > PATH_LIMIT:
            raise BindError(f"bind {text!r}: the path is longer than {PATH_LIMIT} bytes")
        return path
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match["port"]) > 65_535:
        raise BindError(
            f"bind {text!r}: expected HOST:PORT, [IPV6]:PORT or unix:PATH, "
            "for example 127.0.0.1:8080, [::]:8080 or unix:/run/limpet.sock"
        )
    return TcpAddress(match["v6"] or match["host"], int(match["port"]))


def set_options(listener: socket.socket, user_timeout: float) -> None:
    """Set what accepted sockets inherit from their listener, once instead of per connection.

    Args:
        listener: bound or already listening.
        user_timeout: seconds after which unacknowledged data end a connection.
    """
    if listener.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    tcp = socket.IPPROTO_TCP
    listener.setsockopt(tcp, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_DEFER_ACCEPT"):  # Linux
        # accept() then returns connections whose request is there: no wait, no epoll entry.
        listener.setsockopt(tcp, socket.TCP_DEFER_ACCEPT, 1)
        listener.setsockopt(tcp, socket.TCP_USER_TIMEOUT, max(1, int(user_timeout * 1000)))
        listener.setsockopt(tcp, socket.TCP_NOTSENT_LOWAT, NOT_SENT_LOW_WATER)


def bind(text: str, *, user_timeout: float = 45.0, backlog: int = BACKLOG) -> socket.socket:
    """Return a non-blocking listening socket with all options set.

    An IPv6 wildcard takes IPv4 as well.

    Args:
        text: an address as `parse_address` reads it.
        user_timeout: ping interval + ping timeout, in seconds.
        backlog: connections the kernel holds for us.

    Raises:
        BindError: the address is malformed, taken, not ours, or not permitted.
    """
    address = parse_address(text)
    listener = _bind_unix(address, text) if isinstance(address, Path) else _bind_tcp(address, text)
    try:
        set_options(listener, user_timeout)
        listener.listen(backlog)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise _bind_error(text, error) from None
    return listener


def _bind_tcp(address: TcpAddress, text: str) -> socket.socket:
    host = address.host or "0.0.0.0"
    try:
        found = socket.getaddrinfo(
            host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError):
        raise BindError(f"bind {text!r}: the host {host!r} is unknown") from None
    # "localhost" names both families: IPv4 is what most clients try
    family, kind, protocol, _, where = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    try:
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _bind_error(text, error) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        listener.bind(where)
    except OSError as error:
        listener.close()
        raise _bind_error(text, error) from None
    return listener


def _bind_unix(path: Path, text: str) -> socket.socket:
    _remove_stale(path, text)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
    except OSError as error:
        listener.close()
        raise _bind_error(text, error) from None
    return listener


def _remove_stale(path: Path, text: str) -> None:
    """Remove a socket file that nobody listens on any more: its server was killed."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise BindError(f"bind {text!r}: {path} exists and is no socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass
    raise BindError(f"bind {text!r}: taken by another process; stop it or choose another path")


def _bind_error(text: str, error: OSError) -> BindError:
    reasons = {
        errno.EADDRINUSE: "taken by another process; stop it or choose another port",
        errno.EACCES: "not permitted for this user; choose a port above 1023, or pass the socket "
        "from systemd",
        errno.EADDRNOTAVAIL: "this host has no such address",
        errno.ENOENT: "the folder does not exist",
        errno.EAFNOSUPPORT: "this host does not speak that protocol",
    }
    why = reasons.get(error.errno or 0) or error.strerror or str(error)
    return BindError(f"bind {text!r}: {why}")


def inherited(environ: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """Take over the listening sockets that systemd or the supervisor passed (``LISTEN_FDS``).

    They begin at descriptor 3. The variables are removed: they are not for our children.
    ``LISTEN_PID`` must be ours when it is set.

    Raises:
        BindError: a descriptor is no listening stream socket, or the count is no number.
    """
    count = environ.pop("LISTEN_FDS", "")
    pid = environ.pop("LISTEN_PID", "")
    environ.pop("LISTEN_FDNAMES", None)
    if not count or (pid and pid != str(os.getpid())):
        return []
    if not count.isdigit():
        raise BindError(f"LISTEN_FDS={count!r}: expected a number")
    return [_take_over(_FIRST_INHERITED + index) for index in range(int(count))]


def _take_over(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        listener = socket.socket(fileno=fd)
        listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise BindError(f"LISTEN_FDS: descriptor {fd}: {error.strerror}") from None
    if not listening or listener.type != socket.SOCK_STREAM:
        listener.detach()
        raise BindError(f"LISTEN_FDS: descriptor {fd} is no listening stream socket")
    listener.setblocking(False)
    return listener


def open_listeners(
    addresses: Iterable[str], *, user_timeout: float = 45.0, backlog: int = BACKLOG
) -> list[socket.socket]:
    """Return the inherited listeners when there are any, else bind the addresses.

    Raises:
        BindError: see `bind` and `inherited`; those opened before it are closed.
    """
    listeners = inherited()
    try:
        for listener in listeners:
            set_options(listener, user_timeout)
        if not listeners:
            for text in addresses:
                listeners.append(bind(text, user_timeout=user_timeout, backlog=backlog))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def describe(listener: socket.socket) -> str:
    """Return where a socket listens, in the form that `parse_address` reads."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host, port = name[0], name[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
