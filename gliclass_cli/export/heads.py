"""What comes after the encoders: label states, pooling, projectors and scorers, as ONNX nodes.

The arithmetic is that of ``gliclass_cli.model``; B rows, L tokens, C labels (the most of any row), D the hidden size.
Masks are float32 (B, L) or (B, C) with 1 for what is real.
"""

from dataclasses import dataclass

import numpy as np

from gliclass_cli.checkpoint import CheckpointConfig
from gliclass_cli.errors import ModelUnusable
from gliclass_cli.export.builder import Builder, Weights

_EPSILON = 1e-8
_FAR = -3e38


@dataclass(frozen=True, slots=True)
class Labels:
    """Where the labels of each row are.

    ``found`` (B, L) is 1 at class tokens, ``number`` (B, L) counts them up to each token; ``select`` (B, C, L) is 1 at
    the class token of each label, ``taken`` (B, C) where there is one.
    """

    found: str
    number: str
    select: str
    taken: str


def find_labels(builder: Builder, config: CheckpointConfig, ids: str, mask: str) -> Labels:
    """Find the class tokens of every row."""
    is_class = builder.add("Equal", ids, builder.constant(np.array(config.class_token_index)))
    found = builder.add("Mul", builder.cast(is_class, "float"), mask)
    number = builder.add("CumSum", found, builder.constant(np.array(1)))
    count = builder.reduce("ReduceMax", number, 1)  # (B, 1)
    most = builder.reshape(builder.cast(builder.reduce("ReduceMax", count, 0), "int"), 1)
    slots = builder.cast(builder.range_to(most), "float")  # (C,)
    taken = builder.cast(builder.add("Less", builder.unsqueeze(slots, 0), count), "float")
    wanted = builder.unsqueeze(builder.add("Add", slots, builder.constant(1.0)), 0, 2)  # (1, C, 1)
    same = builder.cast(builder.add("Equal", builder.unsqueeze(number, 1), wanted), "float")
    return Labels(found, number, builder.add("Mul", same, builder.unsqueeze(found, 1)), taken)


def label_positions(builder: Builder, config: CheckpointConfig, mask: str, labels: Labels) -> tuple[str, str]:
    """Return the position (B, C) of the token whose state a label's is, and 1 (B, C, 1) where there is one."""
    select = _select(builder, config, mask, labels)
    return builder.add("ArgMax", select, axis=2, keepdims=0), builder.reduce("ReduceMax", select, 2)


def label_states(builder: Builder, config: CheckpointConfig, tokens: str, ids: str, mask: str, labels: Labels) -> str:
    """Return the state of each label (B, C, D): at its class token, after it, or the mean of its span."""
    if config.class_token_pooling == "average":
        return _average_spans(builder, config, tokens, ids, mask, labels)
    return builder.add("MatMul", _select(builder, config, mask, labels), tokens)


def _select(builder: Builder, config: CheckpointConfig, mask: str, labels: Labels) -> str:
    """Return 1 (B, C, L) at each label's class token, or at the token after it, if it is real."""
    if config.embed_class_token:
        return labels.select
    shape = builder.add("Shape", labels.select)
    first = builder.slice(shape, 0, 2, 0)
    column = builder.add("ConstantOfShape", builder.add("Concat", first, builder.constant([1]), axis=0))
    moved = builder.add("Concat", column, builder.slice(labels.select, 0, -1, 2), axis=2)
    return builder.add("Mul", moved, builder.unsqueeze(mask, 1))


def _average_spans(builder: Builder, config: CheckpointConfig, tokens: str, ids: str, mask: str, labels: Labels) -> str:
    """Return the mean over each label's span: from its class token to the next one, or to the text's token."""
    is_text = builder.cast(builder.add("Equal", ids, builder.constant(np.array(config.text_token_index))), "float")
    begun = builder.add("CumSum", is_text, builder.constant(np.array(1)))
    inside = builder.add("Mul", builder.cast(builder.add("Equal", begun, builder.constant(0.0)), "float"), mask)
    if not config.embed_class_token:
        inside = builder.add("Sub", inside, builder.add("Mul", inside, labels.found))
    slots = builder.add("CumSum", labels.taken, builder.constant(np.array(1)))  # (B, C): 1, 2 ...
    same = builder.add("Equal", builder.unsqueeze(labels.number, 1), builder.unsqueeze(slots, 2))
    span = builder.add("Mul", builder.cast(same, "float"), builder.unsqueeze(inside, 1))
    size = builder.add("Max", builder.reduce("ReduceSum", span, 2), builder.constant(1.0))
    return builder.add("Div", builder.add("MatMul", span, tokens), size)


def section_mask(builder: Builder, token: int, ids: str, mask: str) -> str:
    """Return a mask (B, L) of the real tokens from the first ``token`` on; of all of them where there is none."""
    found = builder.add(
        "Mul", builder.cast(builder.add("Equal", ids, builder.constant(np.array(token))), "float"), mask
    )
    begun = builder.cast(
        builder.add("Greater", builder.add("CumSum", found, builder.constant(np.array(1))), builder.constant(0.0)),
        "float",
    )
    any_found = builder.reduce("ReduceMax", found, 1)
    nowhere = builder.add("Sub", builder.constant(1.0), any_found)
    return builder.add("Mul", builder.add("Max", begun, nowhere), mask)


def move_to_front(builder: Builder, tokens: str, mask: str) -> tuple[str, str]:
    """Return tokens (B, L, D) with those of a mask, which are in one piece, moved to the front; and their mask."""
    length = builder.shape_of(mask, 1)
    positions = builder.range_to(length)
    start = builder.add("ArgMax", mask, axis=1, keepdims=1)  # the first of the piece
    index = builder.add("Add", builder.unsqueeze(positions, 0), start)
    index = builder.add("Min", index, builder.add("Sub", length, builder.constant([1])))
    count = builder.reduce("ReduceSum", mask, 1)
    real = builder.cast(builder.add("Less", builder.unsqueeze(builder.cast(positions, "float"), 0), count), "float")
    return take(builder, tokens, index), real


def take(builder: Builder, tokens: str, index: str) -> str:
    """Return the states (B, K, D) of tokens (B, L, D) at positions (B, K)."""
    size = builder.shape_of(tokens, 2)
    shape = builder.add("Concat", builder.add("Shape", index), size, axis=0)
    return builder.add("GatherElements", tokens, builder.add("Expand", builder.unsqueeze(index, 2), shape), axis=1)


def pool(builder: Builder, pooling: str, tokens: str, mask: str) -> str:
    """Pool states (B, L, D) over real tokens: (B, D). ``first`` and ``last`` are those of the mask."""
    if pooling == "pass":
        return tokens
    if pooling in ("first", "last"):
        return _pool_one(builder, pooling, tokens, mask)
    wide = builder.unsqueeze(mask, 2)
    if pooling in ("max", "abs_max"):
        values = builder.add("Abs", tokens) if pooling == "abs_max" else tokens
        real = builder.add("Where", builder.cast(wide, "bool"), values, builder.constant(_FAR))
        return builder.reduce("ReduceMax", real, 1, keep=False)
    values = {
        "avg": lambda: tokens,
        "sum": lambda: tokens,
        "rms": lambda: builder.add("Mul", tokens, tokens),
        "abs_avg": lambda: builder.add("Abs", tokens),
    }[pooling]()
    total = builder.reduce("ReduceSum", builder.add("Mul", values, wide), 1, keep=False)
    if pooling == "sum":
        return total
    mean = builder.add("Div", total, builder.add("Max", builder.reduce("ReduceSum", mask, 1), builder.constant(1.0)))
    return builder.add("Sqrt", mean) if pooling == "rms" else mean


def _pool_one(builder: Builder, pooling: str, tokens: str, mask: str) -> str:
    """Return the state of the first or the last real token of each row (B, D)."""
    return builder.squeeze(take(builder, tokens, pooled_position(builder, pooling, mask)), 1)


def pooled_position(builder: Builder, pooling: str, mask: str) -> str:
    """Return the position (B, 1) of the first or the last real token of each row."""
    return builder.add("ArgMax", mask, axis=1, keepdims=1, select_last_index=int(pooling == "last"))


@dataclass(frozen=True, slots=True)
class Head:
    """Projectors, LSTM and scorer of a checkpoint."""

    builder: Builder
    config: CheckpointConfig
    weights: Weights
    uni: bool  # normalised as the reference's uni-encoder does

    def project(self, name: str, vectors: str) -> str:
        """Apply a projector to vectors (..., D)."""
        builder, weights = self.builder, self.weights
        inner = builder.dense(vectors, weights[f"{name}.linear_1.weight"], weights[f"{name}.linear_1.bias"])
        inner = builder.activation(self.config.projector_hidden_act, inner)
        return builder.dense(inner, weights[f"{name}.linear_2.weight"], weights[f"{name}.linear_2.bias"])

    def finish(self, name: str, vectors: str) -> str:
        """Project text or label features, and make them of length 1 if the model compares directions."""
        return self.normalize(self.project(name, vectors))

    def normalize(self, vectors: str) -> str:
        """Make vectors of length 1 if the model compares directions."""
        if not self.config.normalize_features:
            return vectors
        ends = {"added": _EPSILON} if self.uni else {"least": _EPSILON}
        return self.builder.l2_normalize(vectors, **ends)

    def lstm(self, tokens: str, mask: str) -> str:
        """Run the bidirectional LSTM over states (B, L, D) whose real tokens are at the front."""
        builder, half = self.builder, self.config.hidden_size // 2
        lengths = builder.add("Cast", builder.reduce("ReduceSum", mask, 1, keep=False), to=6)  # int32
        inputs = [self._gates("weight_ih_l0"), self._gates("weight_hh_l0"), self._gates("bias", bias=True)]
        output = builder.add(
            "LSTM", builder.transpose(tokens, 1, 0, 2), *inputs, lengths, direction="bidirectional", hidden_size=half
        )  # (L, 2, B, half)
        return builder.reshape(builder.transpose(output, 2, 0, 1, 3), 0, 0, 2 * half)

    def _gates(self, name: str, *, bias: bool = False) -> str:
        """Return a weight of both directions, its gates in ONNX's order: torch has i f g o, ONNX i o f g."""

        kinds = ("bias_ih_l0", "bias_hh_l0") if bias else (name,)
        both = []
        for suffix in ("", "_reverse"):
            parts = [np.split(self.weights[f"lstm.lstm.{kind}{suffix}"], 4) for kind in kinds]
            both.append(np.concatenate([gate for i, f, g, o in parts for gate in (i, o, f, g)]))
        return self.builder.constant(np.stack(both))

    def score(self, text: str, labels: str, taken: str, text_mask: str | None = None) -> str:
        """Return the logits (B, C) of text vectors (B, D), or states (B, L, D), against label vectors (B, C, D)."""
        scorers = {
            "simple": self._simple,
            "weighted-dot": self._weighted_dot,
            "mlp": self._mlp,
            "hopfield": self._hopfield,
        }
        if self.config.scorer == "cross-attn" and text_mask is not None:
            return self._cross_attention(text, labels, text_mask)
        if self.config.scorer not in scorers:
            raise ModelUnusable(
                f"the scorer {self.config.scorer} cannot be exported; --backend torch runs the checkpoint"
            )
        return scorers[self.config.scorer](text, labels, taken)

    def scale(self, logits: str) -> str:
        """Multiply logits by ``logit_scale``, as it is."""
        return self.builder.add("Mul", logits, self.builder.constant(float(self.weights["logit_scale"])))

    def _layers(self, vectors: str, activation: str, *names: str) -> str:
        """Apply linear layers ``scorer.NAME`` with an activation between them, to vectors (..., D)."""
        for number, name in enumerate(names):
            vectors = self.builder.activation(activation, vectors) if number else vectors
            vectors = self.builder.dense(
                vectors, self.weights[f"scorer.{name}.weight"], self.weights.get(f"scorer.{name}.bias")
            )
        return vectors

    def _logits(self, values: str) -> str:
        return self.builder.squeeze(values, 2)

    def _beside(self, text: str, labels: str) -> str:
        """Return text vectors (B, D) repeated for each label (B, C, D)."""
        return self.builder.add("Expand", self.builder.unsqueeze(text, 1), self.builder.add("Shape", labels))

    def _simple(self, text: str, labels: str, taken: str) -> str:
        return self._logits(self.builder.add("MatMul", labels, self.builder.unsqueeze(text, 2)))

    def _weighted_dot(self, text: str, labels: str, taken: str) -> str:
        builder, size = self.builder, self.config.hidden_size
        halves = builder.constant([size, size])
        a1, a2 = builder.add_many("Split", [self._layers(text, "relu", "proj_text"), halves], 2, axis=-1)
        b1, b2 = builder.add_many("Split", [self._layers(labels, "relu", "proj_label"), halves], 2, axis=-1)
        product = builder.add("Mul", builder.unsqueeze(a2, 1), b2)
        together = builder.add("Concat", self._beside(a1, b1), b1, product, axis=-1)
        return self._logits(self._layers(together, "relu", "out_mlp.0", "out_mlp.3"))

    def _mlp(self, text: str, labels: str, taken: str) -> str:
        together = self.builder.add("Concat", self._beside(text, labels), labels, axis=-1)
        return self._logits(self._layers(together, "relu", "mlp.0", "mlp.2", "mlp.4"))

    def _hopfield(self, text: str, labels: str, taken: str) -> str:
        """Let the labels of a row compete for its text, once, with beta 4."""
        builder = self.builder
        query, column = self._layers(labels, "relu", "q_proj"), builder.unsqueeze(text, 1)
        key, value = self._layers(column, "relu", "k_proj"), self._layers(column, "relu", "v_proj")
        energy = builder.add("MatMul", query, builder.transpose(key, 0, 2, 1))  # (B, C, 1)
        energy = builder.add("Mul", energy, builder.constant(4.0))
        real = builder.cast(builder.unsqueeze(taken, 2), "bool")
        energy = builder.add("Where", real, energy, builder.constant(_FAR))
        context = builder.add("Mul", builder.add("Softmax", energy, axis=1), value)
        moved = builder.add("Add", labels, context)
        return self._logits(self._layers(moved, "relu", "mlp.0", "mlp.2", "mlp.4"))

    def _cross_attention(self, text: str, labels: str, mask: str) -> str:
        """Let each label attend to the tokens of the text (B, L, D)."""
        builder, config = self.builder, self.config
        query = self._layers(self._norm("q_norm", labels), "gelu", "q")
        key = self._layers(self._norm("kv_norm", text), "gelu", "k")
        value = self._layers(text, "gelu", "v")
        heads = config.scorer_num_heads
        keys = builder.unsqueeze(builder.cast(mask, "bool"), 1, 2)
        shape = builder.shape(builder.shape_of(text, 0), 1, builder.shape_of(labels, 1), builder.shape_of(text, 1))
        seen = builder.add("Expand", keys, shape)
        context = builder.add("Attention", query, key, value, seen, q_num_heads=heads, kv_num_heads=heads)
        context = self._norm("norm", self._layers(context, "gelu", "out"))
        together = builder.add("Concat", context, labels, axis=-1)
        return self._logits(self._layers(together, "gelu", "score_mlp.0", "score_mlp.2", "score_mlp.4"))

    def _norm(self, name: str, vectors: str) -> str:
        weights = self.weights
        return self.builder.layer_norm(vectors, weights[f"scorer.{name}.weight"], weights[f"scorer.{name}.bias"], 1e-5)


def weigh_layers(builder: Builder, weights: Weights, states: list[str], mask: str) -> str:
    """Weigh the states (B, L, D) of K layers by attention over them, squeezed over real tokens."""
    name = "layer_wise_attention"
    count = builder.reduce("ReduceSum", mask, 1)  # (B, 1)
    means = []
    for state in states:
        squeezed = builder.squeeze(
            builder.dense(state, weights[f"{name}.squeeze.weight"], weights[f"{name}.squeeze.bias"]), 2
        )
        total = builder.reduce("ReduceSum", builder.add("Mul", squeezed, mask), 1)
        means.append(builder.add("Div", total, count))
    layers = builder.add("Concat", *means, axis=1)  # (B, K)
    inner = builder.add("Relu", builder.dense(layers, weights[f"{name}.W1.weight"], weights[f"{name}.W1.bias"]))
    share = builder.add("Sigmoid", builder.dense(inner, weights[f"{name}.W2.weight"], weights[f"{name}.W2.bias"]))
    parts = [
        builder.add("Mul", state, builder.unsqueeze(builder.slice(share, number, number + 1, 1), 2))
        for number, state in enumerate(states)
    ]
    mixed = builder.add("Sum", *parts)
    return builder.dense(mixed, weights[f"{name}.output_projection.weight"], weights[f"{name}.output_projection.bias"])
