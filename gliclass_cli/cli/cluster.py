"""``gliclass classify --engine ray``: many files on many machines, and what is told of them."""

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from gliclass_cli.cli.options import option
from gliclass_cli.cli.terminal import is_terminal, say
from gliclass_cli.errors import ExitCode, Interrupted

if TYPE_CHECKING:
    from gliclass_cli.classification import Summary
    from gliclass_cli.distributed import Cluster, Job, Outcome, Part

# Messages before only their number is told.
_TOLD = 5


class Engine(StrEnum):
    """Where rows are classified."""

    local = "local"
    ray = "ray"


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """One machine or many."""

    engine: Annotated[
        Engine,
        option("--engine", help="local, or ray: each file a part, on a Ray cluster; -o is then a folder or a URL."),
    ] = Engine.local
    address: Annotated[
        str | None,
        option("--address", help="Ray cluster; default: one that is started on this machine.", metavar="HOST:PORT"),
    ] = None
    workers: Annotated[
        int | None,
        option(
            "--workers",
            help="Workers on Ray at most; default: as many as it has cores for (--threads each), or with --device cuda "
            "GPUs.",
            min=1,
            metavar="N",
        ),
    ] = None


def run_job(job: "Job", parts: Sequence["Part"], missing: Sequence["Part"], cluster: "Cluster", *, quiet: bool) -> None:
    """Classify the missing parts, tell how it went, and exit as a run on one machine would."""
    from tqdm import tqdm

    from gliclass_cli.distributed import classify_parts

    start = time.monotonic()
    done: list[Outcome] = []
    with (
        tqdm(
            total=len(parts),
            initial=len(parts) - len(missing),
            unit="part",
            leave=False,
            disable=quiet or not is_terminal(sys.stderr),
        ) as bar,
        redirect_stdout(sys.stderr),  # Ray tells of dead workers there
        _interrupts(),
    ):
        for outcome in classify_parts(job, missing, cluster) if missing else ():
            done.append(outcome)
            bar.update()
    done.sort(key=lambda outcome: outcome.target)
    problems = [outcome.problem for outcome in done if outcome.problem]
    _tell([message for outcome in done for message in outcome.told], sum(each.summary.errors for each in done), "rows")
    _tell([str(problem) for problem in problems], len(problems), "parts")
    summary = _total(done)
    summary.seconds = time.monotonic() - start
    if not quiet:
        before = len(parts) - len(missing)
        there = f", {before:,} part{'s were' if before > 1 else ' was'} there before" if before else ""
        say(f"{summary.line()}, {len(done) - len(problems):,} part{'' if len(done) == 1 else 's'}{there}")
    if problems:
        raise typer.Exit(int(problems[0].exit_code))
    if summary.errors:
        raise typer.Exit(int(ExitCode.ROW_ERRORS))


def _tell(messages: Sequence[str], count: int, what: str) -> None:
    for message in messages[:_TOLD]:
        say(message)
    if count > _TOLD:
        say(f"... and {count - _TOLD:,} more {what} with errors")


def _total(outcomes: Sequence["Outcome"]) -> "Summary":
    from gliclass_cli.classification import Summary

    total = Summary()
    for outcome in outcomes:
        for name in ("rows", "written", "errors", "truncated", "chunked", "split"):
            setattr(total, name, getattr(total, name) + getattr(outcome.summary, name))
    return total


@contextmanager
def _interrupts() -> Iterator[None]:
    """Let Ctrl-C end a wait for the cluster. Raises Interrupted."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted; the same command does the parts that are missing") from error
