"""The application: its commands, and the one place where errors become messages and exit codes."""

import contextlib
import os
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from gliclass_cli.cli.bench import EPILOG as BENCH_EPILOG
from gliclass_cli.cli.bench import BenchOptions, bench
from gliclass_cli.cli.classify import EPILOG as CLASSIFY_EPILOG
from gliclass_cli.cli.classify import ClassifyOptions, classify
from gliclass_cli.cli.completions import CompletionsOptions, completions_of
from gliclass_cli.cli.config import default_map
from gliclass_cli.cli.doctor import DoctorOptions, doctor_of
from gliclass_cli.cli.evaluate import EPILOG as EVAL_EPILOG
from gliclass_cli.cli.evaluate import EvalOptions, evaluate
from gliclass_cli.cli.export import EPILOG as EXPORT_EPILOG
from gliclass_cli.cli.export import ExportOptions, export
from gliclass_cli.cli.labels import labels
from gliclass_cli.cli.models import models
from gliclass_cli.cli.options import command
from gliclass_cli.cli.tag import EPILOG as TAG_EPILOG
from gliclass_cli.cli.tag import TagOptions, tag
from gliclass_cli.cli.terminal import say
from gliclass_cli.cli.train import EPILOG as TRAIN_EPILOG
from gliclass_cli.cli.train import TrainOptions, train
from gliclass_cli.errors import ExitCode, GliclassError, UsageProblem

EPILOG = (
    "Every option can also be set in the environment as GLICLASS_<OPTION>, or in ~/.config/gliclass/config.toml. "
    "More: man gliclass"
)


_WORDS = "gliclass.words"  # of the command line


class _Group(TyperGroup):
    """Turns our errors into one line on stderr and an exit code; tracebacks only with GLICLASS_DEBUG=1."""

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


command(app, ClassifyOptions, "classify", epilog=CLASSIFY_EPILOG)(classify)
command(app, TagOptions, "tag", epilog=TAG_EPILOG)(tag)
command(app, EvalOptions, "eval", epilog=EVAL_EPILOG)(evaluate)
command(app, TrainOptions, "train", epilog=TRAIN_EPILOG)(train)
command(app, ExportOptions, "export", epilog=EXPORT_EPILOG)(export)
command(app, BenchOptions, "bench", epilog=BENCH_EPILOG)(bench)
app.add_typer(labels, name="labels")
app.add_typer(models, name="models")
command(app, DoctorOptions, "doctor")(doctor_of(app))
command(app, CompletionsOptions, "completions")(completions_of(app))


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
