"""Who overtakes whom among the connections that wait in the balancer."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from balancer_rig import NODE, silent_socket
from limpet_adapters.identity import WorkerAddress
from limpet_balancer.handover import Register
from limpet_balancer.placing import Arrival, Kind, Limits, Placing


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    silent = silent_socket()
    yield silent
    silent.close()


def test_an_unknown_session_is_not_kept_waiting_by_those_who_wait_for_a_worker(
    sock: socket.socket,
) -> None:
    placing = Placing(NODE, Limits(), lambda: {0})
    worker, _ = placing.register(Register(WorkerAddress(NODE, 0, 0), 7, 4711, 0), 100.0)
    placing.ready(worker)
    placing.draining(worker, 100.0)
    page, stale = (Arrival(sock, int(socket.AF_INET), ("192.0.2.1", 1), b"") for _ in range(2))
    page.kind = Kind.ANY
    assert placing.place(page, 100.0) is None, "nobody takes it while the only one drains"
    placing.bind(stale, None)
    assert placing.place(stale, 100.1) is worker
