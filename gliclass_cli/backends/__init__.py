"""Backends: what computes logits. Each one implements ``Backend``; nothing above it knows which library runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gliclass_cli.decoding import Floats
from gliclass_cli.labels import LabelSet
from gliclass_cli.tokens import Tokens


@dataclass(frozen=True, slots=True)
class PreparedLabels:
    """A label set, and what a backend made of it once for all texts (``data`` is the backend's own)."""

    labels: LabelSet
    data: Any


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text as the model reads it, and the labels it is scored against."""

    tokens: Tokens
    labels: PreparedLabels


class Backend(Protocol):
    """Computes logits. Every method may be called from several threads at once."""

    max_length: int

    def prepare(self, labels: LabelSet) -> PreparedLabels:
        """Do for a label set what need not be done for each text."""

    def compose(self, texts: Sequence[str], labels: PreparedLabels) -> list[Prompt]:
        """Tokenise texts and put them together with their labels."""

    def score(self, prompts: Sequence[Prompt]) -> list[Floats]:
        """Return for each prompt its logits (L,), independent of the other prompts."""
