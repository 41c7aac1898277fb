"""The settings as text for people: a file to begin with, the documentation, what is in force."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import groupby

from limpet_cluster.settings.config import DEFAULT, Resolved
from limpet_cluster.settings.table import EVERYONE, SETTINGS, Applies, Setting

_WHEN = {
    Applies.NOW: "at once",
    Applies.WORKERS: "with the new workers",
    Applies.SCALE: "by `limpet scale`",
    Applies.HUB: "by `limpet restart hub`",
    Applies.BALANCER: "by `limpet restart balancer`",
    Applies.CLUSTER: "by a stop and a start",
}


def default_file() -> str:
    """Return a file with all settings at their defaults; what has none is commented out."""
    lines = [
        "# Settings of limpet: each as it is when this line is missing.",
        "# LIMPET_NAME=… in the environment wins over this file, a flag (--name …) over both.",
        '# Durations are seconds, or "1.5s", "250ms", "2min"; sizes bytes, or "64KiB", "16MiB".',
    ]
    for group, members in _groups():
        lines += ["", f"# --- {group} " + "-" * (74 - len(group))]
        for setting in members:
            lines += ["", *textwrap.wrap(setting.help, 96, initial_indent="# ",
                                         subsequent_indent="# ")]  # fmt: skip
            lines.append(_line(setting))
    return "\n".join(lines) + "\n"


def _line(setting: Setting) -> str:
    if setting.unset:
        return f"# {setting.name} = {setting.example}    # not set: {setting.unset}"
    return f"{setting.name} = {setting.kind.toml(setting.default)}"


def markdown() -> str:
    """Return a table of all settings for each heading."""
    lines: list[str] = []
    for group, members in _groups():
        lines += [
            f"### {group}",
            "",
            "| key | | takes | default | flag of | a change takes effect |",
            "|---|---|---|---|---|---|",
        ]
        for setting in members:
            taken = "all" if setting.commands == EVERYONE else ", ".join(setting.commands)
            default = setting.unset or f"`{setting.shown(setting.default)}`"
            cells = (
                f"`{setting.name}`",
                setting.help,
                setting.kind.brief or setting.kind.expected,
                default,
                taken,
                _WHEN[setting.applies],
            )
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def in_force(resolved: Resolved, *, origin: bool) -> str:
    """Return what is set, as a file that says the same; with where it comes from, if asked."""
    lines = []
    for name, setting in SETTINGS.items():
        value = getattr(resolved.settings, name)
        if value is None:
            line = f"# {name}: {setting.unset}"
        else:
            line = f"{name} = {setting.kind.toml(value)}"
        if origin and (value is not None or resolved.origins[name] != DEFAULT):
            line = f"{line:<40}  # {resolved.origins[name]}"
        lines.append(line)
    return "\n".join(lines)


def _groups() -> Iterator[tuple[str, list[Setting]]]:
    for group, members in groupby(SETTINGS.values(), lambda setting: setting.group):
        yield group, list(members)
