"""The page for operators is true: its commands are tried, cheap ones for real, others rehearsed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from harness import RunningCluster
from limpet_cluster.cli import limpet

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
RUNS = {"start"}
"""Commands that run until they are told to end; the trial is the cluster of the test."""
REHEARSED = {"scale", "reload", "restart"}
"""Commands that take many seconds; tests of their own run them."""


def commands() -> list[list[str]]:
    """Return the commands of the page in their order, without ``limpet``."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("limpet ")]


def test_every_command_parses() -> None:
    found = commands()
    assert {words[0] for words in found} >= {
        *("start", "status", "top", "doctor", "config", "presence"),
        *("scale", "reload", "drain", "undrain", "stop", "restart"),
    }
    for words in found:
        command: click.Command = limpet
        context = click.Context(limpet)
        rest = list(words)
        while isinstance(command, click.Group):
            name = rest.pop(0)
            inner = command.get_command(context, name)
            assert inner is not None, words
            command = inner
            context = click.Context(command, parent=context, info_name=name)
        command.make_context(words[0], rest)  # raises what is wrong


@pytest.mark.processes
@pytest.mark.timeout(120)
def test_the_commands_do_what_is_said(
    spawn_cluster: Callable[..., RunningCluster],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    cluster = spawn_cluster("limpet_cluster.chat.app:io", 2)
    environment = {"LIMPET_RUN_DIR": str(cluster.run_directory)}
    for words in commands():
        name = words[0]
        if name in RUNS:
            continue
        more = []
        if name in REHEARSED or "--quick" in words:
            more = ["--dry-run"]
        elif name == "top":
            more = ["-n", "1"]  # it would go on
        if name == "stop" and not more:
            continue  # the last of all, below
        done = CliRunner().invoke(limpet, [*words, *more], env=environment)
        # The doctor may well find something about this machine.
        allowed = {0, 1} if name == "doctor" else {0}
        assert done.exit_code in allowed, (words, done.output)
        assert done.exception is None or isinstance(done.exception, SystemExit), words
        if name == "drain":
            [drained] = [one for one in cluster.api.get("workers")["data"] if one["name"] == "w1"]
            assert drained["state"] == "draining"
    assert {one["state"] for one in cluster.api.get("workers")["data"]} == {"ready"}

    stop = [sys.executable, "-m", "limpet", "stop"]
    assert (
        subprocess.run(stop, env={**os.environ, **environment}, timeout=60, check=False).returncode
        == 0
    )
    assert cluster.status == {}
