"""The report of ``classify --dry-run``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gliclass_cli.cells import cells, fit
from gliclass_cli.cli.labels import label_lines, load_composer
from gliclass_cli.errors import ExitCode, UsageProblem
from gliclass_cli.files import STDIN
from gliclass_cli.labels import LabelProblem, LabelSet

if TYPE_CHECKING:
    from gliclass_cli.classification import Inputs, Settings
    from gliclass_cli.composer import Composer
    from gliclass_cli.prompts import Reading
    from gliclass_cli.rehearsal import Rehearsal

_MOST_LABELS = 50
_MOST_ERRORS = 5


def show_rehearsal(inputs: "Inputs", settings: "Settings", model: str, reading: "Reading") -> None:
    """Print what a run would do. Raises what a run would raise before its first row."""
    from gliclass_cli.rehearsal import rehearse

    composer = load_composer(model, reading)
    labels = [] if settings.labels is None else list(_labels(composer, settings.labels))
    found = rehearse(inputs, composer, settings)
    lines = [*_inputs(found), _model(composer), *labels, *_rows(found, composer), *_first(found)]
    for line in lines:
        typer.echo(line)
    if found.errors:
        raise typer.Exit(int(ExitCode.ROW_ERRORS))


def _inputs(found: "Rehearsal") -> Iterator[str]:
    yield "inputs"
    longest = max(map(cells, found.formats))
    for name, kind in found.formats.items():
        size = f"{Path(name).stat().st_size:,} bytes" if name != STDIN and Path(name).is_file() else ""
        yield f"  {fit(name, longest)}  {kind or 'not reached':5}  {size}".rstrip()


def _model(composer: "Composer") -> str:
    folder = composer.folder
    shown = " ".join((folder.name, folder.version)).strip()
    return f"model {shown}, {folder.config.architecture}, reads {composer.max_length:,} tokens"


def _labels(composer: "Composer", labels: LabelSet) -> Iterator[str]:
    """Yield the labels with their tokens. Raises UsageProblem."""
    try:
        prepared = composer.labels(labels)
    except LabelProblem as problem:
        raise UsageProblem(str(problem)) from problem
    composer.check_examples(prepared)
    tokens = composer.label_tokens(labels)
    yield f"{len(labels):,} label{'' if len(labels) == 1 else 's'} and their tokens" + (
        f", read in {prepared.split} groups" if prepared.split > 1 else ""
    )
    yield from list(label_lines(labels, tokens))[:_MOST_LABELS]
    if len(labels) > _MOST_LABELS:
        yield f"  ... and {len(labels) - _MOST_LABELS:,} more"


def _rows(found: "Rehearsal", composer: "Composer") -> Iterator[str]:
    from gliclass_cli.rehearsal import MOST_ROWS

    which = f"the first {found.rows:,} rows" if found.rows == MOST_ROWS else f"all {found.rows:,} rows"
    yield f"{which}: {len(found.errors):,} with errors"
    yield from (f"  {message}" for message in found.errors[:_MOST_ERRORS])
    if found.rows > len(found.errors):
        share = found.too_long / (found.rows - len(found.errors))
        does = {"truncate": "is cut", "chunk": "is read in chunks", "error": "is an error"}[composer.reading.long]
        yield f"  {found.too_long:,} texts do not fit ({share:.1%}): each {does}"
        yield f"  the longest input has {found.longest:,} tokens"


def _first(found: "Rehearsal") -> Iterator[str]:
    from gliclass_cli.writers import printable

    if found.first is not None:
        yield from ("first input", f"  {printable(found.first)}")
    if found.first_label is not None:
        yield from ("first label", f"  {printable(found.first_label)}")
