"""The built-in chat on a running cluster, and what the command line says of it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import socketio
from click.testing import CliRunner

from harness import RunningCluster, wait_until
from limpet_cluster.cli import limpet
from raw_clients import eventually
from supervised import rewrite

pytestmark = pytest.mark.processes

CHAT = "limpet_cluster.chat.app:io"
Enter = Callable[..., Awaitable["Guest"]]


class Guest:
    """A stock client in the chat, and what it heard."""

    def __init__(self) -> None:
        self.client = socketio.AsyncClient(reconnection=False)
        self.heard: list[tuple[str, Any]] = []
        for event in ("entered", "left", "renamed", "said", "typing"):
            self.client.on(event, lambda what, event=event: self.heard.append((event, what)))

    async def call(self, event: str, *args: object) -> Any:
        return await self.client.call(event, args, timeout=15)

    async def hears(self, event: str) -> Any:
        deadline = time.monotonic() + 15
        while not (found := [what for name, what in self.heard if name == event]):
            assert time.monotonic() < deadline, f"{event} was not heard, but {self.heard}"
            await self.client.sleep(0.01)
        return found[-1]


@pytest.fixture(scope="module")
def chat(_new_cluster: Callable[..., RunningCluster]) -> RunningCluster:
    return _new_cluster(CHAT, 2)


@pytest.fixture
async def enter(chat: RunningCluster) -> AsyncIterator[Enter]:
    guests: list[Guest] = []

    async def enter(name: str, **options: Any) -> Guest:
        guest = Guest()
        guests.append(guest)
        options = {"transports": ["websocket"], **options}
        await guest.client.connect(chat.url, auth={"name": name}, wait_timeout=10, **options)
        return guest

    yield enter
    for guest in guests:
        await guest.client.disconnect()
        await guest.client.shutdown()


async def test_people_chat_across_workers(enter: Enter) -> None:
    ada, grace = await enter("Ada"), await enter("Grace")
    assert (await ada.call("enter", "pier"))["users"] == ["Ada"]
    answer = await grace.call("enter", "pier")
    assert answer["users"] == ["Ada", "Grace"]
    assert await ada.hears("entered") == {"room": "pier", "user": "Grace"}
    answer = await grace.call("say", "pier", "  Hello  ")
    assert answer["ok"]
    said = await ada.hears("said")
    assert (said["room"], said["user"], said["text"]) == ("pier", "Grace", "Hello")
    await ada.call("typing", "pier", True)
    assert await grace.hears("typing") == {"room": "pier", "user": "Ada", "on": True}
    assert await ada.call("name", "Lovelace") == {"ok": True, "name": "Lovelace"}
    assert await grace.hears("renamed") == {"room": "pier", "from": "Ada", "to": "Lovelace"}
    assert (await ada.call("who", "pier"))["users"] == ["Grace", "Lovelace"]
    await ada.client.disconnect()
    assert await grace.hears("left") == {"room": "pier", "user": "Lovelace"}


def test_the_page_escapes_what_the_request_says(chat: RunningCluster) -> None:
    connection = http.client.HTTPConnection(*chat.address, timeout=15)
    connection.request("GET", "/", headers={"Host": "evil<script>"})
    body = connection.getresponse().read()
    connection.close()
    assert b"<script>" not in body


def test_health(chat: RunningCluster) -> None:
    with urllib.request.urlopen(f"{chat.url}/healthz", timeout=15) as response:
        assert json.load(response)["status"] == "ok"


async def test_the_command_line_sees_who_is_there(chat: RunningCluster, enter: Enter) -> None:
    ada, tab, grace = [await enter(name) for name in ("Ada", "Ada", "Grace")]
    for guest in (ada, tab, grace):
        await guest.call("enter", "dock/1 \x1b[31m?")
    await grace.call("enter", "island")

    def connections() -> int:
        return sum(one["connections"] for one in chat.api.get("workers")["data"])

    await eventually(lambda: connections() == 3, 15)  # those of the tests before have gone

    def ask(*arguments: str) -> Any:
        command = [*arguments, f"--run-dir={chat.run_directory}"]
        with ThreadPoolExecutor() as elsewhere:  # the commands have loops of their own
            result = elsewhere.submit(CliRunner().invoke, limpet, command).result()
        assert result.exit_code == 0, result.output
        return result.output

    rooms = json.loads(ask("presence", "rooms", "--json", "--prefix=dock"))
    assert [room["occupancy"] for room in rooms] == [{"users": 2, "connections": 3}]
    assert re.search(r"^dock/1 \\x1b\[31m\? +2 +3$", ask("presence", "rooms"), re.MULTILINE)
    assert ask("presence", "rooms", "--sort=-users").splitlines()[1].startswith("dock")
    assert len(ask("presence", "rooms", "--limit=1").splitlines()) == 2
    members = json.loads(ask("presence", "members", "dock/1 \x1b[31m?", "--json"))
    assert [(one["user"], one["connection_count"]) for one in members] == [("Ada", 2), ("Grace", 1)]
    assert "Grace" in ask("presence", "members", "island")
    assert ask("presence", "user", "Nobody") == "Nobody is offline\n"
    shown = ask("presence", "user", "Grace")
    assert "Grace is online" in shown
    assert "island" in shown
    assert json.loads(ask("presence", "user", "Ada", "--json"))["connection_count"] == 2

    status = json.loads(ask("status", "--json"))
    assert status["supervisor"]["ready"]
    assert status["supervisor"]["urls"] == [chat.url]
    assert [one["name"] for one in status["supervisor"]["processes"]] == [
        "hub", "worker-0", "worker-1", "balancer"
    ]  # fmt: skip
    assert sum(one["connections"] for one in status["workers"]) == 3
    assert "2 users on 3 connections" in ask("status")


def test_a_worker_dies_and_another_takes_its_slot(
    spawn_cluster: Callable[..., RunningCluster],
) -> None:
    cluster = spawn_cluster(CHAT, 2)
    pids = cluster.pids
    assert set(pids) == {"supervisor", "hub", "balancer", "worker-0", "worker-1"}
    names = {name: Path(f"/proc/{pid}/comm").read_text().strip() for name, pid in pids.items()}
    assert names["worker-1"] == "limpet-worker-1"
    assert names["balancer"] == "limpet-balancer"
    for name in ("worker-1", "balancer", "hub"):
        cluster.wait_restarted(name, cluster.kill_role(name))
    assert cluster.pids["worker-0"] == pids["worker-0"]
    with urllib.request.urlopen(cluster.url, timeout=10) as response:
        assert response.status == 200
    # Nobody of it is left, and the port is free at once.
    everybody = cluster.pids
    assert cluster.stop() == 0
    assert not any(psutil.pid_exists(pid) for pid in everybody.values())
    with socket.create_server(cluster.address):
        pass


def test_nothing_outlives_a_killed_supervisor_and_another_may_follow(
    spawn_cluster: Callable[..., RunningCluster],
) -> None:
    cluster = spawn_cluster(CHAT, 2)
    pids = cluster.pids
    cluster.kill()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids.values()), 15)
    cluster.start(bind="{}:{}".format(*cluster.address))
    with urllib.request.urlopen(cluster.url, timeout=10) as response:
        assert response.status == 200


def test_listens_on_ipv6_and_unix_sockets_too(
    spawn_cluster: Callable[..., RunningCluster],
) -> None:
    path = f"/tmp/limpet-test-{os.getpid()}.sock"
    cluster = spawn_cluster(CHAT, 1, "--bind=[::1]:0", f"--bind=unix:{path}", "--health-path=")
    urls = json.loads(
        CliRunner()
        .invoke(limpet, ["status", "--json", f"--run-dir={cluster.run_directory}"])
        .output
    )["supervisor"]["urls"]
    assert urls[0].startswith("http://[::1]:")
    assert urls[1] == f"unix:{path}"
    with urllib.request.urlopen(urls[0], timeout=15) as response:
        assert response.status == 200
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert "health" not in cluster.text
    assert cluster.stop() == 0
    assert not Path(path).exists()


def test_in_development_a_changed_module_is_served(
    spawn_cluster: Callable[..., RunningCluster], tmp_path: Path
) -> None:
    module = tmp_path / "app.py"
    source = (
        "import limpet\nfrom aiohttp import web\nio = limpet.Server()\n"
        "async def index(_): return web.Response(text={!r})\n"
        "io.app.router.add_get('/', index)\n"
    )
    module.write_text(source.format("one"))
    cluster = spawn_cluster("app:io", 1, "--dev", f"--app-dir={tmp_path}")

    def served() -> str:
        try:
            with urllib.request.urlopen(cluster.url, timeout=10) as response:
                return str(response.read().decode())
        except OSError:
            return ""

    assert served() == "one"
    rewrite(module, "this is no Python")
    wait_until(lambda: "waits for the code to change" in cluster.text, 30)
    assert "SyntaxError" in cluster.text
    rewrite(module, source.format("two"))
    wait_until(lambda: served() == "two", 30, cluster.text)
    assert cluster.stop() == 0


def test_ctrl_c_in_a_terminal_reaches_the_supervisor_alone(tmp_path: Path) -> None:
    # The whole foreground group gets SIGINT; nobody but the supervisor may be in it.
    process = subprocess.Popen(
        [sys.executable, "-m", "limpet", "start", "-w", "1", "-b", "127.0.0.1:0",
         f"--run-dir={tmp_path}/r"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("limpet is ready"):
            break
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "was killed" not in errors
