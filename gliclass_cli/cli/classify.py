"""``gliclass classify``: stream rows in, rows with their labels out."""

import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gliclass_cli.cells import cells
from gliclass_cli.cli.cluster import Engine, EngineOptions, run_job
from gliclass_cli.cli.options import (
    MOST_ROWS,
    InputOptions,
    LabelOptions,
    ModelOptions,
    OnError,
    OutputFormat,
    application,
    hint_single_label,
    load_classifier,
    option,
)
from gliclass_cli.cli.summary import LabelCounts
from gliclass_cli.cli.terminal import interruptible, is_terminal, say, width
from gliclass_cli.errors import (
    ExitCode,
    GliclassError,
    InputUnusable,
    Interrupted,
    OutputFailed,
    UsageProblem,
    check_extra,
)
from gliclass_cli.files import COMPRESSED_SUFFIXES, STDIN, part_of
from gliclass_cli.predictions import Choice
from gliclass_cli.resume import Journal, digest_of, journal_of, unfinished

if TYPE_CHECKING:
    from gliclass_cli.calibration import CalibrationFile
    from gliclass_cli.classification import Inputs, Settings
    from gliclass_cli.classifier import Classifier
    from gliclass_cli.cli.progress import Progress
    from gliclass_cli.files import Output
    from gliclass_cli.labels import LabelSet
    from gliclass_cli.records import Record, RowError
    from gliclass_cli.writers import Writer

EPILOG = """Examples:

  gliclass classify tickets.jsonl --labels labels.txt | jq -r .prediction.label

  gliclass classify reviews.csv --text-field review -l good -l bad -o out.csv

  tail -f app.log | gliclass classify -l error -l routine --select error"""

_USUAL_WAYS = (
    "  gliclass classify tickets.jsonl --labels labels.txt\n"
    "  echo 'I was charged twice' | gliclass classify -l billing -l shipping"
)
_BY_SUFFIX = {".csv": OutputFormat.csv, ".tsv": OutputFormat.tsv, ".parquet": OutputFormat.parquet}
# Parts of these, one after another, are the whole.
_PART_FORMATS = (OutputFormat.jsonl, OutputFormat.label, OutputFormat.parquet)
# Options that change nothing in the output, or are told of by what they bring: a digest of the model, the labels ...
_FREE_TO_CHANGE = frozenset(
    {"inputs", "output", "rejects", "resume", "dry_run", "summary", "quiet", "linger", "batch_tokens", "threads"}
    | {"offline", "model", "adapter", "backend", "device", "precision", "label", "labels", "calibration", "examples"}
    | {"engine", "address", "workers"}
)
# Messages about bad rows before only their number is told.
_TOLD_ROWS = 5


@dataclass(frozen=True, kw_only=True)
class RowLabelOptions(LabelOptions):
    """Labels for all rows, or of each row."""

    labels_field: Annotated[
        str | None,
        option(
            "--labels-field", help="Field with the row's own candidates: a list, or text joined by |.", metavar="FIELD"
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Which of the rows are taken."""

    sample: Annotated[
        int | None,
        option(
            "--sample",
            help="Take N rows drawn at random from all that are read, in their order.",
            min=1,
            max=MOST_ROWS,
            metavar="N",
        ),
    ] = None
    seed: Annotated[int, option("--seed", help="Which rows --sample draws.", metavar="N")] = 0


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What is written, and where."""

    output: Annotated[
        str | None,
        option(
            "-o", "--output", help="Write to FILE, complete or not at all; .gz .bz2 .xz .zst compress.", metavar="FILE"
        ),
    ] = None
    output_format: Annotated[
        OutputFormat | None, option("--output-format", help="Format of the output. Default: by -o's name, else jsonl.")
    ] = None
    select: Annotated[
        list[str] | None,
        option(
            "--select",
            help="Write only the original lines of rows that got LABEL, unchanged; exit 1 if none.",
            metavar="LABEL",
        ),
    ] = None
    review: Annotated[
        str | None,
        option(
            "--review",
            help="Write only uncertain rows: the score of the best label (with --multi of any label) is from LOW to "
            "HIGH.",
            metavar="LOW:HIGH",
        ),
    ] = None
    as_key: Annotated[
        str, option("--as", help="Name of the key, or of the columns, that is added.", metavar="NAME")
    ] = "prediction"
    on_error: Annotated[
        OnError,
        option("--on-error", help="A bad row: record it in its place, skip it, or stop with exit 3."),
    ] = OnError.record
    rejects: Annotated[
        str | None, option("--rejects", help="Write the raw lines of bad rows to FILE.", metavar="FILE")
    ] = None


# Bases count from the last to the first: labels come first in the help.
@dataclass(frozen=True, kw_only=True)
class ClassifyOptions(EngineOptions, ModelOptions, OutputOptions, SampleOptions, InputOptions, RowLabelOptions):
    """Everything that ``classify`` takes."""

    linger: Annotated[
        int, option("--linger", help="Milliseconds that a row waits at most for company.", min=0, metavar="MS")
    ] = 50
    batch_tokens: Annotated[
        int | None, option("--batch-tokens", help="Tokens computed in one go, padding included.", min=1, metavar="N")
    ] = None
    resume: Annotated[
        bool,
        option("--resume", help="Go on with a run into -o FILE that was interrupted or killed; begin where none was."),
    ] = False
    dry_run: Annotated[
        bool, option("--dry-run", help="Show what would be done, by the first rows; load no weights, write nothing.")
    ] = False
    summary: Annotated[bool, option("--summary", help="At the end, count the labels, on stderr.")] = False
    quiet: Annotated[bool, option("-q", "--quiet", help="No progress, no summary line; errors only.")] = False

    def choice(self) -> Choice:
        """Return how scores become labels, and which are to be reviewed. Raises UsageProblem."""
        return replace(super().choice(), review=None if self.review is None else _scores_between(self.review))


def classify(options: ClassifyOptions) -> None:
    """Label rows from files or a pipe.

    Rows come in as JSON Lines, JSON, CSV, TSV, plain text or Parquet and go out in the same order, as JSON Lines. A
    row keeps all its own fields, untouched, and gains one key, "prediction", with label, score, labels (all accepted)
    and scores (every candidate). One label a row is chosen (softmax); --multi takes any number (sigmoid).

    A row that cannot be classified keeps its place, with prediction.error saying why; the run goes on and ends with
    exit code 5. A text that is too long for the model is cut, and prediction.truncated says so. With -o the file
    appears under its name when it is complete; until then the work is in FILE.part. With --resume, FILE.resume tells
    how far it is: after an interruption, a crash or a full disk the same command goes on, to the same file.
    """
    names = options.names("classify", _USUAL_WAYS)
    labels = _labels(options)
    options.choice()
    calibration = options.calibration_file()
    if options.engine is Engine.ray:
        _classify_on_ray(options, names, labels, calibration)
        return
    if options.address or options.workers:
        raise UsageProblem("--address and --workers go with --engine ray")
    _check_files(options, names)
    _check_parquet(options)
    from gliclass_cli.classification import Inputs, Listeners, asked_for, classify_rows

    inputs, settings = Inputs(names, options.read_options()), _settings(options, labels)
    if options.dry_run:
        from gliclass_cli.cli.rehearsal import show_rehearsal

        show_rehearsal(inputs, settings, options.model, options.reading())
        return
    from gliclass_cli.cli.progress import Progress
    from gliclass_cli.files import Output

    classifier = load_classifier(options, labels, calibration)
    journal = _journal(options, names, labels, classifier) if options.resume else None
    if journal is not None and journal.is_complete(options.rejects):
        journal.check_ended(asked_for(inputs, settings))
        if not options.quiet:
            say(f"{options.output}: is complete, all {journal.state.rows:,} rows are done")
        return
    # Results that run over the screen show the progress by themselves.
    shown = not options.quiet and (options.output is not None or not is_terminal(sys.stdout))
    progress = Progress(names, shown=shown)
    bad_rows = BadRows(progress, " (--rejects FILE keeps them all)")
    counts = LabelCounts(labels)

    def on_bad_row(record: "Record", error: "RowError") -> None:
        bad_rows.tell(record, error)
        counts.count_error()

    with ExitStack() as stack:
        output = stack.enter_context(Output(options.output, keep=options.resume))
        rejects = (
            stack.enter_context(Output(options.rejects, keep=options.resume)) if options.rejects is not None else None
        )
        stack.callback(bad_rows.end)
        stop = stack.enter_context(interruptible())
        if journal is not None:
            stack.enter_context(journal)
            if journal.state.rows and not options.quiet:
                say(f"{output.part}: holds {journal.state.rows:,} rows; going on")
        stack.enter_context(progress)
        try:
            summary = classify_rows(
                inputs,
                classifier,
                lambda opened: _writer(options, labels, opened),
                output,
                settings,
                rejects=rejects,
                listeners=Listeners(on_bad_row, progress.show, counts.count),
                stop=stop,
                journal=journal,
            )
        except (InputUnusable, Interrupted, OutputFailed) as error:
            raise type(error)(f"{error}{_kept(error, output, journal)}") from error
    if not options.quiet:
        say(summary.line(f"{summary.written:,} to review" if options.review else ""))
    if options.summary:
        counts.tell()
    if summary.errors:
        raise typer.Exit(int(ExitCode.ROW_ERRORS))
    if options.select and not summary.written:
        raise typer.Exit(int(ExitCode.NEGATIVE))


def _kept(error: GliclassError, output: "Output", journal: Journal | None) -> str:
    """Tell where the work is, and how to go on with it."""
    if not output.part or not output.wrote:
        return ""
    if journal is not None:
        return f" (what is done is in {output.part}; the same command goes on)"
    return "" if isinstance(error, OutputFailed) else f" (written so far: {output.part}; rename it before the next run)"


class BadRows:
    """Tells the first bad rows, then only how many there were."""

    def __init__(self, progress: "Progress", hint: str = "") -> None:
        self._count = 0
        self._progress = progress
        self._hint = hint

    def tell(self, record: "Record", error: "RowError") -> None:
        """Tell of a bad row, or only count it."""
        self._count += 1
        if self._count <= _TOLD_ROWS:
            self._progress.clear()
            say(f"{record.where}: {error.message}")

    def end(self) -> None:
        """Tell how many there were beyond those told."""
        if self._count > _TOLD_ROWS:
            say(f"... and {self._count - _TOLD_ROWS:,} more rows with errors{self._hint}")


def _scores_between(text: str) -> tuple[float, float]:
    """Read LOW:HIGH; nothing stands for 0, or for 1. Raises UsageProblem."""
    low, colon, high = text.partition(":")
    try:
        between = float(low or 0), float(high or 1)
        if colon and 0 <= between[0] <= between[1] <= 1:
            return between
    except ValueError:
        pass
    raise UsageProblem(f"--review {text!r}: two scores from 0 to 1 belong here, for example 0.4:0.7")


def _selected(options: ClassifyOptions) -> list[str]:
    """Return the labels of --select, spelt as the labels are: without space around them."""
    return [wanted.strip() for wanted in options.select or ()]


def _labels(options: ClassifyOptions) -> "LabelSet | None":
    """Return the labels for all rows. Raises UsageProblem."""
    if options.labels == STDIN and STDIN in (options.inputs or [STDIN]):
        raise UsageProblem("standard input (-) cannot be both the label file and the input")
    labels = options.label_set()
    if labels is None and options.labels_field is None:
        raise UsageProblem("no labels: give -l LABEL for each, --labels FILE, or --labels-field FIELD")
    if options.select and options.output_format:
        raise UsageProblem("--select writes the original lines; leave --output-format out")
    for wanted in _selected(options):
        if labels is not None and options.labels_field is None and wanted not in labels.names:
            raise UsageProblem(f"--select {wanted!r} is not one of the labels: {', '.join(labels.names)}")
    if labels is not None:
        hint_single_label(labels, options.multi)
    return labels


def _check_files(options: ClassifyOptions, names: tuple[str, ...]) -> None:
    """Raise UsageProblem where one file would be written over another, or over what an earlier run left."""
    if options.resume:
        _check_resumable(options, names)
    given = (*names, options.labels, options.calibration)
    read = {Path(name).resolve() for name in given if name and name != STDIN}
    written: set[Path] = set()
    for flag, name in (("--output", options.output), ("--rejects", options.rejects)):
        if name == "" or (flag == "--rejects" and name == STDIN):
            raise UsageProblem(f"{flag} {name!r}: name a file")
        if name is None or name == STDIN or (not (path := Path(name).resolve()).is_file() and path.exists()):
            continue
        part, journal = part_of(name), journal_of(name)
        # Results may replace an input: they do so when it is read and they are complete.
        taken = {part, journal} if flag == "--output" else {path, part}
        if taken & read or {path, part} & written:
            raise UsageProblem(f"{flag} {name}: is read, or written by another option; name another file")
        written |= {path, part, journal}
        if options.resume:
            continue
        if found := unfinished(name):
            raise UsageProblem(
                f"{part}: holds {found.rows:,} rows of a run that was not finished; go on with --resume, or remove it"
            )
        if options.skip and part.is_file() and part.stat().st_size:
            raise UsageProblem(f"{part}: holds the rows of an earlier run; rename it first, so that they are not lost")


def _check_resumable(options: ClassifyOptions, names: tuple[str, ...]) -> None:
    """Raise UsageProblem where a run could not go on from what is on the disk."""
    if options.output in (None, STDIN):
        raise UsageProblem("--resume: name the output, -o FILE: what went into a pipe is not there to go on with")
    if options.summary:
        raise UsageProblem("--resume: --summary would count the labels of this run alone; leave it out")
    if (options.output_format or _format_of(options.output)) is OutputFormat.parquet:
        raise UsageProblem("--resume: a Parquet file cannot be gone on with; write JSONL or CSV")
    for name in filter(None, (options.output, options.rejects)):
        if Path(name).exists() and not Path(name).is_file():
            raise UsageProblem(f"--resume: {name} is no ordinary file, so that no run can go on with it")
    for name in names:
        if name == STDIN or (Path(name).exists() and not Path(name).is_file()):
            shown = "standard input" if name == STDIN else name
            raise UsageProblem(f"--resume: {shown} cannot be read again from its beginning; name ordinary files")
        if options.output and Path(name).resolve() == Path(options.output).resolve():
            raise UsageProblem(f"--resume: {name} would be gone once its results are there; name another -o FILE")


def _journal(
    options: ClassifyOptions, names: tuple[str, ...], labels: "LabelSet | None", classifier: "Classifier"
) -> Journal:
    """Find what an earlier run left, and check that it was this one. Raises UsageProblem, ModelUnusable."""
    from gliclass_cli import __version__
    from gliclass_cli.model_folder import model_digest

    weights = not classifier.backend.startswith("ONNX")
    given = {item.name: getattr(options, item.name) for item in fields(options) if item.name not in _FREE_TO_CHANGE}
    run: dict[str, Any] = {
        "gliclass": __version__,
        "inputs": list(names),
        "model": digest_of(model_digest(classifier.folder, weights=weights, adapter=options.adapter)),
        "backend": classifier.backend,
        "labels": digest_of(asdict(labels) if labels else None),
        "calibration": digest_of(asdict(classifier.folder.calibration)),
        "examples": digest_of([asdict(example) for example in classifier.reading.examples]),
        "--rejects": str(Path(options.rejects).resolve()) if options.rejects else None,
        **{f"--{name.removesuffix('_key').replace('_', '-')}": value for name, value in given.items()},
    }
    if options.output_format is OutputFormat.table:
        run["width"] = width(sys.stdout)
    return Journal(str(options.output), run)


def _check_parquet(options: ClassifyOptions) -> None:
    """Raise UsageProblem where lines or a terminal would get Parquet, ModelUnusable where pyarrow is missing."""
    for flag, name in (("--select, -o", options.output if options.select else None), ("--rejects", options.rejects)):
        if name is not None and _format_of(name) is OutputFormat.parquet:
            raise UsageProblem(f"{flag} {name}: lines are written; name a file that does not end in .parquet")
    if (options.output_format or _format_of(options.output)) is OutputFormat.parquet:
        if options.output in (None, STDIN) and is_terminal(sys.stdout):
            raise UsageProblem("Parquet is not for terminals; name a file with -o")
        check_extra("pyarrow", "parquet", "Parquet")


def _settings(options: ClassifyOptions, labels: "LabelSet | None") -> "Settings":
    from gliclass_cli.classification import Sample, Settings
    from gliclass_cli.classifier import StreamOptions

    return Settings(
        labels=labels,
        labels_field=options.labels_field,
        choice=options.choice(),
        stream=StreamOptions(batch_tokens=options.batch_tokens, linger=options.linger / 1000),
        on_error=options.on_error.value,
        skip=options.skip,
        limit=options.limit,
        sample=None if options.sample is None else Sample(options.sample, options.seed),
    )


def _classify_on_ray(
    options: ClassifyOptions, names: tuple[str, ...], labels: "LabelSet | None", calibration: "CalibrationFile | None"
) -> None:
    """Classify each input into a part of its own, on a cluster."""
    kind = _check_for_ray(options, names)
    from gliclass_cli import __version__
    from gliclass_cli.classifier import Classifier
    from gliclass_cli.distributed import Cluster, Job, find_inputs, missing_parts, plan_parts
    from gliclass_cli.files import is_url
    from gliclass_cli.loading import open_folder
    from gliclass_cli.model_folder import model_digest

    sources = find_inputs(names)
    parts = plan_parts(sources, {"label": ".txt"}.get(kind.value, f".{kind.value}"))
    output = str(options.output)
    threads = options.threads or 1
    reading, runtime = options.reading(), replace(options.runtime(), threads=threads)
    folder = open_folder(options.model, runtime)
    tuned = None if calibration is None else calibration.calibration
    job = Job(
        load=partial(Classifier.load, options.model, reading, runtime, calibration=tuned),
        make_writer=partial(_writer, replace(options, output_format=kind), labels, several=len(sources) > 1),
        read=options.read_options(),
        settings=_settings(options, labels),
        output=output if is_url(output) else str(Path(output).absolute()),
        directory=str(Path.cwd()),
    )
    model = model_digest(folder, weights=folder.has_weights, adapter=runtime.adapter)
    # All that an answer depends on; what computes it changes none.
    answers = (
        __version__,
        model,
        reading,
        tuned,
        job.read,
        job.settings,
        kind.value,
        options.as_key,
        runtime.precision,
    )
    missing = missing_parts(job.output, parts, repr(answers))
    cluster = Cluster(options.address, options.workers, threads, int(options.device.startswith("cuda")))
    run_job(job, parts, missing, cluster, quiet=options.quiet)


def _check_for_ray(options: ClassifyOptions, names: tuple[str, ...]) -> OutputFormat:
    """Return the format of the parts. Raises UsageProblem where an option makes no sense there, ModelUnusable."""
    refused = {
        "standard input": STDIN in names,
        "--skip": options.skip,
        "--limit": options.limit is not None,
        "--select": options.select,
        "--rejects": options.rejects is not None,
        "--on-error stop": options.on_error is OnError.stop,
        "--linger": options.linger != ClassifyOptions.linger,
        "--sample": options.sample is not None,
        "--summary": options.summary,
        "--resume": options.resume,
        "--dry-run": options.dry_run,
    }
    if found := [flag for flag, given in refused.items() if given]:
        raise UsageProblem(f"--engine ray does not take {', '.join(found)}")
    if options.output in (None, "", STDIN):
        raise UsageProblem("--engine ray writes a part for each input: name a folder or a URL for them with -o")
    kind = options.output_format or OutputFormat.jsonl
    if kind not in _PART_FORMATS:
        known = ", ".join(_PART_FORMATS)
        raise UsageProblem(f"--output-format {kind.value}: has one head for all rows; --engine ray writes {known}")
    check_extra("ray", "ray", "--engine ray")
    if kind is OutputFormat.parquet:
        check_extra("pyarrow", "parquet", "Parquet")
    return kind


def _writer(
    options: ClassifyOptions, labels: "LabelSet | None", inputs: "Inputs", *, several: bool = False
) -> "Writer":
    """Build the writer, once the first input is open and its columns are known."""
    from gliclass_cli.writers import ReviewWriter

    writer = _whole_writer(options, labels, inputs, several)
    return writer if options.review is None else ReviewWriter(writer)


def _whole_writer(options: ClassifyOptions, labels: "LabelSet | None", inputs: "Inputs", several: bool) -> "Writer":
    """Build the writer of all rows."""
    from gliclass_cli import writers

    if options.select:
        return writers.SelectWriter(frozenset(_selected(options)), inputs.header_raw)
    kind = options.output_format or _format_of(options.output)
    if kind in (OutputFormat.csv, OutputFormat.tsv):
        return writers.CsvWriter(
            key=options.as_key,
            delimiter="," if kind is OutputFormat.csv else "\t",
            digits=options.digits,
            header=not options.no_header,
            columns=inputs.columns,
        )
    if kind is OutputFormat.parquet:
        from gliclass_cli.parquet import ParquetWriter

        return ParquetWriter(options.as_key, schema=inputs.schema, columns=inputs.columns)
    if kind is OutputFormat.label:
        return writers.LabelWriter()
    if kind is OutputFormat.table:
        longest = max((cells(name) for name in labels.names), default=5) if labels else 20
        fields = tuple(options.text_field or ())
        return writers.TableWriter(min(longest, 30), width(sys.stdout), fields)
    return writers.JsonlWriter(options.as_key, with_source=several or len(inputs.names) > 1)


def _format_of(name: str | None) -> OutputFormat:
    """Tell the output's format by the name of its file."""
    path = PurePath((name or "").lower())
    if path.suffix in COMPRESSED_SUFFIXES:
        path = path.with_suffix("")
    return _BY_SUFFIX.get(path.suffix, OutputFormat.jsonl)


app = application(classify, ClassifyOptions, "classify", epilog=EPILOG)
