"""Backends: what computes the parts of a model. Each one implements ``Backend``; nothing above knows which it is."""

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from gliclass_cli.decoding import Floats

# text: inputs to logits, or to text vectors in a bi-encoder; label: labels to vectors; scorer: both to logits.
Part = Literal["text", "label", "scorer"]
Arrays = Mapping[str, NDArray[Any]]


class Backend(Protocol):
    """Runs the parts of one model. ``run`` may be called from several threads at once.

    ``batch_tokens``: tokens of one run, padding included, at which it is fastest. ``workers``: runs side by side.
    ``alone``: one input a run, because the others would change its scores. ``slots``, ``length``: the most labels and
    tokens that a fixed graph takes, or None. ``product``: scale and bias of logit = scale * (text . label) + bias,
    where no part ``scorer`` is needed.
    """

    batch_tokens: int
    workers: int
    alone: bool
    slots: int | None
    length: int | None
    product: tuple[float, float] | None
    description: str

    def run(self, part: Part, inputs: Arrays) -> Floats:
        """Compute a part for B inputs: input_ids and attention_mask (B, L), and what the architecture has besides.

        The names are those of the graphs: class_input_ids, class_attention_mask (B, M); text (B, D), labels
        (B, C, D), label_mask (B, C). Returns logits (B, C), or vectors (B, D).
        """
