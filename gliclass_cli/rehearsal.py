"""What a run would do: the first rows are read and put together with their labels, and nothing is computed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from gliclass_cli.classification import Inputs, Settings, queries
from gliclass_cli.classifier import Query
from gliclass_cli.composer import Composed, Composer
from gliclass_cli.files import STDIN, open_source
from gliclass_cli.labels import LabelProblem
from gliclass_cli.readers import read_rows
from gliclass_cli.records import Record

MOST_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What the first rows show.

    ``errors``: where and why rows have no answer. ``too_long``: how many texts do not fit, ``longest``: tokens of the
    longest input, had nothing been cut. ``first``: the first input as the model reads it, ``first_label`` the first
    label of a model that reads labels by themselves; both None where no row has a text.
    """

    formats: dict[str, str]
    rows: int
    errors: tuple[str, ...]
    too_long: int
    longest: int
    first: str | None
    first_label: str | None


def rehearse(inputs: Inputs, composer: Composer, settings: Settings) -> Rehearsal:
    """Read the first rows of ``inputs`` and compose them. Raises InputUnusable, UsageProblem."""
    formats = {name: _format_of(inputs, name) for name in inputs.names if name != STDIN}
    rows = list(islice(_rows(inputs, settings), MOST_ROWS))
    errors = [f"{query.item.where}: {query.item.error.message}" for query in rows if query.item.error is not None]
    composed = []
    for query in rows:
        if query.text is None or query.labels is None:
            continue
        try:
            composed += composer.compose([query.text], composer.labels(query.labels))
        except LabelProblem as problem:
            errors.append(f"{query.item.where}: {problem}")
    first = composed[0] if composed else None
    return Rehearsal(
        formats={name: formats.get(name) or inputs.formats.get(name, "") for name in inputs.names},
        rows=len(rows),
        errors=tuple(errors),
        too_long=sum(item.too_long for item in composed),
        longest=max((item.tokens for item in composed), default=0),
        first=None if first is None else composer.readable(first.prompts[0].ids),
        first_label=None if first is None else _first_label(composer, first),
    )


def _rows(inputs: Inputs, settings: Settings) -> Iterator[Query[Record]]:
    last = None if settings.limit is None else settings.skip + settings.limit
    records: Iterable[Record] = islice(inputs, settings.skip, last)
    return queries(records, inputs, settings)


def _format_of(inputs: Inputs, name: str) -> str:
    with open_source(name) as source:
        return read_rows(source, inputs.options).format


def _first_label(composer: Composer, composed: Composed) -> str | None:
    own = composed.prompts[0].group.inputs
    return composer.readable(own[0][0], label=True) if own else None
