"""ModernBERT and Ettin (arXiv 2412.13663, 2507.11412) as transformers' ``ModernBertModel`` computes them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gliclass_cli.errors import ModelUnusable
from gliclass_cli.export.backbones import Inputs, Part, pick, pick_tokens, picked_shape
from gliclass_cli.export.backbones.bert import pair_mask
from gliclass_cli.export.builder import Builder

_THETA = {"full_attention": ("global_rope_theta", 160_000.0), "sliding_attention": ("local_rope_theta", 10_000.0)}


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
    masks = _masks(builder, inputs.mask, config)
    rotations = {kind: _rotation(builder, config, kind, inputs.mask) for kind in sorted(set(kinds))}
    for number in range(total if layers is None else layers):
        kind, last = kinds[number], number == total - 1
        needed = inputs.needed if last else None
        tokens = _layer(builder, part, number, tokens, rows, masks[kind], rotations[kind], needed)
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
    mask: str,
    rotation: tuple[str, str, str],
    needed: str | None,
) -> str:
    """Add one layer to flat tokens (N, D): to all of them, or to those at the positions ``needed`` (B, K)."""
    config, name = part.config, f"layers.{number}"
    heads, epsilon, hidden = int(config["num_attention_heads"]), float(config["norm_eps"]), int(config["hidden_size"])
    normed = part.layer_norm(builder, tokens, f"{name}.attn_norm", epsilon) if number else tokens
    cosine, sine, positions = rotation
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
        mask = builder.unsqueeze(pick(builder, builder.squeeze(mask, 1), needed), 1)
    query, key, value = (
        builder.add("Reshape", item, shape) for item, shape in ((query, asked), (key, rows), (value, rows))
    )
    query, key = (
        builder.add("RotaryEmbedding", item, cosine, sine, places, num_heads=heads)
        for item, places in ((query, asking), (key, positions))
    )
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


def _masks(builder: Builder, mask: str, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the masks (B, 1, L, L) of both kinds of layers: all real tokens, and those at most half a window away."""
    everything = pair_mask(builder, mask)
    positions = builder.range_to(builder.shape_of(mask, 1))
    distance = builder.add("Sub", builder.unsqueeze(positions, 1), builder.unsqueeze(positions, 0))
    window = builder.constant(np.array(int(config["local_attention"]) // 2))
    near = builder.add("LessOrEqual", builder.add("Abs", distance), window)
    return {"full_attention": everything, "sliding_attention": builder.add("And", everything, near)}


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
