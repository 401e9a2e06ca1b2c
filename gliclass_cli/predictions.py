"""What is asked of scores, and what is answered: plain values, free of any library."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Calibration:
    """Scores from logits z: single = softmax(z / temperature), multi = sigmoid(z / temperature + bias)."""

    single_temperature: float = 1.0
    multi_temperature: float = 1.0
    multi_bias: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """How scores become labels.

    Single-label takes the best label, if it reaches ``threshold`` where one is set. ``multi`` takes every label
    at or above ``threshold`` (0.5 where none is set). ``top_k`` limits the scores reported, never the labels.
    """

    multi: bool = False
    threshold: float | None = None
    top_k: int | None = None
    digits: int = 4
    with_scores: bool = True
    nested: bool = False


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
    ``scores`` every candidate (or the best few) with its score 0..1, or None where not asked for.
    """

    label: str | None
    score: float | None
    labels: tuple[str, ...]
    scores: Mapping[str, Any] | None = None
    coverage: Coverage = Coverage()

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
