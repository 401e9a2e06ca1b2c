"""Encoders and decoders as ONNX graphs: from token embeddings to the states of every token.

Each backbone is a function of a ``Builder``, the weights under a prefix, and the configuration as transformers writes
it. It takes ``Inputs`` and returns the states (B, L, D) that transformers calls ``hidden_states``, as far as needed:
states[0] are the embeddings, states[n] what layer n gives; the last one is ``last_hidden_state``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gliclass_cli.export.builder import Builder, Weights


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a backbone reads. ``words`` (B, L, D) are word embeddings, which heads may have changed; ``mask`` (B, L)."""

    words: str
    mask: str


@dataclass(frozen=True, slots=True)
class Part:
    """A backbone's weights, named as in transformers after ``prefix``, and its configuration."""

    weights: Weights
    prefix: str
    config: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        """Return a weight."""
        return self.weights[self.prefix + name]

    def get(self, name: str) -> Any:
        """Return a weight, or None where there is none."""
        return self.weights.get(self.prefix + name)

    def linear(self, builder: Builder, tokens: str, name: str) -> str:
        """Apply a linear layer, with its bias where it has one, to flat tokens."""
        return builder.linear(tokens, self[f"{name}.weight"], self.get(f"{name}.bias"))

    def layer_norm(self, builder: Builder, tokens: str, name: str, epsilon: float) -> str:
        """Apply a layer norm, with its shift where it has one."""
        return builder.layer_norm(tokens, self[f"{name}.weight"], self.get(f"{name}.bias"), epsilon)
