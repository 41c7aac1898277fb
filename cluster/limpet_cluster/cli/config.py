"""`limpet config`: what the settings are, where they come from, and whether they are right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from limpet_cluster.cli import options
from limpet_cluster.cli.tables import dump
from limpet_cluster.settings import document as configdoc
from limpet_cluster.settings.config import Resolved, SettingsError, Sources
from limpet_cluster.settings.table import SETTINGS


@click.group()
def config() -> None:
    """Check and show the settings of file and environment."""


@config.command()
@click.option("--strict", is_flag=True, help="Take warnings for errors: unknown LIMPET_ variables.")
@options.config_file
@options.as_json
def check(*, config_file: str | None, strict: bool, as_json: bool) -> None:
    """Check file and environment; all that is wrong is told at once, with exit code 3."""
    errors: list[str] = []
    warnings: list[str] = []
    resolved: Resolved | None = None
    try:
        resolved = Sources(file=config_file).resolve()
        (errors if strict else warnings).extend(resolved.warnings)
    except SettingsError as error:
        errors.extend(error.problems)
    file = None if resolved is None or resolved.file is None else _near(resolved.file)
    if as_json:
        click.echo(dump({"ok": not errors, "file": file, "errors": errors, "warnings": warnings}))
        raise SystemExit(options.Invalid.exit_code if errors else 0)
    for warning in warnings:
        click.echo(f"limpet: warning: {warning}", err=True)
    if errors:
        raise options.Invalid("\n".join(errors))
    click.echo(f"{file or 'no file, environment and defaults'}: valid")


@config.command()
@click.option("--origin", is_flag=True, help="Say where each value comes from.")
@options.config_file
@options.as_json
def show(*, config_file: str | None, origin: bool, as_json: bool) -> None:
    """Show the settings that a command without flags gets; a file of them says the same."""
    with options.told():
        resolved = Sources(file=config_file).resolve()
    if as_json:
        click.echo(dump({name: _entry(resolved, name, origin=origin) for name in SETTINGS}))
        return
    for warning in resolved.warnings:
        click.echo(f"limpet: warning: {warning}", err=True)
    click.echo(configdoc.in_force(resolved, origin=origin))


@config.command()
def default() -> None:
    """Print a file with all settings at their defaults."""
    click.echo(configdoc.default_file(), nl=False)


@config.command()
def doc() -> None:
    """Print all settings as Markdown tables."""
    click.echo(configdoc.markdown(), nl=False)


def _entry(resolved: Resolved, name: str, *, origin: bool) -> Any:
    value = getattr(resolved.settings, name)
    plain = str(value) if isinstance(value, Path) else value
    return {"value": plain, "origin": resolved.origins[name]} if origin else plain


def _near(path: Path) -> str:
    """Return a path as the user would write it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
