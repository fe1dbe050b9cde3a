"""`mtlbench completion`: a script by which a shell completes commands, options and names."""

from __future__ import annotations

import click

from mtlprune_bench.commands._options import plugin_options

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@plugin_options
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script by which SHELL completes commands, options, and names of methods, datasets and settings.

    \b
    In ~/.bashrc:                    eval "$(mtlbench completion bash)"
    In ~/.zshrc, after compinit:     eval "$(mtlbench completion zsh)"
    In ~/.config/fish/config.fish:   mtlbench completion fish | source
    """
    from click.shell_completion import get_completion_class

    root = ctx.find_root()
    kind = get_completion_class(shell)
    assert kind is not None, "click completes in each of SHELLS"
    name = root.info_name or "mtlbench"
    click.echo(kind(root.command, {}, name, f"_{name.replace('-', '_').upper()}_COMPLETE").source())
