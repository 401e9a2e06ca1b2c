"""``gliclass eval``: how right the answers are, on rows whose right labels are known."""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gliclass_cli.cli.classify import BadRows
from gliclass_cli.cli.options import (
    ChoiceOptions,
    InputOptions,
    ModelOptions,
    application,
    hint_single_label,
    load_classifier,
    option,
)
from gliclass_cli.cli.terminal import interruptible, say
from gliclass_cli.errors import ExitCode, ModelUnusable, UsageProblem
from gliclass_cli.files import STDIN, Output

if TYPE_CHECKING:
    from gliclass_cli.calibration import CalibrationFile
    from gliclass_cli.classification import Inputs, Listeners, Summary
    from gliclass_cli.evaluation.report import Report
    from gliclass_cli.evaluation.rows import Labelled, Outcomes
    from gliclass_cli.evaluation.tuning import Tuned
    from gliclass_cli.labels import LabelSet

EPILOG = """Examples:

  gliclass eval labelled.jsonl --labels labels.txt --plot report.svg

  gliclass eval predictions.jsonl --fail-under macro_f1=0.8 --fail-under ece=0.1

  gliclass eval dev.jsonl --labels labels.txt --multi --tune calibration.json"""

_USUAL_WAYS = "  gliclass eval labelled.jsonl --labels labels.txt"
_INSTALL = "pip install 'gliclass-cli[eval]'"
_PLOT_SUFFIXES = (".png", ".svg")
_RUN_METRICS = ("rows", "errors", "seconds", "rows_per_second")
_SHOWN_LABELS = 12


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What is told, and where."""

    gold_field: Annotated[
        str | None,
        option(
            "--gold-field",
            help="Field of the right labels, dotted if nested. Default: the first of true_labels, gold, label, labels.",
            metavar="FIELD",
        ),
    ] = None
    as_key: Annotated[
        str, option("--as", help="Key of predictions that rows already hold: no model runs then.", metavar="NAME")
    ] = "prediction"
    json: Annotated[
        str | None,
        option("--json", help="Write the report as a JSON object; -: instead of the table.", metavar="FILE"),
    ] = None
    plot: Annotated[
        str | None,
        option("--plot", help="Draw confusion, reliability and F1 of each label, as .png or .svg.", metavar="FILE"),
    ] = None
    fail_under: Annotated[
        list[str] | None,
        option(
            "--fail-under",
            help="Exit 1 where a metric of the report is below VALUE (ece, nll and hamming_loss: above); repeatable.",
            metavar="METRIC=VALUE",
        ),
    ] = None
    tune: Annotated[
        str | None,
        option(
            "--tune",
            help="Learn temperature, with --multi also bias and thresholds, on these rows, for --calibration.",
            metavar="FILE",
        ),
    ] = None


# Bases count from the last to the first: labels come first in the help.
@dataclass(frozen=True, kw_only=True)
class EvalOptions(ModelOptions, ReportOptions, InputOptions, ChoiceOptions):
    """Everything that ``eval`` takes."""

    batch_tokens: Annotated[
        int | None, option("--batch-tokens", help="Tokens computed in one go, padding included.", min=1, metavar="N")
    ] = None
    quiet: Annotated[bool, option("-q", "--quiet", help="No progress, no summary; errors only.")] = False


@dataclass(frozen=True, slots=True)
class Goal:
    """What a metric must reach, or where less is better, not exceed."""

    metric: str
    value: float
    text: str


@dataclass(frozen=True, slots=True)
class _Run:
    """What was found: the arrays, what it took, and the model, if one ran."""

    outcomes: "Outcomes"
    summary: "Summary"
    model: str | None = None


def evaluate(options: EvalOptions) -> None:
    """Score labelled rows, or predictions that rows already hold.

    Right labels are text or, with --multi, a list, {label: confidence} or text joined by |. Without labels to choose
    from, those are taken that the rows have. Rows as classify writes them, with a "prediction", are scored without a
    model; else the model runs. Rows that cannot be read or have no right label are told and left out: exit code 5.

    --tune learns a calibration on the rows and tells by 5-fold cross-validation what it gains; classify, tag and eval
    take it with --calibration.
    """
    names = options.names("eval", _USUAL_WAYS)
    goals = [_goal(text, multi=options.multi) for text in options.fail_under or ()]
    labels = options.label_set()
    calibration = options.calibration_file()
    options.choice()
    _check_files(options, names)
    _check_libraries(plot=options.plot is not None)
    with ExitStack() as stack:
        outputs = {
            kind: stack.enter_context(Output(name))
            for kind, name in (("json", options.json), ("plot", options.plot), ("tune", options.tune))
            if name is not None
        }
        run = _run(options, names, labels, calibration)
        tuned = _tune(options, run) if "tune" in outputs else None
        values = _report(options, run, tuned, outputs)
    missed = [goal for goal in goals if _is_missed(goal, values)]
    for goal in missed:
        say(f"--fail-under {goal.metric}={goal.text}: missed, it is {values[goal.metric]:.4f}")
    if run.summary.errors:
        raise typer.Exit(int(ExitCode.ROW_ERRORS))
    if missed:
        raise typer.Exit(int(ExitCode.NEGATIVE))


def _goal(text: str, *, multi: bool) -> Goal:
    """Read METRIC=VALUE. Raises UsageProblem."""
    name, _, number = (part.strip() for part in text.partition("="))
    known = (*_metric_names(multi=multi), *_RUN_METRICS)
    if name not in known:
        raise UsageProblem(f"--fail-under {text!r}: known metrics are {', '.join(known)}")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageProblem(f"--fail-under {text!r}: a number belongs behind the =, for example {name}=0.8")
    return Goal(name, value, number)


def _metric_names(*, multi: bool) -> tuple[str, ...]:
    from gliclass_cli.metrics import MULTI_METRICS, SINGLE_METRICS

    return MULTI_METRICS if multi else SINGLE_METRICS


def _check_files(options: EvalOptions, names: tuple[str, ...]) -> None:
    """Raise UsageProblem where an output has a wrong ending, or is read or written by another option."""
    if options.labels == STDIN and STDIN in names:
        raise UsageProblem("standard input (-) cannot be both the label file and the input")
    if options.plot is not None and PurePath(options.plot).suffix.lower() not in _PLOT_SUFFIXES:
        raise UsageProblem(f"--plot {options.plot!r}: must end in .png or .svg")
    given = (*names, options.labels, options.calibration, options.examples)
    taken = {Path(name).resolve() for name in given if name and name != STDIN}
    for flag, name in (("--json", options.json), ("--plot", options.plot), ("--tune", options.tune)):
        if name is None or (name == STDIN and flag == "--json"):
            continue
        if not name or name == STDIN:
            raise UsageProblem(f"{flag} {name!r}: name a file")
        path = Path(name).resolve()
        if path in taken:
            raise UsageProblem(f"{flag} {name}: is read, or written by another option; name another file")
        if not path.exists() or path.is_file():  # /dev/null may be named twice
            taken.add(path)


def _check_libraries(*, plot: bool) -> None:
    """Raise ModelUnusable where the extra is not installed."""
    wanted = {"sklearn": "scikit-learn", **({"matplotlib": "matplotlib"} if plot else {})}
    missing = [name for module, name in wanted.items() if find_spec(module) is None]
    if missing:
        raise ModelUnusable(f"eval needs {' and '.join(missing)}: {_INSTALL}")


def _run(
    options: EvalOptions, names: tuple[str, ...], labels: "LabelSet | None", calibration: "CalibrationFile | None"
) -> _Run:
    """Read all rows, and predict those that hold no prediction."""
    from gliclass_cli.classification import Inputs, Listeners
    from gliclass_cli.cli.progress import Progress
    from gliclass_cli.evaluation.rows import find_shape, labelled_rows, stored_rows

    inputs = Inputs(names, options.read_options())
    shape, records = find_shape(
        _limited(inputs, options),
        gold=options.gold_field,
        texts=options.text_field or (),
        key=options.as_key,
        multi=options.multi,
    )
    rows = labelled_rows(records, shape)
    progress = Progress(names, shown=not options.quiet)
    bad_rows = BadRows(progress)
    listeners = Listeners(bad_rows.tell, progress.show)
    with ExitStack() as stack:
        stack.callback(bad_rows.end)
        if shape.stored is None:
            return _predict(options, rows, labels, calibration, listeners, stack, progress)
        for flag, value in (
            ("--tune", options.tune),
            ("--calibration", options.calibration),
            ("--threshold", options.threshold),
        ):
            if value is not None:
                raise UsageProblem(
                    f"{flag}: needs the model's own scores, but the rows already hold predictions in "
                    f"{shape.stored!r}, with rounded ones; give the rows without them"
                )
        stack.enter_context(progress)
        return _Run(*stored_rows(rows, labels, multi=options.multi, listeners=listeners))


def _limited(inputs: "Inputs", options: EvalOptions) -> "Iterator[Any]":
    return islice(inputs, options.skip, None if options.limit is None else options.skip + options.limit)


def _predict(
    options: EvalOptions,
    rows: "Iterable[Labelled]",
    labels: "LabelSet | None",
    calibration: "CalibrationFile | None",
    listeners: "Listeners",
    stack: ExitStack,
    progress: Any,
) -> _Run:
    """Run the model on rows; without labels, on all that the rows have."""
    from gliclass_cli.classifier import StreamOptions
    from gliclass_cli.evaluation.rows import predict_rows

    if labels is None:
        rows = list(rows)
        labels = _labels_of(rows)
    hint_single_label(labels, options.multi)
    classifier = load_classifier(options, labels, calibration)
    stop = stack.enter_context(interruptible())
    stack.enter_context(progress)
    outcomes, summary = predict_rows(
        rows,
        classifier,
        labels,
        options.choice(),
        stream=StreamOptions(batch_tokens=options.batch_tokens),
        listeners=listeners,
        stop=stop,
    )
    return _Run(outcomes, summary, classifier.folder.name)


def _labels_of(rows: "list[Labelled]") -> "LabelSet":
    """Return the labels that are right for any row, and tell them. Raises UsageProblem."""
    from gliclass_cli.evaluation.rows import labels_of
    from gliclass_cli.labels import LabelProblem, make_labels

    names = labels_of(rows)
    if not names:
        told = next((f"; {row.record.where}: {row.record.error.message}" for row in rows if row.record.error), "")
        raise UsageProblem(f"no row has a right label{told}; give the labels with -l or --labels")
    try:
        labels = make_labels(names)
    except LabelProblem as problem:
        raise UsageProblem(f"the right labels of the rows: {problem}") from problem
    shown = ", ".join(names[:_SHOWN_LABELS]) + (", ..." if len(names) > _SHOWN_LABELS else "")
    say(f"no labels given: choosing from the {len(names)} that the rows have: {shown}")
    return labels


def _tune(options: EvalOptions, run: _Run) -> "Tuned":
    from gliclass_cli.evaluation.tuning import tune

    return tune(run.outcomes, options.choice())


def _report(options: EvalOptions, run: _Run, tuned: "Tuned | None", outputs: dict[str, Output]) -> dict[str, Any]:
    """Write the report to all places asked for; return its values."""
    from gliclass_cli.cli.report import show_report
    from gliclass_cli.evaluation.report import evaluate

    report = evaluate(run.outcomes)
    values = _values(run, report, tuned)
    if "tune" in outputs and tuned is not None:
        outputs["tune"].write(_calibration_bytes(options, run, tuned))
    if "plot" in outputs:
        from gliclass_cli.plots import plot_report

        outputs["plot"].write(plot_report(report, options.plot or ""))
    if "json" in outputs:
        outputs["json"].write(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    if options.json != STDIN:
        show_report(report, values, tuned)
    return values


def _values(run: _Run, report: "Report", tuned: "Tuned | None") -> dict[str, Any]:
    """Return the whole report as plain values, as --json writes it."""
    summary = run.summary
    values: dict[str, Any] = {"rows": len(run.outcomes), "errors": summary.errors, "model": run.model}
    if run.model is not None:
        rate = summary.rows / summary.seconds if summary.seconds else 0.0
        values |= {"seconds": round(summary.seconds, 3), "rows_per_second": round(rate, 3)}
        values |= {"truncated": summary.truncated}
    values |= report.to_dict()
    if tuned is not None:
        values["tuning"] = tuned.to_dict()
    return values


def _is_missed(goal: Goal, values: dict[str, Any]) -> bool:
    """Tell whether a metric is not good enough. Raises UsageProblem where it was left out."""
    from gliclass_cli.metrics import LOSSES

    if goal.metric not in values:
        why = "; ".join(values["notes"]) or "it needs more labels, or the model to run"
        raise UsageProblem(f"--fail-under {goal.metric}: the report has no {goal.metric}: {why}")
    found = float(values[goal.metric])
    return found > goal.value if goal.metric in LOSSES else found < goal.value


def _calibration_bytes(options: EvalOptions, run: _Run, tuned: "Tuned") -> bytes:
    from gliclass_cli.calibration import CalibrationFile

    return CalibrationFile(
        model=run.model or "",
        mode="multi" if options.multi else "single",
        calibration=tuned.calibration,
        rows=len(run.outcomes),
        cross_validation=tuned.cross_validation(),
    ).to_bytes()


app = application(evaluate, EvalOptions, "eval", epilog=EPILOG)
