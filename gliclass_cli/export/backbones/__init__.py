"""Encoders and decoders as ONNX graphs: from token embeddings to the states of every token.

Each backbone is a function of a ``Builder``, the weights under a prefix, and the configuration as transformers writes
it. It takes ``Inputs`` and returns the states (B, L, D) that transformers calls ``hidden_states``, as far as needed:
states[0] are the embeddings, states[n] what layer n gives; the last one is ``last_hidden_state``. Where heads read few
tokens of it, the last layer lets only these ask (its keys and values are still those of all): (B, K, D).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gliclass_cli.export.builder import Builder, Weights


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a backbone reads. ``words`` (B, L, D) are word embeddings, which heads may have changed; ``mask`` (B, L).

    ``needed`` (B, K): the positions whose last states are read, or None: all of them, in order.
    """

    words: str
    mask: str
    needed: str | None = None


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
        exact = builder.is_exact(self.prefix + name)
        return builder.linear(tokens, self[f"{name}.weight"], self.get(f"{name}.bias"), exact=exact)

    def layer_norm(self, builder: Builder, tokens: str, name: str, epsilon: float) -> str:
        """Apply a layer norm, with its shift where it has one."""
        return builder.layer_norm(tokens, self[f"{name}.weight"], self.get(f"{name}.bias"), epsilon)


def pick(builder: Builder, tensor: str, needed: str) -> str:
    """Return the entries (B, K, ...) of a tensor (B, L, ...) at positions (B, K)."""
    return builder.add("GatherND", tensor, builder.unsqueeze(needed, 2), batch_dims=1)


def pick_tokens(builder: Builder, tokens: str, rows: str, needed: str, hidden: int) -> str:
    """Return those of flat tokens (N, D), whose shape by row is ``rows``, at positions (B, K): flat (B * K, D)."""
    return builder.reshape(pick(builder, builder.add("Reshape", tokens, rows), needed), -1, hidden)


def picked_shape(builder: Builder, needed: str, *sizes: int) -> str:
    """Return the shape (B, K, ...) of what is computed at positions (B, K)."""
    return builder.add("Concat", builder.add("Shape", needed), builder.constant(list(sizes)), axis=0)
