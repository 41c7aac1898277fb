"""The systemd units of a host: filled in from their templates, and what must hold before that.

Nothing here touches the system: paths and texts go in, texts and complaints come out.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import limpet_cluster
from limpet_balancer.listening import BindError, parse_address
from limpet_cluster.appload import AppError, parse
from limpet_cluster.settings.tokens import TokenFileError, read_tokens
from limpet_cluster.settings.values import tcp_address

USER: Final = "limpet"
"""User and group of all processes; members of the group may use the API."""
TARGET: Final = "limpet.target"
HUB: Final = "limpet-hub.service"
BALANCER: Final = "limpet-balancer.service"
PUBLIC: Final = "limpet-balancer.socket"
API: Final = "limpet-api.socket"
SLICE: Final = "limpet.slice"
WORKER: Final = "limpet-worker@.service"
UNITS: Final = (TARGET, SLICE, PUBLIC, API, BALANCER, HUB, WORKER)
SERVICES: Final = (HUB, BALANCER, WORKER)

UNIT_FOLDER: Final = Path("etc/systemd/system")
SYSUSERS: Final = Path("etc/sysusers.d/limpet.conf")
CONFIG: Final = Path("etc/limpet/config.toml")
RUN_DIRECTORY: Final = Path("/run/limpet/default")
STATE_DIRECTORY: Final = Path("/var/lib/limpet")
RESTART_STEPS_SINCE: Final = 254
"""The version of systemd that first knows RestartSteps=; older ones warn."""

_PRIVATE: Final = tuple(
    Path(name)
    for name in ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108
)
_HIDDEN: Final = "ProtectHome= and PrivateTmp= hide it from the services"


class UnitError(ValueError):
    """Something cannot be run by systemd as it is; the message says what would do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What is this host's own in the units. What is None or empty leaves an earlier choice."""

    python: Path
    """The interpreter that has limpet installed."""
    bind: tuple[str, ...] = ()
    """Public addresses, as `limpet start --bind` takes them."""
    application: str | None = None
    """``MODULE:ATTRIBUTE``."""
    app_directory: Path | None = None
    writable: tuple[Path, ...] = ()
    """What the application writes, besides its state directory."""
    allow_wx: bool = False
    """Whether the application makes code at run time (a JIT, some foreign function calls)."""
    api: str | None = None
    """``HOST:PORT`` of the API on TCP."""
    api_token_file: Path | None = None
    """The tokens good there; the hub gets them as a credential."""
    version: int = 252
    """Of systemd."""


def templates() -> Path:
    """Return the folder of the templates: in the wheel, or beside the packages in a checkout.

    Raises:
        UnitError: it is in neither place.
    """
    package = Path(limpet_cluster.__file__).parent
    for folder in (package / "systemd", package.parent.parent / "systemd"):
        if (folder / WORKER).is_file():
            return folder
    raise UnitError(f"no unit templates beside {package}: limpet is not installed completely")


def interpreter() -> Path:
    """Return the Python that runs this, by the path that leads into its virtual environment."""
    own = Path(sys.prefix) / "bin" / "python"
    return own if own.exists() else Path(sys.executable)


def render(site: Site, folder: Path | None = None) -> dict[Path, str]:
    """Return every file of an installation, by its path below ``/``.

    Units as shipped come first; what a site chooses lies in drop-ins, so that another
    installation, of a newer limpet say, keeps it.

    Args:
        site: this host's choices.
        folder: the templates; by default those of this installation.

    Raises:
        UnitError: the templates are missing, or an address cannot be a ListenStream=.
    """
    folder = folder or templates()
    command = f"{quote(site.python)} -P -m limpet"
    files: dict[Path, str] = {}
    for name in UNITS:
        text = (folder / name).read_text(encoding="utf-8")
        files[UNIT_FOLDER / name] = text.replace("@LIMPET@", command)
    files[SYSUSERS] = (folder / "sysusers.conf").read_text(encoding="utf-8")
    if site.version >= RESTART_STEPS_SINCE:
        steps = (folder / "restart-steps.conf").read_text(encoding="utf-8")
        for service in SERVICES:
            files[drop_in(service, "restart-steps")] = steps
    if site.bind:
        files[drop_in(PUBLIC, "bind")] = _bind(site.bind)
    if site.app_directory is not None:
        files[drop_in(WORKER, "app")] = _app(site.app_directory)
    if site.writable:
        lines = [f"ReadWritePaths={quote(path)}" for path in site.writable]
        files[drop_in(WORKER, "writable")] = _service("what it writes (--writable)", lines)
    if site.allow_wx:
        lines = ["MemoryDenyWriteExecute=no"]
        files[drop_in(WORKER, "wx")] = _service("code made at run time (--allow-wx)", lines)
    if site.api_token_file is not None:
        files[drop_in(HUB, "api-token")] = _token(site.api, site.api_token_file)
    if site.application is not None:
        files[CONFIG] = _config(site)
    return files


def drop_in(unit: str, name: str) -> Path:
    """Return where a drop-in of a unit lies."""
    return UNIT_FOLDER / f"{unit}.d" / f"limpet-{name}.conf"


def instance(slot: int) -> str:
    """Return the unit of a slot."""
    return WORKER.replace("@", f"@{slot}")


def instance_pattern() -> str:
    """Return what matches the units of all slots."""
    return WORKER.replace("@", "@*")


def slot_of(unit: str) -> int | None:
    """Return the slot of a worker's unit, None for other units."""
    match = re.fullmatch(r"limpet-worker@(\d{1,3})\.service", unit)
    return int(match[1]) if match else None


def quote(path: Path) -> str:
    """Write a path as one word of a unit's value: ``%`` and ``$`` stand for themselves."""
    text = os.fspath(path).replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[\w./:@%$+,=~-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def check(site: Site, installed: Iterable[Path] = ()) -> list[str]:
    """Return what keeps the services from running, each with its remedy; none when all is well.

    Args:
        site: this host's choices.
        installed: further places the interpreter takes code from: its prefixes, the packages.
    """
    found: list[str] = []
    code = sorted({private for path in (site.python, *installed) if (private := _private(path))})
    found += [
        f"limpet or its Python lies in {place}: {_HIDDEN}. Make the virtual environment elsewhere, "
        f"from a Python that all users can read: /usr/bin/python3 -m venv /opt/limpet"
        for place in code
    ]
    if site.python.exists() and (blocked := _closed(site.python.parent)):
        found.append(
            f"{site.python}: the user {USER} may not enter {blocked}; chmod -R o+rX {blocked}"
        )
    found += _check_application(site)
    for path in site.writable:
        if not path.is_absolute():
            found.append(f"--writable {path}: expected an absolute path")
        elif private := _private(path):
            found.append(f"--writable {path} lies in {private}: {_HIDDEN}; choose another place")
        elif not path.exists():
            found.append(
                f"--writable {path}: does not exist; make it: install -d -o {USER} {quote(path)}"
            )
    for address in site.bind:
        try:
            _stream(address)
        except UnitError as error:
            found.append(str(error))
    if (site.api is None) != (site.api_token_file is None):
        found.append("--api and --api-token-file need each other: TCP lets anybody connect")
    found += _check_api(site)
    written = (site.python, site.app_directory, *site.writable, site.api_token_file, *site.bind)
    found += [
        f"{str(one)!r}: expected no line breaks or other control characters"
        for one in written
        if one is not None and not str(one).isprintable()
    ]
    return found


def _check_api(site: Site) -> list[str]:
    """Return what would keep the hub from coming up, at the latest when it starts next."""
    found: list[str] = []
    if site.api is not None:
        kind = tcp_address()
        try:
            kind.parse(site.api)
        except ValueError:
            found.append(f"--api {site.api!r}: expected {kind.expected}")
    if site.api_token_file is not None:
        try:
            read_tokens(site.api_token_file)
        except TokenFileError as error:
            found.append(f"--api-token-file: {str(error).partition('=')[2]}")
    return found


def _check_application(site: Site) -> list[str]:
    found: list[str] = []
    if site.application is not None:
        try:
            parse(site.application)
        except AppError as error:
            found.append(str(error))
    if site.application is not None and site.app_directory is None:
        found.append(f"--app {site.application} without --app-dir: say where its module lies")
    if (directory := site.app_directory) is not None:
        if private := _private(directory):
            found.append(
                f"--app-dir {directory} lies in {private}: {_HIDDEN}. "
                f"Move the application, to /srv/{directory.resolve().name} for example"
            )
        elif not directory.is_dir():
            found.append(f"--app-dir {directory}: no such folder")
        elif blocked := _closed(directory) or _unreadable(directory, site.application):
            found.append(
                f"--app-dir {directory}: the user {USER} may not read {blocked}; "
                f"chmod -R o+rX {blocked}"
            )
    return found


def _unreadable(directory: Path, application: str | None) -> Path | None:
    """Return the application's module if it is closed to other users: a strict umask does that."""
    name = (application or "").partition(":")[0].partition(".")[0]
    for path in (directory / f"{name}.py", directory / name) if name else ():
        if path.exists() and not path.stat().st_mode & 0o004:
            return path
    return None


def code_places() -> list[Path]:
    """Return where the running interpreter and limpet itself lie."""
    package = Path(limpet_cluster.__file__).parent
    return [Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve(), package]


def _private(path: Path) -> Path | None:
    """Return the hidden folder that a path, or what it points to, lies in."""
    for one in (Path(os.path.abspath(path)), path.resolve()):  # noqa: PTH100 - links kept
        for private in _PRIVATE:
            if one.is_relative_to(private):
                return private
    return None


def _closed(directory: Path) -> Path | None:
    """Return what on the way to a directory is closed to other users."""
    directory = directory.resolve()
    for part in (*reversed(directory.parents), directory):
        mode = part.stat().st_mode
        if not mode & 0o001 or (part == directory and not mode & 0o004):
            return part
    return None


# --- the texts of the drop-ins --------------------------------------------------

_HEAD: Final = "# Written by `limpet systemd install`: {}.\n"


def _bind(addresses: Sequence[str]) -> str:
    streams = [_stream(address) for address in addresses]
    lines = ["[Socket]", "ListenStream=", *(f"ListenStream={stream}" for stream in streams)]
    # [::] takes IPv4 as well, unless IPv4 has an address of its own.
    both = not any(stream[0].isdigit() for stream in streams)
    lines.append(f"BindIPv6Only={'both' if both else 'ipv6-only'}")
    return _HEAD.format("the public addresses (--bind)") + "\n".join(lines) + "\n"


def _stream(text: str) -> str:
    try:
        address = parse_address(text)
    except BindError as error:
        raise UnitError(f"--{error}") from None
    if isinstance(address, Path):
        if not address.is_absolute():
            raise UnitError(f"--bind {text}: expected an absolute path")
        return os.fspath(address).replace("%", "%%")
    host = {"": "0.0.0.0", "localhost": "127.0.0.1"}.get(address.host, address.host)
    try:
        number = ip_address(host)
    except ValueError:
        raise UnitError(
            f"--bind {text}: systemd takes no host names; expected an address, for example "
            f"0.0.0.0:{address.port}"
        ) from None
    if not address.port:
        raise UnitError(f"--bind {text}: expected a port from 1 to 65535")
    return f"{f'[{number}]' if number.version == 6 else number}:{address.port}"


def _service(what: str, lines: Iterable[str]) -> str:
    return _HEAD.format(what) + "\n".join(("[Service]", *lines)) + "\n"


def _app(directory: Path) -> str:
    folder = os.fspath(directory).replace("%", "%%")
    mounts = f"[Unit]\nRequiresMountsFor={quote(directory)}\n\n"
    return (
        _HEAD.format("where the application lies (--app-dir)")
        + mounts
        + (f"[Service]\nWorkingDirectory={folder}\n")
    )


def _token(api: str | None, path: Path) -> str:
    lines = [
        f"LoadCredential=api-token:{os.fspath(path).replace('%', '%%')}",
        "Environment=LIMPET_API_TOKEN_FILE=%d/api-token",
    ]
    if api is not None:
        lines.append(f"Environment=LIMPET_API={api.replace('%', '%%')}")
    return _service("the API on TCP, and the tokens good there (--api)", lines)


def _config(site: Site) -> str:
    text = "# Written by `limpet systemd install`; `limpet config doc` explains every setting.\n"
    text += f"app = {_toml(site.application or '')}\n"
    if site.app_directory is not None:
        text += f"app_dir = {_toml(os.fspath(site.app_directory))}\n"
    return text


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
