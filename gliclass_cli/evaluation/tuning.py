"""Learns a calibration from logits whose right labels are known, and tells by cross-validation what it gains."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar  # type: ignore[import-untyped,unused-ignore]

from gliclass_cli.decoding import Decoder
from gliclass_cli.errors import InputUnusable
from gliclass_cli.evaluation.report import evaluate
from gliclass_cli.evaluation.rows import NONE_TAKEN, Outcomes
from gliclass_cli.metrics import Flags, Floats
from gliclass_cli.predictions import USUAL_THRESHOLD, Calibration, Choice

LEAST_ROWS = 20
LEAST_POSITIVES = 5
FOLDS = 5
_HOTTEST = 20.0  # temperatures are from 1/20 to 20
_SINGLE_MEASURES = ("accuracy", "macro_f1", "weighted_f1", "ece", "nll")
_MULTI_MEASURES = ("micro_f1", "macro_f1", "samples_f1", "ece", "nll")
_THRESHOLD_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Tuned:
    """A calibration learned on all rows, and measures on rows that were held out, without it and with it."""

    calibration: Calibration
    multi: bool
    before: dict[str, float]
    after: dict[str, float]

    def cross_validation(self) -> dict[str, Any]:
        """Return the measures as plain values."""
        return {"folds": FOLDS, "before": self.before, "after": self.after}

    def to_dict(self) -> dict[str, Any]:
        """Return what was learned, and the measures, as plain values."""
        learned: dict[str, Any] = {"temperature": self.calibration.single_temperature}
        if self.multi:
            learned = {
                "temperature": self.calibration.multi_temperature,
                "bias": self.calibration.multi_bias,
                "thresholds": dict(self.calibration.thresholds),
            }
        return {**learned, "cross_validation": self.cross_validation()}


def tune(outcomes: Outcomes, choice: Choice) -> Tuned:
    """Learn a calibration from outcomes with logits; ``choice.threshold`` is that of the run.

    Raises:
        InputUnusable: there are too few rows.
    """
    logits, total = outcomes.logits, len(outcomes)
    if logits is None or total < LEAST_ROWS:
        raise InputUnusable(f"--tune needs {LEAST_ROWS} rows with right labels or more; there are {total}")
    # By chance, not by place: files are often sorted by label.
    folds = np.random.default_rng(0).permutation(total) % FOLDS
    scores, predicted = np.empty_like(outcomes.scores), outcomes.predicted.copy()
    for fold in range(FOLDS):
        held = folds == fold
        calibration = fit(logits[~held], outcomes.gold[~held], outcomes.labels, multi=outcomes.multi)
        scores[held] = Decoder(choice, calibration).scores(logits[held])
        predicted[held] = _decide(scores[held], outcomes.labels, choice, calibration)
    after = evaluate(replace(outcomes, scores=scores, predicted=predicted)).metrics
    before = evaluate(outcomes).metrics
    names = _MULTI_MEASURES if outcomes.multi else _SINGLE_MEASURES
    return Tuned(
        fit(logits, outcomes.gold, outcomes.labels, multi=outcomes.multi),
        outcomes.multi,
        {name: before[name] for name in names},
        {name: after[name] for name in names},
    )


def fit(logits: Floats, gold: NDArray[Any], labels: tuple[str, ...], *, multi: bool) -> Calibration:
    """Learn temperature, and with ``multi`` bias and thresholds, from logits (N, L)."""
    logits = logits.astype(np.float64)
    if not multi:
        return Calibration(single_temperature=_temperature(logits, gold))
    temperature, bias = _temperature_and_bias(logits.ravel(), gold.ravel())
    calibration = Calibration(multi_temperature=temperature, multi_bias=bias)
    scores = Decoder(Choice(multi=True), calibration).scores(logits)
    shared = best_threshold(scores.ravel(), gold.ravel())
    thresholds = {
        name: best_threshold(scores[:, j], gold[:, j]) if gold[:, j].sum() >= LEAST_POSITIVES else shared
        for j, name in enumerate(labels)
    }
    return replace(calibration, thresholds=thresholds)


def _temperature(logits: Floats, gold: NDArray[np.intp]) -> float:
    """Return the temperature T that minimises the NLL of softmax(z / T). Guo et al. 2017, section 4.2."""
    right = np.take_along_axis(logits, gold[:, None], axis=1)[:, 0]

    def loss(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        return float((np.logaddexp.reduce(logits * inverse, axis=1) - right * inverse).mean())

    limit = np.log(_HOTTEST)
    found = minimize_scalar(loss, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-6})
    return round(float(np.exp(found.x)), 6)


def _temperature_and_bias(logits: Floats, gold: Flags) -> tuple[float, float]:
    """Return T and b that minimise the NLL of sigmoid(z / T + b), the classes as they are. Platt 1999."""
    sign = np.where(gold, 1.0, -1.0)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        slope, bias = parameters
        margins = sign * (slope * logits + bias)
        push = -sign * np.exp(-np.logaddexp(0.0, margins))
        return float(np.logaddexp(0.0, -margins).mean()), np.array([(push * logits).mean(), push.mean()])

    bounds = [(1 / _HOTTEST, _HOTTEST), (-50.0, 50.0)]
    minimise: Callable[..., Any] = minimize
    found = minimise(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds)
    return round(float(1 / found.x[0]), 6), round(float(found.x[1]), 6)


def best_threshold(scores: Floats, right: Flags) -> float:
    """Return the threshold of the best F1 for scores (N,); of equal ones the nearest to 0.5.

    Thresholds lie half-way between two scores, away from both; 0.5 where nothing is right.
    """
    ordered = np.sort(scores)
    middle = (np.append(0.0, ordered[:-1]) + ordered) / 2
    tried = np.unique(np.round(np.append(middle, USUAL_THRESHOLD), _THRESHOLD_DIGITS))
    taken = len(scores) - np.searchsorted(ordered, tried)
    hits = right.sum() - np.searchsorted(np.sort(scores[right]), tried)
    f1 = 2 * hits / np.maximum(taken + right.sum(), 1)
    best = tried[f1 == f1.max()]
    return float(best[np.abs(best - USUAL_THRESHOLD).argmin()])


def _decide(scores: Floats, labels: tuple[str, ...], choice: Choice, calibration: Calibration) -> NDArray[Any]:
    """Take labels as a decoder does, all rows (N, L) at once."""
    if choice.multi:
        least = choice.threshold
        own = [calibration.thresholds.get(name, USUAL_THRESHOLD) if least is None else least for name in labels]
        return scores >= np.array(own)
    best: NDArray[np.intp] = scores.argmax(axis=1)
    if choice.threshold is None:
        return best
    return np.where(scores.max(axis=1) >= choice.threshold, best, NONE_TAKEN)
