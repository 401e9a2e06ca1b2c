"""A report on outcomes: accuracy, precision, recall, F1, calibration and confusion, by scikit-learn."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    hamming_loss,
    log_loss,
    precision_recall_fscore_support,
)

from gliclass_cli.evaluation.rows import Outcomes
from gliclass_cli.metrics import (
    HITS,
    MULTI_METRICS,
    SINGLE_METRICS,
    Bin,
    Flags,
    calibration_error,
    hit_rate,
    ranks,
    reliability,
)

# Half of the last digit of a score as it is written by default: a stored 0.0 is no certainty.
_LEAST_STORED = 5e-5


@dataclass(frozen=True, slots=True)
class LabelResult:
    """How right the answers are for one label; ``support``: rows for which it is right."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that is told about outcomes; ``confusion`` (L, L) counts rows by right and predicted label."""

    mode: str
    metrics: dict[str, float]
    labels: tuple[LabelResult, ...]
    reliability: tuple[Bin, ...]
    confusion: NDArray[np.int64] | None
    notes: tuple[str, ...] = ()

    def confusions(self) -> list[tuple[str, str, int]]:
        """Return right label, predicted label and number of rows of each mistake, the most frequent first."""
        if self.confusion is None:
            return []
        wrong = self.confusion * ~np.eye(len(self.labels), dtype=np.bool_)
        found = [(int(i), int(j), int(wrong[i, j])) for i, j in zip(*np.nonzero(wrong), strict=True)]
        found.sort(key=lambda each: (-each[2], each[0], each[1]))
        return [(self.labels[i].label, self.labels[j].label, count) for i, j, count in found]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        value: dict[str, Any] = {"mode": self.mode, **self.metrics}
        value["labels"] = [
            {
                "label": each.label,
                "precision": each.precision,
                "recall": each.recall,
                "f1": each.f1,
                "support": each.support,
                "predicted": each.predicted,
            }
            for each in self.labels
        ]
        if self.confusion is not None:
            value["confusions"] = [
                {"label": right, "predicted": predicted, "rows": count} for right, predicted, count in self.confusions()
            ]
        if self.reliability:
            value["reliability"] = [
                {"low": bin.low, "high": bin.high, "count": bin.count, "score": bin.score, "accuracy": bin.accuracy}
                for bin in self.reliability
            ]
        return {**value, "notes": list(self.notes)}


def evaluate(outcomes: Outcomes) -> Report:
    """Return the report on outcomes."""
    notes: list[str] = []
    labels = _label_results(outcomes)
    bins = _reliability(outcomes, notes)
    metrics = _decisions(outcomes) | _hits(outcomes, notes) | _score_metrics(outcomes, notes)
    if bins:
        metrics["ece"] = calibration_error(bins)
    absent = sum(each.support == 0 for each in labels)
    if absent:
        notes.append(
            f"{absent} of {len(labels)} labels are right for no row; averages leave out those never predicted either"
        )
    names = MULTI_METRICS if outcomes.multi else SINGLE_METRICS
    return Report(
        mode="multi" if outcomes.multi else "single",
        metrics={name: metrics[name] for name in names if name in metrics},
        labels=labels,
        reliability=bins,
        confusion=None if outcomes.multi else _confusion(outcomes),
        notes=tuple(notes),
    )


def _decisions(outcomes: Outcomes) -> dict[str, float]:
    """Return what depends on the labels taken alone; averages are over the labels that are right or taken anywhere."""
    gold, predicted = _padded(outcomes)
    right, taken = outcomes.right, _taken(outcomes)
    occurring = np.flatnonzero(right.any(axis=0) | taken.any(axis=0)).tolist() or [0]
    found: dict[str, float] = {}
    for average in ("macro", "micro", "weighted"):
        precision, recall, f1, _ = precision_recall_fscore_support(
            gold, predicted, labels=occurring, average=average, zero_division=0
        )
        found |= {f"{average}_precision": precision, f"{average}_recall": recall, f"{average}_f1": f1}
    if outcomes.multi:
        found["subset_accuracy"] = accuracy_score(gold, predicted)
        # A row for which nothing is right and nothing was taken is entirely right.
        found["samples_f1"] = f1_score(gold, predicted, average="samples", zero_division=1)
        found["hamming_loss"] = hamming_loss(right.ravel(), taken.ravel())
    else:
        found["accuracy"] = accuracy_score(gold, predicted)
    found["abstained"] = (~taken.any(axis=1)).mean()
    return {name: float(value) for name, value in found.items()}


def _label_results(outcomes: Outcomes) -> tuple[LabelResult, ...]:
    gold, predicted = _padded(outcomes)
    columns = precision_recall_fscore_support(
        gold, predicted, labels=list(range(len(outcomes.labels))), average=None, zero_division=0
    )
    taken = _taken(outcomes).sum(axis=0)
    return tuple(
        LabelResult(name, float(precision), float(recall), float(f1), int(support), int(count))
        for name, precision, recall, f1, support, count in zip(outcomes.labels, *columns, taken, strict=True)
    )


def _hits(outcomes: Outcomes, notes: list[str]) -> dict[str, float]:
    """Return the share of rows with a right label among the best; rows for which none is right do not count."""
    some = outcomes.right.any(axis=1)
    found = ranks(outcomes.values[some], outcomes.right[some])
    known = int((~np.isnan(outcomes.values)).sum(axis=1).min())
    wanted = [k for k in HITS if k < len(outcomes.labels)]
    if missing := [f"hit@{k}" for k in wanted if k > known]:
        notes.append(f"{', '.join(missing)} left out: not every row has so many scores")
    return {f"hit@{k}": hit_rate(found, k) for k in wanted if k <= known}


def _score_metrics(outcomes: Outcomes, notes: list[str]) -> dict[str, float]:
    """Return what needs the scores of all labels."""
    scores, gold = outcomes.scores, outcomes.gold
    if np.isnan(scores).any():
        notes.append(f"nll{' and map' if outcomes.multi else ''} left out: not every row has the scores of all labels")
        return {}
    if outcomes.logits is None:
        scores = np.clip(scores, _LEAST_STORED, 1 - _LEAST_STORED)
    if not outcomes.multi:
        if len(outcomes.labels) == 1:
            return {"nll": 0.0}
        shares = scores / scores.sum(axis=1, keepdims=True)
        return {"nll": float(log_loss(gold, shares, labels=list(range(len(outcomes.labels)))))}
    found = {"nll": float(log_loss(gold.ravel(), scores.ravel(), labels=[False, True]))}
    occurring = gold.any(axis=0)
    if occurring.any():
        each = [average_precision_score(gold[:, j], scores[:, j]) for j in np.flatnonzero(occurring)]
        found["map"] = float(np.mean(each))
    return found


def _reliability(outcomes: Outcomes, notes: list[str]) -> tuple[Bin, ...]:
    """Sort answers by score: the best label of each row, or with ``multi`` every label of every row."""
    scores = outcomes.scores
    if outcomes.multi:
        if not np.isnan(scores).any():
            return reliability(scores.ravel(), outcomes.gold.ravel())
    elif not np.isnan(scores).all(axis=1).any():
        ranked = np.where(np.isnan(outcomes.values), -np.inf, outcomes.values)
        best = ranked.argmax(axis=1)
        top = np.take_along_axis(scores, best[:, None], axis=1)[:, 0]
        if not np.isnan(top).any():
            return reliability(top, best == outcomes.gold)
    notes.append("ece left out: not every row has the scores that it needs")
    return ()


def _confusion(outcomes: Outcomes) -> NDArray[np.int64]:
    if len(outcomes.labels) == 1:  # scikit-learn warns of it
        return np.array([[(outcomes.predicted == 0).sum()]])
    found: NDArray[np.int64] = confusion_matrix(
        outcomes.gold, outcomes.predicted, labels=list(range(len(outcomes.labels)))
    )
    return found


def _taken(outcomes: Outcomes) -> Flags:
    """Return which labels were taken, as flags (N, L)."""
    found: Flags = outcomes.predicted
    return found if outcomes.multi else outcomes.predicted[:, None] == np.arange(len(outcomes.labels))


def _padded(outcomes: Outcomes) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return right and taken labels; one column of flags gets an empty one beside it, or it would be no multi-label."""
    gold, predicted = outcomes.gold, outcomes.predicted
    if outcomes.multi and len(outcomes.labels) == 1:
        empty = np.zeros_like(gold)
        return np.hstack([gold, empty]), np.hstack([predicted, empty])
    return gold, predicted
