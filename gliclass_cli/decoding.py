"""From logits to a prediction: softmax or sigmoid, threshold, ranking, rounding."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gliclass_cli.labels import LabelSet
from gliclass_cli.predictions import Calibration, Choice, Prediction, Truncation

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Decoder:
    """Turns the logits of a text into its prediction, the same way for every text of a run."""

    choice: Choice = field(default_factory=Choice)
    calibration: Calibration = field(default_factory=Calibration)

    def scores(self, logits: Floats) -> Floats:
        """Return scores 0..1 for logits, both (L,): softmax over the labels, or a sigmoid for each with ``multi``."""
        logits = logits.astype(np.float64)
        if self.choice.multi:
            z = logits / self.calibration.multi_temperature + self.calibration.multi_bias
            sigmoid: Floats = np.exp(-np.logaddexp(0.0, -z))  # cannot overflow
            return sigmoid
        z = logits / self.calibration.single_temperature
        powers = np.exp(z - z.max())
        softmax: Floats = powers / powers.sum()
        return softmax

    def decode(self, logits: Floats, labels: LabelSet, truncated: Truncation | None = None) -> Prediction:
        """Return the prediction for logits (L,) of the L ``labels``; ties go to the label given first."""
        choice = self.choice
        scores = self.scores(logits)
        ranking = np.argsort(-scores, kind="stable").tolist()
        rounded: list[float] = np.round(scores, choice.digits).tolist()
        names = labels.names
        if choice.multi:
            threshold = 0.5 if choice.threshold is None else choice.threshold
            accepted = [j for j in ranking if scores[j] >= threshold]
        else:
            best = ranking[:1]
            accepted = best if choice.threshold is None or scores[best[0]] >= choice.threshold else []
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
            truncated=truncated,
        )
