"""`limpet bench`: what it measures, and that it is honest about itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner, Result

from harness import RunningCluster, wait_until
from limpet_cluster.cli import limpet
from limpet_cluster.cli.overview import total
from limpet_cluster.load import Load, Report, Run, Samples, Script, arguments, fill, find_token

LONG = "2.5"
"""Seconds of which enough is left when a process stands still for a moment."""


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(limpet, ["bench", *arguments])


# --- figures -----------------------------------------------------------------


def test_percentiles() -> None:
    samples = Samples()
    assert not samples.percentiles()
    for number in range(1000, 0, -1):
        samples.add(number / 1000)
    found = samples.percentiles()
    assert found == {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


def test_of_very_many_a_fair_sample_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limpet_cluster.load._KEPT", 1000)
    samples = Samples()
    for number in range(10_000):
        samples.add(number)
    assert samples.count == 10_000
    assert len(samples.kept) == 1000
    found = samples.percentiles()
    assert 4000 < found["p50"] < 6000
    assert found["max"] == 9999, "the longest is never left out"


def test_a_client_that_is_busy_says_so() -> None:
    assert Report(mode="echo", own_load=0.95).client_bound
    assert not Report(mode="echo", own_load=0.5).client_bound


def test_what_clients_say_is_filled_in() -> None:
    places = {"{room}": "r", "{client}": "7", "{text}": "hello"}
    assert fill("{room}-{client}", places) == "r-7"
    assert fill([{"to": "{room}", "n": 1}, "{text}"], places) == [{"to": "r", "n": 1}, "hello"]
    assert arguments('["a", 1]') == ["a", 1]
    assert arguments('{"a": 1}') == [{"a": 1}]
    with pytest.raises(ValueError):
        arguments("{")


def test_a_broadcast_is_recognised_wherever_it_stands() -> None:
    assert find_token(({"room": "x", "text": "00000042.xxxx"},)) == "00000042."
    assert find_token([1, ["y", "00000007."]]) == "00000007."
    assert not find_token(("0000004", "abcdefgh.", None))


# --- a cluster -------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.parametrize("transport", ["websocket", "polling"])
def test_echo(interop_cluster: RunningCluster, transport: str) -> None:
    result = bench(
        "echo", interop_cluster.url, "-c", "4", "-s", LONG, "--json", f"--transport={transport}",
        "--event=echo", "--args", '["{text}", {"n": 1}]',
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["clients"] == 4
    assert found["failures"] == {}
    assert found["answers"] == found["sent"] == found["expected"] > 10
    assert 0 < found["answer_seconds"]["p50"] <= found["answer_seconds"]["max"] < 5
    assert 0 < found["own_load"] < 2


@pytest.mark.processes
def test_connect(interop_cluster: RunningCluster) -> None:
    result = bench("connect", interop_cluster.url, "-c", "4", "-s", LONG, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["failures"] == {}
    assert found["clients"] == found["expected"] > 4, "they come again and again"
    rate = found["clients"] / found["seconds"]
    assert found["per_second"] == pytest.approx(rate, rel=0.01, abs=0.1)


@pytest.mark.processes
def test_at_a_rate(interop_cluster: RunningCluster) -> None:
    result = bench(
        "echo", interop_cluster.url, "-c", "2", "-s", "1", "-r", "50", "--json", "--event=echo",
        "--args", '["{text}"]',
    )  # fmt: skip
    found = json.loads(result.stdout)
    assert found["sent"] == 50


@pytest.mark.processes
def test_what_nobody_answers_is_a_failure(calm_cluster: RunningCluster) -> None:
    # The timeout is that of the connection as well: it must come about all the same.
    result = bench(
        "echo", calm_cluster.url, "-c", "1", "-s", LONG, "--timeout=4", "--event=nothing"
    )
    assert result.exit_code == 1
    assert "AckTimeout" in result.output
    assert "limpet: nothing was answered" in result.output


@pytest.mark.processes
def test_the_cluster_of_this_host_is_found(calm_cluster: RunningCluster) -> None:
    result = bench(
        "echo", f"--run-dir={calm_cluster.run_directory}", "-c", "2", "-s", LONG,
        "--event=message-with-ack", "--args", '["{text}"]',
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert calm_cluster.url in result.stderr
    assert "no failures" in result.stdout
    assert "this client used" in result.stdout


@pytest.mark.processes
def test_the_built_in_chat_needs_no_words(spawn_cluster: object) -> None:
    assert callable(spawn_cluster)
    cluster = spawn_cluster("limpet_cluster.chat.app:io", 2)
    for mode in ("echo", "broadcast"):
        result = bench(mode, cluster.url, "-c", "5", "-s", LONG, "--json")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert found["failures"] == {}
        assert found["answers"] == found["expected"] > 0


# --- what goes wrong -----------------------------------------------------------------


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        began = time.monotonic()
        result = bench("connect", url, "-c", "2", "-s", "0.3")
    assert result.exit_code == 1
    assert "nothing was answered" in result.output
    assert time.monotonic() - began < 5


def test_no_cluster_and_no_url(tmp_path: object) -> None:
    result = bench("echo", f"--run-dir={tmp_path}/none")
    assert result.exit_code == 4
    assert "name a URL" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["broadcast", "http://x", "--event=a"], "needs --expect"),
        (["echo", "http://x", "--args=[]"], "need --event"),
        (["echo", "http://x", "--args={"], "expected JSON"),
        (["walk", "http://x"], "'walk' is not one of"),
        (["echo", "ftp://x"], "ftp"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str) -> None:
    result = bench(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output


async def test_what_was_measured_before_the_end_counts(calm_cluster: RunningCluster) -> None:
    script = Script(event="message-with-ack", args=("{text}",))
    run = Run("echo", Load(url=calm_cluster.url, clients=2, seconds=60, script=script))
    task = asyncio.create_task(run.run())
    async with asyncio.timeout(20):
        while not run.report.answers.count:
            await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])
    assert run.report.answers.count > 0
    assert 0 < run.report.seconds < 10


@pytest.mark.processes
def test_ctrl_c_ends_it_with_what_was_measured(calm_cluster: RunningCluster) -> None:
    def sessions() -> float:
        """How many there have been; the workers report it each second."""
        workers = calm_cluster.api.get("workers")["data"]
        return total((one["counters"] for one in workers), "limpet_sessions_opened_total")

    url, before = calm_cluster.url, sessions()
    process = subprocess.Popen(
        [sys.executable, "-m", "limpet", "bench", "connect", url, "-s", "60", "-c", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},
    )
    assert process.stderr is not None
    assert "connect: 2 clients" in process.stderr.readline()
    # Some of the first may be of the test before, reported late.
    wait_until(lambda: sessions() > before + 20, 20, "it does not connect")
    process.send_signal(signal.SIGINT)
    try:
        output, errors = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # it tells where it stands
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "connections, " in output
    assert not errors
