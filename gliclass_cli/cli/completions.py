"""``gliclass completions``: print the completion script of a shell."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer


class Shell(StrEnum):
    """Shells that have a script."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


@dataclass(frozen=True, kw_only=True)
class CompletionsOptions:
    """Everything that ``completions`` takes."""

    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]


def completions_of(app: typer.Typer) -> Callable[[CompletionsOptions], None]:
    """Return the command that prints the completion scripts of ``app``."""

    def completions(options: CompletionsOptions) -> None:
        """Print a shell's completion script.

        Nothing is installed or edited. For bash, for example:
        gliclass completions bash > ~/.local/share/bash-completion/completions/gliclass
        """
        from gliclass_cli.cli.shells import completion_script

        typer.echo(completion_script(app, options.shell.value), nl=False)

    return completions
