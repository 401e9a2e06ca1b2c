"""The options of the commands: a frozen dataclass for each group, and a decorator that gives them to Typer.

A command is a plain function of one argument, the dataclass of its options. Every option can also be set as
``GLICLASS_<OPTION>`` in the environment; a flag wins.
"""

import inspect
import math
import os
from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, dataclass, fields
from enum import StrEnum
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer

from gliclass_cli.cli.terminal import clean, say
from gliclass_cli.errors import UsageProblem
from gliclass_cli.files import read_text_file
from gliclass_cli.labels import LabelProblem, LabelSet, combine, make_labels, parse_label_file
from gliclass_cli.model_folder import DEFAULT_MODEL
from gliclass_cli.predictions import Choice
from gliclass_cli.prompts import LABEL_SLOT

Options = TypeVar("Options")


def option(*names: str, help: str, **settings: Any) -> Any:
    """Declare an option; its last name also names its environment variable."""
    variable = "GLICLASS_" + names[-1].lstrip("-").replace("-", "_").upper()
    return typer.Option(*names, help=help, envvar=variable, show_envvar=False, **settings)


_DEBUG = typer.Option("--debug", help="Show the traceback of an error.")


def _take_variables_of_lists(hints: dict[str, Any]) -> dict[str, str]:
    """Take the environment variables of repeatable options from Typer, which would split them at every space.

    Returns:
        The variables by name of the option; ``hints`` are changed in place.
    """
    variables = {}
    for name, hint in hints.items():
        kind, declared = get_args(hint)
        if list[str] in (kind, *get_args(kind)) and getattr(declared, "envvar", None):
            variables[name] = declared.envvar
            declared = copy(declared)
            declared.envvar = None
            hints[name] = Annotated[kind, declared]
    return variables


def _valid(value: Any) -> Any:
    """Return an option's value with all its strings as valid text."""
    if isinstance(value, list):
        return [_valid(item) for item in value]
    return clean(value) if type(value) is str else value


def command(app: typer.Typer, kind: type[Options], name: str, **settings: Any) -> Callable[..., Any]:
    """Register a function of one options dataclass as a command whose parameters are the dataclass's fields."""

    def register(function: Callable[[Options], None]) -> Callable[[Options], None]:
        def run(**values: Any) -> None:
            if values.pop("debug"):
                os.environ["GLICLASS_DEBUG"] = "1"
            for name, variable in lists.items():
                if not values[name] and (lines := os.environ.get(variable)):
                    values[name] = lines.splitlines()
            function(kind(**{key: _valid(value) for key, value in values.items()}))

        hints = {**get_type_hints(kind, include_extras=True), "debug": Annotated[bool, _DEBUG]}
        lists = _take_variables_of_lists(hints)
        run.__doc__ = function.__doc__
        run.__name__ = function.__name__
        run.__annotations__ = {**hints, "return": None}
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    item.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if item.default is MISSING else item.default,
                    annotation=hints[item.name],
                )
                for item in fields(kind)  # type: ignore[arg-type]
            ]
            + [inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=hints["debug"])]
        )
        app.command(name, **settings)(run)
        return function

    return register


class Format(StrEnum):
    """Formats that are read."""

    jsonl = "jsonl"
    json = "json"
    csv = "csv"
    tsv = "tsv"
    text = "text"


class OutputFormat(StrEnum):
    """Formats that are written."""

    jsonl = "jsonl"
    csv = "csv"
    tsv = "tsv"
    label = "label"
    table = "table"


class OnError(StrEnum):
    """What happens to a row that cannot be classified."""

    record = "record"
    skip = "skip"
    stop = "stop"


def _label_template(value: str | None) -> str | None:
    if value is not None and LABEL_SLOT not in value:
        raise UsageProblem(f"--template {value!r} has no {LABEL_SLOT}; for example 'This text is about {LABEL_SLOT}.'")
    return value


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """Candidate labels, and how scores become a choice."""

    label: Annotated[
        list[str] | None, option("-l", "--label", help="A candidate label; repeat it for each.", metavar="LABEL")
    ] = None
    labels: Annotated[
        str | None,
        option(
            "--labels",
            help="File of labels: one a line (label<TAB>description works too), or JSON: a list, "
            "{label: description}, or nested objects.",
            metavar="FILE",
        ),
    ] = None
    multi: Annotated[bool, option("--multi", help="Any number of labels a row, not exactly one.")] = False
    threshold: Annotated[
        float | None,
        option(
            "--threshold",
            help="Score that a label must reach. With --multi 0.5 if not given; else below it the label is null.",
            min=0.0,
            max=1.0,
            metavar="SCORE",
        ),
    ] = None
    top_k: Annotated[
        int | None, option("--top-k", help="Report the scores of the best K labels only.", min=1, metavar="K")
    ] = None
    digits: Annotated[int, option("--digits", help="Digits of a score.", min=1, max=15, metavar="N")] = 4
    no_scores: Annotated[bool, option("--no-scores", help="Leave the scores of all candidates out.")] = False
    nested: Annotated[bool, option("--nested", help="Give scores back in the shape of a hierarchy of labels.")] = False

    def label_set(self) -> LabelSet | None:
        """Return the labels of the flags and the label file, or None. Raises UsageProblem."""
        sets = []
        try:
            if self.label:
                sets.append(make_labels(self.label))
            if self.labels is not None:
                text = read_text_file(self.labels, "label file", UsageProblem)
                sets.append(parse_label_file(text, self.labels))
            return combine(sets) if sets else None
        except LabelProblem as problem:
            raise UsageProblem(str(problem)) from problem

    def choice(self) -> Choice:
        """Return how scores become labels. Raises UsageProblem."""
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise UsageProblem(f"--threshold {self.threshold}: must be a number from 0 to 1")
        return Choice(
            multi=self.multi,
            threshold=self.threshold,
            top_k=self.top_k,
            digits=self.digits,
            with_scores=not self.no_scores,
            nested=self.nested,
        )


def hint_single_label(labels: LabelSet, multi: bool) -> None:
    """Tell who gives one label only, without --multi, that every row will get it."""
    if len(labels) == 1 and not multi:
        say(f"one label only ({labels.names[0]!r}): every row gets it; repeat -l for more, or use --multi")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model, and what computes it."""

    model: Annotated[
        str, option("--model", help="'default' (the bundled model) or a model folder.", metavar="NAME|FOLDER")
    ] = DEFAULT_MODEL
    template: Annotated[
        str | None,
        option(
            "--template",
            help="Wording of a label for the model, {label} in it; default: the model's own.",
            metavar="TEXT",
            callback=_label_template,
        ),
    ] = None
    max_length: Annotated[
        int | None,
        option(
            "--max-length", help="Cut texts to N tokens; default and most: what the model reads.", min=8, metavar="N"
        ),
    ] = None
    threads: Annotated[
        int | None,
        option("--threads", help="Threads that compute; default: the cores this process may use.", min=1, metavar="N"),
    ] = None
