"""Keeping freed memory: it is asked for where there is glibc, and harmless elsewhere."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from limpet_adapters.allocator import keep_freed_memory

PROGRAM = """
import resource
from limpet_adapters.allocator import keep_freed_memory
keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        first = bytes(1 << 20)
        second = first + b"x"
        del first, second
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone can do this")
def test_large_blocks_are_used_again() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, timeout=30
    )
    assert int(answer.stdout) < 100  # 51,200 pages are touched


@pytest.mark.parametrize("where", ["darwin", "linux"])
def test_elsewhere(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(sys, "platform", where)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()
