"""T5, mT5 and UMT5 (arXiv 1910.10683, 2010.11934, 2304.09151) as transformers computes them: encoder and decoder."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gliclass_cli.export.backbones import Inputs, Part
from gliclass_cli.export.builder import Builder

_MASKED = -3e38


def words(builder: Builder, part: Part, ids: str) -> str:
    """Return word embeddings (B, L, D)."""
    table = part.get("shared.weight")
    return builder.embed(ids, part["encoder.embed_tokens.weight"] if table is None else table)


def encode(builder: Builder, part: Part, inputs: Inputs, *, layers: int | None = None) -> list[str]:
    """Return the encoder's states (B, L, D): the embeddings, and those after each block, the last one normalised."""
    config, total = part.config, int(part.config["num_layers"])
    tokens = builder.reshape(inputs.words, -1, int(config["d_model"]))
    shape = _by_row(builder, inputs.words, int(config["d_model"]))
    bias = _Bias(builder, part, "encoder", inputs.mask, None)
    states = [inputs.words]
    for number in range(total if layers is None else layers):
        name = f"encoder.block.{number}.layer"
        tokens = _attend(builder, part, f"{name}.0", "SelfAttention", tokens, tokens, inputs.words, bias.of(number))
        tokens = _feed_forward(builder, part, f"{name}.1", tokens)
        shown = _norm(builder, part, "encoder.final_layer_norm", tokens) if number == total - 1 else tokens
        states.append(builder.add("Reshape", shown, shape))
    return states


def decode(
    builder: Builder, part: Part, words: str, self_mask: str, states: str, cross_mask: str, *, causal: bool
) -> str:
    """Return the decoder's last states (B, M, D).

    ``words`` (B, M, D) are embeddings of the decoder's tokens with their mask (B, M), ``states`` (B, L, D) and
    ``cross_mask`` (B, L) those of the encoder. Not ``causal``, every token sees all others; distances are still
    those of a decoder, which knows none to the right.
    """
    config = part.config
    layers = int(config.get("num_decoder_layers") or config["num_layers"])
    tokens = builder.reshape(words, -1, int(config["d_model"]))
    encoded = builder.reshape(states, -1, int(config["d_model"]))
    bias = _Bias(builder, part, "decoder", self_mask, causal)
    cross = _mask_bias(builder, cross_mask, builder.shape_of(words, 1))
    for number in range(layers):
        name = f"decoder.block.{number}.layer"
        tokens = _attend(builder, part, f"{name}.0", "SelfAttention", tokens, tokens, words, bias.of(number))
        tokens = _attend(builder, part, f"{name}.1", "EncDecAttention", tokens, encoded, words, cross)
        tokens = _feed_forward(builder, part, f"{name}.2", tokens)
    tokens = _norm(builder, part, "decoder.final_layer_norm", tokens)
    return builder.add("Reshape", tokens, _by_row(builder, words, int(config["d_model"])))


class _Bias:
    """What distances and the mask add to attention scores: once for all blocks, in UMT5 for each block."""

    def __init__(self, builder: Builder, part: Part, stack: str, mask: str, causal: bool | None) -> None:
        """``causal`` is None in an encoder."""
        self._builder, self._part, self._stack = builder, part, stack
        self._own = part.config.get("model_type") == "umt5"
        self._found: dict[int, str] = {}
        length = builder.shape_of(mask, 1)
        positions = builder.range_to(length)
        self._distance = builder.add("Sub", builder.unsqueeze(positions, 0), builder.unsqueeze(positions, 1))
        seen = builder.unsqueeze(builder.cast(mask, "bool"), 1, 2)  # (B, 1, 1, L)
        if causal:
            before = builder.add("LessOrEqual", self._distance, builder.constant(np.array(0)))
            seen = builder.add("And", seen, before)
        self._seen = seen
        self._bidirectional = causal is None

    def of(self, number: int) -> str:
        """Return the bias (B, H, L, L) of a block."""
        block = number if self._own else 0
        if block not in self._found:
            builder, config = self._builder, self._part.config
            name = f"{self._stack}.block.{block}.layer.0.SelfAttention.relative_attention_bias.weight"
            reach = int(config.get("relative_attention_max_distance") or 128)
            index = distance_buckets(config, reach, bidirectional=self._bidirectional)
            stored = f"{self._part.prefix}{self._stack}.{block}.distances"
            table = builder.constant(self._part[name][index], stored)  # (2 * reach + 1, H)
            ends = builder.constant(np.array(-reach)), builder.constant(np.array(reach))
            near = builder.add("Add", builder.add("Clip", self._distance, *ends), builder.constant(np.array(reach)))
            bias = builder.transpose(builder.add("Gather", table, near), 2, 0, 1)  # (H, L, L)
            masked = builder.constant(_MASKED)
            self._found[block] = builder.add("Where", self._seen, builder.unsqueeze(bias, 0), masked)
        return self._found[block]


def distance_buckets(config: Mapping[str, Any], reach: int, *, bidirectional: bool) -> NDArray[np.int64]:
    """Return the bucket of each distance k - q in -reach..reach (T5, section 2.1); beyond it stays the same."""
    buckets, distance = int(config["relative_attention_num_buckets"]), np.arange(-reach, reach + 1)
    offset = np.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = (distance > 0) * buckets
        distance = np.abs(distance)
    else:
        distance = -np.minimum(distance, 0)
    exact = buckets // 2
    far = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    log = np.log(far) / np.float32(np.log(reach / exact)) * np.float32(buckets - exact)
    large = np.minimum(exact + log.astype(np.int64), buckets - 1)
    return np.asarray(offset + np.where(distance < exact, distance, large), dtype=np.int64)


def _mask_bias(builder: Builder, mask: str, queries: str) -> str:
    """Return a mask (B, L) as a bias (B, 1, M, L) of so many queries."""
    seen = builder.unsqueeze(builder.cast(mask, "bool"), 1, 2)
    shape = builder.shape(builder.shape_of(mask, 0), 1, queries, builder.shape_of(mask, 1))
    return builder.add("Where", builder.add("Expand", seen, shape), builder.constant(0.0), builder.constant(_MASKED))


def _attend(builder: Builder, part: Part, name: str, kind: str, tokens: str, others: str, words: str, bias: str) -> str:
    """Let flat tokens attend to others (themselves, or the encoder's), and add the result to them.

    Scores are not scaled. Only tokens are normalised before; the encoder's states have been.
    """
    config = part.config
    heads, size = int(config["num_heads"]), int(config["d_kv"])
    normed = _norm(builder, part, f"{name}.layer_norm", tokens)
    read = normed if others == tokens else others
    batch = builder.shape_of(words, 0)
    split = builder.shape(batch, -1, heads * size)
    query, key, value = (
        builder.add("Reshape", part.linear(builder, source, f"{name}.{kind}.{role}"), split)
        for role, source in (("q", normed), ("k", read), ("v", read))
    )
    attended = builder.add("Attention", query, key, value, bias, q_num_heads=heads, kv_num_heads=heads, scale=1.0)
    attended = part.linear(builder, builder.reshape(attended, -1, heads * size), f"{name}.{kind}.o")
    return builder.add("Add", tokens, attended)


def _feed_forward(builder: Builder, part: Part, name: str, tokens: str) -> str:
    """Add the feed-forward layer to flat tokens; gated in T5 1.1 and after."""
    kind = str(part.config.get("feed_forward_proj", "relu"))
    gated = kind.startswith("gated-")
    activation = "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")
    normed, dense = _norm(builder, part, f"{name}.layer_norm", tokens), f"{name}.DenseReluDense"
    inner = builder.activation(activation, part.linear(builder, normed, f"{dense}.{'wi_0' if gated else 'wi'}"))
    if gated:
        inner = builder.add("Mul", inner, part.linear(builder, normed, f"{dense}.wi_1"))
    return builder.add("Add", tokens, part.linear(builder, inner, f"{dense}.wo"))


def _norm(builder: Builder, part: Part, name: str, tokens: str) -> str:
    return builder.rms_norm(tokens, part[f"{name}.weight"], float(part.config.get("layer_norm_epsilon", 1e-6)))


def _by_row(builder: Builder, words: str, hidden: int) -> str:
    return builder.shape(builder.shape_of(words, 0), builder.shape_of(words, 1), hidden)
