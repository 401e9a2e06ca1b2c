"""Build the ONNX graph of a BERT sentence encoder, in float32 or int8, straight from its weights.

The graph takes `input_ids` and `attention_mask` (B, L) and gives `embedding` (B, D): pooled and of unit length. It is
written in the form that runs fastest on a CPU, so a runner may load it with graph optimisations off:

* the token-type row is folded into the positions, biases go into the matrix products, the residual is a plain Add (the
  fused SkipLayerNormalization and BiasGelu kernels of ONNX Runtime measured several times slower than the parts);
* attention is the standard operator (opset 23), whose mask makes padding invisible;
* with [CLS] pooling the last layer computes its query, output and feed-forward for that one token (an exact saving).

int8: a row's embedding must not depend on the other rows, so no activation scale may be taken over the batch. The
inputs of the query/key/value, attention-output and first feed-forward products have constant ranges, measured on
sample texts (`measure_activations`) and evened out by channel as in SmoothQuant (arXiv 2211.10438). The input of
the second feed-forward product has rare huge values: there each token takes its own scale. Weights are symmetric per
column in -64..64: one bit less than int8 holds, so that the 16-bit sums of AVX2 machines without VNNI can't saturate.
They are rounded such that the product changes least on the sample texts (`builder.round_columns`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gliclass_cli.export.builder import (
    MICROSOFT,
    Builder,
    Floats,
    Precision,
    Weights,
    quantize_rows,
    round_columns,
    serialize,
)

Pooling = Literal["first", "avg"]
TOKEN_SCALE: Final = ".token_scale"  # what ends the name of the scales (N, 1) of tokens
Doubles = NDArray[np.float64]

# The smallest value of GELU is -0.17. With this zero point a token's scale follows from its maximum alone.
_GELU_MINIMUM: Final = 0.17
_GELU_ZERO_POINT: Final = 32
# Share of a channel's range that moves from the activations into the weights (SmoothQuant's alpha).
_SMOOTHING: Final = 0.6
# Attention's output has no outlier channels: it is left as it is.
_EVEN_SITE: Final = ".attended"
_MEASURED_TOGETHER: Final = 2000  # tokens


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT encoder."""

    layers: int
    heads: int
    hidden: int
    epsilon: float

    @classmethod
    def from_dict(cls, config: Mapping[str, object]) -> BertConfig:
        """Read a Hugging Face `config.json`; raise ValueError for what this graph can't express."""
        for key, only in (("model_type", "bert"), ("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if config.get(key, only) != only:
                raise ValueError(f"config {key}={config[key]!r} is not supported: only {only!r} is")
        return cls(
            layers=int(str(config["num_hidden_layers"])),
            heads=int(str(config["num_attention_heads"])),
            hidden=int(str(config["hidden_size"])),
            epsilon=float(str(config.get("layer_norm_eps", 1e-12))),
        )


def known_pooling(pooling: str) -> Pooling | None:
    """Return a pooling that can be built here, or None."""
    known: dict[str, Pooling] = {"first": "first", "avg": "avg"}
    return known.get(pooling)


@dataclass(frozen=True)
class Activations:
    """What sample texts bring to the input of a matrix product, channel by channel.

    Smallest and largest value and sum, each (D,); the sum of outer products (D, D); and the number of tokens.
    """

    low: Floats
    high: Floats
    total: Doubles
    outer: Doubles
    count: int

    @classmethod
    def of(cls, tokens: Floats) -> Activations:
        """Measure tokens (N, D)."""
        wide = tokens.astype(np.float64)
        return cls(tokens.min(axis=0), tokens.max(axis=0), wide.sum(axis=0), wide.T @ wide, len(tokens))

    def __add__(self, other: Activations) -> Activations:
        """Return what both bring together."""
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return Activations(low, high, self.total + other.total, self.outer + other.outer, self.count + other.count)

    def shifted(self, offset: Floats) -> Activations:
        """Return them after `offset` (D,) is added."""
        crossed = np.outer(self.total, offset)
        outer = self.outer + crossed + crossed.T + self.count * np.outer(offset, offset)
        total = self.total + self.count * offset.astype(np.float64)
        return Activations(self.low + offset, self.high + offset, total, outer, self.count)

    def divided(self, by: Floats) -> Activations:
        """Return them after each channel is divided by that of `by` (D,)."""
        return Activations(self.low / by, self.high / by, self.total / by, self.outer / np.outer(by, by), self.count)

    @property
    def mean(self) -> Doubles:
        """The mean of each channel, (D,)."""
        return self.total / self.count

    @property
    def covariance(self) -> Doubles:
        """The covariance of the channels, (D, D)."""
        return self.outer / self.count - np.outer(self.mean, self.mean)


def build_bert_graph(
    weights: Weights,
    config: BertConfig,
    *,
    pooling: Pooling,
    precision: Precision = "fp32",
    activations: Mapping[str, Activations] | None = None,
) -> onnx.ModelProto:
    """Build the encoder from weights named as in Hugging Face's BertModel; int8 needs `measure_activations`."""
    if precision == "int8" and activations is None:
        raise ValueError("int8 needs activations: call measure_activations first")
    return _Encoder(weights, config, pooling, activations if precision == "int8" else None).encode()


def measure_activations(
    weights: Weights, config: BertConfig, batches: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]
) -> dict[str, Activations]:
    """Run (ids, mask) batches through the float32 encoder, and return what each quantised input gets, by site name."""
    encoder = _Encoder(weights, config, "avg", None)  # every token reaches every layer
    model, sites = encoder.encode(), encoder.sites
    model.graph.output.extend(
        helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None) for tensor in dict.fromkeys(sites.values())
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # sums in a fixed order: the same ranges at every run
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(serialize(model), options, providers=["CPUExecutionProvider"])
    found: dict[str, Activations] = {}
    waiting: dict[str, list[Floats]] = {}

    def add_up() -> None:
        for site, parts in waiting.items():
            together = Activations.of(np.concatenate(parts))
            found[site] = found[site] + together if site in found else together
        waiting.clear()

    for ids, mask in batches:
        real = mask.reshape(-1) == 1
        outputs = session.run(list(sites.values()), {"input_ids": ids, "attention_mask": mask})
        for site, values in zip(sites, outputs, strict=True):
            waiting.setdefault(site, []).append(values[real])
        if sum(map(len, waiting[site])) >= _MEASURED_TOGETHER:
            add_up()
    if waiting:
        add_up()
    return found


class _Encoder:
    """One walk through BERT's layers; token matrices are flat, (B*L, D), everywhere but in attention."""

    def __init__(
        self,
        weights: Weights,
        config: BertConfig,
        pooling: Pooling,
        activations: Mapping[str, Activations] | None,
    ) -> None:
        self.graph = Builder()
        self.sites: dict[str, str] = {}  # site of quantisation -> the tensor there
        self._weights = weights
        self._config = config
        self._pooling = pooling
        self._activations = activations

    def encode(self) -> onnx.ModelProto:
        """Add the whole encoder to the graph, and return the model."""
        for name in ("input_ids", "attention_mask"):
            self.graph.input(name, ["batch", "length"])
        self._add_shapes()
        tokens = self._embed()
        for layer in range(self._config.layers):
            tokens = self._layer(layer, tokens)
        if self._pooling == "avg":
            tokens = self._average(tokens)
        self.graph.add("ReduceL2", tokens, "ones", output="norm", keepdims=1)
        vector = self.graph.add("Div", tokens, "norm", output="embedding")
        return self.graph.model(vector, "embedding", ["batch", self._config.hidden], title="bert")

    def _add_shapes(self) -> None:
        """Add the run-time shapes, and the mask as attention wants it: (B, 1, 1, L) and, expanded, (B, 1, L, L)."""
        graph, hidden = self.graph, self._config.hidden
        graph.constant([0], "zeros")
        graph.constant([1], "ones")
        graph.constant([-1, hidden], "flat")
        graph.add("Shape", "input_ids", output="shape")  # [B, L]
        graph.add("Gather", "shape", "zeros", output="batch_size")
        graph.add("Gather", "shape", "ones", output="row_length")
        graph.add("Concat", "shape", graph.constant([hidden], "hidden"), output="by_row", axis=0)  # [B, L, D]
        graph.add("Cast", "attention_mask", output="is_real", to=TensorProto.BOOL)
        graph.add("Unsqueeze", "is_real", graph.constant([1, 2], "middle"), output="key_mask")
        graph.add("Concat", "batch_size", "ones", "row_length", "row_length", output="mask_shape", axis=0)
        graph.add("Expand", "key_mask", "mask_shape", output="pair_mask")

    def _embed(self) -> str:
        """Add words and positions, and return the normalised token matrix."""
        graph, weights = self.graph, self._weights
        words = weights["embeddings.word_embeddings.weight"]
        if self._activations is None:
            graph.add("Gather", graph.constant(words, "words"), "input_ids", output="word")
        else:
            rows, scales = quantize_rows(words)
            graph.add("Gather", graph.constant(rows, "words"), "input_ids", output="word.int8")
            graph.add("Gather", graph.constant(scales, "words.scale"), "input_ids", output="word.scale")
            graph.add("Cast", "word.int8", output="word.float", to=TensorProto.FLOAT)
            graph.add("Mul", "word.float", "word.scale", output="word")
        token_type = weights["embeddings.token_type_embeddings.weight"][0]
        positions = weights["embeddings.position_embeddings.weight"] + token_type
        graph.add("Slice", graph.constant(positions, "positions"), "zeros", "row_length", "zeros", output="position")
        graph.add("Add", "word", "position", output="embedded")
        graph.add("Reshape", "embedded", "flat", output="embedded.flat")
        return self._normalize("embedded.flat", "embeddings.LayerNorm")

    def _layer(self, layer: int, tokens: str) -> str:
        """Add one transformer layer."""
        graph, name = self.graph, f"encoder.layer.{layer}"
        first_only = self._pooling == "first" and layer == self._config.layers - 1
        attended = self._attention(name, tokens, first_only=first_only)
        if first_only:
            tokens = self._first_token(tokens, f"{name}.first")
        output = self._linear(f"{name}.attention.output.dense", attended, site=f"{name}.attended")
        graph.add("Add", output, tokens, output=f"{name}.attention.residual")
        # int8: the second product's bias can't be added before its per-token scale. It rides on the residual instead:
        # LayerNorm adds it, and the first product's bias takes it out again (both exact in real numbers).
        second = f"{name}.output.dense"
        carried = None
        if self._activations is not None:
            matrix = np.ascontiguousarray(self._weights[f"{second}.weight"].T)
            columns, scales, correction = rounded(matrix, self._activations[f"{name}.gelu"])
            carried = self._weights[f"{second}.bias"] + correction
        middle = self._normalize(f"{name}.attention.residual", f"{name}.attention.output.LayerNorm", carried)
        inner = self._linear(f"{name}.intermediate.dense", middle, site=f"{name}.middle", carried=carried)
        graph.add("Gelu", inner, output=f"{name}.gelu", domain=MICROSOFT)
        if self._activations is None:
            output = self._linear(second, f"{name}.gelu", site=f"{name}.gelu")
        else:
            output = self._linear_by_token(second, f"{name}.gelu", columns, scales)
        graph.add("Add", output, middle, output=f"{name}.residual")
        return self._normalize(f"{name}.residual", f"{name}.output.LayerNorm")

    def _attention(self, name: str, tokens: str, *, first_only: bool) -> str:
        """Add multi-head attention and return its output, flat; `first_only`: for the first token of each row."""
        graph, site = self.graph, f"{name}.tokens"
        shapes = {"query": "by_row", "key": "by_row", "value": "by_row"}
        inputs = dict.fromkeys(shapes, self._quantized(tokens, site))
        if first_only:
            shapes["query"] = graph.constant([-1, 1, self._config.hidden], "one_by_row")
            inputs["query"] = self._first_token(inputs["query"], f"{name}.query")
        parts = []
        for part, shape in shapes.items():
            output = self._linear(f"{name}.attention.self.{part}", inputs[part], site=site, quantized=True)
            parts.append(graph.add("Reshape", output, shape, output=f"{output}.rows"))
        heads, mask = self._config.heads, "key_mask" if first_only else "pair_mask"
        graph.add("Attention", *parts, mask, output=f"{name}.attention", q_num_heads=heads, kv_num_heads=heads)
        return graph.add("Reshape", f"{name}.attention", "flat", output=f"{name}.attention.flat")

    def _first_token(self, tokens: str, output: str) -> str:
        """Return the first token of each row, (B, D)."""
        rows = self.graph.add("Reshape", tokens, "by_row", output=f"{output}.rows")
        return self.graph.add("Gather", rows, self.graph.constant(np.array(0), "zero"), output=output, axis=1)

    def _average(self, tokens: str) -> str:
        """Return the sum of each row's real tokens, (B, D): what is normalised is the same as for the mean."""
        graph = self.graph
        graph.add("Reshape", tokens, "by_row", output="last.rows")
        graph.add("Cast", "attention_mask", output="mask.float", to=TensorProto.FLOAT)
        graph.add("Unsqueeze", "mask.float", "ones", output="mask.rows")
        graph.add("MatMul", "mask.rows", "last.rows", output="sum.rows")
        return graph.add("Squeeze", "sum.rows", "ones", output="sum")

    def _normalize(self, tokens: str, name: str, offset: Floats | None = None) -> str:
        """Add a LayerNorm whose shift is increased by `offset`."""
        bias = self._weights[f"{name}.bias"] if offset is None else self._weights[f"{name}.bias"] + offset
        scale = self.graph.constant(self._weights[f"{name}.weight"], f"{name}.scale")
        inputs = [tokens, scale, self.graph.constant(bias, f"{name}.bias")]
        return self.graph.add("LayerNormalization", *inputs, output=name, axis=-1, epsilon=self._config.epsilon)

    def _linear(
        self,
        name: str,
        tokens: str,
        *,
        site: str,
        carried: Floats | None = None,
        quantized: bool = False,
    ) -> str:
        """Add a matrix product with bias; its input's range is that of `site`, and `carried` (D,) is no part of it."""
        graph = self.graph
        matrix, bias = np.ascontiguousarray(self._weights[f"{name}.weight"].T), self._weights[f"{name}.bias"]
        if self._activations is None:
            self.sites.setdefault(site, tokens)
            inputs = [tokens, graph.constant(matrix, f"{name}.weight"), graph.constant(bias, f"{name}.bias")]
            return graph.add("Gemm", *inputs, output=name)
        if not quantized:
            tokens = self._quantized(tokens, site, carried)
        found = self._activations[site]
        if carried is not None:
            bias, found = bias - carried @ matrix, found.shifted(carried)
        smooth = _plan(found, site).smooth
        columns, scales, correction = rounded(matrix * smooth[:, None], found.divided(smooth))
        bias = bias + correction
        inputs = [
            tokens,
            graph.constant(columns, f"{name}.weight"),
            f"{site}.scale",
            graph.constant(scales, f"{name}.scale"),
            f"{site}.zero_point",
            "",  # the weights' zero point is 0
            graph.constant(bias, f"{name}.bias"),
        ]
        return graph.add("MatMulIntegerToFloat", *inputs, output=name, domain=MICROSOFT)

    def _quantized(self, tokens: str, site: str, carried: Floats | None = None) -> str:
        """Return uint8 tokens by the constant range of `site`; in float32 just note which tensor is there."""
        if self._activations is None:
            self.sites.setdefault(site, tokens)
            return tokens
        found = self._activations[site]
        graph, plan = self.graph, _plan(found if carried is None else found.shifted(carried), site)
        if not site.endswith(_EVEN_SITE):
            even = graph.constant((1 / plan.smooth).astype(np.float32), f"{site}.evener")
            tokens = graph.add("Mul", tokens, even, output=f"{site}.even")
        inputs = [
            tokens,
            graph.constant(np.array(plan.scale, np.float32), f"{site}.scale"),
            graph.constant(np.array(plan.zero_point, np.uint8), f"{site}.zero_point"),
        ]
        return graph.add("QuantizeLinear", *inputs, output=f"{site}.uint8")

    def _linear_by_token(self, name: str, tokens: str, columns: NDArray[np.int8], scales: Floats) -> str:
        """Add a matrix product without bias after GELU, each token quantised by its own maximum."""
        graph, above = self.graph, 255 - _GELU_ZERO_POINT
        graph.constant(np.array(_GELU_MINIMUM / _GELU_ZERO_POINT * above, np.float32), "gelu.least")
        graph.constant(np.array(1 / above, np.float32), "gelu.step")
        graph.constant(np.array(_GELU_ZERO_POINT, np.uint8), "gelu.zero_point")
        graph.constant(np.array(1, np.float32), "unit")
        graph.add("ReduceMax", tokens, "ones", output=f"{name}.max", keepdims=1)
        graph.add("Max", f"{name}.max", "gelu.least", output=f"{name}.high")
        graph.add("Mul", f"{name}.high", "gelu.step", output=f"{name}{TOKEN_SCALE}")  # (N, 1)
        vector = graph.constant([-1], "vector")
        graph.add("Reshape", f"{name}{TOKEN_SCALE}", vector, output=f"{name}.token_scales")  # (N,)
        graph.add("Shape", f"{name}.token_scales", output=f"{name}.count")
        zero = numpy_helper.from_array(np.array([_GELU_ZERO_POINT], np.uint8))
        graph.add("ConstantOfShape", f"{name}.count", output=f"{name}.zero_points", value=zero)
        parts = [tokens, f"{name}.token_scales", f"{name}.zero_points"]
        graph.add("QuantizeLinear", *parts, output=f"{name}.uint8", axis=0)
        inputs = [
            f"{name}.uint8",
            graph.constant(columns, f"{name}.weight"),
            "unit",
            graph.constant(scales, f"{name}.scale"),
            "gelu.zero_point",
        ]
        graph.add("MatMulIntegerToFloat", *inputs, output=f"{name}.unscaled", domain=MICROSOFT)
        return graph.add("Mul", f"{name}.unscaled", f"{name}{TOKEN_SCALE}", output=name)


def rounded(matrix: Floats, inputs: Activations) -> tuple[NDArray[np.int8], Floats, Floats]:
    """Return a matrix (D, O) as int8, the scale of each column, and what rounding takes from the mean output, (O,)."""
    columns, scales = round_columns(matrix, inputs.covariance)
    return columns, scales, _coarse(inputs.mean @ (matrix - columns * scales))


@dataclass(frozen=True)
class _Plan:
    """Static quantisation of one input: value / smooth / scale + zero point, in 0..255."""

    smooth: Floats  # (D,)
    scale: float
    zero_point: int


def _plan(channels: Activations, site: str) -> _Plan:
    """Even out the channels, and lay 0..255 over all of them."""
    largest = np.maximum(np.maximum(np.abs(channels.low), np.abs(channels.high)), 1e-4)
    if site.endswith(_EVEN_SITE):
        largest = np.ones_like(largest)
    smooth = _coarse(largest**_SMOOTHING / np.exp(np.log(largest**_SMOOTHING).mean()))
    low = min(float((channels.low / smooth).min()), 0.0)
    high = max(float((channels.high / smooth).max()), 0.0)
    scale = float(_coarse(np.array([(high - low) / 255]))[0])
    return _Plan(smooth, scale, round(-low / scale))


def _coarse(values: NDArray[np.floating[Any]]) -> Floats:
    """Keep 8 bits of each mantissa, so that the last bits of a machine's float sums hardly ever reach the file."""
    mantissa, exponent = np.frexp(values)
    coarse: Floats = np.ldexp(np.round(mantissa * 256) / 256, exponent).astype(np.float32)
    return coarse
