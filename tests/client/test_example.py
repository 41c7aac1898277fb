"""The example of the documentation runs against the first app."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from limpet_worker.single import serving

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_visitor_hears_itself(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(load("first").io, "127.0.0.1", 0) as addresses:
        url = f"http://127.0.0.1:{addresses[0][1]}"
        visiting = asyncio.create_task(load("client").visit(url, "harbour"))
        printed = ""
        async with asyncio.timeout(15):
            while "said Hello" not in printed:
                await asyncio.sleep(0.01)
                printed += capsys.readouterr().out
        assert "in harbour, with 1 present" in printed
        visiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await visiting
