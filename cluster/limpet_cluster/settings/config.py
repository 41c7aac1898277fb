"""From file, environment and command line to checked `Settings`, each value with its origin.

What is said later wins: default, file, environment, command line. There is one file, and all
processes of a cluster can read the same one.
"""

from __future__ import annotations

import math
import os
import shlex
import socket
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

from limpet_adapters.rundir import RunDirectory, RunDirectoryError
from limpet_cluster import logs
from limpet_cluster.settings import files as configfile
from limpet_cluster.settings.files import ConfigFile, ConfigFileError, suggestion
from limpet_cluster.settings.table import MOST_WORKERS, SETTINGS, Setting, Settings
from limpet_cluster.settings.tokens import TokenFileError, read_tokens
from limpet_cluster.settings.values import duration, quote
from limpet_cluster.supervisor.lifecycle import Policy

FILE_NAME: Final = "limpet.toml"
"""Looked for in the current folder."""
SYSTEM_FILE: Final = Path("/etc/limpet/config.toml")
FILE_VARIABLE: Final = "LIMPET_CONFIG"
INTERNAL: Final = frozenset(
    {FILE_VARIABLE, "LIMPET_PARENT", "LIMPET_ROLE", "LIMPET_REQUIRE", "LIMPET_SEED"}
)
"""Variables that are no settings: where the file is, what our processes tell each other, and what
our tests are told."""
DEFAULT: Final = "default"
"""The origin of what nobody set."""
PLACE: Final = ("name", "run_dir")
"""The settings that say which cluster on this host is meant."""

_LONGEST_SHOWN: Final = 100
"""Characters of a wrong value in a message."""
_LAST: Final = sys.maxsize
_BEATS: Final = 3.0
"""Seconds: three beats of the bus. In less, a worker cannot be told from a deaf one."""
_PING_INTERVAL: Final = 25.0
_PING_TIMEOUT: Final = 20.0
"""Where the application alone says them: most leave the defaults."""


class ConfigError(ValueError):
    """A value that cannot be used; the message names option, value, and what would be right."""


class SettingsError(ConfigError):
    """Settings that cannot be used: all that is wrong with them, one line each.

    Attributes:
        problems: the lines.
        usage: whether the command line alone is at fault.
    """

    def __init__(self, problems: Iterable[str], *, usage: bool = False) -> None:
        self.problems = tuple(problems)
        self.usage = usage
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings, and where they come from."""

    settings: Settings
    origins: Mapping[str, str]
    """Of each: ``default``, ``FILE:LINE``, ``LIMPET_X`` or ``--x``."""
    file: Path | None
    """The file that was read; None where there is none."""
    warnings: tuple[str, ...]
    sources: Sources
    """Where they were looked for."""


def here() -> Path:
    """Return the current folder by the name it was entered by (``$PWD``), as pwd(1) does.

    Where that leads through a link, a deployment turns the link and reloads: the new release is
    meant then.

    Raises:
        SettingsError: it does not exist any more.
    """
    try:
        named = Path(os.environ.get("PWD", ""))
        if named.is_absolute() and named.samefile("."):
            return named
    except OSError:
        pass
    try:
        return Path.cwd()
    except OSError as error:
        raise SettingsError([f"current folder: {error.strerror}; change to another"]) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where a command gets its settings from; kept, to look again for a reload."""

    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What the command line says, as text, by the names of the settings."""
    file: str | None = None
    """``--config``; empty for no file at all, None to look for one."""
    takes: Collection[str] = frozenset(SETTINGS)
    """Names of the settings that the command takes as flags."""
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    directory: Path = field(default_factory=here)
    """Where relative paths begin, but for those in the file: they begin at the file."""

    def resolve(self) -> Resolved:
        """Look at everything and check it.

        Raises:
            SettingsError: the file cannot be read; or a value in it, in the environment or on the
                command line cannot be used.
        """
        file, taken = self._take(SETTINGS)
        for line, problem in file.unknown(SETTINGS) if file is not None else ():
            taken.complain(problem, line=line)
        taken.relate(self.takes)
        taken.raise_problems()
        return Resolved(
            Settings(**taken.values),
            {name: taken.origins.get(name, DEFAULT) for name in SETTINGS},
            None if file is None else file.path,
            tuple(unknown_variables(self.environ)),
            self,
        )

    def place(self) -> Settings:
        """Look only at what says which cluster on this host is meant.

        Faults of other settings keep nobody from asking a cluster that runs.

        Raises:
            SettingsError: see `resolve`.
        """
        # A given run directory says all: then no file is in the way.
        source = replace(self, file="") if "run_dir" in self.flags else self
        _, taken = source._take(PLACE)  # noqa: SLF001 - our own kind
        taken.raise_problems()
        return Settings(**taken.values)

    def _take(self, names: Iterable[str]) -> tuple[ConfigFile | None, _Taken]:
        file = self._read()
        taken = _Taken()
        for name in names:
            for said in self._said(SETTINGS[name], file):
                taken.take(SETTINGS[name], said)
        taken.values.setdefault("app_dir", self.directory)
        return file, taken

    def _said(self, setting: Setting, file: ConfigFile | None) -> Iterator[_Said]:
        """Return what the places say of a setting, the weakest first."""
        name = setting.name
        if file is not None and name in file.values:
            value, where = file.values[name], file.origin(name)
            shown = f"{where}: {name} = {_short(_toml(value))}"
            yield _Said(where, shown, value, file.path.parent, file.lines.get(name, _LAST))
        texts = self.flags.get(name)
        if texts is not None:
            shown = " ".join(_short(shlex.quote(text)) for text in texts)
            if not setting.argument:
                shown = f"{setting.flag} {shown}"
            yield _Said(setting.flag, shown, texts, self.directory, by_flag=True)
        elif text := self.environ.get(setting.variable):  # an empty one is as good as none
            shown = f"{setting.variable}={_short(shlex.quote(text))}"
            yield _Said(setting.variable, shown, (text,), self.directory)

    def _read(self) -> ConfigFile | None:
        path = self._find()
        try:
            return None if path is None else configfile.read(path, self.directory)
        except ConfigFileError as error:
            raise SettingsError([str(error)]) from None

    def _find(self) -> Path | None:
        """Return the file to read: the one that is named, else the first that exists."""
        by = f"{FILE_VARIABLE}=" if self.file is None else "--config "
        named = self.environ.get(FILE_VARIABLE, "") if self.file is None else self.file
        if named:
            path = self.directory / named
            if not _there(path):
                raise SettingsError([f"{by}{shlex.quote(named)}: there is no such file"])
            return path
        if self.file is not None:
            return None
        candidates = [self.directory / FILE_NAME]
        if given := self.environ.get("CONFIGURATION_DIRECTORY", "").partition(":")[0]:
            candidates.append(Path(given) / "config.toml")
        return next((one for one in (*candidates, SYSTEM_FILE) if _there(one)), None)


def _there(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError:
        return True  # perhaps; reading it says what is in the way, silence would mislead
    except OSError:
        return False
    return True


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Return a message for each ``LIMPET_`` variable that is no setting."""
    known = {setting.variable for setting in SETTINGS.values()}
    return [
        f"{name}: no setting has this variable{suggestion(name, known)}"
        for name in sorted(environ)
        if name.startswith("LIMPET_") and name not in known | INTERNAL
    ]


# --- gathering --------------------------------------------------------------


class _Said(NamedTuple):
    """What one place says of a setting."""

    origin: str
    shown: str
    """Place and value, as a message begins with them."""
    value: object
    """What TOML holds; from elsewhere a tuple of texts."""
    base: Path
    """Where a relative path begins."""
    line: int = _LAST
    """In the file."""
    by_flag: bool = False


class _Taken:
    """Values while they are gathered, and what is wrong with them."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.flags: set[str] = set()
        """Names of the settings that a flag says."""
        self.wrong: set[str] = set()
        """Names of those whose value cannot be used."""
        self.problems: list[tuple[int, str]] = []
        """With their line in the file; those of other places come after all lines."""
        self.usage = True
        """Whether flags alone are at fault."""

    def take(self, setting: Setting, said: _Said) -> None:
        """Take what a place says over what a weaker one said."""
        name = setting.name
        try:
            value = _value(setting, said.value)
        except ValueError as error:
            self.wrong.add(name)
            why = str(error) or f"expected {setting.kind.expected}"
            self.complain(f"{said.shown}: {why}", line=said.line, by_flag=said.by_flag)
            return
        self.values[name] = said.base / value if isinstance(value, Path) else value
        self.origins[name] = said.origin
        if said.by_flag:
            self.flags.add(name)

    def complain(self, problem: str, *, line: int = _LAST, by_flag: bool = False) -> None:
        """Note what is wrong."""
        self.problems.append((line, problem))
        self.usage = self.usage and by_flag

    def relate(self, takes: Collection[str]) -> None:
        """Check what holds between values.

        A process of a running cluster is given only the flags of its own settings; how these
        relate to the others was checked when the cluster started. What concerns one setting
        concerns only those who take it: the hub need not see the application's folder.
        """
        for names, problem in (*_RELATIONS, *(_BY_WHO_STARTS if "workers" in takes else ())):
            partial = len(names) == 1 or not self.flags.isdisjoint(names)
            if (partial and not set(names).issubset(takes)) or not self.wrong.isdisjoint(names):
                continue
            text = problem(Settings(**self.values))
            if text:
                said = [name for name in names if name in self.origins]
                if len(said) == 1 or self.flags.issuperset(said):
                    places = " and ".join(self.origins[name] for name in said)
                else:
                    places = " and ".join(f"{self.origins[name]} ({name})" for name in said)
                shown = f"{places}: {text}" if said else text
                self.complain(shown, by_flag=bool(said) and self.flags.issuperset(said))

    def raise_problems(self) -> None:
        """Raise what was found to be wrong."""
        if self.problems:
            self.problems.sort(key=itemgetter(0))
            raise SettingsError((text for _, text in self.problems), usage=self.usage)


def _value(setting: Setting, said: object) -> Any:
    kind = setting.kind
    if not isinstance(said, tuple):
        return None if said == "" and setting.default is None else kind.read(said)
    if said == ("",) and setting.default is None:
        return None
    if kind.several:
        return kind.check([one for text in said for one in kind.of_text(text)])
    return kind.parse(said[-1])


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return quote(value)
    try:
        return str(value)
    except ValueError:  # Python writes no number of thousands of digits
        return "…"


# --- relations --------------------------------------------------------------


def _stall_and_beats(settings: Settings) -> str:
    if settings.stall_after == 0 or settings.stall_after >= _BEATS:
        return ""
    return (
        f"stall_after is {duration(settings.stall_after)}: expected 0 or at least "
        f"{duration(_BEATS)}, three beats of the bus"
    )


def _stall_and_pings(settings: Settings) -> str:
    interval, timeout = pings(settings)
    if settings.stall_after < interval + timeout:
        return ""
    return (
        f"stall_after is {duration(settings.stall_after)}: expected less than ping_interval + "
        f"ping_timeout = {duration(interval + timeout)}, so that a stuck worker is replaced "
        "before its clients give up; lower stall_after or raise the other two"
    )


def _api_and_tokens(settings: Settings) -> str:
    if settings.api is None or settings.api_token_file is not None:
        return ""
    return "api needs api_token_file (--api-token-file): TCP lets anybody connect"


def _tokens(settings: Settings) -> str:
    if settings.api_token_file is None:
        return ""
    try:
        read_tokens(settings.api_token_file)
    except TokenFileError as error:
        return str(error)
    return ""


def _folder_of_app(settings: Settings) -> str:
    try:
        if settings.app_dir.is_dir():
            return ""
        why = "there is no such folder"
    except OSError as error:
        why = error.strerror or str(error)
    return f"app_dir is {_short(str(settings.app_dir))}: {why}"


_RELATIONS: Final[tuple[tuple[tuple[str, ...], Callable[[Settings], str]], ...]] = (
    (("stall_after",), _stall_and_beats),
    (("stall_after", "ping_interval", "ping_timeout"), _stall_and_pings),
    (("api", "api_token_file"), _api_and_tokens),
    (("app_dir",), _folder_of_app),
)
"""The settings of a relation, and what says how it is broken (else "")."""
_BY_WHO_STARTS: Final = ((("api_token_file",), _tokens),)
"""The same, but looked at only by who starts, reloads or checks a cluster: its processes look for
themselves, and tell their supervisor what they find."""


# --- what follows from the settings -----------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What all processes of one cluster on one host share."""

    run_directory: Path
    name: str = "default"
    node: int = 0
    path: str = "/socket.io/"
    """The Engine.IO path; the application's server must have the same."""
    log_level: str = "info"
    log_format: str = "auto"

    @classmethod
    def of(cls, settings: Settings) -> Common:
        """Return what the settings say, completed by what this host and terminal are.

        Raises:
            ConfigError: there is no place to meet at.
        """
        return cls(
            run_directory=find_run_directory(settings.run_dir, settings.name),
            name=settings.name,
            node=node_number(settings.node),
            path=settings.path,
            log_level=settings.log_level,
            log_format=logs.resolve(settings.log_format),
        )

    def open(self) -> RunDirectory:
        """Return the run directory, made when it is missing.

        Raises:
            ConfigError: it cannot be used.
        """
        try:
            return RunDirectory(self.run_directory)
        except RunDirectoryError as error:
            raise ConfigError(str(error)) from None
        except OSError as error:
            raise ConfigError(
                f"run directory {self.run_directory}: {error.strerror}; choose another --run-dir"
            ) from None


def pings(settings: Settings) -> tuple[float, float]:
    """Return ping interval and ping timeout; those of most applications where nothing is set."""
    return settings.ping_interval or _PING_INTERVAL, settings.ping_timeout or _PING_TIMEOUT


def worker_count(workers: int | str) -> int:
    """Return a number of workers; ``auto`` is one for each processor this process may use."""
    return min(MOST_WORKERS, processors()) if workers == "auto" else int(workers)


def processors(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many processors this process may use: its affinity, and a container's limit."""
    count = len(os.sched_getaffinity(0))
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        count = min(count, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or "max": no limit
        pass
    return max(1, count)


def find_run_directory(
    given: str | Path | None, name: str, environ: Mapping[str, str] = os.environ
) -> Path:
    """Return where the cluster of that name meets on this host.

    ``run_dir``, else ``$RUNTIME_DIRECTORY`` (systemd), else ``$XDG_RUNTIME_DIR/limpet/<name>``,
    else ``/run/limpet/<name>`` for root and a directory of the user's own in ``/tmp`` for others.

    Raises:
        ConfigError: the name has characters that do not belong into a path, or somebody else
            may have put the directory there.
    """
    try:
        SETTINGS["name"].kind.parse(name)
    except ValueError:
        raise ConfigError(f"--name {name!r}: expected {SETTINGS['name'].kind.expected}") from None
    if given:
        return Path(given).absolute()
    if runtime := environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]:
        return Path(runtime)
    if session := environ.get("XDG_RUNTIME_DIR"):
        return Path(session) / "limpet" / name
    if os.getuid() == 0:
        return Path("/run/limpet") / name
    directory = Path(f"/tmp/limpet-{os.getuid()}-{name}")  # noqa: S108 - checked to be ours, 0700
    if directory.is_symlink():
        raise ConfigError(f"run directory {directory} is a link; choose another with --run-dir")
    return directory


def node_number(given: int | None) -> int:
    """Return the number of this host: as configured, else derived from its name."""
    if given is not None:
        return given
    digest = blake2b(socket.gethostname().encode(), digest_size=2).digest()
    return int.from_bytes(digest, "big")


def development(policy: Policy) -> Policy:
    """Return the policy for ``--dev``: a process that stands at a breakpoint is not replaced."""
    return replace(policy, stall_after=0.0, start_timeout=0.0)
