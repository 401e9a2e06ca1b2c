"""The options of the commands: a frozen dataclass for each group, and a decorator that gives them to Typer.

A command is a plain function of one argument, the dataclass of its options. Every option can also be set as
``GLICLASS_<OPTION>`` in the environment, or in a file (see ``config.py``); a flag wins, then the environment.
"""

import inspect
import math
import os
import re
import sys
from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, dataclass, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_type_hints

import typer

from gliclass_cli.calibration import CalibrationFile, read_calibration
from gliclass_cli.cli.terminal import clean, is_terminal, say
from gliclass_cli.errors import UsageProblem
from gliclass_cli.files import STDIN, read_text_file
from gliclass_cli.labels import LabelProblem, LabelSet, combine, make_labels, parse_label_file
from gliclass_cli.model_folder import DEFAULT_MODEL
from gliclass_cli.predictions import USUAL_THRESHOLD, Choice
from gliclass_cli.prompts import LABEL_SLOT, Example, Reading, parse_examples
from gliclass_cli.records import MAX_ROW_BYTES
from gliclass_cli.runtime import Runtime

if TYPE_CHECKING:
    from gliclass_cli.classifier import Classifier
    from gliclass_cli.readers import ReadOptions

Options = TypeVar("Options")


def option(*names: str, help: str, **settings: Any) -> Any:
    """Declare an option; its last name also names its environment variable."""
    variable = "GLICLASS_" + names[-1].lstrip("-").replace("-", "_").upper()
    return typer.Option(*names, help=help, envvar=variable, show_envvar=False, **settings)


MOST_ROWS = 10**15
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
        def run(context: typer.Context, **values: Any) -> None:
            if values.pop("debug"):
                os.environ["GLICLASS_DEBUG"] = "1"
            for name, variable in lists.items():
                source = context.get_parameter_source(name)
                typed = source is not None and source.name == "COMMANDLINE"
                if not typed and (lines := os.environ.get(variable)):
                    values[name] = lines.splitlines()
            function(kind(**{key: _valid(value) for key, value in values.items()}))

        hints = {**get_type_hints(kind, include_extras=True), "debug": Annotated[bool, _DEBUG]}
        lists = _take_variables_of_lists(hints)
        run.__doc__ = function.__doc__
        run.__name__ = function.__name__
        run.__annotations__ = {"context": typer.Context, **hints, "return": None}
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
            + [
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


def new_app(**settings: Any) -> typer.Typer:
    """Return an application with plain help, which starts in a third of the time that rich help takes."""
    return typer.Typer(add_completion=False, rich_markup_mode=None, **settings)


def application(function: Callable[[Options], None], kind: type[Options], name: str, **settings: Any) -> typer.Typer:
    """Return an application whose one command is a function of one options dataclass."""
    app = new_app()
    command(app, kind, name, **settings)(function)
    return app


class Format(StrEnum):
    """Formats that are read."""

    jsonl = "jsonl"
    json = "json"
    csv = "csv"
    tsv = "tsv"
    text = "text"
    parquet = "parquet"


class OutputFormat(StrEnum):
    """Formats that are written."""

    jsonl = "jsonl"
    csv = "csv"
    tsv = "tsv"
    label = "label"
    table = "table"
    parquet = "parquet"


class OnError(StrEnum):
    """What happens to a row that cannot be classified."""

    record = "record"
    skip = "skip"
    stop = "stop"


class Long(StrEnum):
    """What happens to a text that does not fit into one input of the model."""

    truncate = "truncate"
    chunk = "chunk"
    error = "error"


class Backend(StrEnum):
    """What computes a model."""

    auto = "auto"
    onnx = "onnx"
    torch = "torch"


class Precision(StrEnum):
    """The numbers that a model is computed with."""

    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", value):
        raise UsageProblem(f"--device {value!r}: known are auto, cpu, cuda and cuda:N, for example cuda:0")
    return value


def label_template(value: str | None) -> str | None:
    """Return a wording of labels. Raises UsageProblem where the label has no place in it."""
    if value is not None and LABEL_SLOT not in value:
        raise UsageProblem(f"--template {value!r} has no {LABEL_SLOT}; for example 'This text is about {LABEL_SLOT}.'")
    return value


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """What is read, and how."""

    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INPUT]...", show_default=False, help="Files, or - for standard input; .gz .bz2 .xz .zst too."
        ),
    ] = None
    text_field: Annotated[
        list[str] | None,
        option(
            "-t",
            "--text-field",
            help="Field to classify, dotted if nested; repeated: joined. Default: text, else the only string.",
            metavar="FIELD",
        ),
    ] = None
    format: Annotated[
        Format | None, option("-f", "--format", help="Format of the input. Default: by its name, else its first byte.")
    ] = None
    encoding: Annotated[str, option("--encoding", help="Encoding of the input.", metavar="NAME")] = "utf-8"
    delimiter: Annotated[
        str | None, option("--delimiter", help="Delimiter of CSV input, one character.", metavar="CHAR")
    ] = None
    no_header: Annotated[
        bool, option("--no-header", help="CSV without a header: its columns are named 1, 2, 3 ...")
    ] = False
    max_row_bytes: Annotated[
        int,
        option(
            "--max-row-bytes",
            help="A row of more bytes, decompressed, is an error; it is read past, so that memory stays flat.",
            min=1,
            max=MOST_ROWS,
            metavar="N",
        ),
    ] = MAX_ROW_BYTES
    skip: Annotated[int, option("--skip", help="Skip the first N rows.", min=0, max=MOST_ROWS, metavar="N")] = 0
    limit: Annotated[int | None, option("--limit", help="Read at most N rows.", min=0, max=MOST_ROWS, metavar="N")] = (
        None
    )

    def names(self, command: str, example: str) -> tuple[str, ...]:
        """Return the inputs; standard input where none is named, unless a person sits there. Raises UsageProblem."""
        names = tuple(self.inputs or ())
        if not names and is_terminal(sys.stdin):
            raise UsageProblem(
                f"nothing to {command}: name files, or pipe rows in; for example\n{example}\n"
                f"Help: gliclass {command} --help"
            )
        if names.count(STDIN) > 1:
            raise UsageProblem("standard input (-) can be read once only")
        return names or (STDIN,)

    def read_options(self) -> "ReadOptions":
        """Return how the inputs are read."""
        from gliclass_cli.readers import ReadOptions

        return ReadOptions(
            format=self.format.value if self.format else None,
            encoding=self.encoding,
            delimiter=self.delimiter,
            header=not self.no_header,
            text_fields=tuple(self.text_field or ()),
            max_row_bytes=self.max_row_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class LabelFileOptions:
    """Candidate labels."""

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


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions(LabelFileOptions):
    """Candidate labels, and which of them are taken."""

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
    calibration: Annotated[
        str | None,
        option(
            "--calibration",
            help="Temperature, bias and thresholds that eval --tune wrote, in place of the model's own.",
            metavar="FILE",
        ),
    ] = None

    def choice(self) -> Choice:
        """Return how scores become labels. Raises UsageProblem."""
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise UsageProblem(f"--threshold {self.threshold}: must be a number from 0 to 1")
        return Choice(multi=self.multi, threshold=self.threshold)

    def calibration_file(self) -> CalibrationFile | None:
        """Read --calibration. Raises UsageProblem, also where it is for another mode."""
        if self.calibration is None:
            return None
        found = read_calibration(self.calibration)
        if found.mode != ("multi" if self.multi else "single"):
            told = "with --multi; add it" if found.mode == "multi" else "without --multi; leave it out"
            raise UsageProblem(f"--calibration {self.calibration}: was tuned {told}, or tune another one")
        return found


@dataclass(frozen=True, kw_only=True)
class LabelOptions(ChoiceOptions):
    """Candidate labels, how scores become a choice, and which are reported."""

    top_k: Annotated[
        int | None, option("--top-k", help="Report the scores of the best K labels only.", min=1, metavar="K")
    ] = None
    digits: Annotated[int, option("--digits", help="Digits of a score.", min=1, max=15, metavar="N")] = 4
    no_scores: Annotated[bool, option("--no-scores", help="Leave the scores of all candidates out.")] = False
    nested: Annotated[bool, option("--nested", help="Give scores back in the shape of a hierarchy of labels.")] = False

    def choice(self) -> Choice:
        """Return how scores become labels. Raises UsageProblem."""
        return replace(
            super().choice(),
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
class ComputeOptions:
    """The model, and where it is computed."""

    model: Annotated[
        str,
        option(
            "--model",
            help="'default' (the bundled model), a folder, or a model of the Hugging Face hub, ORG/NAME[@REVISION], "
            "which is downloaded once.",
            metavar="NAME|FOLDER",
        ),
    ] = DEFAULT_MODEL
    adapter: Annotated[
        str | None,
        option("--adapter", help="Folder of low-rank adapters for the model: gliclass train --lora.", metavar="DIR"),
    ] = None
    device: Annotated[
        str, option("--device", help="auto, cpu, cuda or cuda:N; cuda needs PyTorch.", callback=_device, metavar="NAME")
    ] = "auto"
    precision: Annotated[
        Precision,
        option("--precision", help="auto: fp32, or what an exported model has. fp16 and bf16 are for CUDA."),
    ] = Precision.auto
    threads: Annotated[
        int | None,
        option("--threads", help="Threads that compute; default: the cores this process may use.", min=1, metavar="N"),
    ] = None
    offline: Annotated[bool, option("--offline", help="Never use the network.")] = False

    def runtime(self) -> Runtime:
        """Return what computes the model."""
        return Runtime(
            device=self.device,
            precision=self.precision.value,
            threads=self.threads,
            offline=self.offline,
            adapter=self.adapter,
            announce=say,
        )


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions(ComputeOptions):
    """The model, and what computes it."""

    backend: Annotated[
        Backend, option("--backend", help="What computes. auto: ONNX where the model has it, else PyTorch.")
    ] = Backend.auto

    def runtime(self) -> Runtime:
        """Return what computes the model."""
        return replace(super().runtime(), backend=self.backend.value)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(RuntimeOptions):
    """The model, and how it reads texts and labels."""

    template: Annotated[
        str | None,
        option(
            "--template",
            help="Wording of a label for the model, {label} in it; default: the model's own.",
            metavar="TEXT",
            callback=label_template,
        ),
    ] = None
    prompt: Annotated[
        str, option("--prompt", help="Task description that the model reads with each text.", metavar="TEXT")
    ] = ""
    examples: Annotated[
        str | None,
        option(
            "--examples",
            help='JSON Lines of solved examples, {"text": ..., "labels": [...]}: labels move towards their texts, or '
            "the model reads them beside a text, where it was made to.",
            metavar="FILE",
        ),
    ] = None
    max_length: Annotated[
        int | None,
        option(
            "--max-length",
            help="Tokens of one input, labels included where they are read with the text; default: the model's.",
            min=8,
            metavar="N",
        ),
    ] = None
    long: Annotated[
        Long,
        option("--long", help="A text that does not fit: cut it, read it in overlapping chunks, or make it an error."),
    ] = Long.truncate
    permutations: Annotated[
        int,
        option(
            "--permutations",
            help="Average over K orders of the labels, for models whose answers depend on it; K times slower.",
            min=1,
            max=1000,
            metavar="K",
        ),
    ] = 1

    def reading(self) -> Reading:
        """Return how texts and labels are put before the model. Raises UsageProblem."""
        examples: tuple[Example, ...] = ()
        if self.examples is not None:
            examples = parse_examples(read_text_file(self.examples, "examples file", UsageProblem), self.examples)
        return Reading(
            template=self.template,
            prompt=self.prompt,
            examples=examples,
            max_length=self.max_length,
            long=self.long.value,
            permutations=self.permutations,
        )


def load_classifier(
    options: ModelOptions, labels: LabelSet | None, calibration: CalibrationFile | None = None
) -> "Classifier":
    """Load the model, and tell what it cannot do with the labels at once. Raises ModelUnusable, UsageProblem."""
    from gliclass_cli.classifier import Classifier

    classifier = Classifier.load(
        options.model,
        options.reading(),
        options.runtime(),
        calibration=None if calibration is None else calibration.calibration,
    )
    if calibration is not None:
        _hint_calibration(calibration, classifier.folder.name, labels)
    if labels is None:
        return classifier
    try:
        groups = classifier.check_labels(labels)
    except LabelProblem as problem:
        raise UsageProblem(str(problem)) from problem
    if groups > 1:
        room = f"one input of {classifier.max_length} tokens"
        say(f"the {len(labels)} labels do not fit into {room}: they are read in {groups} groups")
    return classifier


def _hint_calibration(file: CalibrationFile, model: str, labels: LabelSet | None) -> None:
    """Tell where a calibration was tuned for something else."""
    if file.model != model:
        say(f"the calibration was tuned for {file.model}, not for {model}; gliclass eval tells how well it works")
    known = file.calibration.thresholds
    missing = [name for name in labels.names if name not in known] if labels is not None and known else []
    if missing and labels is not None:
        told = f"{len(missing)} of the {len(labels)} labels ({missing[0]!r}{', ...' if len(missing) > 1 else ''})"
        say(f"the calibration has no threshold for {told}: {USUAL_THRESHOLD} serves")
