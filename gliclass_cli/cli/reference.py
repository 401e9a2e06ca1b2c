"""The commands and options of the application, as completion scripts and man pages describe them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer
from typer.main import get_command


@dataclass(frozen=True, slots=True)
class Parameter:
    """An option, or an argument (without ``flags``); ``values`` are those a shell can offer."""

    flags: tuple[str, ...]
    metavar: str
    help: str
    values: tuple[str, ...]
    takes_value: bool
    repeated: bool
    variable: str | None

    @property
    def kind(self) -> str:
        """What a shell should offer: words, a file, a model (words and folders), or nothing."""
        if self.metavar in ("NAME|FOLDER", "[MODEL]", "[FOLDER]..."):
            return "model"
        if self.values:
            return "words"
        return "file" if self.metavar in ("FILE", "[INPUT]...") else "nothing"


@dataclass(frozen=True, slots=True)
class Command:
    """A command as people meet it; ``path`` are the words that call it."""

    path: tuple[str, ...]
    help: str
    epilog: str
    parameters: tuple[Parameter, ...]
    commands: tuple["Command", ...]

    @property
    def summary(self) -> str:
        """The first line of the help."""
        return self.help.split("\n", 1)[0].rstrip(".")

    @property
    def options(self) -> tuple[Parameter, ...]:
        """The parameters that have flags."""
        return tuple(item for item in self.parameters if item.flags)

    @property
    def arguments(self) -> tuple[Parameter, ...]:
        """The parameters that go by place."""
        return tuple(item for item in self.parameters if not item.flags)

    def walk(self) -> Iterator["Command"]:
        """Yield this command and all below."""
        yield self
        for command in self.commands:
            yield from command.walk()


def describe(app: typer.Typer) -> Command:
    """Return the tree of an application's commands."""
    return _command(get_command(app), ("gliclass",))


def _command(command: Any, path: tuple[str, ...]) -> Command:
    return Command(
        path=path,
        help=re.sub(r"[ \t]*\n[ \t]*", "\n", (command.help or "").strip()),
        epilog=command.epilog or "",
        parameters=(*(_parameter(item) for item in command.params), _HELP),
        commands=tuple(_command(below, (*path, name)) for name, below in getattr(command, "commands", {}).items()),
    )


_HELP = Parameter(("-h", "--help"), "", "Show this message and exit.", (), False, False, None)
_OFFERED = {"--encoding": ("utf-8", "latin-1", "cp1252", "utf-16"), "--model": ("default",)}


def _parameter(item: Any) -> Parameter:
    flags = tuple(item.opts) if item.param_type_name == "option" else ()
    values = tuple(str(getattr(value, "value", value)) for value in getattr(item.type, "choices", ()))
    if not values and (item.metavar or "") == "[MODEL]":
        values = ("default",)
    for flag in flags:
        values = _OFFERED.get(flag, values)
    takes_value = not getattr(item, "is_flag", False)
    metavar = item.metavar or ("|".join(values) if values else "N" if takes_value else "")
    repeated = bool(getattr(item, "multiple", False)) or item.nargs == -1
    return Parameter(flags, metavar, item.help or "", values, takes_value, repeated, getattr(item, "envvar", None))
