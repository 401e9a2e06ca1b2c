"""Labelled rows: what is right for them, and what was predicted, by the model now or in an earlier run."""

import contextlib
import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gliclass_cli.classification import Listeners, Summary, answered
from gliclass_cli.classifier import Classifier, Query, StreamOptions
from gliclass_cli.decoding import Decoder
from gliclass_cli.errors import InputUnusable, Interrupted, UsageProblem
from gliclass_cli.gold import GOLD_FIELDS, RIGHT, gold_labels
from gliclass_cli.labels import CELL_SEPARATOR, LabelSet
from gliclass_cli.metrics import Flags, Floats
from gliclass_cli.predictions import Choice, Prediction
from gliclass_cli.records import FieldProblem, Record, RowError, look_up, text_of

NONE_TAKEN = -1
_SHOWN_LABELS = 8


@dataclass(frozen=True, slots=True)
class Shape:
    """Where a row holds what. ``stored``: the key of its prediction, or None where the model is to predict."""

    gold: str
    texts: tuple[str, ...] = ()
    stored: str | None = None
    multi: bool = False


@dataclass(frozen=True, slots=True)
class Labelled:
    """A row: its right labels, and its text, or the prediction that it already holds; ``record`` may hold an error."""

    record: Record
    gold: tuple[str, ...] = ()
    text: str | None = None
    stored: Prediction | None = None


@dataclass(frozen=True, slots=True)
class Outcomes:
    """All rows (N) and labels (L) as arrays.

    ``gold`` and ``predicted`` are indices (N,), -1 where no label was taken; with ``multi`` they are flags (N, L).
    ``scores`` (N, L) are NaN where not known, ``values`` (N, L) are what labels are ranked by, ``logits`` (N, L) are
    None for stored predictions.
    """

    labels: tuple[str, ...]
    multi: bool
    gold: NDArray[Any]
    predicted: NDArray[Any]
    scores: Floats
    values: Floats
    logits: Floats | None = None

    def __len__(self) -> int:
        return len(self.gold)

    @property
    def right(self) -> Flags:
        """Which labels are right, as flags (N, L)."""
        return self.gold if self.multi else self.gold[:, None] == np.arange(len(self.labels))


def find_shape(
    records: Iterable[Record], *, gold: str | None, texts: Sequence[str], key: str, multi: bool
) -> tuple[Shape, Iterator[Record]]:
    """Tell by the first readable row where rows hold what; all rows are still to come in the second value.

    Raises:
        InputUnusable: there is no row.
        UsageProblem: the row has no field that can hold right labels.
    """
    rest = iter(records)
    seen = []
    for record in rest:
        seen.append(record)
        if record.error is None and record.fields is not None:
            if gold is None:
                gold = _gold_field(record, texts)
            shape = Shape(gold, tuple(texts), key if key in record.fields else None, multi)
            return shape, itertools.chain(seen, rest)
    if seen:
        first = seen[0]
        raise InputUnusable(f"{first.where}: {first.error.message if first.error else 'no fields'}; no row can be read")
    raise InputUnusable("there are no rows to score")


def _gold_field(record: Record, texts: Sequence[str]) -> str:
    fields = record.fields or {}
    taken = texts or (("text",) if "text" in fields else ())
    found = next((name for name in GOLD_FIELDS if name in fields and name not in taken), None)
    if found is None:
        names = ", ".join(repr(name) for name in list(fields)[:12])
        raise UsageProblem(
            f"{record.where}: which field holds the right label? None of {', '.join(GOLD_FIELDS)} is there; name it "
            f"with --gold-field: {names}"
        )
    return found


def labelled_rows(records: Iterable[Record], shape: Shape) -> Iterator[Labelled]:
    """Yield the rows with their right labels; a row that lacks something holds an error instead.

    Raises:
        UsageProblem: a row has several right labels without ``multi``.
    """
    for record in records:
        kept = replace(record, raw=b"", body=None, fields=None)
        if record.error is not None or record.fields is None:
            yield Labelled(kept)
            continue
        try:
            gold = _gold_of(record, shape)
            if shape.stored is not None:
                yield Labelled(kept, gold, stored=_stored(record, shape.stored, multi=shape.multi))
            else:
                yield Labelled(kept, gold, text=_text(record.fields, shape))
        except FieldProblem as problem:
            yield Labelled(replace(kept, error=RowError(problem.code, str(problem), record.line)))


def _text(fields: Mapping[str, Any], shape: Shape) -> str:
    if not shape.texts:  # the label is no candidate for the only string
        fields = {name: value for name, value in fields.items() if name != shape.gold}
    return text_of(fields, shape.texts)


def _gold_of(record: Record, shape: Shape) -> tuple[str, ...]:
    """Return the right labels of a row. Raises FieldProblem, UsageProblem."""
    try:
        value = look_up(record.fields or {}, shape.gold)
    except FieldProblem as problem:
        raise FieldProblem("no_gold", str(problem)) from problem
    shares = gold_labels(value, shape.gold, several=shape.multi)
    names = tuple(name for name, share in shares.items() if share >= RIGHT)
    if shape.multi or len(names) == 1:
        return names
    if names:
        raise UsageProblem(f"{record.where}: field {shape.gold!r} has {len(names)} right labels; use --multi")
    raise FieldProblem("no_gold", f"field {shape.gold!r} holds no label (with --multi: none is right)")


def _stored(record: Record, key: str, *, multi: bool) -> Prediction:
    """Return the prediction that a row holds, as ``classify`` writes it. Raises FieldProblem, UsageProblem."""
    fields = record.fields or {}
    value = fields.get(key)
    if isinstance(value, str) or f"{key}_labels" in fields:
        value = _from_cells(fields, key, value or "", multi=multi)
    problem = FieldProblem("no_prediction", f"field {key!r} holds no prediction of gliclass classify")
    if not isinstance(value, Mapping):
        raise problem
    if "error" in value:
        told = value["error"].get("message") if isinstance(value["error"], Mapping) else None
        raise FieldProblem("no_prediction", f"it was not classified: {told or 'an error'}")
    label, labels, score = value.get("label"), value.get("labels"), value.get("score")
    labels = ([] if label is None else [label]) if labels is None else labels
    known = _flat(value.get("scores") or {})
    if isinstance(label, str) and score is not None:
        known.setdefault(label, score)
    if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
        raise problem
    if (label is not None and label not in labels) or not all(_is_score(each) for each in known.values()):
        raise problem
    if len(labels) > 1 and not multi:
        raise UsageProblem(f"{record.where}: field {key!r} has {len(labels)} labels; use --multi")
    return Prediction(label, score, tuple(labels), known)


def _from_cells(fields: Mapping[str, Any], key: str, label: str, *, multi: bool) -> dict[str, Any]:
    """Return a prediction of a CSV or Parquet, which has up to four columns, in the shape it has in JSON."""
    if message := fields.get(f"{key}_error"):
        return {"error": {"message": message}}
    labels, score = fields.get(f"{key}_labels"), fields.get(f"{key}_score")
    names = labels.split(CELL_SEPARATOR) if multi and isinstance(labels, str) else [label]
    if isinstance(labels, list):
        names = labels
    value: dict[str, Any] = {"label": label or None, "labels": [name for name in names if name]}
    if score:
        with contextlib.suppress(ValueError):
            value["score"] = float(score)
    return value


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _flat(scores: Any, prefix: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return scores by dotted name: those of --nested are nested, with "" for a label's own."""
    found: dict[str, Any] = {}
    for name, value in scores.items() if isinstance(scores, Mapping) else ():
        path = (*prefix, name) if name or not prefix else prefix
        found |= _flat(value, path) if isinstance(value, Mapping) else {".".join(path): value}
    return found


def labels_of(rows: Iterable[Labelled]) -> tuple[str, ...]:
    """Return the right labels of all rows, in alphabetical order."""
    return tuple(sorted({name for row in rows for name in row.gold}))


@dataclass(slots=True)
class _Rows:
    """Rows as they come; ``grows``: labels that were not known before are taken up, else they are an error."""

    multi: bool
    labels: dict[str, int]
    grows: bool = False
    gold: list[list[int]] = field(default_factory=list)
    predicted: list[list[int]] = field(default_factory=list)
    first: dict[str, str] = field(default_factory=dict)  # where each right label was met

    def add(self, row: Labelled, prediction: Prediction) -> None:
        gold = [self.index(name, row.record.where, "right label") for name in row.gold]
        for name in row.gold:
            self.first.setdefault(name, row.record.where)
        self.gold.append(gold)
        self.predicted.append([self.index(name, row.record.where, "predicted label") for name in prediction.labels])

    def index(self, name: str, where: str, what: str) -> int:
        found = self.labels.get(name)
        if found is None:
            if not self.grows:
                raise _not_a_candidate(name, where, what, list(self.labels))
            found = self.labels[name] = len(self.labels)
        return found

    def array(self, rows: list[list[int]]) -> NDArray[Any]:
        if not self.multi:
            return np.array([row[0] if row else NONE_TAKEN for row in rows], dtype=np.intp)
        flags = np.zeros((len(rows), len(self.labels)), dtype=np.bool_)
        for flag, row in zip(flags, rows, strict=True):
            flag[row] = True
        return flags


def _not_a_candidate(name: str, where: str, what: str, labels: Sequence[str]) -> InputUnusable:
    shown = ", ".join(labels[:_SHOWN_LABELS]) + (", ..." if len(labels) > _SHOWN_LABELS else "")
    return InputUnusable(
        f"{where}: the {what} {name!r} is not among the {len(labels)} labels ({shown}); add it with -l, or mend the row"
    )


def predict_rows(
    rows: Iterable[Labelled],
    classifier: Classifier,
    labels: LabelSet,
    choice: Choice,
    *,
    stream: StreamOptions | None = None,
    listeners: Listeners | None = None,
    stop: threading.Event | None = None,
) -> tuple[Outcomes, Summary]:
    """Run the model on rows.

    Raises:
        InputUnusable: a right label is not among ``labels``, or no row could be scored.
        Interrupted: ``stop`` was set.
    """
    listeners, stop = listeners or Listeners(), stop or threading.Event()
    found = _Rows(choice.multi, {name: j for j, name in enumerate(labels.names)})
    logits: list[NDArray[np.float32]] = []
    summary, start = Summary(), time.monotonic()
    queries = (Query(row, row.text, labels) for row in rows)
    choice = replace(choice, with_scores=False, with_logits=True)
    for window in classifier.stream(queries, choice, stream, stop):
        for query, answer in window:
            record, prediction = answered(query.item.record, answer)
            if _counts(record, prediction, summary, listeners) and prediction is not None:
                summary.count(prediction)
                found.add(query.item, prediction)
                logits.append(np.array(prediction.logits, dtype=np.float32))
        summary.seconds = time.monotonic() - start
        if window:
            listeners.progress(summary, window[-1][0].item.record)
    if stop.is_set():
        raise Interrupted("interrupted; a report needs all rows (or --limit N), so nothing is written")
    values = _checked(summary, np.array(logits))
    scores = Decoder(choice, classifier.folder.calibration).scores(values)
    gold, predicted = found.array(found.gold), found.array(found.predicted)
    return Outcomes(labels.names, choice.multi, gold, predicted, scores, values, values), summary


def stored_rows(
    rows: Iterable[Labelled], labels: LabelSet | None, *, multi: bool, listeners: Listeners | None = None
) -> tuple[Outcomes, Summary]:
    """Take the predictions that rows hold; without ``labels``, their labels are all that they name.

    Raises:
        InputUnusable: a label is not among the candidates, or no row could be scored.
    """
    listeners, summary = listeners or Listeners(), Summary()
    found = _Rows(multi, {name: j for j, name in enumerate(labels.names)} if labels else {}, grows=labels is None)
    known: list[tuple[NDArray[np.float64], int | None]] = []
    shared: set[frozenset[str]] = set()
    for row in rows:
        prediction = row.stored
        if not _counts(row.record, prediction, summary, listeners) or prediction is None:
            continue
        scores = prediction.scores or {}
        places = [found.index(name, row.record.where, "predicted label") for name in scores]
        found.add(row, prediction)
        line = np.full(len(found.labels), np.nan)
        line[places] = list(scores.values())
        known.append((line, None if prediction.label is None else found.labels[prediction.label]))
        if len(shared) < 2:
            shared.add(frozenset(scores))
    matrix = np.full((len(known), len(found.labels)), np.nan)
    for number, (line, _) in enumerate(known):
        matrix[number, : len(line)] = line
    _check_candidates(found, matrix, shared)
    values = _checked(summary, matrix.copy())
    for number, (_, best) in enumerate(known):  # rounded scores may be equal: the label taken is the best
        if best is not None:
            values[number, best] = np.inf
    gold, predicted = found.array(found.gold), found.array(found.predicted)
    return Outcomes(tuple(found.labels), multi, gold, predicted, matrix, values), summary


def _check_candidates(found: _Rows, scores: Floats, shared: set[frozenset[str]]) -> None:
    """Refuse right labels that were no candidates, where all rows tell the same candidates. Raises InputUnusable."""
    if not found.grows or len(shared) != 1:
        return
    [candidates] = shared
    # Those of --top-k are not all candidates: the scores of all add up to 1.
    total = np.nansum(scores, axis=1)
    if not found.multi and (np.abs(total - 1) > 0.001 * max(1, len(candidates))).any():
        return
    for name, where in found.first.items():
        if candidates and len(candidates) > 1 and name not in candidates:
            raise _not_a_candidate(name, where, "right label", sorted(candidates))


def _counts(record: Record, prediction: Prediction | None, summary: Summary, listeners: Listeners) -> bool:
    """Count a row; tell of one that cannot be scored and return False."""
    summary.rows += 1
    error = record.error
    if error is None and prediction is None:
        error = RowError("no_prediction", "there is no prediction", record.line)
    if error is not None:
        summary.errors += 1
        listeners.bad_row(record, error)
    return error is None


def _checked(summary: Summary, values: NDArray[Any]) -> NDArray[Any]:
    if not len(values):
        raise InputUnusable(f"no row could be scored ({summary.rows:,} read, all with errors)")
    return values
