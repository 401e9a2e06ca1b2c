"""Training rows: read from any input that ``classify`` reads, and checked, all of them, before anything starts."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gliclass_cli.classification import Inputs
from gliclass_cli.errors import InputUnusable, UsageProblem
from gliclass_cli.gold import GOLD_FIELDS, gold_labels
from gliclass_cli.labels import LabelProblem, LabelSet, labels_from_cell
from gliclass_cli.prompts import Example
from gliclass_cli.readers import ReadOptions
from gliclass_cli.records import FieldProblem, Record, look_up, text_of

CANDIDATES_FIELD = "all_labels"
_TOLD = 10  # problems in one message


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A text with what is right for it.

    ``true`` holds the confidence 0..1 of each right label. ``candidates``: the labels it may be shown, or None for
    those of its source; ``descriptions`` say more about some of them. ``avoid``: labels that are neither right nor
    wrong, never shown.
    """

    text: str
    true: Mapping[str, float]
    candidates: tuple[str, ...] | None = None
    descriptions: Mapping[str, str] = field(default_factory=dict)
    avoid: frozenset[str] = frozenset()
    prompt: str = ""
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of one file; a batch holds rows of one source. ``pool``: all labels that its rows may be shown."""

    name: str
    rows: tuple[TrainingRow, ...]
    pool: tuple[str, ...]
    descriptions: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_multi(self) -> bool:
        """Whether a row has several right labels, or none."""
        return any(list(row.true.values()) != [1.0] for row in self.rows)

    def with_labels(self, labels: Sequence[str]) -> "Source":
        """Return the source with more labels to choose from."""
        return replace(self, pool=tuple(dict.fromkeys((*labels, *self.pool))))


@dataclass(frozen=True, slots=True)
class RowFields:
    """Where a row's parts are; None: under their usual names."""

    gold: str | None = None
    candidates: str | None = None


def read_sources(
    names: Sequence[str],
    options: ReadOptions,
    *,
    labels: LabelSet | None = None,
    fields: RowFields | None = None,
    allow_empty: bool = False,
) -> list[Source]:
    """Read all rows of files, each a source; ``labels`` are the candidates of rows that bring none.

    Raises:
        InputUnusable: rows that cannot be trained on, the first of them by file and line.
    """
    inputs = [(name, Inputs([name], options)) for name in names]
    return [_read(name, rows, labels, fields or RowFields(), allow_empty) for name, rows in inputs]


def draw_shots(source: Source, shots: int, seed: int) -> tuple[Source, dict[str, int]]:
    """Draw rows until each label of the source has ``shots`` of them, rare labels first; rows without one count too.

    Returns:
        The smaller source, and how many rows each label has that has fewer.
    """
    order = list(range(len(source.rows)))
    random.Random(f"shots {seed}").shuffle(order)
    by_label: dict[str, list[int]] = {}
    for index in order:
        for label in _counted(source.rows[index]):
            by_label.setdefault(label, []).append(index)
    taken: dict[int, None] = {}
    counts: Counter[str] = Counter()
    for label in sorted(by_label, key=lambda name: (len(by_label[name]), name)):
        for index in by_label[label]:
            if counts[label] >= shots:
                break
            if index not in taken:
                taken[index] = None
                counts.update(_counted(source.rows[index]))
    few = {label: counts[label] for label in source.pool if counts[label] < shots}
    return replace(source, rows=tuple(source.rows[index] for index in sorted(taken))), few


def _counted(row: TrainingRow) -> tuple[str, ...]:
    """Return the right labels of a row, or the one that stands for none."""
    return tuple(row.true) or ("",)


def label_set(names: Sequence[str], descriptions: Mapping[str, str]) -> LabelSet:
    """Return labels by name as a label set."""
    return LabelSet(tuple(names), tuple(map(descriptions.get, names)), tuple((name,) for name in names))


def _read(name: str, inputs: Inputs, labels: LabelSet | None, fields: RowFields, allow_empty: bool) -> Source:
    problems: list[str] = []
    rows: list[TrainingRow] = []
    for record in inputs:
        try:
            rows.append(_row(record, inputs.options, labels, fields, allow_empty))
        except (FieldProblem, LabelProblem) as problem:
            problems.append(f"{record.where}: {problem}")
    if problems:
        more = f"\n... and {len(problems) - _TOLD:,} more rows" if len(problems) > _TOLD else ""
        raise InputUnusable("\n".join(problems[:_TOLD]) + more)
    if not rows:
        raise InputUnusable(f"{name}: holds no rows")
    pool = _pool(rows, labels)
    if not pool:
        raise InputUnusable(f"{name}: no row has a label; name the labels with -l or --labels")
    return Source(name, tuple(rows), pool, _descriptions(labels))


def _pool(rows: Sequence[TrainingRow], labels: LabelSet | None) -> tuple[str, ...]:
    found = dict.fromkeys(labels.names if labels else ())
    for row in rows:
        found.update(dict.fromkeys((*row.true, *(row.candidates or ()))))
    return tuple(found)


def _row(
    record: Record, options: ReadOptions, labels: LabelSet | None, fields: RowFields, allow_empty: bool
) -> TrainingRow:
    """Return a row. Raises FieldProblem, LabelProblem."""
    if record.error is not None or record.fields is None:
        raise FieldProblem("bad_row", record.error.message if record.error else "holds no fields")
    values = record.fields
    gold = fields.gold or next((known for known in GOLD_FIELDS if known in values), None)
    text = text_of({name: value for name, value in values.items() if name != gold}, options.text_fields)
    true = _true_labels(values, gold)
    if not true and not allow_empty:
        raise FieldProblem("no_gold", "no right label; --allow-empty takes rows to which no candidate applies")
    own = _candidates(values, fields.candidates)
    candidates = own.names if own else None
    allowed = candidates if candidates is not None else labels.names if labels else None
    if allowed is not None and (unknown := [label for label in true if label not in allowed]):
        raise FieldProblem("unknown_label", f"the right label {unknown[0]!r} is not among the candidates")
    avoid = values.get("avoid") or ()
    if not isinstance(avoid, list | tuple) or not all(isinstance(label, str) for label in avoid):
        raise FieldProblem("bad_avoid", "avoid: a list of labels belongs here")
    prompt = values.get("prompt") or ""
    if not isinstance(prompt, str):
        raise FieldProblem("bad_prompt", "prompt: a text belongs here")
    return TrainingRow(
        text=text,
        true=true,
        candidates=candidates,
        descriptions=_descriptions(own),
        avoid=frozenset(avoid) - true.keys(),
        prompt=prompt,
        examples=tuple(_examples(values.get("examples") or ())),
    )


def _true_labels(values: Mapping[str, Any], name: str | None) -> dict[str, float]:
    """Return the right labels of a row with their confidence."""
    if name is None:
        raise FieldProblem("no_gold", f"no right labels: none of the fields {', '.join(GOLD_FIELDS)} (--gold-field)")
    value = look_up(values, name)
    return {} if value is None else gold_labels(value, name)


def _descriptions(labels: LabelSet | None) -> dict[str, str]:
    known = zip(labels.names, labels.descriptions, strict=True) if labels else ()
    return {name: text for name, text in known if text}


def _candidates(values: Mapping[str, Any], name: str | None) -> LabelSet | None:
    if name is None and CANDIDATES_FIELD not in values:
        return None
    return labels_from_cell(look_up(values, name or CANDIDATES_FIELD))


def _examples(value: Any) -> Iterator[Example]:
    if not isinstance(value, list | tuple):
        raise FieldProblem("bad_examples", "examples: a list of objects with text and labels belongs here")
    for item in value:
        labels = item.get("labels", item.get("true_labels")) if isinstance(item, Mapping) else None
        if labels is None or not isinstance(item.get("text"), str):
            raise FieldProblem("bad_examples", 'examples: each is {"text": ..., "labels": [...]}')
        yield Example(item["text"], tuple(gold_labels(labels, "examples")))


def check_pools(sources: Sequence[Source]) -> None:
    """Refuse rows of one label only, unless it is wrong for some of them. Raises InputUnusable."""
    for source in sources:
        if len(source.pool) < 2 and all(row.true for row in source.rows):
            raise InputUnusable(
                f"{source.name}: all rows have the one label {source.pool[0]!r}: there is nothing to tell apart; name "
                "the other labels with -l or --labels, or give each row its candidates in all_labels"
            )


def check_dev(dev: Source, *, multi: bool) -> None:
    """Refuse a dev file that measures nothing, or something else than what is trained. Raises InputUnusable."""
    if not any(row.true for row in dev.rows):
        raise InputUnusable(f"{dev.name}: no row has a right label: nothing can be measured on it")
    if dev.is_multi and not multi:
        raise InputUnusable(f"{dev.name}: has rows with several right labels, or none; the training rows have one each")


def check_multi(sources: Sequence[Source], multi: bool | None) -> bool:
    """Return whether rows have several right labels, which ``multi`` may say. Raises UsageProblem."""
    found = any(source.is_multi for source in sources)
    if multi is False and found:
        raise UsageProblem("some rows have several right labels, none, or one that is not sure; take multi=auto")
    return found if multi is None else multi
