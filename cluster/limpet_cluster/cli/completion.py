"""`limpet completion`: what makes a shell complete commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_VARIABLE = "_LIMPET_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(ctx: click.Context, *, shell: str) -> None:
    """Print the script that makes a shell complete the commands of limpet.

    \b
    bash:  limpet completion bash > ~/.local/share/bash-completion/completions/limpet
    zsh:   limpet completion zsh > "${fpath[1]}/_limpet"
    fish:  limpet completion fish > ~/.config/fish/completions/limpet.fish
    """
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101 - the choices are Click's
    script = found(ctx.find_root().command, {}, "limpet", _VARIABLE)
    # Not source(): for bash that starts one to look at its version, which may be another's.
    click.echo(script.source_template % script.source_vars())
