"""``desk completion``: command completion for the shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from desk.cli import render
from desk.cli.framework import DeskCommand


@click.command(
    cls=DeskCommand,
    example="echo 'eval \"$(desk completion bash)\"' >> ~/.bashrc\n"
    "echo 'eval \"$(desk completion zsh)\"' >> ~/.zshrc\n"
    "desk completion fish > ~/.config/fish/completions/desk.fish",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the shell code for command completion."""
    kind = get_completion_class(shell)
    assert kind is not None
    source = kind(ctx.find_root().command, {}, "desk", "_DESK_COMPLETE").source()
    render.write(source if source.endswith("\n") else source + "\n")
