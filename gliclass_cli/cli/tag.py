"""``gliclass tag``: label a text typed at the prompt."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from gliclass_cli.cells import cells, fit
from gliclass_cli.cli.options import LabelOptions, ModelOptions, application, hint_single_label, load_classifier
from gliclass_cli.cli.terminal import can_show, interruptible, is_terminal, say, styled, width
from gliclass_cli.errors import ExitCode, Interrupted, UsageProblem
from gliclass_cli.files import STDIN

if TYPE_CHECKING:
    from gliclass_cli.labels import LabelSet
    from gliclass_cli.predictions import Prediction
    from gliclass_cli.records import Record

EPILOG = """Examples:

  gliclass tag "I was charged twice" -l billing -l shipping -l praise

  fortune | gliclass tag -l wisdom -l nonsense

  gliclass tag - -l billing -l shipping"""


# Seconds that a line of standard input waits for the next one, to be computed with it.
_LINGER = 0.05


@dataclass(frozen=True, kw_only=True)
class TagOptions(ModelOptions, LabelOptions):
    """Everything that ``tag`` takes."""

    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT]...", show_default=False, help="Texts; none, or -: a text a line from standard input."
        ),
    ] = None


def tag(options: TagOptions) -> None:
    """Label texts typed at the prompt.

    On a terminal the answer is a table with a bar for each score; in a pipe it is JSON Lines, as of classify.
    Without texts, or with - for them, each line of standard input is one. On a terminal - starts a session: a text a
    line, and commands that change the labels (:help lists them).
    """
    from_stdin = options.texts in (None, [], [STDIN])
    if not options.texts and is_terminal(sys.stdin):
        raise UsageProblem(
            'nothing to tag: gliclass tag "I was charged twice" -l billing -l shipping, or gliclass tag - for a session'
        )
    if options.labels == STDIN and from_stdin:
        raise UsageProblem("standard input (-) cannot be both the label file and the texts")
    labels = options.label_set()
    if from_stdin and is_terminal(sys.stdin) and is_terminal(sys.stdout):
        start_session(options, labels)
        return
    if labels is None:
        raise UsageProblem("no labels: give -l LABEL for each, or --labels FILE")
    hint_single_label(labels, options.multi)
    from gliclass_cli.classification import answered
    from gliclass_cli.classifier import Query, StreamOptions
    from gliclass_cli.files import Output
    from gliclass_cli.writers import JsonlWriter

    classifier = load_classifier(options, labels, options.calibration_file())
    output, writer, pretty = Output(None), JsonlWriter(), is_terminal(sys.stdout)
    queries = (
        Query(record, record.fields["text"] if record.fields and not record.error else None, labels)
        for record in _records(options)
    )
    errors = 0
    with interruptible() as stop:
        for window in classifier.stream(queries, options.choice(), StreamOptions(linger=_LINGER), stop):
            for query, answer in window:
                record, prediction = answered(query.item, answer)
                if record.error is not None:
                    errors += 1
                    say(f"{record.where}: {record.error.message}" if record.source else record.error.message)
                if prediction is not None and pretty:
                    show(query.text or "", prediction)
                elif not pretty:
                    output.write(writer.row(record, prediction))
            output.flush()
    if stop.is_set():
        raise Interrupted("interrupted")
    if errors:
        raise typer.Exit(int(ExitCode.ROW_ERRORS))


def start_session(options: TagOptions, labels: "LabelSet | None") -> None:
    """Answer lines typed on a terminal, until the user leaves."""
    from gliclass_cli.cli.session import Session

    classifier = load_classifier(options, labels, options.calibration_file())
    Session(classifier, labels, options.choice(), show_scores).run()


def _records(options: TagOptions) -> "Iterator[Record]":
    """Yield the texts that were typed, or the lines of standard input."""
    from gliclass_cli.files import open_source
    from gliclass_cli.readers import ReadOptions, read_rows
    from gliclass_cli.records import Record

    if options.texts and options.texts != [STDIN]:
        yield from (Record("", number, b"", {"text": text}) for number, text in enumerate(options.texts, start=1))
        return
    with open_source(STDIN) as source:
        yield from read_rows(source, ReadOptions(format="text")).records


def show(text: str, prediction: "Prediction") -> None:
    """Print the text and its scores."""
    from gliclass_cli.writers import printable

    more = "…" if can_show("…", sys.stdout) else "..."
    _print(styled(fit(printable(text), width(sys.stdout), mark=more).rstrip(), "bold", sys.stdout))
    show_scores(prediction)


def show_scores(prediction: "Prediction") -> None:
    """Print a bar for each score, the best first."""
    from gliclass_cli.writers import printable

    out, columns = sys.stdout, width(sys.stdout)
    more = "…" if can_show("…", out) else "..."
    scores = _flat(prediction.scores if prediction.scores is not None else _best(prediction))
    longest = min(max((cells(printable(name)) for name in scores), default=0), max(10, columns // 3))
    room = max(1, min(40, columns - longest - 14))
    bar = "━" if can_show("━", out) else "="
    for name, score in sorted(scores.items(), key=lambda item: -item[1]):
        chosen = name in prediction.labels
        shown = fit(printable(name), longest, mark=more)
        shown = styled(shown, "bold", out) if chosen else shown
        filled = styled(bar * round(score * room), "green" if chosen else "dim", out)
        _print(f"  {shown} {score:6.3f} {filled}".rstrip())
    if not prediction.labels:
        _print(styled("  no label reaches the threshold", "dim", out))
    for note in _coverage(prediction):
        _print(styled(f"  {note}", "yellow", out))


def _print(line: str) -> None:
    typer.echo(line, color=True)  # whether there are colours is decided before


def _coverage(prediction: "Prediction") -> list[str]:
    """Say what did not fit into one input of the model."""
    cut, chunks, groups = (
        prediction.coverage.truncated,
        prediction.coverage.chunks,
        prediction.coverage.label_groups,
    )
    lines = [] if cut is None else [f"the text was cut: {cut.tokens} tokens, the model reads {cut.limit}"]
    lines += [] if chunks is None else [f"the text was read in {chunks} chunks"]
    return lines + ([] if groups is None else [f"the labels were read in {groups} groups"])


def _best(prediction: "Prediction") -> dict[str, float]:
    """Return the chosen label with its score, where the scores of all labels are not asked for."""
    return {} if prediction.label is None or prediction.score is None else {prediction.label: prediction.score}


def _flat(scores: object, prefix: str = "") -> dict[str, float]:
    """Return nested scores by dotted name."""
    flat: dict[str, float] = {}
    if isinstance(scores, dict):
        for name, value in scores.items():
            if isinstance(value, dict):
                flat |= _flat(value, f"{prefix}{name}.")
            else:
                flat[f"{prefix}{name}"] = value
    return flat


app = application(tag, TagOptions, "tag", epilog=EPILOG)
