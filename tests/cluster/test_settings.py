"""Settings: where they are found, which place wins, and what each mistake is answered with."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import settings as running
from hypothesis import strategies as st

from harness import RunningCluster, wait_until
from limpet import Server
from limpet_adapters.notify import Notifier
from limpet_balancer.config import BalancerConfig
from limpet_cluster import child
from limpet_cluster.cli import balancer as balancer_module
from limpet_cluster.cli import hub as hub_module
from limpet_cluster.cli import limpet, options
from limpet_cluster.hub.process import HubConfig
from limpet_cluster.settings import config, values
from limpet_cluster.settings import document as configdoc
from limpet_cluster.settings import files as configfile
from limpet_cluster.settings.config import Resolved, SettingsError, Sources
from limpet_cluster.settings.table import (
    BALANCER,
    EVERYONE,
    HUB,
    SETTINGS,
    WORKER,
    Applies,
    Setting,
    Settings,
)
from limpet_cluster.supervisor.start import Renewer, StartOptions, arguments, plan, reload_settings
from limpet_worker.errors import OptionError
from limpet_worker.socketio.context import WorkerContext

DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, and no variable of limpet's."""
    with tempfile.TemporaryDirectory(prefix="limpet-") as name:
        folder = Path(name).resolve()
        monkeypatch.chdir(folder)
        for variable in list(os.environ):
            if variable.startswith("LIMPET_"):
                monkeypatch.delenv(variable)
        monkeypatch.setattr(config, "SYSTEM_FILE", folder / "etc" / "config.toml")
        yield folder


def write(text: str, name: str = "limpet.toml") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path.absolute()


def tokens(name: str = "t", mode: int = 0o600) -> Path:
    path = write("secret-token-of-16\n", name)
    path.chmod(mode)
    return path


def resolve(environ: dict[str, str] | None = None, **given: Any) -> Resolved:
    """Resolve with an environment of its own; flags as keywords."""
    file = given.pop("file", None)
    flags = {name: (one,) if isinstance(one, str) else one for name, one in given.items()}
    return Sources(environ=environ or {}, flags=flags, file=file).resolve()


def problems(environ: dict[str, str] | None = None, **given: Any) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        resolve(environ, **given)
    return caught.value.problems


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(limpet, arguments)


# --- units ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("20", 20), ("1.5", 1.5), ("1.5s", 1.5), ("250ms", 0.25), ("2min", 120),
     ("1h", 3600), (".5", 0.5), ("2 min", 120), (" 3s ", 3), ("1.s", 1)],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert values.seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "-1", "+1", "1 second", "1m", "1d", "1e3", "1,5", "inf", "nan", "0x1", "1s2s",
             "١"],
)  # fmt: skip
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError):
        values.seconds_of(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("65536", 65536), ("64KiB", 65536), ("16MiB", 1 << 24), ("1MB", 10**6),
     ("1.5KiB", 1536), ("2 GiB", 2 << 30), ("10b", 10), ("1kb", 1000)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert values.bytes_of(text) == size


@pytest.mark.parametrize(
    "text", ["", "-1", "1.5", "0.3KiB", "1K", "1 TiB", "KiB", "1e3", "9" * 400, "9" * 19]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError):
        values.bytes_of(text)


@given(st.floats(0, values.LONGEST))
def test_a_duration_is_read_as_it_was_written(seconds: float) -> None:
    assert values.seconds_of(values.duration(seconds)) == seconds


@given(st.integers(1, 10**6), st.sampled_from(("ms", "s", "min", "h")))
def test_whole_durations_stay_short(count: int, unit: str) -> None:
    text = f"{count}{unit}"
    assert len(values.duration(values.seconds_of(text))) <= len(text) + 2


@given(st.integers(1, 1 << 50))
def test_a_size_is_read_as_it_was_written(size: int) -> None:
    assert values.bytes_of(values.size(size)) == size


@given(st.text())
def test_any_text_survives_toml(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()  # TOML has no lone surrogates
    assert tomllib.loads(f"a = {values.quote(text)}") == {"a": text}


_DURATIONS = st.floats(0.1, values.LONGEST)
_WRITTEN: dict[str, st.SearchStrategy[Any]] = {
    "name": st.from_regex("[A-Za-z0-9][A-Za-z0-9_.-]{0,31}", fullmatch=True),
    "run_dir": st.just(Path("/run/a b")),
    "node": st.integers(0, 65_535),
    "path": st.sampled_from(("/ws/", "/a/b")),
    "log_level": st.sampled_from(("debug", "error")),
    "log_format": st.sampled_from(("json", "human")),
    "app": st.sampled_from(("app:io", "a.b:c.d", "app")),
    "app_dir": st.just(Path("/srv/app")),
    "workers": st.integers(1, 255) | st.just("auto"),
    "dev": st.booleans(),
    "bind": st.lists(
        st.sampled_from(("0.0.0.0:80", "[::]:443", "unix:/run/x.sock")), min_size=1, max_size=3
    ).map(tuple),
    "health_path": st.sampled_from(("", "/healthz")),
    "api": st.sampled_from(("127.0.0.1:9090", "[::1]:0")),
    "api_token_file": st.just(Path("/etc/tokens")),
    "buckets": st.integers(1, 65_536),
    "drain_budget": st.floats(1e-3, 1e6),
    "max_sessions": st.integers(1, 10**9),
    "max_http_buffer_size": st.integers(1, 10**12),
}


@given(st.data())
def test_each_value_is_read_as_it_was_written(data: st.DataObject) -> None:
    for name, setting in SETTINGS.items():
        value = data.draw(_WRITTEN.get(name, _DURATIONS), label=name)
        document = tomllib.loads(f"{name} = {setting.kind.toml(value)}")
        assert setting.kind.read(document[name]) == value, "in a file"
        assert setting.kind.parse(setting.kind.write(value)) == value, "as text"


# --- which place wins ---------------------------------------------------------


def test_what_is_said_later_wins(here: Path) -> None:
    assert resolve().settings.linger == 10
    assert resolve().origins["linger"] == "default"
    write('# first\nname = "x"\nlinger = "2min"\n')
    environ = {"LIMPET_LINGER": "3s"}
    by_file, by_environment, by_flag = resolve(), resolve(environ), resolve(environ, linger="4s")
    assert (by_file.settings.linger, by_file.origins["linger"]) == (120, "limpet.toml:3")
    assert (by_environment.settings.linger, by_environment.origins["linger"]) == (
        3, "LIMPET_LINGER",
    )  # fmt: skip
    assert (by_flag.settings.linger, by_flag.origins["linger"]) == (4, "--linger")
    assert by_flag.settings.name == "x", "from the file still"
    assert by_flag.origins["app"] == "default"


def test_each_setting_has_one_name_in_all_places(here: Path) -> None:
    tokens()
    for name, setting in SETTINGS.items():
        said = {
            "bind": "127.0.0.1:1",
            "app": "a:b",
            "api": "127.0.0.1:1",
            "app_dir": ".",
            "dev": "true",
            "path": "/x/",
            "health_path": "/x",
            "log_level": "debug",
            "log_format": "json",
            "api_token_file": "t",
        }.get(name, "17")
        extra = {"api_token_file": "t"} if name == "api" else {}
        by_environment = resolve({f"LIMPET_{name.upper()}": said}, **extra)
        by_flag = resolve({}, **{name: said}, **extra)
        assert by_environment.origins[name] == f"LIMPET_{name.upper()}"
        assert by_flag.origins[name] == setting.flag
        if name != "app":
            assert setting.flag == "--" + name.replace("_", "-")
        assert getattr(by_environment.settings, name) == getattr(by_flag.settings, name)
        assert not by_environment.warnings


def test_an_empty_variable_is_as_good_as_none(here: Path) -> None:
    found = resolve({"LIMPET_WORKERS": "", "LIMPET_API": ""})
    assert found.origins["workers"] == found.origins["api"] == "default"


def test_a_flag_can_take_back_what_the_file_says(here: Path) -> None:
    write("max_sessions = 7\n")
    assert resolve().settings.max_sessions == 7
    assert resolve(max_sessions="").settings.max_sessions is None
    assert resolve({}, health_path="").settings.health_path == ""


def test_addresses_are_a_list_or_several_flags_or_words(here: Path) -> None:
    write('bind = ["127.0.0.1:1", "unix:/run/x y"]\n')
    assert resolve().settings.bind == ("127.0.0.1:1", "unix:/run/x y")
    write('bind = "127.0.0.1:2"\n')
    assert resolve().settings.bind == ("127.0.0.1:2",)
    environ = {"LIMPET_BIND": "127.0.0.1:3, [::]:4"}
    assert resolve(environ).settings.bind == ("127.0.0.1:3", "[::]:4")
    flags = ("127.0.0.1:5", "127.0.0.1:6")
    assert resolve(environ, bind=flags).settings.bind == flags


def test_relative_paths_begin_where_they_are_written(here: Path) -> None:
    (here / "conf" / "app").mkdir(parents=True)
    write('app_dir = "app"\nrun_dir = "run"\n', "conf/x.toml")
    found = resolve(file="conf/x.toml").settings
    assert found.app_dir == here / "conf" / "app"
    assert found.run_dir == here / "conf" / "run"
    assert resolve({"LIMPET_RUN_DIR": "r"}).settings.run_dir == here / "r"
    assert resolve().settings.app_dir == here


# --- which file is read -------------------------------------------------------


def test_one_file_is_read_the_nearest(here: Path) -> None:
    environ = {"CONFIGURATION_DIRECTORY": f"{here / 'conf'}:{here / 'other'}"}
    assert resolve(environ).file is None
    found: list[Resolved] = []
    for place in ("etc/config.toml", "conf/config.toml", "limpet.toml"):
        write(f'name = "n{len(found)}"\n', place)
        found.append(resolve(environ))
    assert [one.settings.name for one in found] == ["n0", "n1", "n2"]
    assert found[1].origins["name"] == "conf/config.toml:1"
    write('name = "given"\n', "x.toml")
    named = {**environ, "LIMPET_CONFIG": "x.toml"}
    assert resolve(named).settings.name == "given"
    assert resolve(named, file="limpet.toml").settings.name == "n2"
    assert resolve(named, file="").file is None, "an empty --config: no file at all"


def test_a_file_outside_is_named_in_full(here: Path) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as elsewhere:
        elsewhere.write("workers = 0\n")
        elsewhere.flush()
        assert problems(file=elsewhere.name)[0].startswith(f"{elsewhere.name}:1: workers = 0")


def test_a_named_file_must_be_there(here: Path) -> None:
    assert problems(file="x.toml") == ("--config x.toml: there is no such file",)
    assert problems({"LIMPET_CONFIG": "y"}) == ("LIMPET_CONFIG=y: there is no such file",)


# --- mistakes -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("workers = 0", "workers = 0: expected 1 to 255, or auto"),
        ("workers = 256", "workers = 256: expected 1 to 255, or auto"),
        ('workers = "many"', 'workers = "many": expected 1 to 255, or auto'),
        ("workers = true", "workers = true: expected 1 to 255, or auto"),
        ("workers = 1.0", "workers = 1.0: expected 1 to 255, or auto"),
        ("buckets = 0", "buckets = 0: expected 1 to 65536"),
        ('buckets = "8"', 'buckets = "8": expected 1 to 65536, without quotes'),
        ("node = 65536", "node = 65536: expected 0 to 65535"),
        ("max_sessions = 0", "max_sessions = 0: expected a whole number of at least 1"),
        ("linger = -1", "linger = -1: expected a duration from 0 to 24h, such as 20"),
        ("linger = inf", "linger = inf: expected a duration from 0"),
        ("linger = nan", "linger = nan: expected a duration from 0"),
        ('linger = "25h"', 'linger = "25h": expected a duration from 0 to 24h'),
        ('linger = "1 minute"', 'linger = "1 minute": expected a duration'),
        ("stop_timeout = 0", "stop_timeout = 0: expected a duration from 100ms"),
        ("ping_interval = 0", "ping_interval = 0: expected a duration from 1ms"),
        ("drain_budget = 0", "drain_budget = 0: expected a number above 0"),
        (f"drain_budget = 1{'0' * 400}", "expected a number above 0"),
        ('drain_budget = "5"', "expected a number above 0, without quotes"),
        ("max_http_buffer_size = 0", "expected a size above 0, in bytes or such as \"64KiB\""),
        ('max_http_buffer_size = "1X"', 'max_http_buffer_size = "1X": expected a size'),
        ('dev = "yes"', 'dev = "yes": expected true or false, without quotes'),
        ("dev = 1", "dev = 1: expected true or false"),
        ('log_level = "loud"', 'log_level = "loud": expected debug, info, warning or error'),
        ("name = 7", "name = 7: expected 1 to 32 letters"),
        ('name = "../x"', 'name = "../x": expected 1 to 32 letters'),
        ('path = "/"', 'path = "/": expected a path such as /socket.io/'),
        ('app = "a\\nb"', 'app = "a\\nb": expected module:attribute, for example app:io'),
        ('path = "ws"', 'path = "ws": expected a path such as /socket.io/'),
        ('health_path = "x"', 'health_path = "x": expected a path such as /healthz, or nothing'),
        ('app = "app.py"', 'app = "app.py": expected module:attribute, for example app:io'),
        ('bind = "8080"', 'bind = "8080": expected HOST:PORT, [IPV6]:PORT or unix:PATH'),
        ('bind = ["a:1", "b"]', 'bind = ["a:1", "b"]: expected HOST:PORT'),
        ("bind = []", "bind = []: expected at least one address"),
        ("bind = [1]", "bind = [1]: expected HOST:PORT"),
        ("bind = 8080", "bind = 8080: expected HOST:PORT"),
        ('api = "9090"', 'api = "9090": expected HOST:PORT or [IPV6]:PORT, for example'),
        ('api = "unix:/x"', 'api = "unix:/x": expected HOST:PORT'),
        ("run_dir = 1", "run_dir = 1: expected a path"),
        ('stall-after = 3', "unknown setting 'stall-after'; did you mean stall_after?"),
        ("worker = 3", "unknown setting 'worker'; did you mean workers?"),
        ("zzz = 3", "unknown setting 'zzz'; limpet config default lists all"),
        ("drain = {window = 3}", "settings stand outside of tables; write drain_window = …"),
        ("ping.interval = 3", "outside of tables; write ping_interval"),
        ("[limpet]\nworkers = 3", "outside of tables; write workers"),
        ("workers = ", "not TOML: invalid value"),
        ("workers 3", "not TOML: expected '=' after a key"),
        ('stall_after = 2', "stall_after is 2s: expected 0 or at least 3s, three beats of the bus"),
        ('stall_after = "1min"', "is 1min: expected less than ping_interval + ping_timeout = 45s"),
        ('api = "127.0.0.1:9090"', "api needs api_token_file (--api-token-file): TCP lets"),
        ('app_dir = "none"', "/none: there is no such folder"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_named_with_its_line(here: Path, line: str, expected: str) -> None:
    write(f"# one\n\n{line}\n")
    (found,) = problems()
    assert found.startswith("limpet.toml:3: ")
    assert expected in found


def test_tokens_that_let_nobody_in_or_everybody_are_a_mistake(here: Path) -> None:
    write('\napi_token_file = "t"\n')
    (found,) = problems()
    assert found == (
        f"limpet.toml:2: api_token_file='{here}/t': No such file or directory; "
        "expected a file with a token"
    )
    tokens(mode=0o644)
    assert "mode 0644 lets anybody in; expected 0600" in problems()[0]
    tokens(mode=0o600)
    assert resolve().settings.api_token_file == here / "t"


def test_all_mistakes_are_told_at_once_in_the_order_of_the_lines(here: Path) -> None:
    write('linger = "x"\nworkr = 1\nname = ""\n[drain]\nwindow = 1\n')
    found = problems({"LIMPET_NODE": "x"}, workers="0")
    assert [one.partition(": ")[0] for one in found] == [
        "limpet.toml:1", "limpet.toml:2", "limpet.toml:3", "limpet.toml:4",
        "LIMPET_NODE=x", "--workers 0",
    ]  # fmt: skip


def test_mistakes_of_flags_and_variables_are_named_as_they_are_typed(here: Path) -> None:
    assert problems({"LIMPET_LINGER": "1 day"})[0].startswith("LIMPET_LINGER='1 day': expected a")
    assert problems(bind=("127.0.0.1:1", "x"))[0].startswith("--bind 127.0.0.1:1 x: expected HOST")
    assert problems(app="app.py") == ("app.py: expected module:attribute, for example app:io",)


def test_a_flag_stands_in_for_a_wrong_variable_but_not_for_a_wrong_file(here: Path) -> None:
    assert resolve({"LIMPET_WORKERS": "x"}, workers="2").settings.workers == 2
    write("workers = 0\n")
    assert problems(workers="2")[0].startswith("limpet.toml:1")


def test_only_the_command_line_is_a_matter_of_usage(here: Path) -> None:
    def usage(environ: dict[str, str], **flags: Any) -> bool:
        with pytest.raises(SettingsError) as caught:
            resolve(environ, **flags)
        return caught.value.usage

    assert usage({}, workers="0")
    assert usage({}, stall_after="50")
    assert usage({}, api="127.0.0.1:1")
    assert not usage({"LIMPET_WORKERS": "0"})
    assert not usage({"LIMPET_WORKERS": "0"}, linger="x")
    assert not usage({"LIMPET_PING_TIMEOUT": "1"}, stall_after="40", ping_interval="1")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"a = 1\n\xff = 2\n", "limpet.toml:2: not UTF-8"),
        (b'name = "x\n', "limpet.toml:1: not TOML"),
        (b"name = 'x'\nname = 'y'\n", "limpet.toml:2: not TOML: cannot overwrite a value"),
        (b"bind = [\n'a:1',\n", "not TOML"),
        (b"#" * (configfile.LARGEST + 1), "limpet.toml: larger than 1 MiB"),
    ],
)
def test_a_file_that_is_none(here: Path, raw: bytes, expected: str) -> None:
    (here / "limpet.toml").write_bytes(raw)
    (found,) = problems()
    assert expected in found


def test_a_file_that_may_not_be_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "x.toml").mkdir()
    assert problems(file="x.toml") == ("x.toml: Is a directory",)
    write("")

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    assert problems() == ("limpet.toml: Permission denied",), "it is not passed over"


def test_lines_are_found_in_whatever_form_toml_allows(here: Path) -> None:
    path = write(
        '"name" = "x"\n'
        "  'linger' = 1\n"
        'bind = [\n  "a:1", # workers = 1\n]\n'
        "run_dir = '''\nworkers = 2\n'''\n"
        'app = """\n\nnode = 1\\\n"""\n'
        "workers = 3\n"
        "drain.x = 1\nnode = 5\n"
        '"buc\\u006bets" = 1\r\n'
        "[ping]\nbuckets = 1\n"
        "[ping.timeout]\n[[api]]\n"
    )
    found = configfile.read(path, here)
    assert dict(found.lines) == {
        "name": 1, "linger": 2, "bind": 3, "run_dir": 6, "app": 9, "workers": 13, "drain": 14,
        "node": 15, "buckets": 16, "ping": 17, "api": 20,
    }  # fmt: skip


def test_a_mark_at_the_beginning_is_not_seen(here: Path) -> None:
    (here / "limpet.toml").write_bytes(b"\xef\xbb\xbfworkers = 0\n")
    assert problems() == ("limpet.toml:1: workers = 0: expected 1 to 255, or auto",)


@pytest.mark.timeout(10)
def test_lines_are_found_in_a_moment_or_not_at_all(here: Path) -> None:
    path = write("\n".join(f"k{number} = 1" for number in range(10_000)))
    assert configfile.read(path, here).lines["k9999"] == 10_000
    path = write('app = """\n' + "workers = 1]\n" * 60_000 + '"""\nnode = -1\n')
    assert "limpet.toml: node = -1: expected 0 to 65535" in problems()


def test_a_number_beyond_all_bounds_is_named(here: Path) -> None:
    write(f"node = 0x{'f' * 5000}\nbind = [0x{'f' * 5000}]\n")
    one, other = problems()
    assert one == "limpet.toml:1: node = …: expected 0 to 65535"
    assert other.startswith("limpet.toml:2: bind = […]: expected HOST:PORT")


def test_a_file_below_the_root_is_named_in_full(here: Path) -> None:
    path = write("workers = 0\n")
    assert configfile.read(path, Path("/")).origin("workers") == f"{path}:1"


@running(max_examples=30)
@given(st.permutations(sorted(SETTINGS)), st.data())
def test_each_key_is_found_on_its_line(names: list[str], data: st.DataObject) -> None:
    lines, expected = [], {}
    for name in names:
        lines += data.draw(st.lists(st.sampled_from(["", "# name = 1", "  "]), max_size=2))
        expected[name] = len(lines) + 1
        lines.append(
            f"{name} = {SETTINGS[name].kind.toml(data.draw(_WRITTEN.get(name, _DURATIONS)))}"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.toml"
        path.write_text("\n".join(lines), encoding="utf-8")
        assert dict(configfile.read(path, Path(folder)).lines) == expected


def fault(sources: Sources) -> SettingsError | None:
    try:
        sources.resolve()
    except SettingsError as error:
        return error
    return None


_ANYTHING = st.sampled_from(
    ["0", "-1", "9" * 400, "1e400", "-inf", "nan", "''", '"\\u0000"', '"é 😀"', "[]", "[[]]", "{}",
     "{a = {b = 1}}", "1979-05-27", "07:32:00", "true", '"99999999999999999999h"', "[1, 'a']",
     '"' + "9" * 5000 + '"', '"0.' + "9" * 5000 + 'GiB"', '"-"', "9" * 5000, "[" * 5000,
     '"unix:"', '"[::1"', '" "', "0x" + "f" * 5000]
)  # fmt: skip


@running(max_examples=30)
@given(st.dictionaries(st.sampled_from(sorted(SETTINGS)), _ANYTHING), st.text(max_size=9))
def test_whatever_a_file_says_is_taken_or_named(document: dict[str, str], end: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.toml"
        text = "".join(f"{name} = {value}\n" for name, value in document.items()) + end
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        error = fault(Sources(environ={}, file=str(path), directory=Path(folder)))
        problems = error.problems if error is not None else ()
        assert all(one.startswith("x.toml:") and len(one) < 400 for one in problems)


@given(st.sampled_from(sorted(set(SETTINGS) - {"app_dir"})), st.text(max_size=30))
def test_whatever_a_flag_says_is_taken_or_named(name: str, text: str) -> None:
    error = fault(Sources(environ={}, file="", flags={name: (text,)}, takes=()))
    assert error is None or (error.usage and len(error.problems) == 1)


# --- relations ------------------------------------------------------------------


def test_a_stall_is_seen_before_clients_give_up(here: Path) -> None:
    write('ping_interval = 5\n\nping_timeout = "5s"\n')
    (found,) = problems()
    assert found.startswith("limpet.toml:1 (ping_interval) and limpet.toml:3 (ping_timeout): ")
    assert "stall_after is 15s: expected less than ping_interval + ping_timeout = 10s" in found
    assert resolve(stall_after="9").settings.stall_after == 9
    assert resolve(stall_after="0").settings.stall_after == 0
    assert "is 10s: expected" in problems(stall_after="10")[0]
    # The other one is what most applications have.
    write("ping_interval = 5\n")
    assert resolve(stall_after="24").settings.stall_after == 24
    assert "= 25s" in problems(stall_after="25")[0]


def test_a_process_is_not_asked_for_what_it_is_not_told(here: Path) -> None:
    takes = {name for name, setting in SETTINGS.items() if WORKER in setting.commands}
    flags = {"ping_interval": ("5",), "ping_timeout": ("5",)}
    found = Sources(environ={}, flags=flags, takes=takes).resolve()
    assert found.settings.ping_interval == 5, "stall_after is not a worker's"
    write("ping_interval = 5\nping_timeout = 5\n")
    with pytest.raises(SettingsError, match="stall_after is 15s"):
        Sources(environ={}, takes=takes).resolve()


# --- the environment ----------------------------------------------------------


def test_unknown_variables_are_warned_of(here: Path) -> None:
    environ = {
        "LIMPET_WORKER": "1", "LIMPET_PARENT": "1", "LIMPET_ROLE": "hub", "LIMPET_SEED": "1",
        "LIMPET_REQUIRE": "all", "LIMPET_CONFIG": "", "PATH": "", "LIMPETS": "1",
    }  # fmt: skip
    assert resolve(environ).warnings == (
        "LIMPET_WORKER: no setting has this variable; did you mean LIMPET_WORKERS?",
    )


# --- the table itself -----------------------------------------------------------


def test_the_defaults_are_values_that_could_be_written(here: Path) -> None:
    settings = resolve().settings
    for name, setting in SETTINGS.items():
        assert bool(setting.unset) == bool(setting.example), name
        assert set(setting.commands) <= set(EVERYONE)
        if setting.default is None:
            assert setting.unset
        elif name != "app_dir":
            assert setting.kind.parse(setting.kind.write(setting.default)) == setting.default
            assert getattr(settings, name) == setting.default
        if setting.example:
            setting.kind.read(tomllib.loads(f"x = {setting.example}")["x"])
    assert [one.name for one in fields(Settings)] == list(SETTINGS)


# --- limpet config ----------------------------------------------------------------


def test_the_default_file_changes_nothing(here: Path) -> None:
    text = invoke("config", "default").output
    without = resolve()
    write(text)
    found = resolve()
    assert found.settings == without.settings
    unset = {name for name, origin in found.origins.items() if origin == "default"}
    assert unset == {name for name, setting in SETTINGS.items() if setting.unset}
    for name in unset:
        assert f"\n# {name} = " in text
    write(text.replace("\n# ", "\n#").replace("\n#", "\n#"))
    assert invoke("config", "check", "--strict").output == "limpet.toml: valid\n"


def test_check(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("config", "check").output == "no file, environment and defaults: valid\n"
    monkeypatch.setenv("LIMPET_WORKR", "3")
    lenient, strict = invoke("config", "check"), invoke("config", "check", "--strict")
    assert lenient.exit_code == 0
    assert "limpet: warning: LIMPET_WORKR: no setting" in lenient.output
    assert strict.exit_code == 3
    assert strict.stderr == (
        "limpet: LIMPET_WORKR: no setting has this variable; did you mean LIMPET_WORKERS?\n"
    )
    write("workers = 0\nbukets = 1\n", "x.toml")
    wrong = invoke("config", "check", "--config=x.toml")
    assert wrong.exit_code == 3
    assert wrong.stderr.splitlines() == [
        "limpet: x.toml:1: workers = 0: expected 1 to 255, or auto",
        "x.toml:2: unknown setting 'bukets'; did you mean buckets?",
    ]
    as_json = invoke("config", "check", "--config=x.toml", "--json")
    assert as_json.exit_code == 3
    assert json.loads(as_json.stdout)["errors"][1].startswith("x.toml:2: unknown setting")


def test_show_is_a_file_that_says_the_same(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write('name = "x"\nlinger = 0.25\nbind = ["127.0.0.1:1", "[::]:2"]\n')
    monkeypatch.setenv("LIMPET_MAX_HTTP_BUFFER_SIZE", "3MiB")
    settings = Sources().resolve().settings
    shown, with_origin = (
        invoke("config", "show").output,
        invoke("config", "show", "--origin").output,
    )
    monkeypatch.delenv("LIMPET_MAX_HTTP_BUFFER_SIZE")
    for text in (shown, with_origin):
        write(text)
        assert Sources().resolve().settings == settings
    lines = {line.partition(" ")[0]: line for line in with_origin.splitlines()}
    assert lines["linger"].split() == ["linger", "=", '"250ms"', "#", "limpet.toml:2"]
    assert lines["max_http_buffer_size"].endswith("# LIMPET_MAX_HTTP_BUFFER_SIZE")
    assert lines["workers"].endswith("# default")
    assert "#" not in shown.replace("\n# ", "")


def test_show_as_json(here: Path) -> None:
    write("drain_window = 7\n")
    plain = json.loads(invoke("config", "show", "--json").output)
    assert list(plain) == list(SETTINGS)
    assert (plain["drain_window"], plain["node"], plain["app_dir"]) == (7, None, str(here))
    origins = json.loads(invoke("config", "show", "--json", "--origin").output)
    assert origins["drain_window"] == {"value": 7, "origin": "limpet.toml:1"}


def test_show_of_a_wrong_file_is_exit_code_3(here: Path) -> None:
    write("workers = 0\n")
    result = invoke("config", "show")
    assert result.exit_code == 3
    assert "limpet.toml:1: workers = 0" in result.output


def test_the_documentation_has_the_present_table() -> None:
    text = DOCS.read_text(encoding="utf-8")
    begin, end = "<!-- limpet config doc: begin -->\n", "<!-- limpet config doc: end -->\n"
    _, _, rest = text.partition(begin)
    table, found, _ = rest.partition(end)
    assert found, "the marks are gone"
    assert table.strip() == invoke("config", "doc").output.strip(), (
        "run `limpet config doc` and put its output between the marks"
    )


# --- flags ------------------------------------------------------------------------


@pytest.mark.parametrize("command", EVERYONE)
def test_help_says_default_and_variable_of_each_setting(command: str) -> None:
    text = " ".join(invoke(command, "--help").output.split())
    for setting in SETTINGS.values():
        taken = command in setting.commands and not setting.argument
        assert (f"[{setting.variable}; default: " in text) == taken, setting.name
        if taken:
            assert setting.flag in text
    assert "--config" in text


def _all_different() -> Settings:
    return Settings(
        name="x", run_dir=Path("/run/x y"), node=3, path="/ws/", log_level="debug",
        log_format="json", app="app:io", app_dir=Path("/"), workers=3, dev=False,
        bind=("127.0.0.1:1",), health_path="", api="127.0.0.1:9", api_token_file=Path("/t"),
        buckets=7, linger=0.125, start_timeout=90.0, stop_timeout=0.3, stall_after=11.5,
        drain_grace=0.0, drain_window=1 / 3, drain_budget=0.75, handler_grace=60.0,
        ping_interval=10.1, ping_timeout=7.7, max_sessions=12, max_http_buffer_size=3 << 20,
    )  # fmt: skip


@pytest.mark.parametrize("role", [HUB, BALANCER, WORKER])
@pytest.mark.parametrize("settings", [Settings(app_dir=Path("/")), _all_different()])
def test_a_process_gets_by_its_flags_what_the_supervisor_has(
    here: Path, monkeypatch: pytest.MonkeyPatch, role: str, settings: Settings
) -> None:
    write("this file is being edited\n")
    monkeypatch.setenv("LIMPET_CONFIG", "limpet.toml")
    for name, text in {"PARENT": "1", "WORKERS": "x", "API": "127.0.0.1:1", "NODE": "9"}.items():
        monkeypatch.setenv(f"LIMPET_{name}", text)  # which flags of the supervisor have overruled
    found: list[Resolved] = []

    @click.command()
    @options.settings(role)
    def command(resolved: Resolved) -> None:
        found.append(resolved)

    given = arguments(settings, role)
    result = CliRunner().invoke(
        command, [*given, *(["--", settings.app] if role == WORKER else [])]
    )
    assert result.exit_code == 0, result.output
    for name, setting in SETTINGS.items():
        if role in setting.commands and name != "bind":
            assert getattr(found[0].settings, name) == getattr(settings, name), name


def test_shells_are_told_what_may_follow(here: Path) -> None:
    def offered(*words: str) -> list[tuple[str, str]]:
        asked = ShellComplete(limpet, {}, "limpet", "_LIMPET_COMPLETE")
        return [(one.value, one.type) for one in asked.get_completions(list(words[:-1]), words[-1])]

    assert offered("start", "--log-level", "d") == [("debug", "plain")]
    assert offered("start", "--workers", "") == [("auto", "plain")]
    assert offered("worker", "--app-dir", "x") == [("x", "dir")]
    assert offered("start", "--config", "x") == [("x", "file")]
    assert ("--drain-window", "plain") in offered("start", "--drain")


def test_a_cluster_is_found_by_file_and_environment(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(f'name = "x"\nrun_dir = "{here}/one"\nworkers = 0\n')  # a mistake is in nobody's way
    assert f"{here}/one" in invoke("status").output
    monkeypatch.setenv("LIMPET_RUN_DIR", "two")
    assert f"{here}/two" in invoke("status").output
    assert f"{here}/three" in invoke("status", "--run-dir=three").output
    write("broken")
    broken = invoke("status")
    assert broken.exit_code == 3
    assert "limpet.toml:1: not TOML" in broken.output
    assert f"{here}/three" in invoke("status", "--run-dir=three").output


# --- what the settings do ---------------------------------------------------------


def captured(
    monkeypatch: pytest.MonkeyPatch, module: Any, runner: str, *arguments: str
) -> list[Any]:
    """Run a command up to the point where its process would begin; return what that is given."""
    given: list[Any] = []

    def run(main: Callable[[], Any], *_: object) -> int:
        main()
        return 0

    notifier = Notifier.from_environment()
    monkeypatch.setattr(child, "enter", lambda *_: child.Life(notifier, supervised=True))
    monkeypatch.setattr(child, "run", run)
    monkeypatch.setattr(module, runner, lambda config, *_: given.append(config))
    assert invoke(*arguments).exit_code == 0
    return given


def test_the_balancer_waits_as_long_as_the_pings(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write('ping_interval = 9\npath = "/ws/"\nhealth_path = ""\n')
    (found,) = captured(
        monkeypatch, balancer_module, "run_balancer", "balancer", "--run-dir=r", "--node=4"
    )
    assert isinstance(found, BalancerConfig)
    assert (found.ping_interval, found.ping_timeout) == (9, 20)
    assert (found.engine_path, found.health_path, found.node) == ("/ws/", "", 4)
    assert found.bind == ("127.0.0.1:8080",)


def test_the_hub_is_as_patient_as_the_supervisor(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("buckets = 32\nstall_after = 7\n")
    (found,) = captured(monkeypatch, hub_module, "run_hub", "hub", "--run-dir=r")
    assert isinstance(found, HubConfig)
    assert (found.buckets, found.stall_after) == (32, 7)
    (found,) = captured(monkeypatch, hub_module, "run_hub", "hub", "--run-dir=r", "--stall-after=0")
    assert 600 < found.stall_after < math.inf, "never, in practice"


async def test_the_operators_values_win_over_the_applications() -> None:
    io = Server(ping_interval=10, ping_timeout=8, max_http_buffer_size=5)
    io.override()
    assert (io.options.ping_interval, io.options.max_http_buffer_size) == (10, 5)
    io.override(ping_interval=3.5, max_sessions=9)
    assert (io.options.ping_interval, io.options.ping_timeout) == (3.5, 8)
    assert (io.options.max_sessions, io.options.max_http_buffer_size) == (9, 5)
    with pytest.raises(OptionError, match="ping_timeout=-1: expected seconds"):
        io.override(ping_timeout=-1)
    with pytest.raises(OptionError, match="max_sessions=0: expected a whole number"):
        io.override(max_sessions=0)
    names = itertools.count()
    await io.start(WorkerContext(new_id=lambda: f"{next(names):020}"))
    try:
        assert io.engine.options.ping_interval == 3.5
        with pytest.raises(RuntimeError, match="before the server starts"):
            io.override(ping_interval=1)
    finally:
        await io.close()


def handshake(url: str) -> Any:
    """Begin a session; return what the server says of it."""
    query = "/socket.io/?EIO=4&transport=polling"
    with urllib.request.urlopen(url + query, timeout=10) as answer:
        return json.loads(answer.read()[1:])


def test_a_default_that_does_not_hold_names_no_place(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(SettingsError) as caught:
        Sources(environ={}, flags={}, directory=gone).resolve()
    [problem] = caught.value.problems
    assert problem == f"app_dir is {gone}: there is no such folder"
    assert not caught.value.usage


def test_the_hub_does_not_need_to_see_the_application(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write('app_dir = "/none"\n')
    assert captured(monkeypatch, hub_module, "run_hub", "hub", "--run-dir=r")
    assert "limpet.toml:1: app_dir is /none" in invoke("worker", "--slot=0").output


@pytest.mark.processes
def test_a_file_alone_tells_each_process_all(here: Path) -> None:
    """As systemd runs them: no flags but the slot, one file, an environment that names it."""
    (here / "app").mkdir()
    write("import limpet\nio = limpet.Server(ping_interval=25, max_sessions=3)\n", "app/mine.py")
    write(
        'name = "alone"\nrun_dir = "run"\nnode = 5\nbind = "127.0.0.1:0"\n'
        'app = "mine"\napp_dir = "app"\nbuckets = 64\n'
        'ping_interval = "12s"\nping_timeout = "9500ms"\nmax_http_buffer_size = "2MiB"\n',
        "etc/limpet.toml",
    )
    environ = {**os.environ, "LIMPET_CONFIG": str(here / "etc" / "limpet.toml")}
    (here / "etc" / "app").symlink_to(here / "app")
    running = []
    try:
        for role in (["hub"], ["balancer"], ["worker", "--slot=3"]):
            command = [sys.executable, "-m", "limpet", *role]
            with (here / f"{role[0]}.log").open("wb") as log:
                running.append(subprocess.Popen(command, env=environ, stdout=log, stderr=log))
        handshakes: list[dict[str, Any]] = []

        def shaken() -> bool:
            assert all(one.poll() is None for one in running), logs()
            found = re.search(r'listening on (127\.0\.0\.1:\d+)"', logs())
            if found is None:
                return False
            try:
                handshakes.append(handshake(f"http://{found[1]}"))
            except urllib.error.HTTPError as error:  # there is no worker yet
                error.close()
                return False
            except OSError:
                return False
            return True

        def logs() -> str:
            return "\n".join(path.read_text() for path in here.glob("*.log"))

        wait_until(shaken, 20, "no handshake")
        assert handshakes[0]["pingInterval"] == 12_000
        assert handshakes[0]["pingTimeout"] == 9500
        assert handshakes[0]["maxPayload"] == 2 << 20
        assert (here / "etc" / "run" / "slot-3").exists()
    finally:
        for one in reversed(running):
            one.send_signal(signal.SIGTERM)
            one.wait(20)


# --- reload -------------------------------------------------------------------------


def started(**flags: str) -> StartOptions:
    sources = Sources(environ={}, flags={name: (text,) for name, text in flags.items()})
    return StartOptions.of(sources.resolve())


def test_a_reload_says_what_each_change_needs(here: Path) -> None:
    write('name = "x"\nrun_dir = "run"\n')
    options_before = started(linger="3s")
    unchanged = reload_settings(options_before)
    assert (unchanged.rows, unchanged.error) == ((), "")
    write(
        'name = "y"\nrun_dir = "run"\n\nstall_after = "20s"\nlog_level = "debug"\n'
        'drain_window = 5\nworkers = 7\nhealth_path = "/up"\nlinger = 4\nbuckets = 9\n'
        "max_sessions = 3\n"
    )
    changes = reload_settings(options_before)
    assert [(row.name, row.old, row.new, row.origin, row.applies) for row in changes.rows] == [
        ("name", "x", "y", "limpet.toml:1", Applies.CLUSTER),
        ("log_level", "info", "debug", "limpet.toml:5", Applies.WORKERS),
        ("workers", "auto", "7", "limpet.toml:7", Applies.SCALE),
        ("health_path", "/healthz", "/up", "limpet.toml:8", Applies.BALANCER),
        ("buckets", "1024", "9", "limpet.toml:10", Applies.CLUSTER),
        ("stall_after", "15s", "20s", "limpet.toml:4", Applies.NOW),
        ("drain_window", "2min", "5s", "limpet.toml:6", Applies.WORKERS),
        ("max_sessions", "what the application's Server has", "3", "limpet.toml:11",
         Applies.WORKERS),
    ], "linger was said by a flag"  # fmt: skip
    assert str(changes.rows[0]) == "name: x → y (limpet.toml:1)"
    new = changes.options.settings
    assert (new.name, new.buckets, new.workers) == ("x", 1024, "auto"), "these stay as they run"
    assert (new.log_level, new.drain_window, new.linger) == ("debug", 5, 3)
    assert changes.options.policy.stall_after == 20
    again = reload_settings(changes.options)
    assert [row.name for row in again.rows] == ["name", "workers", "buckets"]


def test_a_reload_with_a_mistake_changes_nothing(here: Path) -> None:
    write("linger = 1\n")
    before = started()
    write("linger = 2\nworkers = 0\nlimger = 3\n")
    changes = reload_settings(before)
    assert changes.options is before
    assert changes.rows == ()
    assert changes.error.splitlines() == [
        "limpet.toml:2: workers = 0: expected 1 to 255, or auto",
        "limpet.toml:3: unknown setting 'limger'; did you mean linger?",
    ]
    Path("limpet.toml").unlink()
    assert reload_settings(before).options.settings.linger == 10


def test_the_command_lines_after_a_reload_are_the_new_ones(here: Path) -> None:
    write("workers = 2\nmax_sessions = 5\n")
    renewer = Renewer(started(), [])
    assert len(renewer.plan.workers) == 2
    assert "--max-sessions=5" in renewer.plan.for_slot(1).argv
    assert "--slot=7" in renewer.plan.for_slot(7).argv, "the spare slot of a reload"

    class Running:
        plan = renewer.plan
        started = plan

        def runs(self, part: str) -> object:
            return getattr(self.started, part)

    renewer.supervisor = Running()  # type: ignore[assignment]
    write("workers = 2\nmax_sessions = 6\nstall_after = 9\n")
    for renewal in (renewer.renew(), renewer.renew()):  # news as long as it is not adopted
        assert list(renewal.changes) == [
            ("stall_after: 15s → 9s (limpet.toml:3)", "applied"),
            ("max_sessions: 5 → 6 (limpet.toml:2)", "workers"),
        ]
    renewal = renewer.renew()
    assert renewal.policy.stall_after == 9
    assert "--max-sessions=6" in renewal.plan.for_slot(7).argv
    Running.plan = renewal.plan
    assert list(renewer.renew().changes) == []
    write("workers = 0\n")
    with pytest.raises(config.ConfigError, match=r"limpet\.toml:1: workers = 0"):
        renewer.renew()


def test_what_hub_and_balancer_do_not_follow_yet_is_named_again(here: Path) -> None:
    write("health_path = '/a'\n")
    renewer = Renewer(started(), [])

    class Running:
        plan = renewer.plan
        balancer = plan.balancer

        def runs(self, part: str) -> object:
            return self.balancer if part == "balancer" else self.plan.hub

    renewer.supervisor = running = Running()  # type: ignore[assignment]
    write("health_path = '/b'\n")
    named = [("health_path: /a → /b (limpet.toml:1)", "limpet restart balancer")]
    for _ in range(3):
        renewal = renewer.renew()
        assert list(renewal.changes) == named
        running.plan = renewal.plan  # adopted, but the balancer still runs
    running.balancer = running.plan.balancer
    assert list(renewer.renew().changes) == []
    assert len(renewer._plans) <= 3


def test_a_release_behind_a_link_is_looked_for_behind_the_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for release in ("one", "two"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "limpet.toml").write_text(f'name = "{release}"\n')
    current = tmp_path / "current"
    current.symlink_to("one")
    monkeypatch.chdir(current)
    assert config.here() == tmp_path / "one", "PWD is of another folder"
    monkeypatch.setenv("PWD", str(current))
    before = Sources()
    assert before.resolve().settings.app_dir == current
    current.unlink()
    current.symlink_to("two")
    assert before.resolve().settings.name == "two"
    assert config.here() == tmp_path / "one", "where this process still is"


def test_a_current_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    result = CliRunner().invoke(limpet, ["status"])
    monkeypatch.chdir(tmp_path)
    assert result.exit_code == 3
    assert "current folder: No such file or directory; change to another" in result.output


def test_processors_are_counted_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "processors", lambda: 4)
    options = started()
    monkeypatch.setattr(config, "processors", lambda: 1)
    assert (options.workers, reload_settings(options).options.workers) == (4, 4)


@pytest.mark.processes
def test_hub_and_balancer_follow_what_is_new_as_documented(
    here: Path, spawn_cluster: Callable[..., RunningCluster]
) -> None:
    path = write("stall_after = 0\n", "x.toml")
    cluster = spawn_cluster("servers.suite_app:io", 1, f"--config={path}")
    before = cluster.pids
    write("stall_after = 3\nhealth_path = '/up'\n", "x.toml")
    for _ in range(2):
        done = invoke("reload", f"--run-dir={cluster.run_directory}")
        assert done.exit_code == 0, done.output
        assert "health_path: /healthz → /up" in done.output
        assert "x.toml:2): limpet restart balancer" in done.output
    # Nobody was told of a watchdog when it started, and nobody dies of it now.
    time.sleep(3.5)
    after = cluster.pids
    assert [after[name] for name in ("hub", "balancer")] == [
        before[name] for name in ("hub", "balancer")
    ]
    assert "has been silent" not in cluster.text
    for name in ("hub", "balancer", "worker-0"):
        os.kill(after[name], signal.SIGUSR1)
    os.kill(cluster.pid, signal.SIGUSR2)
    wait_until(lambda: cluster.text.count("(most recent call first)") >= 3)
    assert cluster.pids == after, "they told where they stand, and went on"
    cluster.wait_restarted("balancer", cluster.kill_role("balancer"))

    def health() -> int:
        try:
            with urllib.request.urlopen(f"{cluster.url}/up", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    wait_until(lambda: health() != 503)  # until the worker has found it
    assert health() == 200
    quiet = invoke("reload", f"--run-dir={cluster.run_directory}", "--dry-run", "--json")
    assert json.loads(quiet.output)["changes"] == []


@pytest.mark.processes
def test_a_running_cluster_takes_new_settings_from_its_file(
    here: Path, spawn_cluster: Callable[..., RunningCluster]
) -> None:
    path = write("max_http_buffer_size = 7777\n", "x.toml")
    cluster = spawn_cluster("servers.suite_app:io", 1, f"--config={path}")
    pid = cluster.pids["worker-0"]
    assert handshake(cluster.url)["maxPayload"] == 7777

    write("max_http_buffer_size = 8888\nstall_after = 1\n", "x.toml")
    refused = invoke("reload", f"--run-dir={cluster.run_directory}")
    assert refused.exit_code == 3
    assert "x.toml:2: stall_after is 1s: expected 0 or at least 3s" in refused.output
    assert cluster.pids["worker-0"] == pid
    assert handshake(cluster.url)["maxPayload"] == 7777

    # What ends meanwhile comes back with the settings the cluster runs with.
    cluster.kill_role("worker-0")
    cluster.wait_restarted("worker-0", pid)
    assert handshake(cluster.url)["maxPayload"] == 7777

    write("max_http_buffer_size = 8888\nbuckets = 2\n", "x.toml")
    done = invoke("reload", f"--run-dir={cluster.run_directory}")
    assert done.exit_code == 0, done.output
    assert "max_http_buffer_size: 7777 → 8888" in done.output
    assert "buckets: 1024 → 2" in done.output
    assert handshake(cluster.url)["maxPayload"] == 8888


def test_development_replaces_nobody_who_is_silent(here: Path) -> None:
    policy = started(dev="true").policy
    assert (policy.stall_after, policy.start_timeout) == (0, 0)
    assert started().policy.stall_after == 15


def test_no_secret_and_no_file_is_on_a_command_line(here: Path) -> None:
    write('api = "127.0.0.1:1"\napi_token_file = "tokens"\n')
    tokens("tokens")
    made = plan(started(), [])
    for command in (made.hub, made.balancer, *made.workers):
        assert "--config=" in command.argv
        assert "secret" not in " ".join(command.argv)
    assert f"--api-token-file={here / 'tokens'}" in made.hub.argv
    assert not any("--api" in one for one in made.balancer.argv)


def test_setting_of_the_table_is_what_it_says() -> None:
    setting: Setting = SETTINGS["max_http_buffer_size"]
    assert setting.shown(None) == "what the application's Server has"
    assert setting.shown(1 << 20) == "1MiB"
    assert SETTINGS["health_path"].shown("") == "none"
    assert replace(setting, name="x").variable == "LIMPET_X"
    assert configdoc.markdown().count("\n| `") == len(SETTINGS)
