"""From logits to a prediction: softmax or sigmoid, threshold, ranking, rounding."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gliclass_cli.labels import LabelSet
from gliclass_cli.predictions import USUAL_THRESHOLD, Calibration, Choice, Coverage, Prediction

Floats = NDArray[np.floating[Any]]
_WHOLE = Coverage()


@dataclass(frozen=True, slots=True)
class Decoder:
    """Turns the logits of a text into its prediction, the same way for every text of a run."""

    choice: Choice = field(default_factory=Choice)
    calibration: Calibration = field(default_factory=Calibration)

    def scores(self, logits: Floats) -> Floats:
        """Return scores 0..1 for logits, both (..., L): softmax over the labels, or sigmoids with ``multi``."""
        logits = logits.astype(np.float64)
        if self.choice.multi:
            z = logits / self.calibration.multi_temperature + self.calibration.multi_bias
            sigmoid: Floats = np.exp(-np.logaddexp(0.0, -z))  # cannot overflow
            return sigmoid
        z = logits / self.calibration.temperature_of(logits.shape[-1])
        powers = np.exp(z - z.max(axis=-1, keepdims=True))
        softmax: Floats = powers / powers.sum(axis=-1, keepdims=True)
        return softmax

    def decode(self, logits: Floats, labels: LabelSet, coverage: Coverage = _WHOLE) -> Prediction:
        """Return the prediction for logits (L,) of the L ``labels``; ties go to the label given first."""
        choice, names = self.choice, labels.names
        exact = self.scores(logits)
        # Plain lists from here on: for a few labels they are faster than numpy, whose sorting lets other threads in.
        scores: list[float] = exact.tolist()
        rounded: list[float] = np.round(exact, choice.digits).tolist()
        # By logits, not by scores: those of two very likely labels may both be 1.0.
        raw: list[float] = logits.tolist()
        ranking = _best_first(raw)
        accepted = self._accepted(ranking, scores, names)
        reported: Mapping[str, Any] | None = None
        if choice.with_scores:
            order = range(len(names)) if choice.top_k is None else ranking[: choice.top_k]
            reported = {names[j]: rounded[j] for j in order}
            if choice.nested:
                reported = labels.nest(reported)
        return Prediction(
            label=names[accepted[0]] if accepted else None,
            score=rounded[accepted[0]] if accepted else None,
            labels=tuple(names[j] for j in accepted),
            scores=reported,
            coverage=coverage,
            logits=tuple(raw) if choice.with_logits else None,
            uncertain=self._uncertain(ranking, scores),
        )

    def _uncertain(self, ranking: list[int], scores: list[float]) -> bool:
        if self.choice.review is None:
            return False
        low, high = self.choice.review
        looked_at = ranking if self.choice.multi else ranking[:1]
        return any(low <= scores[j] <= high for j in looked_at)

    def _accepted(self, ranking: list[int], scores: list[float], names: tuple[str, ...]) -> list[int]:
        """Return the indices of the labels that are taken, the best first."""
        threshold, own = self.choice.threshold, self.calibration.thresholds
        if not self.choice.multi:
            return ranking[:1] if threshold is None or scores[ranking[0]] >= threshold else []
        if threshold is None and own:
            return [j for j in ranking if scores[j] >= own.get(names[j], USUAL_THRESHOLD)]
        least = USUAL_THRESHOLD if threshold is None else threshold
        return [j for j in ranking if scores[j] >= least]


def _best_first(values: list[float]) -> list[int]:
    """Return the indices by falling value, equal ones in their order."""
    return sorted(range(len(values)), key=values.__getitem__, reverse=True)
