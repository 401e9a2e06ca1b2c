"""``gliclass tag``: label a text typed at the prompt."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from gliclass_cli.cli.options import LabelOptions, ModelOptions, hint_single_label
from gliclass_cli.cli.terminal import clean, interruptible, is_terminal, wants_color, width
from gliclass_cli.errors import UsageProblem

if TYPE_CHECKING:
    from gliclass_cli.predictions import Prediction

EPILOG = """Examples:

  gliclass tag "I was charged twice" -l billing -l shipping -l praise

  fortune | gliclass tag -l wisdom -l nonsense"""


# Seconds that a line of standard input waits for the next one, to be computed with it.
_LINGER = 0.05


@dataclass(frozen=True, kw_only=True)
class TagOptions(ModelOptions, LabelOptions):
    """Everything that ``tag`` takes."""

    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT]...", show_default=False, help="Texts; none: a text a line from standard input."),
    ] = None


def tag(options: TagOptions) -> None:
    """Label texts typed at the prompt.

    On a terminal the answer is a table with a bar for each score; in a pipe it is JSON Lines, as of classify.
    Without texts, each line of standard input is one.
    """
    if not options.texts and is_terminal(sys.stdin):
        raise UsageProblem('nothing to tag: gliclass tag "I was charged twice" -l billing -l shipping')
    labels = options.label_set()
    if labels is None:
        raise UsageProblem("no labels: give -l LABEL for each, or --labels FILE")
    hint_single_label(labels, options.multi)
    from gliclass_cli.classifier import Classifier, Query, StreamOptions
    from gliclass_cli.files import Output
    from gliclass_cli.records import Record
    from gliclass_cli.writers import JsonlWriter

    classifier = Classifier.load(
        options.model, threads=options.threads, max_length=options.max_length, template=options.template
    )
    output, writer, pretty = Output(None), JsonlWriter(), is_terminal(sys.stdout)
    queries = (Query(text, text, labels) for text in _texts(options))
    with interruptible() as stop:
        for window in classifier.stream(queries, options.choice(), StreamOptions(linger=_LINGER), stop):
            for query, prediction in window:
                if prediction is not None and pretty:
                    _show(query.item, prediction)
                else:
                    output.write(writer.row(Record("", 0, b"", {"text": query.item}), prediction))
            output.flush()


def _texts(options: TagOptions) -> Iterator[str]:
    if options.texts:
        yield from (clean(text) for text in options.texts)
        return
    from gliclass_cli.files import STDIN, open_source
    from gliclass_cli.readers import ReadOptions, read_rows

    with open_source(STDIN) as source:
        for record in read_rows(source, ReadOptions(format="text")).records:
            if record.error is not None or record.fields is None:
                raise UsageProblem(f"{record.where}: {record.error.message if record.error else ''}")
            yield record.fields["text"]


def _show(text: str, prediction: "Prediction") -> None:
    """Print the text and a bar for each score, the best first."""
    from rich.console import Console
    from rich.text import Text

    from gliclass_cli.writers import printable

    console = Console(no_color=not wants_color(sys.stdout), highlight=False, width=width(), soft_wrap=False)
    console.print(Text(printable(text), style="bold"), overflow="ellipsis", no_wrap=True)
    scores = _flat(prediction.scores or {})
    longest = min(max((len(name) for name in scores), default=0), max(10, width() // 3))
    room = max(10, min(40, width() - longest - 14))
    for name, score in sorted(scores.items(), key=lambda item: -item[1]):
        chosen = name in prediction.labels
        line = Text("  ")
        line.append(f"{printable(name)[:longest]:<{longest}}", style="bold" if chosen else "")
        line.append(f" {score:6.3f} ")
        line.append("━" * round(score * room), style="green" if chosen else "dim")
        console.print(line)
    if not prediction.labels:
        console.print(Text("  no label reaches the threshold", style="dim"))
    if prediction.truncated:
        cut = prediction.truncated
        console.print(Text(f"  the text was cut: {cut.tokens} tokens, the model reads {cut.limit}", style="yellow"))


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
