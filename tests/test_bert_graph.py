"""The ONNX graph of a BERT encoder: equal to a plain forward pass, blind to padding and company, sound in int8."""

import hashlib
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx")
import onnxruntime as ort

from gliclass_cli.export.bert_graph import (
    Activations,
    BertConfig,
    Pooling,
    build_bert_graph,
    measure_activations,
    rounded,
)
from gliclass_cli.export.builder import Floats, Precision, Weights, quantize_columns, round_columns, serialize

HIDDEN, HEADS, LAYERS, INNER, VOCAB, LENGTH = 32, 4, 2, 64, 50, 24
CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "hidden_size": HIDDEN,
    "layer_norm_eps": 1e-12,
}
# The bundled model is built by this code: what it was built from must give the same file again.
DIGESTS: dict[Pooling, str] = {
    "first": "f80de0a81eabcf4a56eb3007f7ad08c731431fd3f78ed0f6ca858a90aaba441e",
    "avg": "3652e5c462fb3ec8c68356c8c13a116c2ae5225f8fb4f1111199834a8eb53c20",
}
Ids = NDArray[np.int64]
erf = np.vectorize(math.erf)


@pytest.fixture(scope="module")
def weights() -> Weights:
    generator = np.random.default_rng(0)

    def draw(*shape: int) -> Floats:
        return generator.normal(0, 0.3, shape).astype(np.float32)

    tensors = {
        "embeddings.word_embeddings.weight": draw(VOCAB, HIDDEN),
        "embeddings.position_embeddings.weight": draw(LENGTH, HIDDEN),
        "embeddings.token_type_embeddings.weight": draw(2, HIDDEN),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        products = {f"attention.self.{part}": (HIDDEN, HIDDEN) for part in ("query", "key", "value")}
        products |= {"attention.output.dense": (HIDDEN, HIDDEN)}
        products |= {"intermediate.dense": (INNER, HIDDEN), "output.dense": (HIDDEN, INNER)}
        for product, shape in products.items():
            tensors[f"{name}.{product}.weight"], tensors[f"{name}.{product}.bias"] = draw(*shape), draw(shape[0])
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    for norm in norms:
        tensors[f"{norm}.weight"], tensors[f"{norm}.bias"] = 1 + draw(HIDDEN), draw(HIDDEN)
    return tensors


@pytest.fixture(scope="module")
def rows() -> list[list[int]]:
    generator = np.random.default_rng(1)
    return [generator.integers(1, VOCAB, size).tolist() for size in (3, 1, LENGTH, 9, 9, 17, 2, 12)]


def pad(rows: list[list[int]], length: int = 0) -> tuple[Ids, Ids]:
    ids = np.zeros((len(rows), max(length, *map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    return ids, mask


def build(weights: Weights, pooling: Pooling, precision: Precision, rows: list[list[int]]) -> bytes:
    config = BertConfig.from_dict(CONFIG)
    found = measure_activations(weights, config, [pad([row]) for row in rows]) if precision == "int8" else None
    return serialize(build_bert_graph(weights, config, pooling=pooling, precision=precision, activations=found))


def run(model: bytes, rows: list[list[int]], length: int = 0) -> Floats:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    ids, mask = pad(rows, length)
    embedding: Floats = session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})[0]
    return embedding


def reference(weights: Weights, row: list[int], pooling: Pooling) -> NDArray[np.float64]:
    """BERT as in its paper, one row, in float64."""

    def linear(x: Any, name: str) -> Any:
        return x @ weights[f"{name}.weight"].T.astype(np.float64) + weights[f"{name}.bias"]

    def norm(x: Any, name: str) -> Any:
        centred = x - x.mean(axis=-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True)) * weights[f"{name}.weight"]
            + (weights[f"{name}.bias"])
        )

    x = weights["embeddings.word_embeddings.weight"][row].astype(np.float64)
    x = x + weights["embeddings.position_embeddings.weight"][: len(row)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}"
        q, k, v = (
            linear(x, f"{name}.attention.self.{part}").reshape(len(row), HEADS, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        powers = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(HIDDEN // HEADS))
        heads = powers / powers.sum(axis=-1, keepdims=True) @ v
        attended = linear(heads.transpose(1, 0, 2).reshape(len(row), HIDDEN), f"{name}.attention.output.dense")
        x = norm(x + attended, f"{name}.attention.output.LayerNorm")
        inner = linear(x, f"{name}.intermediate.dense")
        inner = inner * (1 + erf(inner / np.sqrt(2))) / 2
        x = norm(x + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    pooled: NDArray[np.float64] = x[0] if pooling == "first" else x.mean(axis=0)
    return pooled / np.linalg.norm(pooled)


@pytest.mark.parametrize("pooling", ["first", "avg"])
def test_fp32_equals_a_plain_forward_pass(weights: Weights, rows: list[list[int]], pooling: Pooling) -> None:
    found = run(build(weights, pooling, "fp32", rows), rows)
    expected = np.stack([reference(weights, row, pooling) for row in rows])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["first", "avg"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("int8", 1e-4)])
def test_a_row_does_not_depend_on_padding_or_company(
    weights: Weights, rows: list[list[int]], pooling: Pooling, precision: Precision, tolerance: float
) -> None:
    model = build(weights, pooling, precision, rows)
    together = run(model, rows)
    for row, vector in zip(rows, together, strict=True):
        np.testing.assert_allclose(run(model, [row])[0], vector, atol=tolerance)
        np.testing.assert_allclose(run(model, [row], LENGTH)[0], vector, atol=tolerance)


@pytest.mark.parametrize("pooling", ["first", "avg"])
def test_int8_is_close_to_fp32(weights: Weights, rows: list[list[int]], pooling: Pooling) -> None:
    plain = run(build(weights, pooling, "fp32", rows), rows)
    quantized = run(build(weights, pooling, "int8", rows), rows)
    assert (plain * quantized).sum(axis=1).min() > 0.98
    np.testing.assert_allclose(np.linalg.norm(quantized, axis=1), 1, atol=1e-5)


def test_the_build_is_deterministic(weights: Weights, rows: list[list[int]]) -> None:
    assert build(weights, "first", "int8", rows) == build(weights, "first", "int8", rows)


@pytest.mark.parametrize(("pooling", "digest"), DIGESTS.items())
def test_files_stay_the_same_byte_for_byte(weights: Weights, pooling: Pooling, digest: str) -> None:
    # int8 is left out: its biases hold a matrix product, whose last bit is the processor's.
    assert hashlib.sha256(build(weights, pooling, "fp32", [])).hexdigest() == digest


def test_int8_weights_leave_room_for_machines_that_saturate(weights: Weights, rows: list[list[int]]) -> None:
    import onnx

    model = onnx.load_from_string(build(weights, "first", "int8", rows))
    products = {node.input[1] for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"}
    for tensor in model.graph.initializer:
        if tensor.name in products:
            assert np.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max() <= 64


def test_rounding_goes_by_what_the_inputs_are() -> None:
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(2000, 200)) @ draw.normal(size=(200, 200)) * np.exp(draw.normal(size=200))
    matrix = draw.normal(size=(200, 30)).astype(np.float32)
    covariance = np.cov(inputs.T)
    plain, scales = quantize_columns(matrix)
    found, found_scales = round_columns(matrix, covariance)
    np.testing.assert_array_equal(found_scales, scales)
    assert np.abs(found.astype(int)).max() <= 64
    errors = [((inputs @ (matrix - each * scales)) ** 2).mean() for each in (plain, found)]
    assert errors[1] < 0.5 * errors[0]
    on_grid = (plain * scales).astype(np.float32)  # nothing is lost of a matrix that lies on the grid already
    np.testing.assert_array_equal(round_columns(on_grid, covariance)[0], plain)


@pytest.mark.parametrize("inputs", [np.full((50, 8), 30.0), np.random.default_rng(0).normal(30, 0.01, (50, 8))])
def test_rounding_bears_inputs_that_hardly_vary(inputs: NDArray[np.float64]) -> None:
    matrix = np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)
    found = Activations.of(inputs.astype(np.float32))
    columns, scales = round_columns(matrix, found.covariance)
    assert np.abs(columns * scales - matrix).max() < 0.05


def test_int8_keeps_the_mean_of_each_product() -> None:
    """What rounding takes from the mean comes back as a bias."""
    draw = np.random.default_rng(0)
    inputs = (draw.normal(size=(500, 16)) + draw.normal(size=16) * 5).astype(np.float32)
    matrix = draw.normal(size=(16, 6)).astype(np.float32)
    found = Activations.of(inputs)
    columns, scales, lost = rounded(matrix, found)
    plain = inputs @ matrix
    np.testing.assert_allclose((inputs @ (columns * scales) + lost).mean(axis=0), plain.mean(axis=0), atol=1e-2)
    assert np.abs((inputs @ (columns * scales)).mean(axis=0) - plain.mean(axis=0)).max() > 1e-2


def test_activations_add_up_and_move() -> None:
    draw = np.random.default_rng(0)
    first, second, offset = draw.normal(size=(50, 4)), draw.normal(size=(30, 4)), draw.normal(size=4)
    both = np.concatenate([first, second])
    found = Activations.of(first.astype(np.float32)) + Activations.of(second.astype(np.float32))
    by = np.array([1, 2, 4, 0.5], np.float32)
    moved = found.shifted(offset.astype(np.float32)).divided(by)
    expected = (both + offset) / by
    np.testing.assert_allclose(moved.mean, expected.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(moved.covariance, np.cov(expected.T, bias=True), atol=1e-4)
    np.testing.assert_allclose(moved.low, expected.min(axis=0), atol=1e-5)
    np.testing.assert_allclose(moved.high, expected.max(axis=0), atol=1e-5)


def test_int8_without_activations_is_refused(weights: Weights) -> None:
    with pytest.raises(ValueError, match="measure_activations"):
        build_bert_graph(weights, BertConfig.from_dict(CONFIG), pooling="first", precision="int8")


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_act", "relu"), ("model_type", "roberta"), ("position_embedding_type", "relative_key")]
)
def test_other_architectures_are_refused(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=key):
        BertConfig.from_dict({**CONFIG, key: value})
