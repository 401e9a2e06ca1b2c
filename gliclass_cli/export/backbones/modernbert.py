"""ModernBERT and Ettin (arXiv 2412.13663, 2507.11412) as transformers' ``ModernBertModel`` computes them.

Most layers see the tokens near by only. Of a long text they are computed in blocks: the queries of a block against the
keys of the block and half a window on each side, and not against all keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gliclass_cli.errors import ModelUnusable
from gliclass_cli.export.backbones import Inputs, Part, pick_tokens, picked_shape
from gliclass_cli.export.backbones.bert import pair_mask
from gliclass_cli.export.builder import Builder

_TO_THE_END = 2**31 - 1
_THETA = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}


@dataclass(frozen=True, slots=True)
class _Blocks:
    """A text in blocks of ``size`` tokens, each with its ``reach`` neighbours on both sides (R).

    ``long`` tells at run time whether texts are cut; ``count`` (1,) blocks then make the ``length`` (1,) and
    ``missing`` (1,) more; ``batch`` (1,) is B.
    """

    size: int
    reach: int
    long: str
    length: str
    count: str
    missing: str
    batch: str

    def cut(self, builder: Builder, tensor: str, hidden: int) -> str:
        """Return a tensor (B, L, D) by block (B, n, size, D), with zeros at the end."""
        zeros = builder.add("ConstantOfShape", builder.shape(self.batch, self.missing, hidden))
        whole = builder.add("Concat", tensor, zeros, axis=1)
        return builder.add("Reshape", whole, builder.shape(self.batch, self.count, self.size, hidden))

    def surrounded(self, builder: Builder, tensor: str, hidden: int) -> str:
        """Return a tensor (B, L, D) by block, with neighbours (B * n, R + size + R, D)."""
        blocks = self.cut(builder, tensor, hidden)
        none = builder.add("ConstantOfShape", builder.shape(self.batch, 1, self.reach, hidden))
        ends = builder.slice(builder.slice(blocks, self.size - self.reach, self.size, 2), 0, -1, 1)
        heads = builder.slice(builder.slice(blocks, 0, self.reach, 2), 1, _TO_THE_END, 1)
        before, behind = builder.add("Concat", none, ends, axis=1), builder.add("Concat", heads, none, axis=1)
        together = builder.add("Concat", before, blocks, behind, axis=2)
        return builder.reshape(together, -1, 2 * self.reach + self.size, hidden)

    def mask(self, builder: Builder, mask: str) -> str:
        """Return which of its keys each query of a block sees: bool (B * n, 1, size, R + size + R)."""
        real = self.surrounded(builder, builder.unsqueeze(builder.cast(mask, "float"), 2), 1)
        queries, keys = np.arange(self.size)[:, None], np.arange(2 * self.reach + self.size)[None] - self.reach
        near = builder.constant(np.abs(queries - keys) <= self.reach)
        keys_seen = builder.unsqueeze(builder.transpose(builder.cast(real, "bool"), 0, 2, 1), 1)  # (B * n, 1, 1, .)
        return builder.add("And", keys_seen, near)

    def attend(self, builder: Builder, query: str, key: str, value: str, mask: str, hidden: int, heads: int) -> str:
        """Return the attention of (B, L, D) over ``mask``: (B, L, D)."""
        blocks = builder.reshape(self.cut(builder, query, hidden), -1, self.size, hidden)
        near = (self.surrounded(builder, tensor, hidden) for tensor in (key, value))
        attended = builder.add("Attention", blocks, *near, mask, q_num_heads=heads, kv_num_heads=heads)
        whole = builder.add("Reshape", attended, builder.shape(self.batch, -1, hidden))
        return builder.slice(whole, 0, self.length, 1)


@dataclass(frozen=True, slots=True)
class _Attention:
    """Attention of one kind of layer.

    ``real`` (B, L) is the mask of the tokens, ``reach`` how far a token sees, if not everywhere; ``rotation`` are
    cosines and sines of the positions, and these. ``mask`` (B, 1, L, L): what sees what; of a text that is cut into
    ``blocks`` that of the blocks.
    """

    real: str
    reach: int | None
    rotation: tuple[str, str, str]
    mask: str
    blocks: _Blocks | None

    def attend(self, builder: Builder, query: str, key: str, value: str, hidden: int, heads: int) -> str:
        """Return the attention of all tokens (B, L, D)."""

        def at_once() -> str:
            return builder.add("Attention", query, key, value, self.mask, q_num_heads=heads, kv_num_heads=heads)

        if self.blocks is None:
            return at_once()
        blocks = self.blocks
        return builder.either(
            blocks.long, lambda: blocks.attend(builder, query, key, value, self.mask, hidden, heads), at_once
        )

    def mask_of(self, builder: Builder, needed: str) -> str:
        """Return which key each query at positions (B, K) sees: bool (B, 1, K, L)."""
        seen = pair_mask(builder, self.real, builder.shape_of(needed, 1))
        if self.reach is None:
            return seen
        positions = builder.range_to(builder.shape_of(self.real, 1))
        near = _is_near(builder, builder.unsqueeze(needed, 2), positions, self.reach)
        return builder.add("And", seen, builder.unsqueeze(near, 1))


def words(builder: Builder, part: Part, ids: str) -> str:
    """Return word embeddings (B, L, D)."""
    return builder.embed(ids, part["embeddings.tok_embeddings.weight"])


def encode(builder: Builder, part: Part, inputs: Inputs, *, layers: int | None = None) -> list[str]:
    """Return the states (B, L, D): the embeddings, and those after each layer, the last one normalised.

    Raises:
        ModelUnusable: positions are scaled in a way that is not known.
    """
    config = part.config
    length, hidden = builder.shape_of(inputs.words, 1), int(config["hidden_size"])
    tokens = builder.reshape(inputs.words, -1, hidden)
    tokens = part.layer_norm(builder, tokens, "embeddings.norm", float(config["norm_eps"]))
    rows = builder.shape(builder.shape_of(inputs.words, 0), length, hidden)
    states = [builder.add("Reshape", tokens, rows)]
    total = int(config["num_hidden_layers"])
    kinds = _layer_kinds(config)
    attention = {kind: _attention(builder, config, kind, inputs.mask) for kind in sorted(set(kinds))}
    for number in range(total if layers is None else layers):
        kind, last = kinds[number], number == total - 1
        needed = inputs.needed if last else None
        tokens = _layer(builder, part, number, tokens, rows, attention[kind], needed)
        shown = part.layer_norm(builder, tokens, "final_norm", float(config["norm_eps"])) if last else tokens
        shape = rows if needed is None else picked_shape(builder, needed, hidden)
        states.append(builder.add("Reshape", shown, shape))
    return states


def _layer(
    builder: Builder,
    part: Part,
    number: int,
    tokens: str,
    rows: str,
    attention: _Attention,
    needed: str | None,
) -> str:
    """Add one layer to flat tokens (N, D): to all of them, or to those at the positions ``needed`` (B, K)."""
    config, name = part.config, f"layers.{number}"
    heads, epsilon, hidden = int(config["num_attention_heads"]), float(config["norm_eps"]), int(config["hidden_size"])
    normed = part.layer_norm(builder, tokens, f"{name}.attn_norm", epsilon) if number else tokens
    cosine, sine, positions = attention.rotation
    asked, asking = rows, positions
    if needed is None:
        projected = part.linear(builder, normed, f"{name}.attn.Wqkv")
        query, key, value = builder.add_many("Split", [projected, builder.constant([hidden] * 3)], 3, axis=1)
    else:
        asked, asking = picked_shape(builder, needed, hidden), needed
        weight, bias = part[f"{name}.attn.Wqkv.weight"], part.get(f"{name}.attn.Wqkv.bias")
        exact = builder.is_exact(f"{name}.attn")
        of_query, of_others = (None, None) if bias is None else (bias[:hidden], bias[hidden:])
        query = builder.linear(
            pick_tokens(builder, normed, rows, needed, hidden), weight[:hidden], of_query, exact=exact
        )
        projected = builder.linear(normed, weight[hidden:], of_others, exact=exact)
        key, value = builder.add_many("Split", [projected, builder.constant([hidden] * 2)], 2, axis=1)
        tokens = pick_tokens(builder, tokens, rows, needed, hidden)
    query, key, value = (
        builder.add("Reshape", item, shape) for item, shape in ((query, asked), (key, rows), (value, rows))
    )
    query, key = (
        builder.add("RotaryEmbedding", item, cosine, sine, places, num_heads=heads)
        for item, places in ((query, asking), (key, positions))
    )
    if needed is None:
        attended = attention.attend(builder, query, key, value, hidden, heads)
    else:
        mask = attention.mask_of(builder, needed)
        attended = builder.add("Attention", query, key, value, mask, q_num_heads=heads, kv_num_heads=heads)
    attended = part.linear(builder, builder.reshape(attended, -1, hidden), f"{name}.attn.Wo")
    tokens = builder.add("Add", tokens, attended)
    inner = part.linear(builder, part.layer_norm(builder, tokens, f"{name}.mlp_norm", epsilon), f"{name}.mlp.Wi")
    sizes = builder.constant([int(config["intermediate_size"])] * 2)
    passed, gate = builder.add_many("Split", [inner, sizes], 2, axis=1)
    passed = builder.activation(str(config["hidden_activation"]), passed)
    return builder.add("Add", tokens, part.linear(builder, builder.add("Mul", passed, gate), f"{name}.mlp.Wo"))


def _layer_kinds(config: Mapping[str, Any]) -> list[str]:
    """Return for each layer whether it sees all tokens or those near by; older configurations count layers."""
    if config.get("layer_types"):
        return [str(kind) for kind in config["layer_types"]]
    every = int(config.get("global_attn_every_n_layers", 3))
    layers = range(int(config["num_hidden_layers"]))
    return ["sliding_attention" if number % every else "full_attention" for number in layers]


def _attention(builder: Builder, config: Mapping[str, Any], kind: str, mask: str) -> _Attention:
    """Return the attention of one kind of layer."""
    rotation = _rotation(builder, config, kind, mask)
    if kind == "full_attention":
        return _Attention(mask, None, rotation, pair_mask(builder, mask), None)
    reach = int(config["local_attention"]) // 2
    length = builder.shape_of(mask, 1)

    def near() -> str:
        positions = builder.range_to(length)
        close = _is_near(builder, builder.unsqueeze(positions, 1), positions, reach)
        return builder.add("And", pair_mask(builder, mask), close)

    if reach < 1:
        return _Attention(mask, reach, rotation, near(), None)
    # With twice as many tokens as a window, blocks are as fast; with more, faster.
    size = 2 * reach
    count = builder.add("Div", builder.add("Add", length, builder.constant([size - 1])), builder.constant([size]))
    missing = builder.add("Sub", builder.add("Mul", count, builder.constant([size])), length)
    long = builder.add("Greater", length, builder.constant([2 * size]))
    blocks = _Blocks(size, reach, long, length, count, missing, builder.shape_of(mask, 0))
    chosen = builder.either(long, lambda: blocks.mask(builder, mask), near, kind="bool")
    return _Attention(mask, reach, rotation, chosen, blocks)


def _is_near(builder: Builder, queries: str, keys: str, reach: int) -> str:
    """Tell which positions are at most ``reach`` apart."""
    distance = builder.add("Abs", builder.add("Sub", queries, keys))
    return builder.add("LessOrEqual", distance, builder.constant(np.array(reach)))


def _rotation(builder: Builder, config: Mapping[str, Any], kind: str, mask: str) -> tuple[str, str, str]:
    """Return cosines and sines (L, d / 2) of the positions, and the positions (B, L) of the tokens."""
    parameters = (config.get("rope_parameters") or {}).get(kind) or {}
    if parameters.get("rope_type", "default") != "default":
        raise ModelUnusable(
            f"positions of type {parameters['rope_type']!r} cannot be exported; --backend torch runs the checkpoint"
        )
    older, usual = _THETA[kind]
    theta = float(parameters.get("rope_theta", config.get(older) or usual))
    size = int(config["hidden_size"]) // int(config["num_attention_heads"])
    frequencies = (1.0 / theta ** (np.arange(0, size, 2, dtype=np.float32) / np.float32(size))).astype(np.float32)
    positions = builder.range_to(builder.shape_of(mask, 1))
    angles = builder.add(
        "Mul", builder.unsqueeze(builder.cast(positions, "float"), 1), builder.constant(frequencies[None])
    )
    numbers = builder.add("Expand", builder.unsqueeze(positions, 0), builder.add("Shape", mask))
    return builder.add("Cos", angles), builder.add("Sin", angles), numbers
