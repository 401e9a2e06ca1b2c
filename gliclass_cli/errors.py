"""Errors that end a run, and the exit codes they end it with.

    GliclassError
    ├── UsageProblem     2   options or labels that make no sense together
    ├── InputUnusable    3   an input file that cannot be read on
    ├── ModelUnusable    4   a model folder, backend or extra that is missing or wrong
    │   └── OutOfMemory  4   more memory needed than there is; where one text needs it, an error of its row
    ├── OutputFailed     6   results that could not be written
    └── Interrupted    130   Ctrl-C (129: SIGHUP, 143: SIGTERM); what was finished is written

A row that cannot be classified is no exception but a value: ``records.RowError``. It ends in exit code 5.
Every message says where, what, and what to do.
"""

from enum import IntEnum
from importlib.util import find_spec


class ExitCode(IntEnum):
    """What the command answers to its shell."""

    DONE = 0
    NEGATIVE = 1
    USAGE = 2
    INPUT = 3
    MODEL = 4
    ROW_ERRORS = 5
    OUTPUT = 6
    BUG = 70
    HUNG_UP = 129
    INTERRUPTED = 130
    READER_GONE = 141
    TERMINATED = 143


EXIT_CODE_MEANINGS: dict[ExitCode, str] = {
    ExitCode.DONE: "done (abstaining is a result)",
    ExitCode.NEGATIVE: "negative answer: --select found nothing, eval --fail-under was missed, labels check has doubts",
    ExitCode.USAGE: "usage: options, labels or a label file are wrong",
    ExitCode.INPUT: "input unusable: missing, a directory, binary, damaged, or --on-error stop met a bad row",
    ExitCode.MODEL: "model or backend unusable, or an extra not installed",
    ExitCode.ROW_ERRORS: "finished, but some rows have errors",
    ExitCode.OUTPUT: "output could not be written",
    ExitCode.BUG: "a bug of ours (--debug shows the traceback)",
    ExitCode.HUNG_UP: "the terminal went away (SIGHUP)",
    ExitCode.INTERRUPTED: "interrupted with Ctrl-C",
    ExitCode.READER_GONE: "the reader of the output went away",
    ExitCode.TERMINATED: "asked to end (SIGTERM)",
}


class GliclassError(Exception):
    """Base of all errors that a user can cause and mend; its text is the whole message."""

    exit_code = ExitCode.BUG


class UsageProblem(GliclassError):
    """Options or labels that cannot be used as given."""

    exit_code = ExitCode.USAGE


class InputUnusable(GliclassError):
    """An input that cannot be opened, or not be read to its end."""

    exit_code = ExitCode.INPUT


class ModelUnusable(GliclassError):
    """A model folder, backend or extra that is missing or not usable."""

    exit_code = ExitCode.MODEL


class OutOfMemory(ModelUnusable):
    """There is not enough memory to compute an input."""


class OutputFailed(GliclassError):
    """Results that could not be written."""

    exit_code = ExitCode.OUTPUT


class Interrupted(GliclassError):
    """The user asked to stop; everything before is written."""

    exit_code = ExitCode.INTERRUPTED


def check_extra(module: str, extra: str, what: str) -> None:
    """Raise ModelUnusable where the library of an extra is not installed."""
    if find_spec(module) is None:
        raise ModelUnusable(f"{what} needs {module}: pip install 'gliclass-cli[{extra}]'")
