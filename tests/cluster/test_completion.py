"""Completion in real shells, and the small manners of the command line."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness import require
from limpet_cluster.cli import limpet

SCRIPT = Path(sys.executable).parent / "limpet"


@pytest.fixture
def bash(tmp_path: Path) -> str:
    """Return a shell that has our completion, and what completes a line in it."""
    require("bash", shutil.which("bash"))
    require("limpet", SCRIPT.exists(), "the package is not installed")
    script = CliRunner().invoke(limpet, ["completion", "bash"]).output
    (tmp_path / "limpet").write_text(script)
    return f"""
        PATH={SCRIPT.parent}:$PATH
        source {tmp_path}/limpet
        complete_line() {{
            read -ra COMP_WORDS <<< "$1"
            [[ $1 == *' ' ]] && COMP_WORDS+=('')
            COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
            COMPREPLY=()
            _limpet_completion limpet
            printf '%s\\n' "${{COMPREPLY[@]}}"
        }}
    """


def run(script: str) -> list[str]:
    result = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert not result.stderr
    return result.stdout.split()


@pytest.mark.processes
def test_bash_completes(bash: str) -> None:
    registered = run(f"{bash} complete -p limpet")
    assert registered == ["complete", "-o", "nosort", "-F", "_limpet_completion", "limpet"]
    assert run(f"{bash} complete_line 'limpet sta'") == ["start", "status"]
    assert "drain" in run(f"{bash} complete_line 'limpet '")
    assert run(f"{bash} complete_line 'limpet presence m'") == ["members"]
    assert run(f"{bash} complete_line 'limpet bench b'") == ["broadcast"]
    assert run(f"{bash} complete_line 'limpet status --wa'") == ["--watch"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_too(shell: str) -> None:
    result = CliRunner().invoke(limpet, ["completion", shell])
    assert result.exit_code == 0
    assert "_LIMPET_COMPLETE" in result.output
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=result.output, text=True, check=True, timeout=30)


def test_another_shell_is_wrong_usage() -> None:
    assert CliRunner().invoke(limpet, ["completion", "tcsh"]).exit_code == 2


# --- manners ---------------------------------------------------------------------


def test_a_mistyped_command_is_guessed() -> None:
    result = CliRunner().invoke(limpet, ["stauts"])
    assert result.exit_code == 2
    assert "limpet: No such command 'stauts'." in result.output
    assert "status" in result.output
    result = CliRunner().invoke(limpet, ["presence", "member"])
    assert result.exit_code == 2
    assert "members" in result.output


def test_errors_look_alike() -> None:
    for arguments in (["start", "--wokers=2"], ["status", "--run-dir=/nowhere"], ["dance"]):
        result = CliRunner().invoke(limpet, arguments)
        assert result.stderr.splitlines()[-1].startswith("limpet: "), arguments
        assert "Error" not in result.output


def test_help_is_no_error() -> None:
    for arguments in ([], ["--help"], ["presence", "-h"], ["top", "--help"]):
        result = CliRunner().invoke(limpet, arguments)
        assert "Usage: limpet" in result.output
        assert "limpet: " not in result.output
        assert result.exit_code in {0, 2 if not arguments else 0}


@pytest.mark.processes
def test_nobody_reads_any_more() -> None:
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(
        [sys.executable, "-m", "limpet", "version"], stdout=write, stderr=subprocess.PIPE,
        text=True, timeout=30, check=False,
    )  # fmt: skip
    os.close(write)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["status", "--watch"], 0), (["presence", "watch"], 0), (["presence", "rooms"], 130)],
)
def test_ctrl_c_is_silent(tmp_path: Path, arguments: list[str], code: int) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "api.sock"))
        deaf.listen()
        deaf.settimeout(20)
        process = subprocess.Popen(
            [sys.executable, "-m", "limpet", *arguments, f"--run-dir={tmp_path}", "--timeout=20"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with deaf.accept()[0]:  # it waits for an answer now
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors.strip()) == (code, "")
