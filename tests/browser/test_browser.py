"""The browser client, run by Node: against ours (two workers) and against the official server."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client_servers import ClientServer
from client_titles import TITLES
from harness import RunningCluster, npm_install
from limpet_client.assets import browser_files, classic, lean, source

HERE = Path(__file__).parent
LIBRARY = HERE.parent.parent / "client" / "limpet_client" / "browser"

# The first of them may have to install two packages.
pytestmark = [pytest.mark.processes, pytest.mark.timeout(400)]

ELSEWHERE = {"should get base64 data as a last resort": "for engines without ArrayBuffer"}
"""Titles that have no test here, and why. The suite's five of ``autoUnref`` are about Node."""

OFFICIAL_SIZE = 14_763
"""Bytes of the official client 4.8.4, ``socket.io.min.js`` by gzip -9; its module has 12,888."""


@pytest.fixture(scope="session")
def node() -> Path:
    """Install what the tests import, once; return the folder."""
    npm_install(HERE, "ws")
    return HERE


@pytest.fixture(scope="session")
def limpet(_new_cluster: Callable[..., RunningCluster]) -> RunningCluster:
    return _new_cluster("servers.python_client_app:io", 2)


@pytest.fixture(scope="session")
def official() -> Iterator[ClientServer]:
    server = ClientServer("node")
    server.start()
    yield server
    server.stop()
    server.discard()


async def run(folder: Path, name: str, *, ends: bool = True, **environment: str) -> None:
    """Run one file of tests; what it says about failures is our failure.

    ``ends``: whatever is left then (Node keeps connections for some seconds) does not matter.
    """
    process = await asyncio.create_subprocess_exec(
        "node",
        "--test",
        "--test-reporter=spec",
        *(["--test-force-exit"] if ends else []),
        f"{name}.test.mjs",
        cwd=folder,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 90)
    except TimeoutError:
        process.kill()
        output, _ = await process.communicate()
        pytest.fail(f"{name} did not end\n{output.decode()}")
    text = output.decode()
    passed = re.search(r"^ℹ pass (\d+)$", text, re.MULTILINE)
    failures = text.partition("failing tests:")[2] or text
    assert process.returncode == 0, failures
    assert passed is not None
    assert int(passed[1]) > 0, text


@pytest.mark.parametrize("server", ["limpet", "official"])
@pytest.mark.parametrize(
    ("name", "polling"),
    [("connection", "fetch"), ("connection", "xhr"), ("socket", "xhr"), ("retry", "fetch")],
)
async def test_the_api(
    node: Path, request: pytest.FixtureRequest, name: str, server: str, polling: str
) -> None:
    url = request.getfixturevalue(server).url
    recovers = str(int(server == "official"))
    await run(node, name, SERVER_URL=url, RECOVERS=recovers, POLLING=polling)


@pytest.mark.parametrize("polling", ["fetch", "xhr"])
async def test_the_transports(node: Path, polling: str) -> None:
    await run(node, "transports", ends=False, POLLING=polling)


@pytest.mark.parametrize("name", ["url", "vectors"])
async def test_the_parsers(node: Path, name: str) -> None:
    await run(node, name)


async def test_the_forms_in_which_it_is_served(node: Path, tmp_path: Path) -> None:
    for name, file in browser_files().items():
        kind = "mjs" if ".esm." in name else "js"
        (tmp_path / name).with_suffix(f".{kind}").write_bytes(file.content)
    await run(node, "forms", FORMS=str(tmp_path))


def test_no_title_is_without_a_test() -> None:
    """Each title of the official client's suite is the beginning of one of ours."""
    text = "\n".join(path.read_text() for path in HERE.glob("*.test.mjs"))
    found = set(re.findall(r"""test\((?:name\()?["'`](.+?)["'`]\)?, """, text))
    found |= {name.replace("${kind}", kind) for name in found for kind in ("default", "custom")} | {
        name.replace("${transport}", kind) for name in found for kind in ("polling", "websocket")
    }
    assert set(TITLES) - found - set(ELSEWHERE) == set()


# --- the source ---------------------------------------------------------------


def test_it_is_smaller_than_the_official_client() -> None:
    sizes = {name: len(file.encoded["gzip"]) for name, file in browser_files().items()}
    assert max(sizes.values()) < OFFICIAL_SIZE
    assert max(sizes["socket.io.min.js"], sizes["socket.io.esm.min.js"]) < 12_000
    assert len(source().splitlines()) < 2000


def test_the_module_must_end_with_its_exports() -> None:
    script = classic("const io = 1;\n\nexport {\n  io,\n};\n")
    assert "export {" not in script
    assert script.startswith('(function () {\n"use strict";\nconst io = 1;\n')
    for wrong in ("const io = 1;\n", "export {\n io };\nio();\n", "\nexport { io };\n}\n"):
        with pytest.raises(ValueError, match="does not end"):
            classic(wrong)


def test_comments_and_indentation_can_go() -> None:
    script = '/* a\n * b */\nif (x) {\n  // c\n  y("// d"); // e\n\n}\n  /** f */\nz();\n'
    assert lean(script) == 'if (x) {\ny("// d"); // e\n}\nz();\n'


def test_no_text_of_the_source_goes_over_several_lines() -> None:
    # Else its indentation would matter, which `lean` takes away.
    for line in source().splitlines():
        assert line.count("`") % 2 == 0 or line.lstrip().startswith(("*", "/")), line
        assert not re.search(r"(?<!\*)/\*", line.strip()[1:]), line


def test_every_export_is_declared() -> None:
    exports = source().rpartition("\nexport {")[2]
    names = set(re.findall(r"(?:as )?(\w+),", exports)) - {"default"}
    declared = (LIBRARY / "socket.io.d.ts").read_text()
    assert len(names) > 15
    missing = {name for name in names if not re.search(rf"\b{name}\b", declared)}
    assert missing == set()
