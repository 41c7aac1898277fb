"""What `limpet doctor` looks at: the machine, the run directory, the running cluster.

Each check takes what it looks at as arguments and returns findings, so that it can be shown any
machine. A finding that is not fine comes with a remedy.
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from limpet_adapters.rundir import PATH_LIMIT

PROC: Final = Path("/proc")
CGROUPS: Final = Path("/sys/fs/cgroup")

FEW_FILES: Final = 10_240
"""Open files of a process below which many clients do not fit."""
SPARE_FILES: Final = 256
"""Open files that a worker needs beside those of its clients."""
BACKLOG: Final = 1024
PORTS: Final = 20_000
MEBIBYTE: Final = 2**20
_LONGEST_NAME: Final = 24  # of a socket in the run directory
_TIME_ERROR: Final = 5  # adjtimex(2): the clock is not synchronised
_OLDEST_LIBZMQ: Final = (4, 3)


class Level(StrEnum):
    """How a finding is meant."""

    OK = "ok"
    WARN = "warn"  # it works, but not as well, or not with as many clients
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    level: Level
    text: str
    remedy: str = ""

    def document(self) -> dict[str, str]:
        """Return it for JSON."""
        return {
            "check": self.check,
            "level": self.level.value,
            "text": self.text,
            "remedy": self.remedy,
        }


def fine(check: str, text: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(check, Level.OK, text)


def warn(check: str, text: str, remedy: str) -> Finding:
    """Return a finding that something could be better."""
    return Finding(check, Level.WARN, text, remedy)


def fail(check: str, text: str, remedy: str) -> Finding:
    """Return a finding that something is wrong."""
    return Finding(check, Level.FAIL, text, remedy)


# --- the machine --------------------------------------------------------------


def open_files(
    pids: Mapping[str, int], sessions: int | None = None, proc: Path = PROC
) -> Iterator[Finding]:
    """Look at how many files processes may open: each client of a worker is one.

    Args:
        pids: workers and the balancer by name; those of nobody else can be read. When none runs,
            it is this process that stands for them: it is started from the same place.
        sessions: how many one worker is to have; None when nobody said.
        proc: where the kernel shows processes.
    """
    check = "open files"
    looked_at = pids or {"a process started from here": os.getpid()}
    wanted = FEW_FILES if sessions is None else sessions + SPARE_FILES
    remedy = (
        "LimitNOFILE=1048576 in the unit, or `ulimit -n 1048576` before `limpet start`; "
        "then restart"
    )
    smallest: int | None = None
    for name, pid in looked_at.items():
        limit = _limit(proc / str(pid) / "limits")
        if limit is None:
            continue
        smallest = limit if smallest is None else min(smallest, limit)
        used = _entries(proc / str(pid) / "fd") if pids else None
        if used is not None and used > 0.8 * limit:
            yield fail(check, f"{name} has {used} of {limit} files open", remedy)
        elif limit < wanted:
            text = f"{name} may open {limit} files, so it takes fewer than {limit} clients"
            if sessions is None:
                yield warn(check, text, remedy)
            else:
                yield fail(check, f"{text}; {sessions} are expected", remedy)
        else:
            continue
        return  # the others are alike
    if smallest is not None:
        yield fine(check, f"each process may open {smallest}")


def _limit(path: Path) -> int | None:
    match = re.search(r"^Max open files\s+(\d+|unlimited)", _read(path), re.MULTILINE)
    if match is None:
        return None
    return sys.maxsize if match[1] == "unlimited" else int(match[1])


def backlog(proc: Path = PROC) -> Iterator[Finding]:
    """Look at how many connections may wait to be accepted."""
    check = "connection backlog"
    waiting = _number(proc / "sys/net/core/somaxconn")
    if waiting is None:
        return
    if waiting < BACKLOG:
        yield warn(
            check,
            f"net.core.somaxconn is {waiting}: of many who come back at once some are turned away",
            "sysctl -w net.core.somaxconn=4096, and a file in /etc/sysctl.d to keep it",
        )
    else:
        yield fine(check, f"net.core.somaxconn is {waiting}")


def ports(bound: Iterable[int] = (), proc: Path = PROC) -> Iterator[Finding]:
    """Look at the ports of outgoing connections: a proxy on this host needs one for each client.

    Args:
        bound: ports that the cluster listens on.
        proc: where the kernel shows its settings.
    """
    check = "local ports"
    numbers = _read(proc / "sys/net/ipv4/ip_local_port_range").split()
    if len(numbers) != 2 or not all(one.isdigit() for one in numbers):
        return
    low, high = map(int, numbers)
    reserved = _ranges(_read(proc / "sys/net/ipv4/ip_local_reserved_ports"))
    for port in bound:
        if low <= port <= high and not any(first <= port <= last for first, last in reserved):
            yield warn(
                check,
                f"port {port} is one that outgoing connections may take ({low} to {high}): "
                "a restart may find it taken",
                f"another port, or sysctl -w net.ipv4.ip_local_reserved_ports={port}",
            )
            return
    if high - low + 1 < PORTS:
        yield warn(
            check,
            f"{high - low + 1} ports for outgoing connections: a proxy on this host cannot have "
            "more clients than that to one address",
            "sysctl -w net.ipv4.ip_local_port_range='10240 65535'",
        )
    else:
        yield fine(check, f"{high - low + 1} for outgoing connections")


def _ranges(text: str) -> list[tuple[int, int]]:
    found = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            found.append((int(first), int(last) if last.isdigit() else int(first)))
    return found


def memory(
    workers: Sequence[Mapping[str, Any]], proc: Path = PROC, cgroups: Path = CGROUPS
) -> Iterator[Finding]:
    """Look at the memory of the machine and of each worker, against the limit of its cgroup.

    Args:
        workers: as the API shows them: ``name``, ``pid``, ``rss_bytes``.
        proc: where the kernel shows processes.
        cgroups: where cgroup v2 is mounted.
    """
    check = "memory"
    fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read(proc / "meminfo"), re.MULTILINE))
    available, whole = (int(fields.get(key, 0)) * 1024 for key in ("MemAvailable", "MemTotal"))
    if whole:
        text = f"{available // MEBIBYTE} of {whole // MEBIBYTE} MiB are available"
        if available < whole * 0.05:
            yield fail(check, text, "fewer workers, or a machine with more memory")
        elif available < whole * 0.15:
            yield warn(check, text, "fewer workers, or a machine with more memory")
        else:
            yield fine(check, text)
    for worker in workers:
        limit = cgroup_limit(worker["pid"], "memory.max", proc, cgroups)
        if limit is None or not worker["rss_bytes"]:
            continue
        share = worker["rss_bytes"] / limit
        if share > 0.8:
            yield (fail if share > 0.95 else warn)(
                check,
                f"{worker['name']} uses {worker['rss_bytes'] // MEBIBYTE} of the "
                f"{limit // MEBIBYTE} MiB that its cgroup may have",
                "raise MemoryMax= of the unit (or the container's limit), or add workers",
            )


def limits(
    pids: Mapping[str, int], workers: int, proc: Path = PROC, cgroups: Path = CGROUPS
) -> Iterator[Finding]:
    """Look at what the cgroups of the processes leave them: processors and tasks.

    Args:
        pids: the processes by name; this one stands for them when none runs.
        workers: how many there are.
        proc: where the kernel shows processes.
        cgroups: where cgroup v2 is mounted.
    """
    check = "cgroup limits"
    told = False
    seen: set[Path] = set()
    for pid in pids.values() or [os.getpid()]:
        for group in _groups(pid, proc, cgroups):
            if group in seen:
                continue
            seen.add(group)
            for finding in (*_tasks(check, group), *_processors(check, group, workers)):
                told = True
                yield finding
    if not told and seen:
        yield fine(check, "none that is near")


def _tasks(check: str, group: Path) -> Iterator[Finding]:
    most, used = _number(group / "pids.max"), _number(group / "pids.current")
    if most is not None and used is not None and used > 0.8 * most:
        yield warn(
            check,
            f"{used} of the {most} processes and threads that {group.name} may have are in use",
            "raise TasksMax= of the unit or the slice (or the container's limit)",
        )


def _processors(check: str, group: Path, workers: int) -> Iterator[Finding]:
    quota, _, period = _read(group / "cpu.max").strip().partition(" ")
    if not (quota.isdigit() and period.isdigit() and int(period)):
        return
    allowed = int(quota) / int(period)
    if workers > allowed + 0.5:
        yield warn(
            check,
            f"{workers} workers share the {allowed:g} processors that {group.name} may use",
            "fewer workers (--workers auto looks at this limit), or a higher CPUQuota=",
        )


def cgroup_limit(pid: int, file: str, proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Return the tightest limit of a process's cgroup and those above it; None without one."""
    found = [_number(group / file) for group in _groups(pid, proc, cgroups)]
    return min((one for one in found if one is not None), default=None)


def _groups(pid: int, proc: Path, cgroups: Path) -> Iterator[Path]:
    """Return the cgroup of a process and those above it; nothing where there is no cgroup v2."""
    match = re.search(r"^0::/(.*)$", _read(proc / str(pid) / "cgroup"), re.MULTILINE)
    if match is None or ".." in match[1]:
        return
    group = cgroups / match[1]
    while True:
        if group.is_dir():
            yield group
        if group == cgroups:
            return
        group = group.parent


def disk(paths: Mapping[str, Path]) -> Iterator[Finding]:
    """Look at the space where sockets, locks and temporary files lie.

    Args:
        paths: places by what they are for.
    """
    check = "disk space"
    troubled = False
    for what, path in paths.items():
        try:
            figures = os.statvfs(_existing(path))
        except OSError:
            continue
        left = figures.f_bavail * figures.f_frsize
        inodes = figures.f_favail if figures.f_files else 1000
        if left < 10 * MEBIBYTE or inodes < 100:
            troubled = True
            yield fail(check, f"{path} ({what}) has {left // MEBIBYTE} MiB left", "make room there")
        elif left < 100 * MEBIBYTE:
            troubled = True
            yield warn(check, f"{path} ({what}) has {left // MEBIBYTE} MiB left", "make room there")
    if not troubled:
        yield fine(check, "enough")


def clock(synchronised: bool | None) -> Iterator[Finding]:
    """Look at the wall clock: nothing is decided by it, but logs and the API show it."""
    check = "clock"
    if synchronised is None:
        return
    if synchronised:
        yield fine(check, "synchronised")
    else:
        yield warn(
            check,
            "not synchronised: the times in logs and in the API cannot be compared between hosts",
            "timedatectl set-ntp true, or install chrony",
        )


def clock_synchronised() -> bool | None:
    """Ask the kernel (adjtimex(2)) whether the clock is synchronised; None when it does not say."""
    try:
        answer = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if answer < 0 else answer != _TIME_ERROR


# --- the run directory --------------------------------------------------------


def run_directory(path: Path, uid: int, proc: Path = PROC) -> Iterator[Finding]:
    """Look at the place where the processes meet.

    Args:
        path: the run directory.
        uid: whose it is to be.
        proc: where the kernel shows its sockets.
    """
    check = "run directory"
    longest = PATH_LIMIT - 1 - _LONGEST_NAME
    if len(os.fsencode(path)) > longest:
        yield fail(
            check, f"{path} is too long for sockets", f"--run-dir of at most {longest} bytes"
        )
        return
    try:
        status = path.lstat()
    except FileNotFoundError:
        yield fine(check, f"{path} is made at the start")
        return
    except OSError as error:
        yield fail(check, f"{path}: {error.strerror}", "choose another --run-dir")
        return
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISDIR(status.st_mode):
        yield fail(check, f"{path} is no directory", "remove it, or name what it points to")
    elif status.st_uid != uid:
        yield fail(
            check,
            f"{path} belongs to uid {status.st_uid}, this is uid {uid}",
            f"run as uid {status.st_uid}, or choose another --run-dir or --name",
        )
    elif mode & 0o077:
        yield fail(check, f"{path} has mode {mode:04o}", f"chmod 700 {path}")
    else:
        yield fine(check, f"{path}")
        yield from stale_sockets(path, proc)


def stale_sockets(path: Path, proc: Path = PROC) -> Iterator[Finding]:
    """Look for socket files that nobody listens on any more."""
    check = "sockets"
    bound = set()
    for line in _read(proc / "net/unix").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8:
            # One that was moved to its place is shown where it was bound (balancer.sock.new).
            bound.add(os.path.realpath(fields[7].removesuffix(".new")))
    if not bound:
        return  # the kernel does not show them here
    try:
        sockets = [one for one in path.iterdir() if stat.S_ISSOCK(one.lstat().st_mode)]
    except OSError:
        return
    stale = sorted(one.name for one in sockets if os.path.realpath(one) not in bound)
    if stale:
        named = ", ".join(stale[:3]) + (f" and {len(stale) - 3} more" if len(stale) > 3 else "")
        yield warn(
            check,
            f"nobody listens on {named} in {path}",
            "left by processes that were killed; the next start replaces them",
        )
    else:
        yield fine(check, f"{len(sockets)}, each with a listener")


# --- the installation ---------------------------------------------------------


def libraries(found: Mapping[str, str | None], libzmq: tuple[int, ...]) -> Iterator[Finding]:
    """Look at Python and the libraries.

    Args:
        found: versions by name; None for what is not installed.
        libzmq: the version that pyzmq was built with.
    """
    check = "libraries"
    text = ".".join(map(str, libzmq))
    if libzmq < _OLDEST_LIBZMQ:
        yield fail(check, f"libzmq {text} is too old", "install pyzmq from its wheel: it has 4.3")
    if found.get("uvloop") is None and found.get("implementation") == "CPython":
        yield warn(
            check,
            "uvloop is not installed: the workers use asyncio's own loop, which is slower",
            "pip install uvloop",
        )
    for name in ("aiohttp", "httptools", "msgspec", "orjson", "pyzmq", "websockets"):
        if found.get(name) is None:
            yield fail(check, f"{name} is not installed", f"pip install {name}")
    if libzmq >= _OLDEST_LIBZMQ and found.get("uvloop") is not None:
        yield fine(check, f"Python {found.get('python')}, libzmq {text}, uvloop {found['uvloop']}")


def versions(
    installed: str,
    installed_at: float | None,
    running: Mapping[str, str],
    started: Mapping[str, float],
) -> Iterator[Finding]:
    """Look whether what runs is what is installed: after an upgrade it takes a restart.

    Args:
        installed: version of the package on disk.
        installed_at: when it was installed, wall time; None when that is not known.
        running: versions by process, of those that tell.
        started: when each process started, wall time, of those that do not.
    """
    check = "versions"
    different = {name: one for name, one in running.items() if one != installed}
    older = [name for name, at in started.items() if installed_at is not None and at < installed_at]
    if different:
        name, one = next(iter(different.items()))
        yield warn(
            check,
            f"{name} runs limpet {one}, installed is {installed}: restart needed",
            "limpet restart hub balancer, then limpet reload",
        )
    elif older:
        yield warn(
            check,
            f"{', '.join(older)} started before limpet {installed} was installed",
            "limpet reload, so that what runs is what is installed",
        )
    elif running or started:
        yield fine(check, f"all run limpet {installed}")


def units(root: Path, templates: Path, names: Iterable[str]) -> Iterator[Finding]:
    """Look whether the installed units of systemd are those of this version.

    Args:
        root: where the file system begins.
        templates: the folder of the shipped ones.
        names: of the units.
    """
    check = "systemd units"
    names = list(names)
    folder = root / "etc/systemd/system"
    different, absent = [], []
    for name in names:
        installed, shipped = _read(folder / name), _read(templates / name)
        if not installed:
            absent.append(name)
            continue
        # Which Python runs limpet is this host's own.
        command = re.search(r"^ExecStart=(.+) (?:hub|balancer|worker)\b", installed, re.MULTILINE)
        if command is not None:
            shipped = shipped.replace("@LIMPET@", command[1])
        if installed != shipped:
            different.append(name)
    if len(absent) == len(names):
        return  # systemd does not run limpet here
    if absent or different:
        what = [f"{one} is missing" for one in absent] + [f"{one} differs" for one in different]
        yield warn(
            check,
            f"not those of this version: {', '.join(what)}",
            "limpet systemd install; changes of your own belong into drop-ins",
        )
    else:
        yield fine(check, "those of this version")


# --- reading ------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _entries(path: Path) -> int | None:
    try:
        return sum(1 for _ in path.iterdir())
    except OSError:
        return None


def _existing(path: Path) -> Path:
    """Return the path, or the nearest one above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
