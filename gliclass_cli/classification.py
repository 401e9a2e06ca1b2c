"""Classify whole inputs: rows in from files, rows out to a writer; counting, never printing."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from random import Random
from typing import Any, Literal

from gliclass_cli.classifier import Classifier, Query, StreamOptions
from gliclass_cli.errors import InputUnusable, Interrupted, UsageProblem
from gliclass_cli.files import STDIN, Output, check_input, open_source
from gliclass_cli.labels import LabelProblem, LabelSet, labels_from_cell
from gliclass_cli.predictions import Choice, Prediction, Refusal
from gliclass_cli.readers import ReadOptions, read_rows
from gliclass_cli.records import FieldProblem, Record, RowError, look_up, string_fields, text_of
from gliclass_cli.resume import Journal
from gliclass_cli.writers import Writer

OnError = Literal["record", "skip", "stop"]


class Inputs:
    """The rows of several inputs, one after another; each is opened when the one before is read.

    ``columns``, ``header_raw`` and ``schema`` are those of the first input, where it has them, once it is open.
    """

    def __init__(self, names: Sequence[str], options: ReadOptions) -> None:
        """Check that the inputs are there. Raises InputUnusable."""
        for name in names:
            check_input(name)
        self.names = tuple(names)
        self.options = options
        self.columns: tuple[str, ...] | None = None
        self.formats: dict[str, str] = {}  # of the inputs that have been opened, by name
        self.header_raw = b""
        self.schema: Any = None

    def __iter__(self) -> Generator[Record, None, None]:
        """Yield the rows. Raises InputUnusable, UsageProblem."""
        done = 0
        for number, name in enumerate(self.names):
            with open_source(name) as source:
                source.start = done
                done += source.size or 0
                rows = read_rows(source, self.options)
                self.formats[name] = rows.format
                if number == 0:
                    self.columns, self.header_raw, self.schema = rows.columns, rows.header_raw, rows.schema
                yield from rows.records


@dataclass(frozen=True, slots=True)
class Sample:
    """So many rows, drawn at random: the same seed draws the same of the same input."""

    rows: int
    seed: int = 0

    def draw(self, records: Iterable[Record]) -> Iterator[Record]:
        """Read all records, and yield those drawn, in their order; no more than ``rows`` are ever held.

        Reservoir sampling (Vitter 1985, algorithm R): each record is drawn with the same probability.
        """
        random = Random(self.seed)
        held: list[tuple[int, Record]] = []
        for number, record in enumerate(records):
            if number < self.rows:
                held.append((number, record))
            elif (place := random.randrange(number + 1)) < self.rows:
                held[place] = number, record
        yield from (record for _, record in sorted(held, key=lambda item: item[0]))


@dataclass(frozen=True, slots=True)
class Settings:
    """What is asked of each row. ``labels`` serve all rows, or those that have no ``labels_field``."""

    labels: LabelSet | None
    labels_field: str | None = None
    choice: Choice = field(default_factory=Choice)
    stream: StreamOptions = field(default_factory=StreamOptions)
    on_error: OnError = "record"
    skip: int = 0
    limit: int | None = None
    sample: Sample | None = None


@dataclass(slots=True)
class Summary:
    """What a run did; ``rows`` counts all rows read, ``written`` those that left something in the output.

    ``truncated``, ``chunked``: rows whose text was cut, or read in windows; ``split``: whose labels were in groups.
    """

    rows: int = 0
    written: int = 0
    errors: int = 0
    truncated: int = 0
    chunked: int = 0
    split: int = 0
    seconds: float = 0.0

    def count(self, prediction: Prediction) -> None:
        """Count what did not fit into one input of the model."""
        self.truncated += prediction.coverage.truncated is not None
        self.chunked += prediction.coverage.chunks is not None
        self.split += prediction.coverage.label_groups is not None

    def line(self, more: str = "") -> str:
        """Return the summary for people, on one line; ``more`` is one more part of it."""
        rate = self.rows / self.seconds if self.seconds > 0 else 0.0
        parts = [f"{self.rows:,} row{'' if self.rows == 1 else 's'}"]
        found = {
            "with errors": self.errors,
            "truncated": self.truncated,
            "read in chunks": self.chunked,
            "with labels in groups": self.split,
        }
        parts += [f"{count:,} {what}" for what, count in found.items() if count]
        parts += [more] if more else []
        return ", ".join([*parts, f"{rate:,.1f} rows/s", f"{self.seconds:.1f} s"])


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who hears of a run: of each bad row, each answer, and the progress after each window (with its last row)."""

    bad_row: Callable[[Record, RowError], None] = lambda record, error: None
    progress: Callable[[Summary, Record], None] = lambda summary, record: None
    answer: Callable[[Prediction], None] = lambda prediction: None


def classify_rows(
    inputs: Inputs,
    classifier: Classifier,
    make_writer: Callable[[Inputs], Writer],
    output: Output,
    settings: Settings,
    *,
    rejects: Output | None = None,
    listeners: Listeners | None = None,
    stop: threading.Event | None = None,
    journal: Journal | None = None,
) -> Summary:
    """Classify all rows of ``inputs`` into ``output``, in order; a ``journal`` keeps what is done, and goes on from it.

    Raises:
        InputUnusable: an input cannot be read on, or a bad row under ``on_error="stop"``; all before is written.
        OutputFailed: the output cannot be written.
        Interrupted: ``stop`` was set; all finished rows are written.
    """
    listeners = listeners or Listeners()
    stop = stop or threading.Event()
    summary = Summary() if journal is None else Summary(**journal.state.summary)
    start = time.monotonic() - summary.seconds
    writer: Writer | None = None
    reject = _Rejects(rejects, inputs) if rejects else None
    records = asked_for(inputs, settings)
    if journal is not None:
        journal.begin(output, rejects, lambda: (asdict(summary), writer.state() if writer else {}))
        records = journal.rest(records)
    asked = queries(records, inputs, settings, first=summary.rows)
    try:
        for window in classifier.stream(asked, settings.choice, settings.stream, stop):
            writer = writer or _started(make_writer(inputs), journal)
            try:
                for query, prediction in window:
                    output.write(_row(query.item, prediction, writer, settings, summary, reject, listeners))
                    if journal is not None:
                        journal.passed(query.item)
            finally:
                output.flush()
            summary.seconds = time.monotonic() - start
            if journal is not None:
                journal.pause()
            if window:
                listeners.progress(summary, window[-1][0].item)
        if stop.is_set():
            how = "" if journal is not None else _how_to_go_on(inputs, settings, summary)
            raise Interrupted(f"interrupted; {summary.rows:,} rows are done and written{how}")
    except (InputUnusable, Interrupted, UsageProblem):
        if writer and summary.rows and journal is None:  # what is written can be read
            output.write(writer.end())
        raise
    writer = writer or _started(make_writer(inputs), journal)
    output.write(writer.end())
    summary.seconds = time.monotonic() - start
    return summary


def asked_for(inputs: Inputs, settings: Settings) -> Iterator[Record]:
    """Yield the rows that are not skipped, up to the limit, or a sample of them."""
    last = None if settings.limit is None else settings.skip + settings.limit
    with contextlib.closing(iter(inputs)) as rows:  # a run that fails leaves no file open
        records = itertools.islice(rows, settings.skip, last)
        yield from records if settings.sample is None else settings.sample.draw(records)


def _started(writer: Writer, journal: Journal | None) -> Writer:
    """Return a writer that goes on after the rows that are done."""
    if journal is not None and journal.state.rows:
        writer.restore(journal.state.writer)
    return writer


def _row(
    record: Record,
    answer: Prediction | Refusal | None,
    writer: Writer,
    settings: Settings,
    summary: Summary,
    reject: "_Rejects | None",
    listeners: Listeners,
) -> bytes:
    """Count a row and return its bytes."""
    record, prediction = answered(record, answer)
    error = record.error or writer.check(record)
    if error is not None:
        if error.code == "key_taken" and summary.rows == 0:  # most likely all rows have it
            raise InputUnusable(f"{record.where}: {error.message}")
        if settings.on_error == "stop":
            raise InputUnusable(f"{record.where}: {error.message} (--on-error stop)")
        summary.errors += 1
        listeners.bad_row(record, error)
        if reject is not None:
            reject(record)
    summary.rows += 1
    if prediction is not None:
        summary.count(prediction)
        listeners.answer(prediction)
    if error is not None and settings.on_error == "skip":
        return b""
    line = writer.row(record, prediction)
    summary.written += bool(line)
    return line


def answered(record: Record, answer: Prediction | Refusal | None) -> tuple[Record, Prediction | None]:
    """Return a row and its prediction; what the model refused is an error of the row."""
    if not isinstance(answer, Refusal):
        return record, answer
    return replace(record, error=RowError(answer.code, answer.message, record.line)), None


class _Rejects:
    """Keeps the raw lines of bad rows, after the header of their CSV: they can be mended and read again."""

    def __init__(self, output: Output, inputs: Inputs) -> None:
        self._output = output
        self._inputs = inputs

    def __call__(self, record: Record) -> None:
        if not record.raw:  # too long to be kept
            return
        header = b"" if self._output.wrote else self._inputs.header_raw
        self._output.write(header + record.raw + (b"" if record.raw.endswith(b"\n") else b"\n"))


def _how_to_go_on(inputs: Inputs, settings: Settings, summary: Summary) -> str:
    """Say which options classify the rest; what came through a pipe is gone, and a sample has no rest."""
    if STDIN in inputs.names or settings.sample is not None:
        return ""
    rest = "" if settings.limit is None else f" --limit {settings.limit - summary.rows}"
    return f"; the rest: --skip {settings.skip + summary.rows}{rest}"


def queries(records: Iterable[Record], inputs: Inputs, settings: Settings, first: int = 0) -> Iterator[Query[Record]]:
    """Find text and labels of each row, from number ``first`` on; a row without them is an error in its place."""
    paths = inputs.options.text_fields
    for number, record in enumerate(records, first):
        weight = len(record.raw)
        if record.error is not None or record.fields is None:
            yield Query(record, None, weight=weight)
            continue
        try:
            text = text_of(record.fields, paths)
            labels = _labels_of(record, settings)
        except FieldProblem as problem:
            if number == 0 and not paths and len(string_fields(record.fields)) > 1 and "text" not in record.fields:
                raise UsageProblem(f"{record.where}: which field holds the text? {problem}") from problem
            yield Query(replace(record, error=RowError(problem.code, str(problem), record.line)), None, weight=weight)
        else:
            yield Query(record, text, labels, weight=weight)


def _labels_of(record: Record, settings: Settings) -> LabelSet | None:
    if settings.labels_field is None or record.fields is None:
        return settings.labels
    try:
        value = look_up(record.fields, settings.labels_field)
        if value not in (None, ""):
            return labels_from_cell(value)
    except FieldProblem as problem:
        if settings.labels is None:
            raise FieldProblem("no_labels", str(problem)) from problem
    except LabelProblem as problem:
        raise FieldProblem("bad_labels", f"field {settings.labels_field!r}: {problem}") from problem
    if settings.labels is None:
        raise FieldProblem("no_labels", f"field {settings.labels_field!r} is empty")
    return settings.labels
