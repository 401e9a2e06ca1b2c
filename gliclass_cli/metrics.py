"""The names of the measures, and those that scikit-learn does not have: calibration error, hits among the best."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]
BINS = 15
# What a report holds.
HITS = (1, 3, 5)
_SHARED_METRICS = ("macro_precision", "macro_recall", "macro_f1", "micro_f1", "weighted_f1")
_OF_SCORES = (*(f"hit@{k}" for k in HITS), "ece", "nll")
SINGLE_METRICS = ("accuracy", *_SHARED_METRICS, *_OF_SCORES, "abstained")
MULTI_METRICS = ("subset_accuracy", *_SHARED_METRICS, "samples_f1", "hamming_loss", *_OF_SCORES, "map", "abstained")
# Of these, less is better.
LOSSES = frozenset({"ece", "nll", "hamming_loss", "abstained", "errors", "seconds"})


@dataclass(frozen=True, slots=True)
class Bin:
    """The answers whose score lies from ``low`` to ``high``: their mean score, and the share that is right."""

    low: float
    high: float
    count: int
    score: float
    accuracy: float


def reliability(scores: Floats, correct: Flags, bins: int = BINS) -> tuple[Bin, ...]:
    """Sort answers by score 0..1 into bins of equal width, and return those that hold any; both (N,).

    A score on an edge belongs to the bin above it, 1.0 to the last bin.
    """
    place = np.minimum((scores * bins).astype(np.intp), bins - 1)
    counts = np.bincount(place, minlength=bins)
    sums = np.bincount(place, weights=scores, minlength=bins)
    hits = np.bincount(place, weights=correct, minlength=bins)
    return tuple(
        Bin(k / bins, (k + 1) / bins, int(counts[k]), float(sums[k] / counts[k]), float(hits[k] / counts[k]))
        for k in np.flatnonzero(counts).tolist()
    )


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error (ECE): by how much score and accuracy differ, the mean over all answers.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3; 0 where there are no answers.
    """
    total = sum(bin.count for bin in bins)
    return sum(bin.count * abs(bin.accuracy - bin.score) for bin in bins) / total if total else 0.0


def ranks(values: Floats, right: Flags) -> NDArray[np.intp]:
    """Return how many labels stand before the best right one in each row; (N, L) both, L where none is right.

    Equal values stand in their order; a value that is not known (NaN) stands behind all others.
    """
    values = np.where(np.isnan(values), -np.inf, values)
    best = np.where(right, values, -np.inf).max(axis=1, keepdims=True)
    ties = values == best
    first = (ties & right).argmax(axis=1)[:, None]
    before = (values > best).sum(axis=1) + (ties & (np.arange(values.shape[1]) < first)).sum(axis=1)
    found: NDArray[np.intp] = np.where(right.any(axis=1), before, values.shape[1])
    return found


def hit_rate(found: NDArray[np.intp], k: int) -> float:
    """Return the share of rows with a right label among the best ``k``, given the ranks of the best right ones."""
    return float((found < k).mean()) if len(found) else 0.0
