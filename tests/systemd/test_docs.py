"""The page on systemd, done as it says by somebody who has nothing yet."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from harness import require
from herd import run
from raw_clients import Client
from systemd_rig import PROJECT, WHEELS, Host, Units, base_python, free_port, has, make_wheels

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

PAGE = PROJECT / "docs" / "systemd.md"
MOST_COMMANDS = 10
ENVIRONMENT = (
    "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PIP_CONFIG_FILE=/dev/null",
    "PIP_NO_INDEX=1",
    f"PIP_FIND_LINKS={WHEELS}",
)


def commands(title: str) -> list[str]:
    """Return the commands of the first shell block below a heading; a here-document is part of
    its command."""
    section = PAGE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    block = re.search(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert block is not None, f"no commands below {title}"
    found: list[str] = []
    end = ""
    for line in block[1].splitlines():
        if end:
            found[-1] += f"\n{line}"
            end = "" if line == end else end
        else:
            found.append(line)
            here = re.search(r"<<'(\w+)'", line)
            end = here[1] if here else ""
    return found


@pytest.fixture
def newcomer(systemd_host: Host, _units: Units) -> Host:
    """A host without limpet, whose pip finds packages without the network."""
    require("systemd", has("curl"), "no curl, which the page uses")
    host = systemd_host
    host.limpet("systemd", "uninstall", "--purge")
    _units.installed = False
    make_wheels(host.path(WHEELS))
    host.shell(
        f"ln -sf {base_python()} /usr/local/bin/python3; mkdir -p /srv/empty;"
        # A real one would take pip's variables out of the environment.
        "printf '#!/bin/sh\\nexec \"$@\"\\n' >/usr/local/bin/sudo; chmod +x /usr/local/bin/sudo"
    )
    return host


def test_from_an_empty_folder_to_four_workers(newcomer: Host) -> None:
    host = newcomer
    port = free_port()
    steps = commands("From an empty folder to four workers")
    assert 5 < len(steps) <= MOST_COMMANDS
    done: list[subprocess.CompletedProcess[str]] = []
    for step in steps:
        text = step.replace("8080", str(port))
        done.append(
            host.run(
                *("env", "--chdir=/srv/empty", *ENVIRONMENT),
                *("bash", "-euo", "pipefail", "-c", text),
                timeout=120,  # pip has much to unpack
            )
        )
    status, health = done[-2:]
    assert json.loads(health.stdout) == {"status": "ok"}
    assert len(re.findall(r"^w[1-4]\b.*\bready\b", status.stdout, re.MULTILINE)) == 4, status.stdout
    assert host.enabled() == [1, 2, 3, 4]

    async def story() -> None:
        problems: list[str] = []
        client = Client(("127.0.0.1", port), "websocket", problems=problems)
        heard: list[tuple[str, list[object]]] = []
        client.on_event = lambda event, arguments: heard.append((event, arguments))
        await client.connect()
        assert await client.call("say", "hello") == "delivered"
        await client.close()
        assert heard == [("said", ["hello"])]
        assert problems == []

    run(story())
    host.run("/opt/limpet/bin/limpet", "systemd", "uninstall", "--purge")
    host.run("rm", "/usr/local/bin/limpet")


def test_the_page_names_what_there_is(systemd_host: Host) -> None:
    host = systemd_host
    text = PAGE.read_text()
    printed = host.limpet("systemd", "print").stdout
    for unit in set(re.findall(r"limpet[\w-]*(?:@)?\.(?:service|socket|target|slice)\b", text)):
        assert f"/etc/systemd/system/{unit}\n" in printed, unit
    offered = host.limpet("systemd", "install", "--help").stdout
    for option in set(re.findall(r"`(--[a-z-]+)", text)) - {"--purge"}:
        assert option in offered, option
    for name in set(re.findall(r"\.d/(limpet-[\w-]+)\.conf", text)):
        assert name.removeprefix("limpet-") in {"bind", "app", "writable", "wx", "api-token"}
