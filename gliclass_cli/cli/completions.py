"""``gliclass completions``: print the completion script of a shell."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from gliclass_cli.cli.options import application


class Shell(StrEnum):
    """Shells that have a script."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


@dataclass(frozen=True, kw_only=True)
class CompletionsOptions:
    """Everything that ``completions`` takes."""

    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]


def completions(options: CompletionsOptions) -> None:
    """Print a shell's completion script.

    Nothing is installed or edited. For bash, for example:
    gliclass completions bash > ~/.local/share/bash-completion/completions/gliclass
    """
    from gliclass_cli.cli.app import app as gliclass
    from gliclass_cli.cli.shells import completion_script

    typer.echo(completion_script(gliclass, options.shell.value), nl=False)


app = application(completions, CompletionsOptions, "completions")
