"""DeBERTa-v2 and v3 (arXiv 2006.03654, 2111.09543) as transformers' ``DebertaV2Model`` computes them, less its waste.

Disentangled attention adds to the score of query q and key k what depends on their distance q - k:

    Q[q] . K_rel[index(q - k)]  +  K[k] . Q_rel[index(q - k)]

K_rel and Q_rel do not depend on the input: they are projected here, once. A text of L tokens has 2L - 1 distances, so
that the products are (L, 2L) and not (L, 512); a row of them is moved into its place by reading the flat matrix with
another row length, which no gather does as fast. S tokens of a text have L + S - 1 distances: a long one is computed in
blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gliclass_cli.errors import ModelUnusable
from gliclass_cli.export.backbones import Inputs, Part, pick, pick_tokens, picked_shape
from gliclass_cli.export.backbones.bert import pair_mask
from gliclass_cli.export.builder import MICROSOFT, Builder, Floats

_MASKED = -3e38
_FARTHEST = 65_535  # no text is longer
# Texts of more tokens than _LONG are computed in blocks: half the products, at the price of more tables.
_LONG = 192
_BLOCK = 64


@dataclass(frozen=True, slots=True)
class _Shapes:
    """What all layers share: sizes, run-time shapes, the mask, and which relative positions a length needs."""

    heads: int
    size: int  # of a head
    scale: float
    kinds: Sequence[str]
    hidden: int
    by_row: str  # (B, L, D)
    rows: str  # (B, L, H, d)
    seen: str  # (B, 1, 1, L), or (B, 1, L, L) without relative positions; bool
    unpadded: str  # whether all tokens of all rows are real: (1,), bool
    relative: "_Relative | None"


@dataclass(frozen=True, slots=True)
class _Relative:
    """Which relative embeddings a text needs, in n blocks of S tokens: sizes are vectors of one.

    ``falling`` and ``rising`` (n, L + S): rows by distance, from the last token of a block to the first of the text,
    and the other way round. ``every`` (2L,): by all falling distances.
    """

    embeddings: Floats  # (2 * span, D)
    falling: str
    rising: str
    every: str
    length: str
    size: str  # S
    blocks: str  # n
    missing: str  # n * S - L
    stride: str  # L + S - 1


def words(builder: Builder, part: Part, ids: str) -> str:
    """Return word embeddings (B, L, D)."""
    return builder.embed(ids, part["embeddings.word_embeddings.weight"])


def encode(builder: Builder, part: Part, inputs: Inputs, *, layers: int | None = None) -> list[str]:
    """Return the states (B, L, D): the embeddings, and those after each layer.

    Raises:
        ModelUnusable: a variation that is not known: a convolution, or narrower embeddings.
    """
    config = part.config
    if int(config.get("conv_kernel_size") or 0) > 0 or part.get("embeddings.embed_proj.weight") is not None:
        raise ModelUnusable(
            "DeBERTa with a convolution or narrow embeddings cannot be exported; --backend torch runs the checkpoint"
        )
    hidden, length = int(config["hidden_size"]), builder.shape_of(inputs.words, 1)
    tokens = _embed(builder, part, inputs, length)
    shapes = _shapes(builder, part, inputs, length)
    states = [builder.add("Reshape", tokens, shapes.by_row)]
    total = int(config["num_hidden_layers"])
    for number in range(total if layers is None else layers):
        needed = inputs.needed if number == total - 1 else None
        tokens = _layer(builder, part, f"encoder.layer.{number}", tokens, shapes, needed)
        by_row = shapes.by_row if needed is None else picked_shape(builder, needed, hidden)
        states.append(builder.add("Reshape", tokens, by_row))
    return states


def _embed(builder: Builder, part: Part, inputs: Inputs, length: str) -> str:
    """Return normalised embeddings, flat (N, D); positions and token types only where the model has them."""
    embedded = inputs.words
    types = part.get("embeddings.token_type_embeddings.weight")
    if part.config.get("position_biased_input", True):
        table = part["embeddings.position_embeddings.weight"]
        table = table if types is None else table + types[0]
        embedded = builder.add(
            "Add", embedded, builder.slice(builder.constant(table, f"{part.prefix}positions"), 0, length, 0)
        )
    elif types is not None:
        embedded = builder.add("Add", embedded, builder.constant(types[0], f"{part.prefix}token_type"))
    tokens = builder.reshape(embedded, -1, int(part.config["hidden_size"]))
    return part.layer_norm(builder, tokens, "embeddings.LayerNorm", float(part.config["layer_norm_eps"]))


def _shapes(builder: Builder, part: Part, inputs: Inputs, length: str) -> _Shapes:
    config = part.config
    heads = int(config["num_attention_heads"])
    size = int(config.get("attention_head_size") or int(config["hidden_size"]) // heads)
    kinds = _kinds(config) if config.get("relative_attention") else ()
    scale = 1 / float(np.sqrt(size * (1 + len(_kinds(config)))))
    return _Shapes(
        heads=heads,
        size=size,
        scale=scale,
        kinds=kinds,
        hidden=int(config["hidden_size"]),
        by_row=builder.shape(builder.shape_of(inputs.words, 0), length, int(config["hidden_size"])),
        rows=builder.shape(builder.shape_of(inputs.words, 0), length, heads, size),
        seen=builder.unsqueeze(builder.cast(inputs.mask, "bool"), 1, 2) if kinds else pair_mask(builder, inputs.mask),
        unpadded=builder.cast(builder.reshape(builder.add("ReduceMin", inputs.mask, keepdims=0), 1), "bool"),
        relative=_relative(builder, part, length) if kinds else None,
    )


def _kinds(config: Mapping[str, Any]) -> list[str]:
    """Return which of c2p and p2c a model has; transformers takes a list or a text."""
    kinds = config.get("pos_att_type") or []
    kinds = kinds.split("|") if isinstance(kinds, str) else kinds
    return [kind for kind in ("c2p", "p2c") if kind in [str(given).strip().lower() for given in kinds]]


def _relative(builder: Builder, part: Part, length: str) -> _Relative:
    """Find the relative embeddings of the distances L - 1 ... -L, and of -(L - 1) ... L."""
    config = part.config
    most = int(config.get("max_relative_positions") or -1)
    most = most if most >= 1 else int(config["max_position_embeddings"])
    buckets = int(config.get("position_buckets") or -1)
    span = buckets if buckets > 0 else most
    embeddings = part["encoder.rel_embeddings.weight"][: 2 * span]
    norms = [norm.strip() for norm in str(config.get("norm_rel_ebd", "none")).lower().split("|")]
    if "layer_norm" in norms:
        embeddings = _normalized(embeddings, part, float(config["layer_norm_eps"]))
    table = builder.constant(relative_index(span, buckets, most), f"{part.prefix}relative_index")
    # A text in blocks of S tokens; of a short one all are one block.
    size = builder.add("Where", _is_long(builder, length), builder.constant([_BLOCK]), length)
    one = builder.constant([1])
    before_end = builder.add("Sub", size, one)
    blocks = builder.add("Div", builder.add("Add", length, before_end), size)
    width = builder.add("Add", length, size)
    begins = builder.unsqueeze(builder.add("Mul", builder.range_to(blocks), size), 1)  # (n, 1)
    rising = builder.add("Sub", builder.add("Sub", builder.range_to(width), before_end), begins)
    every = builder.add("Sub", builder.add("Sub", length, one), builder.range_to(builder.add("Add", length, length)))
    return _Relative(
        embeddings=embeddings,
        falling=_rows_of(builder, table, builder.add("Neg", rising)),
        rising=_rows_of(builder, table, rising),
        every=_rows_of(builder, table, every),
        length=length,
        size=size,
        blocks=blocks,
        missing=builder.add("Sub", builder.add("Mul", blocks, size), length),
        stride=builder.add("Sub", width, one),
    )


def _is_long(builder: Builder, length: str) -> str:
    return builder.add("Greater", length, builder.constant([_LONG]))


def _rows_of(builder: Builder, table: str, distances: str) -> str:
    """Return the rows of the relative embeddings for distances; those beyond a table (2R + 1,) have its ends."""
    reach = builder.add("Div", builder.shape_of(table, 0), builder.constant([2]))
    place = builder.add("Add", distances, reach)
    last = builder.add("Mul", reach, builder.constant([2]))
    return builder.add("Gather", table, builder.add("Max", builder.add("Min", place, last), builder.constant([0])))


def relative_index(span: int, buckets: int, most: int) -> NDArray[np.int64]:
    """Return the row of the relative embeddings for each distance q - k in -R..R; beyond R it stays the same."""
    farthest = max(_FARTHEST, span)
    distance = np.arange(-farthest, farthest + 1)
    if buckets > 0:
        middle = buckets // 2
        near = np.abs(distance) <= middle
        far = np.where(near, middle, np.abs(distance)).astype(np.float32)
        ratio = np.log(far / np.float32(middle)) / np.log(np.float32((most - 1) / middle))
        log = np.ceil((ratio * np.float32(middle - 1)).astype(np.float32)) + middle
        distance = np.where(near, distance, log * np.sign(distance)).astype(np.int64)
    index = np.clip(distance + span, 0, 2 * span - 1).astype(np.int64)
    inner = np.flatnonzero((index != index[0]) & (index != index[-1]))
    unused = min(int(inner[0]), len(index) - 1 - int(inner[-1])) - 1 if len(inner) else farthest - 1
    return index[unused : len(index) - unused]


def _normalized(embeddings: Floats, part: Part, epsilon: float) -> Floats:
    """Apply the encoder's layer norm to the relative embeddings, in float64."""
    values = embeddings.astype(np.float64)
    centred = values - values.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + epsilon)
    normed: Floats = (scaled * part["encoder.LayerNorm.weight"] + part["encoder.LayerNorm.bias"]).astype(np.float32)
    return normed


def _layer(builder: Builder, part: Part, name: str, tokens: str, shapes: _Shapes, needed: str | None) -> str:
    """Add one layer to flat tokens (N, D): to all of them, or to those at the positions ``needed`` (B, K)."""
    epsilon = float(part.config["layer_norm_eps"])
    asking = tokens if needed is None else pick_tokens(builder, tokens, shapes.by_row, needed, shapes.hidden)
    attended = _attention(builder, part, name, asking, tokens, shapes, needed)
    attended = part.linear(builder, attended, f"{name}.attention.output.dense")
    middle = part.layer_norm(
        builder, builder.add("Add", attended, asking), f"{name}.attention.output.LayerNorm", epsilon
    )
    inner = part.linear(builder, middle, f"{name}.intermediate.dense")
    inner = builder.activation(str(part.config["hidden_act"]), inner)
    output = part.linear(builder, inner, f"{name}.output.dense")
    return part.layer_norm(builder, builder.add("Add", output, middle), f"{name}.output.LayerNorm", epsilon)


def _attention(
    builder: Builder, part: Part, name: str, asking: str, tokens: str, shapes: _Shapes, needed: str | None
) -> str:
    """Return the output of disentangled attention of the tokens that ask, flat (M, D), over all tokens (N, D)."""
    own = f"{name}.attention.self"
    asked = shapes.rows if needed is None else picked_shape(builder, needed, shapes.heads, shapes.size)
    query, key, value = (
        builder.transpose(builder.add("Reshape", part.linear(builder, source, f"{own}.{role}_proj"), rows), 0, 2, 1, 3)
        for role, source, rows in (
            ("query", asking, asked),
            ("key", tokens, shapes.rows),
            ("value", tokens, shapes.rows),
        )
    )  # (B, H, K, d) and (B, H, L, d)

    def attend(bias: str) -> str:
        return builder.add("Attention", query, key, value, bias, scale=shapes.scale)  # (B, H, K, d)

    if shapes.relative is not None:
        found = _bias(builder, part, own, query, key, shapes, shapes.relative, needed)
        masked = builder.constant(_MASKED)
        attended = builder.either(
            shapes.unpadded, lambda: attend(found), lambda: attend(builder.add("Where", shapes.seen, found, masked))
        )
    elif needed is None:
        attended = attend(shapes.seen)
    else:
        attended = attend(builder.unsqueeze(pick(builder, builder.squeeze(shapes.seen, 1), needed), 1))
    return builder.reshape(builder.transpose(attended, 0, 2, 1, 3), -1, shapes.heads * shapes.size)


def _bias(
    builder: Builder,
    part: Part,
    own: str,
    query: str,
    key: str,
    shapes: _Shapes,
    relative: _Relative,
    needed: str | None,
) -> str:
    """Return what distances add to the scores (B, H, L, L), or to those of the queries at ``needed``: (B, H, K, L)."""
    found = []
    if "c2p" in shapes.kinds:
        table = _table(builder, part, f"{own}.key", relative, shapes)
        if needed is None:
            near = builder.add("Gather", table, relative.falling, axis=1)
            found.append(_moved(builder, query, near, relative, shapes))
        else:
            near = builder.add("Gather", table, relative.every, axis=1)
            found.append(_gathered(builder, query, near, relative, needed))
    if "p2c" in shapes.kinds:
        table = _table(builder, part, f"{own}.query", relative, shapes)
        near = builder.add("Gather", table, relative.rising, axis=1)
        moved = _moved(builder, key, near, relative, shapes)
        if needed is None:
            found.append(builder.transpose(moved, 0, 1, 3, 2))
        else:
            by_query = pick(builder, builder.transpose(moved, 0, 3, 1, 2), needed)  # (B, K, H, L)
            found.append(builder.transpose(by_query, 0, 2, 1, 3))
    return found[0] if len(found) == 1 else builder.add("Add", *found)


def _gathered(builder: Builder, query: str, table: str, relative: _Relative, needed: str) -> str:
    """Multiply (B, H, K, d) by (H, 2L, d), and take from row i what belongs to its position: (B, H, K, L).

    The distance of position q to j is in column L - 1 - q + j.
    """
    product = builder.add("FusedMatMul", query, table, domain=MICROSOFT, transB=1)  # (B, H, K, 2L)
    last = builder.add("Sub", relative.length, builder.constant([1]))
    begin = builder.unsqueeze(builder.add("Sub", last, needed), 1, 3)  # (B, 1, K, 1)
    columns = builder.add("Add", begin, builder.range_to(relative.length))
    shape = builder.add("Concat", builder.add("Shape", product, start=0, end=3), relative.length, axis=0)
    return builder.add("GatherElements", product, builder.add("Expand", columns, shape), axis=3)


def _table(builder: Builder, part: Part, role: str, relative: _Relative, shapes: _Shapes) -> str:
    """Return the scaled relative embeddings (H, 2 * span, d), projected as tokens are or by a layer of their own."""
    own, kind = role.rsplit(".", 1)
    name = f"{role}_proj" if part.config.get("share_att_key") else f"{own}.pos_{kind}_proj"
    projected = relative.embeddings.astype(np.float64) @ part[f"{name}.weight"].T.astype(np.float64)
    bias = part.get(f"{name}.bias")
    projected = (projected if bias is None else projected + bias) * shapes.scale
    heads = projected.astype(np.float32).reshape(-1, shapes.heads, shapes.size).transpose(1, 0, 2)
    return builder.constant(np.ascontiguousarray(heads), f"{part.prefix}{role}.relative")


def _moved(builder: Builder, vectors: str, table: str, relative: _Relative, shapes: _Shapes) -> str:
    """Multiply blocks of (B, H, L, d) by (H, n, L + S, d), and move row i of each left by S - 1 - i: (B, H, L, L).

    Entry (i, S - 1 - i + j) of a block with rows of L + S is number (L + S - 1) * i + (S - 1) + j of its flat form:
    read from S - 1 on with rows of L + S - 1, it is entry (i, j).
    """
    batch = builder.shape_of(vectors, 0)
    zeros = builder.add("ConstantOfShape", builder.shape(batch, shapes.heads, relative.missing, shapes.size))
    shape = builder.shape(batch, shapes.heads, relative.blocks, relative.size, shapes.size)
    blocks = builder.add("Reshape", builder.add("Concat", vectors, zeros, axis=2), shape)
    # Gathered whole vectors and a transposed product: to gather columns instead takes a tenth of a short text's time.
    product = builder.add("FusedMatMul", blocks, table, domain=MICROSOFT, transB=1)  # (B, H, n, S, L + S)
    flat = builder.reshape(product, 0, 0, 0, -1)
    start = builder.add("Sub", relative.size, builder.constant([1]))
    end = builder.add("Add", start, builder.add("Mul", relative.size, relative.stride))
    rows = builder.slice(flat, start, end, 3)
    rows = builder.add("Reshape", rows, builder.shape(0, 0, -1, relative.stride))
    ends = builder.add("Concat", relative.length, relative.length, axis=0)
    return builder.add("Slice", rows, builder.constant([0, 0]), ends, builder.constant([2, 3]))
