"""Units as texts: what a host's choices become, and what is refused with which remedy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from limpet_cluster.units import render as units
from limpet_cluster.units.render import Site, UnitError

PYTHON = Path("/opt/limpet/bin/python")


def texts(**choices: object) -> dict[str, str]:
    """Render a site and return its files by name."""
    site = Site(python=PYTHON, **choices)  # type: ignore[arg-type]
    return {str(path): text for path, text in units.render(site).items()}


def test_templates_are_complete_and_filled_in() -> None:
    files = texts()
    assert sorted(files) == sorted(
        [*(f"etc/systemd/system/{name}" for name in units.UNITS), "etc/sysusers.d/limpet.conf"]
    )
    for path, text in files.items():
        assert "@LIMPET@" not in text, path
        assert text.endswith("\n")
        for line in text.splitlines():  # a unit file has no trailing comments
            assert line.startswith("#") or "#" not in line, (path, line)
    worker = files["etc/systemd/system/limpet-worker@.service"]
    assert f"ExecStart={PYTHON} -P -m limpet worker --slot %i\n" in worker


def test_services_share_their_confinement() -> None:
    files = texts()
    hardened = [
        {
            line
            for line in files[f"etc/systemd/system/{name}"]
            .partition("# Who it runs as")[2]
            .partition("\n[Install]")[0]
            .splitlines()
            if "=" in line and not line.startswith("#")
        }
        for name in units.SERVICES
    ]
    assert hardened[0] == hardened[1] == hardened[2]
    # What makes ZeroMQ abort, or a missing file end a unit, is never in a base unit.
    for line in hardened[0]:
        assert "~@resources" not in line
        assert "Credential" not in line
    assert any("AF_NETLINK" in line for line in hardened[0])


def test_pauses_that_grow_are_a_drop_in_for_those_who_know_them() -> None:
    assert not any("RestartSteps" in text for text in texts(version=253).values())
    newer = [path for path, text in texts(version=254).items() if "RestartSteps" in text]
    assert newer == [
        f"etc/systemd/system/{name}.d/limpet-restart-steps.conf" for name in units.SERVICES
    ]


@pytest.mark.parametrize(
    ("addresses", "lines"),
    [
        (("127.0.0.1:8080",), ["ListenStream=127.0.0.1:8080", "BindIPv6Only=ipv6-only"]),
        (("[::]:80",), ["ListenStream=[::]:80", "BindIPv6Only=both"]),
        (
            (":80", "[::]:80"),
            ["ListenStream=0.0.0.0:80", "ListenStream=[::]:80", "BindIPv6Only=ipv6-only"],
        ),
        (("localhost:80",), ["ListenStream=127.0.0.1:80", "BindIPv6Only=ipv6-only"]),
        (("unix:/run/a%b.sock",), ["ListenStream=/run/a%%b.sock", "BindIPv6Only=both"]),
    ],
)
def test_addresses(addresses: tuple[str, ...], lines: list[str]) -> None:
    text = texts(bind=addresses)["etc/systemd/system/limpet-balancer.socket.d/limpet-bind.conf"]
    assert text.splitlines()[1:] == ["[Socket]", "ListenStream=", *lines]


@pytest.mark.parametrize(
    ("address", "remedy"),
    [
        ("example.org:80", "expected an address, for example 0.0.0.0:80"),
        ("127.0.0.1:0", "expected a port from 1 to 65535"),
        ("8080", "expected HOST:PORT"),
        ("unix:run/x.sock", "expected an absolute path"),
    ],
)
def test_addresses_that_systemd_cannot_take(address: str, remedy: str) -> None:
    with pytest.raises(UnitError, match=f"--bind.*{remedy}"):
        texts(bind=(address,))
    found = units.check(Site(python=PYTHON, bind=(address,)))
    assert len(found) == 1
    assert remedy in found[0]


def test_each_choice_is_a_drop_in_of_its_own() -> None:
    files = texts(
        application="app:io",
        app_directory=Path("/srv/my app"),
        writable=(Path("/srv/data"), Path("/srv/100%")),
        allow_wx=True,
        api="0.0.0.0:8081",
        api_token_file=Path("/etc/limpet/api-token"),
    )
    folder = "etc/systemd/system/limpet-worker@.service.d"
    app = files[f"{folder}/limpet-app.conf"]
    assert 'RequiresMountsFor="/srv/my app"' in app
    assert "WorkingDirectory=/srv/my app\n" in app
    writable = files[f"{folder}/limpet-writable.conf"].splitlines()
    assert writable[1:] == ["[Service]", "ReadWritePaths=/srv/data", "ReadWritePaths=/srv/100%%"]
    assert files[f"{folder}/limpet-wx.conf"].endswith("[Service]\nMemoryDenyWriteExecute=no\n")
    token = files["etc/systemd/system/limpet-hub.service.d/limpet-api-token.conf"]
    assert "LoadCredential=api-token:/etc/limpet/api-token\n" in token
    assert "Environment=LIMPET_API_TOKEN_FILE=%d/api-token\n" in token
    assert "Environment=LIMPET_API=0.0.0.0:8081\n" in token
    config = files["etc/limpet/config.toml"]
    assert config.splitlines()[1:] == ['app = "app:io"', 'app_dir = "/srv/my app"']


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/opt/limpet/bin/python", "/opt/limpet/bin/python"),
        ("/opt/my env/bin/python", '"/opt/my env/bin/python"'),
        ("/opt/100%/$x", "/opt/100%%/$$x"),
        ('/opt/"quoted"', '"/opt/\\"quoted\\""'),
    ],
)
def test_paths_are_single_words(path: str, word: str) -> None:
    assert units.quote(Path(path)) == word


@pytest.mark.parametrize("place", ["/home/me/venv", "/root/venv", "/tmp/venv", "/run/user/0/venv"])
def test_code_in_hidden_places_is_refused(place: str) -> None:
    found = units.check(Site(python=Path(place) / "bin/python"), [Path(place)])
    assert len(found) == 1
    assert "/usr/bin/python3 -m venv /opt/limpet" in found[0]


def test_a_link_into_a_hidden_place_is_refused(tmp_path: Path) -> None:
    # As a virtual environment in /opt whose base is a Python in somebody's home folder.
    real = tmp_path / "python"
    real.touch()
    assert str(tmp_path).startswith("/tmp")
    found = units.check(Site(python=PYTHON), [real])
    assert len(found) == 1
    assert "in /tmp" in found[0]


def test_an_application_must_be_there() -> None:
    def check(directory: str, application: str = "app:io") -> list[str]:
        return units.check(
            Site(python=PYTHON, application=application, app_directory=Path(directory))
        )

    assert check("/usr/share") == []
    assert "no such folder" in check("/srv/does/not/exist")[0]
    assert "move" in check("/home/me/app")[0].lower()
    assert "/srv/app" in check("/home/me/app")[0]
    assert "expected module:attribute" in check("/usr/share", "app.py")[0]
    alone = units.check(Site(python=PYTHON, application="app:io"))
    assert "--app-dir" in alone[0]


def test_what_others_may_not_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "_PRIVATE", ())
    folder = tmp_path / "srv" / "app"
    folder.mkdir(parents=True)
    (folder / "app.py").touch()
    monkeypatch.setattr(Path, "stat", _open_above(tmp_path, Path.stat))

    def check() -> list[str]:
        return units.check(Site(python=PYTHON, application="app:io", app_directory=folder))

    assert check() == []
    for path, mode, usual in (
        (folder / "app.py", 0o640, 0o644),
        (folder, 0o751, 0o755),
        (folder.parent, 0o750, 0o755),
    ):
        path.chmod(mode)
        assert f"chmod -R o+rX {path}" in check()[0]
        path.chmod(usual)
    python = folder / "python"
    python.touch()
    folder.chmod(0o700)
    assert "may not enter" in units.check(Site(python=python))[0]


def _open_above(folder: Path, real: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
    """Have the folders above a test's own seem open: pytest makes them private."""

    def stat(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        found = real(self, follow_symlinks=follow_symlinks)
        if self == folder or self in folder.parents:
            return os.stat_result((found.st_mode | 0o005, *found[1:]))
        return found

    return stat


def test_what_is_to_be_written_must_be_there() -> None:
    def check(path: str) -> list[str]:
        return units.check(Site(python=PYTHON, writable=(Path(path),)))

    assert check("/var/lib") == []
    assert "install -d -o limpet /srv/none" in check("/srv/none")[0]
    assert "absolute" in check("data")[0]
    assert "choose another place" in check("/home/me/data")[0]


def test_the_api_on_tcp_needs_tokens() -> None:
    assert "need each other" in units.check(Site(python=PYTHON, api="0.0.0.0:1"))[0]
    missing = units.check(Site(python=PYTHON, api="0.0.0.0:1", api_token_file=Path("/none")))
    assert "No such file" in missing[0]


def test_what_the_hub_would_not_start_with_is_refused_at_once(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"

    def check(api: str, text: str, mode: int = 0o600) -> list[str]:
        tokens.write_text(text)
        tokens.chmod(mode)
        return units.check(Site(python=PYTHON, api=api, api_token_file=tokens))

    good = "a-token-of-more-than-16-characters\n"
    assert check("0.0.0.0:8081", good) == []
    assert "--api '8081': expected HOST:PORT" in check("8081", good)[0]
    assert "expected HOST:PORT" in check("unix:/run/x.sock", good)[0]
    assert "at least 16 characters" in check("0.0.0.0:8081", "short\n")[0]
    assert "lets anybody in" in check("0.0.0.0:8081", good, 0o644)[0]


def test_no_line_of_a_unit_comes_from_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "data\n[Service]\nUser=root"
    folder.mkdir(parents=True)
    found = units.check(Site(python=PYTHON, writable=(folder,), bind=(f"unix:{folder}/x",)))
    assert sum("no line breaks" in one for one in found) == 2


def test_a_zone_is_no_specifier_of_systemd() -> None:
    site = Site(python=PYTHON, api="[fe80::1%eth0]:80", api_token_file=Path("/etc/limpet/token"))
    files = units.render(site, units.templates())
    text = files[units.drop_in(units.HUB, "api-token")]
    assert "Environment=LIMPET_API=[fe80::1%%eth0]:80\n" in text


def test_instances_and_their_slots() -> None:
    assert units.instance(3) == "limpet-worker@3.service"
    assert units.slot_of("limpet-worker@17.service") == 17
    assert units.slot_of("limpet-hub.service") is None
    assert units.slot_of("limpet-worker@.service") is None
