"""The public face: these names are what applications rely on."""

from __future__ import annotations

from importlib import metadata

import limpet

NAMES = {
    "AckTimeout",
    "BroadcastOperator",
    "Client",
    "ConnectError",
    "ConnectionRefused",
    "Disconnected",
    "Handshake",
    "Namespace",
    "NotSent",
    "NotStarted",
    "OptionError",
    "ParentNamespace",
    "Presence",
    "PresenceUnavailable",
    "PresentUser",
    "SendBufferFull",
    "Server",
    "Socket",
    "SocketIOError",
    "TransportError",
    "__version__",
    "run",
}


def test_the_public_names_are_these() -> None:
    assert set(limpet.__all__) == NAMES
    assert all(hasattr(limpet, name) for name in NAMES)


def test_each_of_them_says_what_it_is() -> None:
    for name in NAMES - {"__version__"}:
        assert (getattr(limpet, name).__doc__ or "").strip(), name


def test_the_client_for_threads_has_a_module_of_its_own() -> None:
    from limpet import sync

    assert set(sync.__all__) == {"Client", "Socket"}
    assert all((getattr(sync, name).__doc__ or "").strip() for name in sync.__all__)


def test_the_version_is_that_of_the_package() -> None:
    assert limpet.__version__ == metadata.version("limpet")
