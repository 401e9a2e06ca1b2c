"""The application: its commands, and the one place where errors become messages and exit codes."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

from gliclass_cli.cli.config import default_map
from gliclass_cli.cli.terminal import say
from gliclass_cli.errors import ExitCode, GliclassError, UsageProblem

EPILOG = (
    "Every option can also be set in the environment as GLICLASS_<OPTION>, or in ~/.config/gliclass/config.toml. "
    "More: man gliclass"
)

# Each command's module, whose ``app`` it is; in the order of the help.
_MODULES = {
    "classify": "classify",
    "tag": "tag",
    "eval": "evaluate",
    "train": "train",
    "export": "export",
    "bench": "bench",
    "labels": "labels",
    "models": "models",
    "doctor": "doctor",
    "completions": "completions",
}
_WORDS = "gliclass.words"  # of the command line


class _Commands(Mapping[str, Any]):
    """The commands by name; a module is imported when its command is asked for: one word at the prompt, one module."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = get_command(import_module(f"gliclass_cli.cli.{_MODULES[name]}").app)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_MODULES)

    def __len__(self) -> int:
        return len(_MODULES)


class _Group(TyperGroup):
    """Turns our errors into one line on stderr and an exit code; tracebacks only with GLICLASS_DEBUG=1."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands()  # type: ignore[assignment]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_WORDS] = tuple(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            ctx.default_map = self._defaults(ctx)
            return super().invoke(ctx)
        except GliclassError as error:
            _debug()
            say(str(error))
            raise typer.Exit(int(error.exit_code)) from error
        except OSError as error:  # all that we open has its own message: this is standard output
            raise typer.Exit(int(_output_failed(error))) from error

    def _defaults(self, ctx: Any) -> dict[str, Any]:
        """Return the defaults of the user's file. Raises UsageProblem, except where help is to be had of it."""
        try:
            return default_map(self)
        except UsageProblem:
            words = ctx.meta[_WORDS]
            if words[:1] == ("doctor",) or {"-h", "--help"} & set(words):
                return {}
            raise


app = typer.Typer(
    name="gliclass",
    cls=_Group,
    help="Classify text from a terminal: any labels, no training, offline.",
    epilog=EPILOG,
    add_completion=False,
    no_args_is_help=True,
    # Plain help starts in a third of the time that rich help takes.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(value: bool) -> None:
    if value:
        from gliclass_cli import __version__

        typer.echo(f"gliclass {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("-V", "--version", help="Show the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    pass


def run() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    code: int = ExitCode.BUG
    try:
        app()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else ExitCode.DONE
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except OSError as error:
        code = _output_failed(error)
    except Exception as error:  # noqa: BLE001 - the last line of defence
        _debug()
        say(f"this is a bug of ours: {type(error).__name__}: {error} (--debug shows where)")
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        code = code or _output_failed(error)
    # A thread may still wait for input that never comes: end without waiting for it.
    os._exit(code)


def _output_failed(error: OSError | ValueError) -> ExitCode:
    """Tell what is wrong with standard output, unless its reader went away, which is no fault of anyone."""
    _debug()
    _silence_stdout()
    if isinstance(error, BrokenPipeError):
        return ExitCode.READER_GONE
    where = getattr(error, "filename", None) or "standard output"
    say(f"{where}: cannot be written: {getattr(error, 'strerror', None) or error}")
    return ExitCode.OUTPUT


def _debug() -> None:
    if os.environ.get("GLICLASS_DEBUG", "0").lower() not in ("", "0", "false", "no"):
        traceback.print_exc()


def _silence_stdout() -> None:
    """Point stdout at nothing, so that the flush at exit does not fail again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
