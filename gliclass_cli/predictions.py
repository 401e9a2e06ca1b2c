"""What is asked of scores, and what is answered: plain values, free of any library."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

USUAL_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class Calibration:
    """Scores from logits z: single = softmax(z / T), multi = sigmoid(z / multi_temperature + multi_bias).

    T of L labels is single_temperature / L ** label_exponent: among more labels, a logit that stands out by as much
    says more. ``thresholds``: the score that a label must reach with ``multi`` where no threshold is asked for; the
    labels that are not in it must reach ``USUAL_THRESHOLD``.
    """

    single_temperature: float = 1.0
    multi_temperature: float = 1.0
    multi_bias: float = 0.0
    thresholds: Mapping[str, float] = field(default_factory=dict, hash=False)
    label_exponent: float = 0.0

    def temperature_of(self, labels: int) -> float:
        """Return the softmax temperature of so many labels."""
        return self.single_temperature / float(labels**self.label_exponent)


@dataclass(frozen=True, slots=True)
class Choice:
    """How scores become labels.

    Single-label takes the best label, if it reaches ``threshold`` where one is set. ``multi`` takes every label
    at or above ``threshold`` (where none is set, above those of the calibration). ``top_k`` limits the scores
    reported, never the labels. ``with_logits`` keeps what the model gave in ``Prediction.logits``. ``review`` holds
    the lowest and the highest score of an answer that is ``Prediction.uncertain``.
    """

    multi: bool = False
    threshold: float | None = None
    top_k: int | None = None
    digits: int = 4
    with_scores: bool = True
    nested: bool = False
    with_logits: bool = False
    review: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Truncation:
    """The text was cut: it had ``tokens``, the model reads ``limit``."""

    tokens: int
    limit: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """What of a row did not fit into one input of the model; each None where it did.

    ``chunks``: windows that the text was read in. ``label_groups``: groups that the labels were read in.
    """

    truncated: Truncation | None = None
    chunks: int | None = None
    label_groups: int | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that the model cannot take: too long a label, or too long a text where that is an error."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one text.

    ``label`` is the best accepted label or None, ``score`` its score, ``labels`` all accepted ones, best first;
    ``scores`` every candidate (or the best few) with its score 0..1, ``logits`` of every candidate in its order; each
    None where not asked for. ``uncertain``: the score of the best label, or with ``multi`` that of any label, is within
    ``Choice.review``.
    """

    label: str | None
    score: float | None
    labels: tuple[str, ...]
    scores: Mapping[str, Any] | None = None
    coverage: Coverage = Coverage()
    logits: tuple[float, ...] | None = None
    uncertain: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the value of a row's ``prediction`` key."""
        value: dict[str, Any] = {"label": self.label, "score": self.score, "labels": list(self.labels)}
        if self.scores is not None:
            value["scores"] = self.scores
        cut, chunks, groups = self.coverage.truncated, self.coverage.chunks, self.coverage.label_groups
        if cut is not None:
            value["truncated"] = {"tokens": cut.tokens, "limit": cut.limit}
        if chunks is not None:
            value["chunks"] = chunks
        if groups is not None:
            value["label_groups"] = groups
        return value
