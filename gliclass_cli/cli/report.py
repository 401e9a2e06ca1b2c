"""The report of ``gliclass eval`` as text: plain, with bold titles on a terminal."""

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import typer

from gliclass_cli.cells import cells, cut, fit
from gliclass_cli.cli.terminal import styled
from gliclass_cli.writers import printable

if TYPE_CHECKING:
    from gliclass_cli.evaluation.report import Report
    from gliclass_cli.evaluation.tuning import Tuned

_MOST_CONFUSIONS = 10
_WIDEST_LABEL = 40


def show_report(report: "Report", values: Mapping[str, Any], tuned: "Tuned | None") -> None:
    """Print the report; ``values`` are those of its JSON."""
    for title, lines in _sections(report, values, tuned):
        typer.echo("\n" + styled(title, "bold", sys.stdout), color=True)
        for line in lines:
            typer.echo(f"  {line}")


def _sections(report: "Report", values: Mapping[str, Any], tuned: "Tuned | None") -> Iterator[tuple[str, list[str]]]:
    yield _headline(report, values), [f"{name:16} {value:.4f}" for name, value in report.metrics.items()]
    yield (
        "Labels",
        table(
            ("label", "precision", "recall", "F1", "rows", "predicted"),
            [
                (
                    each.label,
                    _number(each.precision),
                    _number(each.recall),
                    _number(each.f1),
                    each.support,
                    each.predicted,
                )
                for each in report.labels
            ],
        ),
    )
    if confusions := report.confusions():
        hidden = len(confusions) - _MOST_CONFUSIONS
        lines = table(("right", "predicted", "rows"), confusions[:_MOST_CONFUSIONS], texts=2)
        yield "Most frequent mistakes", lines + ([f"... and {hidden:,} more pairs"] if hidden > 0 else [])
    if report.reliability:
        of = "of all label scores" if report.mode == "multi" else "of the best label's score"
        rows = [
            (f"{b.low:.3f} - {b.high:.3f}", b.count, _number(b.score), _number(b.accuracy)) for b in report.reliability
        ]
        yield f"Reliability {of}", table(("score", "answers", "mean score", "accuracy"), rows)
    if tuned is not None:
        yield "Tuning, measured on rows held out (5-fold cross-validation)", _tuning(tuned)
    if report.notes:
        yield "Notes", list(report.notes)


def _headline(report: "Report", values: Mapping[str, Any]) -> str:
    parts = [_count(values["rows"], "row"), _count(len(report.labels), "label"), f"{report.mode}-label"]
    if values["errors"]:
        parts.append(f"{values['errors']:,} with errors left out")
    if values["model"] is None:
        return ", ".join([*parts, "stored predictions"])
    if values["truncated"]:
        parts.append(f"{values['truncated']:,} truncated")
    return ", ".join([*parts, values["model"], f"{values['rows_per_second']:,.1f} rows/s, {values['seconds']:.1f} s"])


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _tuning(tuned: "Tuned") -> list[str]:
    learned = tuned.to_dict()
    lines = [f"temperature {learned['temperature']:.4f}" + (f", bias {learned['bias']:+.4f}" if tuned.multi else "")]
    rows = [
        (name, _number(before), _number(tuned.after[name]), f"{tuned.after[name] - before:+.4f}")
        for name, before in tuned.before.items()
    ]
    return lines + table(("metric", "before", "after", "change"), rows)


def _number(value: float) -> str:
    return f"{value:.4f}"


def table(head: tuple[str, ...], rows: list[Any], texts: int = 1) -> list[str]:
    """Lay out rows under a head; the first ``texts`` columns are texts, the others numbers."""
    lines = [head, *[tuple(_cell(value) for value in row) for row in rows]]
    widths = [max(cells(row[column]) for row in lines) for column in range(len(head))]
    return [
        "  ".join(
            fit(cell, width) if column < texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in lines
    ]


def _cell(value: Any) -> str:
    text = printable(value) if isinstance(value, str) else f"{value:,}"
    return text if cells(text) <= _WIDEST_LABEL else cut(text, _WIDEST_LABEL - 3) + "..."
