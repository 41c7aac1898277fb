"""A host that real systemd runs, booted beside this one: its files are an overlay of ours.

Or of those of another distribution, whose systemd and Python then run: LIMPET_SYSTEMD_ROOT names
a folder that has them. It has wheels of what limpet needs in srv/wheels; limpet is the checkout's.
For Debian 13, for example, as root, and with what belongs to that Python:

    debootstrap --variant=minbase \
        --include=systemd,systemd-sysv,dbus,procps,iproute2,curl,python3,python3-venv \
        trixie /var/tmp/trixie
    pip download --dest /var/tmp/trixie/srv/wheels --python-version 3.13 \
        --only-binary=:all: --constraint scripts/requirements.txt .
    LIMPET_SYSTEMD_ROOT=/var/tmp/trixie LIMPET_REQUIRE=systemd pytest tests/systemd
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from faults.crowd import taking
from harness import TESTS, wait_until
from limpet_balancer.channel import ask_stats
from limpet_balancer.handover import HandoverError
from limpet_cluster.units.render import RUN_DIRECTORY, TARGET, templates
from raw_clients import Address

PROJECT: Final = TESTS.parent
ROOT: Final = Path(os.environ.get("LIMPET_SYSTEMD_ROOT", "/")).resolve()
OURS: Final = str(ROOT) == "/"
WHEELS: Final = Path("/srv/wheels")
VENV: Final = Path("/opt/limpet-tests")
_TOOLS: Final = ("unshare", "nsenter", "setpriv", "pivot_root")
_TOOLS_INSIDE: Final = ("systemctl", "systemd-analyze", "systemd-sysusers")
_HIDDEN: Final = ("/root/", "/home/", "/tmp/")


def missing() -> str:
    """Return what keeps a host from being booted here; empty when nothing does."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root can boot it"
    if not (ROOT / "lib/systemd/systemd").exists():
        return "no systemd" if OURS else f"no systemd in {ROOT}"
    lacking = [tool for tool in _TOOLS if shutil.which(tool, path=_PATH) is None]
    if lacking := lacking + [tool for tool in _TOOLS_INSIDE if not has(tool)]:
        return f"no {', '.join(lacking)}"
    if unified_hierarchy() is None:
        return "no unified cgroup hierarchy"
    if base_python() is None:
        return f"no Python {_VERSION} that every user can run" if OURS else "no Python in the tree"
    if not OURS and not list(_wheels()):
        return f"no wheels in {_inside(WHEELS)}"
    tried = subprocess.run(("unshare", "--mount", "--pid", "--fork", "true"), check=False)
    return "" if tried.returncode == 0 else "namespaces are not permitted"


_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_VERSION: Final = f"{sys.version_info[0]}.{sys.version_info[1]}"


def has(tool: str) -> bool:
    """Return whether the host that is booted has a program."""
    folders = ":".join(str(_inside(folder)) for folder in _PATH.split(":"))
    return shutil.which(tool, path=folders) is not None


def _inside(path: str | Path) -> Path:
    return ROOT / str(path).lstrip("/")


def _wheels() -> Iterator[Path]:
    """Yield the wheels of what limpet needs, that are of another distribution's Python."""
    return (one for one in _inside(WHEELS).glob("*.whl") if not one.name.startswith("limpet-"))


def unified_hierarchy() -> Path | None:
    """Return where cgroup v2 is mounted and may be written."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(place, os.W_OK):
            return Path(place)
    return None


def base_python() -> Path | None:
    """Return a Python of the version that runs the tests, outside of home folders.

    Of another distribution, its own, whatever its version.
    """
    if not OURS:
        return Path("/usr/bin/python3") if has("python3") else None
    own = Path(sys.executable).resolve()
    for path in (own, Path(f"/usr/local/bin/python{_VERSION}"), Path(f"/usr/bin/python{_VERSION}")):
        if path.exists() and not str(path.resolve()).startswith(_HIDDEN):
            return path
    return None


class Host:
    """One booted systemd. Its network is ours, so clients here reach what listens there."""

    def __init__(self) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="limpet-host-"))
        hierarchy = unified_hierarchy()
        assert hierarchy is not None
        self._cgroup = hierarchy / self.state.name
        self._rig: subprocess.Popen[bytes] | None = None
        self.init = 0
        """Pid of its PID 1, seen from here."""

    # --- life ---------------------------------------------------------------

    def boot(self) -> None:
        """Start it and wait until systemd has."""
        with (self.state / "rig").open("wb") as output:
            self._rig = subprocess.Popen(
                ("unshare", "--mount", "--propagation", "private", TESTS / "systemd" / "boot.sh"),
                env={
                    "PATH": _PATH,
                    "ROOT": str(ROOT),
                    "STATE": str(self.state),
                    "CGROUP": str(self._cgroup),
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._wait_up(0)

    def reboot(self) -> None:
        """Reboot it as an administrator does; what was written stays."""
        before = self.init
        self.run("systemctl", "reboot", check=False)
        self._wait_up(before)

    def _wait_up(self, before: int) -> None:
        def up() -> bool:
            assert self._rig is not None
            if self._rig.poll() is not None:
                raise AssertionError(f"the host did not boot\n{self.console}")
            try:
                unshare = int((self.state / "unshare").read_text())
                children = Path(f"/proc/{unshare}/task/{unshare}/children").read_text().split()
            except (OSError, ValueError):
                return False
            if not children or int(children[0]) == before:
                return False
            self.init = int(children[0])
            # Until it has become systemd, it is a shell that still mounts.
            try:
                if Path(f"/proc/{self.init}/exe").readlink().name != "systemd":
                    return False
            except OSError:  # it has ended meanwhile, which the rig tells in a moment
                return False
            state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
            return state in {"running", "degraded"}

        wait_until(up, 60, f"the host did not boot\n{self.console}")

    def power_off(self) -> None:
        """End it and remove what it leaves."""
        if self._rig is not None:
            if self._rig.poll() is None:
                self._end_rig(self._rig)
            self._rig = None
        if self._cgroup.exists():
            # When its rig has ended, the last of its processes may still be on their way out.
            events = self._cgroup / "cgroup.events"
            wait_until(lambda: "populated 0" in events.read_text(), 15, "a process is left")
            folders = [Path(one[0]) for one in os.walk(self._cgroup, topdown=False)]
            for folder in folders:
                folder.rmdir()
        shutil.rmtree(self.state)

    def _end_rig(self, rig: subprocess.Popen[bytes]) -> None:
        if self.init:
            self.run("systemctl", "poweroff", "--force", check=False)
            try:
                rig.wait(15)
                return
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):  # it has just made it
                    os.kill(self.init, signal.SIGKILL)
        else:
            rig.kill()  # there is no PID 1 yet; what there is goes with it
        rig.wait(15)

    @property
    def console(self) -> str:
        """What it has written to its console."""
        texts = []
        for name in ("rig", "console"):
            try:
                texts.append((self.state / name).read_text(errors="replace"))
            except OSError:
                pass
        return "\n".join(texts)[-8000:]

    # --- inside -------------------------------------------------------------

    def run(
        self, *command: object, check: bool = True, timeout: float = 60, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on it as root; fail with all it said when it fails."""
        done = subprocess.run(
            [
                *("nsenter", f"--target={self.init}", "--mount", "--pid", "--uts", "--ipc"),
                *("--cgroup", "--", "env", "--chdir=/", "-i"),
                *(f"PATH={VENV}/bin:{_PATH}", "HOME=/root", "LANG=C.UTF-8"),
                *map(str, command),
            ],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            **more,
        )
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    def shell(self, script: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a line of bash on it."""
        return self.run("bash", "-euo", "pipefail", "-c", script, **more)

    def limpet(self, *arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run limpet on it as root."""
        return self.run(VENV / "bin" / "python", "-m", "limpet", *arguments, **more)

    def path(self, path: str | Path) -> Path:
        """Return where a file of its is found from here, good until the next boot."""
        return Path(f"/proc/{self.init}/root") / str(path).lstrip("/")

    def put(self, path: str | Path, text: str) -> None:
        """Write a file on it, readable by all."""
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(0o644)

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def pid(self, unit: str) -> int:
        """Return the main process of a unit, as seen inside; 0 when there is none."""
        return int(self.show(unit, "MainPID"))

    def active(self, pattern: str = "limpet-worker@*") -> list[str]:
        """Return the units that run, or are about to."""
        states = "--state=active,activating,deactivating"
        listed = self.run(
            "systemctl", "list-units", "--plain", "--no-legend", states, pattern
        ).stdout
        return sorted(line.split()[0] for line in listed.splitlines())

    def enabled(self) -> list[int]:
        """Return the instances that come up with the host."""
        listed = self.run("ls", "/etc/systemd/system/limpet.target.wants", check=False).stdout
        return sorted(int(one) for one in re.findall(r"limpet-worker@(\d+)\.service", listed))

    def journal(self, unit: str = "limpet*") -> str:
        """Return the end of what units wrote, for messages of tests."""
        return self.run("journalctl", "-n", "60", "-o", "cat", "-u", unit, check=False).stdout

    # --- what is installed on it ----------------------------------------------

    def make_venv(self, path: Path = VENV) -> None:
        """Make a virtual environment with limpet as the wheel would install it."""
        self.run(base_python(), "-m", "venv", "--without-pip", path)
        (site,) = self.path(path).glob("lib/python*/site-packages")
        for source, name in wheel_files():
            target = site / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
            # The services cannot write it, and would compile at each start.
            compiled = Path(importlib.util.cache_from_source(source))
            if OURS and source.suffix == ".py" and compiled.exists():
                (target.parent / "__pycache__").mkdir(exist_ok=True)
                shutil.copy2(compiled, target.parent / "__pycache__" / compiled.name)
        if not OURS:
            for wheel in _wheels():
                shutil.unpack_archive(wheel, site, "zip")
            self.run(path / "bin" / "python", "-m", "compileall", "-q", path / "lib")
        self.path(path / "bin" / "limpet").write_text(
            f"#!{path}/bin/python\nfrom limpet_cluster.cli import main\nmain()\n"
        )
        self.path(path / "bin" / "limpet").chmod(0o755)


def wheel_files() -> Iterator[tuple[Path, str]]:
    """Yield the files of limpet and of what it needs, with their names in site-packages.

    Of limpet alone, where the host's Python has wheels for the rest.
    """
    for name in sorted(packed()):
        distribution = importlib.metadata.distribution(name)
        yield from _contents(distribution, f"{name}-{distribution.version}.dist-info")


def _own_files() -> Iterator[tuple[Path, str]]:
    for folder in ("adapters", "balancer", "client", "cluster", "worker"):
        for path in (PROJECT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path, str(path.relative_to(PROJECT / folder))
    for path in templates().iterdir():
        yield path, f"limpet_cluster/systemd/{path.name}"


def make_wheels(folder: Path) -> None:
    """Pack limpet and what it needs, as installed here, into wheels: an index without a network.

    Limpet alone, where the host's Python has wheels for the rest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in packed():
        distribution = importlib.metadata.distribution(name)
        described = distribution.read_text("WHEEL") or ""
        tag = re.search(r"^Tag: (\S+)", described, re.MULTILINE)
        assert tag is not None, name
        plain = re.sub(r"[-_.]+", "_", name)
        wheel = folder / f"{plain}-{distribution.version}-{tag[1]}.whl"
        info = f"{plain}-{distribution.version}.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            rows = []
            for source, target in _contents(distribution, info):
                archive.write(source, target)
                rows.append(f"{target},,\n")
            archive.writestr(f"{info}/RECORD", "".join(rows) + f"{info}/RECORD,,\n")


def _contents(
    distribution: importlib.metadata.Distribution, info: str
) -> Iterator[tuple[Path, str]]:
    own = distribution.name == "limpet"
    for file in distribution.files or ():
        source = Path(str(file.locate()))
        if file.parts[0].endswith(".dist-info"):
            if file.name in {"METADATA", "WHEEL", "entry_points.txt"}:
                yield source, f"{info}/{file.name}"
        elif not own and file.parts[0] != ".." and "__pycache__" not in file.parts:
            yield source, str(file)
    if own:
        yield from _own_files()


def packed() -> set[str]:
    """Return the distributions that the host gets as they are installed here."""
    return needed("limpet") if OURS else {"limpet"}


def needed(name: str) -> set[str]:
    """Return a distribution and all that it needs, of those installed here."""
    found: set[str] = set()
    queue = [name]
    while queue:
        one = re.sub(r"[-_.]+", "-", queue.pop()).lower()
        try:
            requirements = importlib.metadata.requires(one) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        if one in found:
            continue
        found.add(one)
        queue += [
            re.split(r"[^\w.-]", text, maxsplit=1)[0]
            for text in requirements
            if "extra ==" not in text
        ]
    return found


def free_port() -> int:
    """Return a port that nobody listens on, below those that the kernel hands out."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


# --- limpet on it ------------------------------------------------------------

APP = (
    (TESTS / "servers" / "herd_app.py").read_text()
    + """

import os
import time

VERSION = 1


@io.on("version")
def version(_socket: Socket) -> int:
    return VERSION


@io.on("block")
def block(_socket: Socket) -> None:
    time.sleep(30)


@io.on_shutdown
def last() -> None:
    while os.path.exists("/srv/app/slow-end"):
        time.sleep(0.1)
"""
)


class Units:
    """limpet as systemd runs it on a host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.port = free_port()
        self.installed = False

    @property
    def address(self) -> Address:
        """Where clients connect."""
        return "127.0.0.1", self.port

    def install(self, *arguments: object) -> None:
        """Install and start with two workers, or as the arguments say."""
        self.host.put("/srv/app/app.py", APP)
        self.host.limpet(
            *("systemd", "install", "--workers=2", f"--bind=127.0.0.1:{self.port}"),
            *("--app=app:io", "--app-dir=/srv/app", *arguments),
        )
        self.installed = True
        # Install does not wait for the target, by which commands know whether it was stopped.
        active = "ActiveState"
        wait_until(lambda: self.host.show(TARGET, active) == "active", 15, f"no {TARGET}")

    def settle(self) -> None:
        """Bring it back to two workers of the usual application, whatever a test has left."""
        host = self.host
        if not self.installed:
            self.install()
        else:
            host.put("/srv/app/app.py", APP)
            if host.enabled() != [1, 2] or host.active() != names(1, 2):
                self.install()
        self.wait_open(1, 2)

    def wait_open(self, *slots: int) -> None:
        """Wait until the balancer gives sessions to the workers of these slots, and no others.

        systemd may know that a worker is ready before the balancer has read it.
        """
        path = self.host.path(RUN_DIRECTORY / "balancer.sock")

        def takes() -> list[int]:
            try:
                figures: dict[str, Any] = asyncio.run(ask_stats(path))
            except (OSError, TimeoutError, HandoverError):
                return []
            return sorted(one["slot"] for one in taking(figures))

        wait_until(lambda: takes() == list(slots), 20, f"not just {slots} take sessions")

    def wait_replaced(self, unit: str, pid: int, timeout: float = 15) -> int:
        """Wait until another process runs in a unit; return its pid."""
        wait_until(
            lambda: (
                self.host.pid(unit) not in (0, pid)
                and self.host.show(unit, "ActiveState") == "active"
            ),
            timeout,
            f"{unit} was not replaced",
        )
        return self.host.pid(unit)


def names(*slots: int) -> list[str]:
    """Return the units of slots."""
    return [f"limpet-worker@{slot}.service" for slot in slots]
