"""The benchmark's tools: CPU and memory accounting, frames, answers, the catalogue, the report."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts.benchmark import __main__ as command
from scripts.benchmark.accounting import CpuWindow, cpu_ns, pss_kib, role, tree
from scripts.benchmark.frames import FrameReader, ResponseReader, frame, masked, server_frame
from scripts.benchmark.report import Results, figures, medians, ratio, render
from scripts.benchmark.scenarios import BY_NAME, chosen
from scripts.benchmark.stage import Outcome
from scripts.benchmark.verify import Findings

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], "worker"])
print("started", flush=True)
sys.stdin.read()
child.kill()
child.wait()
"""
BURN = """
import time
while time.process_time() < 0.3: pass
print("burnt", flush=True)
time.sleep(60)
"""

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\n\r\n"


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    """A process whose child, called a worker, has just used 0.3 s of CPU."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, BURN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        lines = {process.stdout.readline().strip(), process.stdout.readline().strip()}
        assert lines == {"started", "burnt"}
        yield process
        process.stdin.close()


def test_cpu_time_of_a_whole_tree_is_counted(family: subprocess.Popen[str]) -> None:
    pids = tree(family.pid)
    assert pids[0] == family.pid
    assert len(pids) == 2
    assert 0.3e9 <= cpu_ns(pids[1]) < 3e9
    assert role(pids[1]) == "worker"
    assert pss_kib(pids) > pss_kib(pids[:1]) > 500


def test_a_window_counts_what_is_used_in_it() -> None:
    before = time.process_time_ns()
    window = CpuWindow([os.getpid()], {os.getpid(): "worker"})
    begun = time.process_time_ns()
    while time.process_time_ns() - begun < 50_000_000:
        pass
    used = window.close()
    assert 50_000_000 <= used <= time.process_time_ns() - before
    assert window.by_role == {"worker": used}
    assert window.wall_ns >= 50_000_000
    assert window.own_ns >= 50_000_000


def test_a_process_that_ended_counts_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert cpu_ns(process.pid) == 0
    assert pss_kib([process.pid]) == 0
    window = CpuWindow([process.pid])
    assert window.close() == 0


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_masked_pieces_of_four_can_be_joined(first: bytes, second: bytes) -> None:
    first = first[: len(first) // 4 * 4]
    assert masked(first) + masked(second) == masked(first + second)
    assert masked(masked(second)) == second


@given(st.lists(st.sampled_from([0, 1, 125, 126, 65535, 65536]), max_size=4), st.integers(1, 70000))
def test_frames_are_cut_out_of_any_chunks(sizes: list[int], chunk: int) -> None:
    payloads = [bytes([index]) * size for index, size in enumerate(sizes)]
    stream = b"".join(map(server_frame, payloads))
    reader = FrameReader()
    found = []
    for start in range(0, len(stream), chunk):
        found += reader.feed(stream[start : start + chunk])
    assert found == [(1, payload) for payload in payloads]
    assert reader.pending == 0


def test_masked_frame_from_a_server_is_refused() -> None:
    with pytest.raises(ValueError, match="frame starts with 8185"):
        FrameReader().feed(frame(b"hello"))


@pytest.mark.parametrize(
    ("answer", "expected", "closes"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", (200, b"ok"), False),
        (b"HTTP/1.1 400 X\r\ncontent-length:0\r\nConnection: close\r\n\r\n", (400, b""), True),
        (
            CHUNKED,
            (200, b"abc"),
            False,
        ),
    ],
)
@pytest.mark.parametrize("step", [1, 5, 1000])
def test_http_answers(answer: bytes, expected: tuple[int, bytes], closes: bool, step: int) -> None:
    reader = ResponseReader()
    results = [reader.feed(answer[i : i + step]) for i in range(0, len(answer), step)]
    assert results[-1] == expected
    assert not any(results[:-1])
    assert reader.closes is closes


def test_a_second_answer_unasked_for_is_an_error() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    with pytest.raises(ValueError, match="bytes after the answer"):
        ResponseReader().feed(answer + answer)


def test_scenarios_are_chosen_by_name_and_by_group() -> None:
    assert [each.name for each in chosen(["echo"])] == ["echo-1", "echo-8"]
    assert [each.name for each in chosen(["idle"])] == ["idle"]
    assert [each.name for each in chosen(["pool", "connect"])] == ["connect", "pool"]
    assert "idle-10k" not in {each.name for each in chosen([])}
    with pytest.raises(ValueError, match="scenario 'nope': expected one of connect"):
        chosen(["nope"])


def outcome(us: float, **faults: int) -> Outcome:
    return Outcome(operations=1000, cpu_ns=int(us * 1e6), findings=Findings(1000, **faults))


def test_report_has_medians_and_ratios_to_the_cluster() -> None:
    results = Results()
    for us in (9.0, 8.0, 30.0):
        results.add("echo-1", "limpet", outcome(us))
    for us in (18.0, 20.0, 17.0):
        results.add("echo-1", "node", outcome(us))
    assert figures(outcome(8.0)) == {"µs": 8.0}
    assert medians(results.outcomes["echo-1"]["limpet"])["µs"] == (9.0, 8.0, 30.0)
    assert ratio(results, "echo-1", "limpet") == 0.5
    assert ratio(results, "echo-8", "limpet") is None
    text = render(results, ["limpet", "node"])
    assert "9.00 [8.00..30.0]" in text
    assert "≤ 0.8 × node: yes" in text
    assert not results.faults("limpet")


def test_report_tells_goals_missed_and_faults() -> None:
    results = Results()
    results.add("echo-1", "limpet", outcome(19.0, lost=2))
    results.add("echo-1", "node", outcome(20.0))
    assert "≤ 0.8 × node: NO" in render(results, ["limpet", "node"])
    assert results.faults("limpet") == ["echo-1: 2 lost"]
    unfinished = Outcome(complete=False, notes=["only 3 of 5 connected"])
    results.add("connect", "limpet", unfinished)
    assert results.faults("limpet")[1] == "connect: not finished; only 3 of 5 connected"


def test_wrong_options_are_one_message(
    capsys: pytest.CaptureFixture[str], tmp_path: os.PathLike[str]
) -> None:
    arguments = ["--scratch", os.fspath(tmp_path)]
    assert command.main([*arguments, "--peers", "node"]) == 2
    assert "node is not in" in capsys.readouterr().err
    assert command.main([*arguments, "--peers", "ruby"]) == 2
    assert "--peers ruby: expected limpet, node" in capsys.readouterr().err
    assert command.main([*arguments, "--peers", "limpet", "--scenarios", "nope"]) == 2
    assert "expected one of connect" in capsys.readouterr().err


def test_every_scenario_says_what_it_is() -> None:
    assert {"connect", "upgrade", "burst", "pool", "heartbeat"} <= BY_NAME.keys()
    for scenario in BY_NAME.values():
        assert scenario.title
        assert scenario.usual or scenario.name == "idle-10k"
