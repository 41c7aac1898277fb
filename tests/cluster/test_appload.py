"""Finding the application, and the message for each way in which it cannot be used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from limpet_cluster.appload import AppError, load, parse

Write = Callable[..., None]


class Server:
    """Stands for the server's class."""


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Return ``write(module, *lines)``; what is imported from it is forgotten afterwards."""
    before, path = set(sys.modules), list(sys.path)

    def write(module: str, *lines: str) -> None:
        file = tmp_path / f"{module.replace('.', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines))

    sys.modules["fake"] = sys.modules[__name__]
    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]
    sys.path[:] = path


def refused(spec: str, directory: Path) -> str:
    with pytest.raises(AppError) as caught:
        load(spec, directory, Server)
    return str(caught.value)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("app", ("app", "io")),
        ("app:io", ("app", "io")),
        ("a.b.c:x.y", ("a.b.c", "x.y")),
        ("_a1:_b2", ("_a1", "_b2")),
    ],
)
def test_reads_module_and_attribute(spec: str, parts: tuple[str, str]) -> None:
    assert parse(spec) == parts


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("app.py", "app:io"),
        ("src/app.py", "src.app:io"),
        ("app.py:io", "app:io"),
        ("app:", "app:io"),
        (":io", "app:io"),
        ("", "app:io"),
        ("1app:io", "1app:io"),
        ("app:io:x", "app:io"),
        ("app io", "app io:io"),
    ],
)
def test_says_what_would_be_right(spec: str, hint: str) -> None:
    with pytest.raises(AppError) as caught:
        parse(spec)
    assert str(caught.value) == f"{spec!r}: expected module:attribute, for example {hint}"


def test_loads_from_the_given_folder(write: Write, tmp_path: Path) -> None:
    write("one.app", "import fake", "class holder: io = fake.Server()", "io = holder.io")
    assert isinstance(load("one.app", tmp_path, Server), Server)
    assert load("one.app:holder.io", tmp_path, Server) is load("one.app:io", tmp_path, Server)


def test_no_such_module(tmp_path: Path) -> None:
    message = refused("nowhere.at_all:io", tmp_path)
    assert message.startswith(f"no module 'nowhere' in {tmp_path}")
    assert "Traceback" not in message


def test_a_module_that_the_application_misses_is_another_matter(
    write: Write, tmp_path: Path
) -> None:
    write("missing", "import not_installed_anywhere")
    message = refused("missing:io", tmp_path)
    assert message.startswith("module 'missing' cannot be imported\n\nTraceback")
    assert message.endswith("ModuleNotFoundError: No module named 'not_installed_anywhere'")


def test_an_exception_shows_the_users_lines_only(write: Write, tmp_path: Path) -> None:
    write("helper", "def divide(x):", "    return 1 / x")
    write(
        "broken",
        "import helper",
        "try:",
        "    helper.divide(0)",
        "except ZeroDivisionError as error:",
        "    raise ValueError('no') from error",
    )
    message = refused("broken:io", tmp_path)
    assert "broken.py" in message
    assert "helper.py" in message
    assert "return 1 / x" in message
    assert "ZeroDivisionError" in message
    assert message.endswith("ValueError: no")
    for ours in ("appload.py", "importlib", "_bootstrap"):
        assert ours not in message


def test_a_syntax_error_points_at_its_line(write: Write, tmp_path: Path) -> None:
    write("typo", "io = (", "x = 1")
    message = refused("typo:io", tmp_path)
    assert "typo.py" in message
    assert "SyntaxError" in message
    assert "importlib" not in message


def test_a_module_that_exits_does_not_end_us(write: Write, tmp_path: Path) -> None:
    write("leaver", "import sys", "sys.exit('bye')")
    assert refused("leaver:io", tmp_path).endswith("SystemExit: bye")


def test_a_missing_attribute_names_the_servers_there_are(write: Write, tmp_path: Path) -> None:
    write("other", "import fake", "sio = fake.Server()")
    assert refused("other:io", tmp_path) == (
        "module 'other' has no attribute 'io'; did you mean other:sio?"
    )


def test_a_missing_attribute_names_what_looks_alike(write: Write, tmp_path: Path) -> None:
    write("near", "server_x = 1")
    assert refused("near:server", tmp_path) == (
        "module 'near' has no attribute 'server'; did you mean near:server_x?"
    )


def test_another_type_is_named(write: Write, tmp_path: Path) -> None:
    write("typed", "import fake, collections", "io = collections.Counter()", "s = fake.Server()")
    assert refused("typed:io", tmp_path) == (
        "typed:io is a collections.Counter; expected a limpet Server; did you mean typed:s?"
    )
    assert "is a int;" in refused("typed:io.__len__.__self__.__class__.__flags__", tmp_path)
