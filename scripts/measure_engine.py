"""Where the bundled model's time goes: its arithmetic against the peak of int8 matrix products on this machine.

    python scripts/measure_engine.py [--length 32] [--tokens 256]

One thread. Peak: `MatMulIntegerToFloat`, the product that the model is made of, on 256 x 384 times 384 x 1536, alone in
a graph. The model: a batch of `--tokens` tokens in texts of `--length`; its operations are those of matrix products,
as they stand in the graph. Medians of thread time. Then the share of each kind of operator, by ONNX Runtime's profile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from gliclass_cli.loading import open_folder

_ROWS: Final = 256
_REPEATS: Final = 30


def main() -> None:
    """Print the figures."""
    options = _parse_options()
    folder = open_folder("default")
    assert folder.onnx is not None
    peak = 2 * _ROWS * 384 * 1536 / _seconds(_product(384, 1536)) / 1e9
    batch = max(1, options.tokens // options.length)
    ids = np.full((batch, options.length), 2000)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    session = _session(str(folder.onnx.text.path))
    seconds = _seconds(lambda: session.run(None, inputs))
    graph = onnx.load(folder.onnx.text.path).graph
    work = 2 * sum(_products(graph, batch, options.length)) / 1e9
    print(f"peak of int8 products: {peak:.0f} GFLOP/s")
    print(
        f"model: {1000 * seconds:.1f} ms for {batch} x {options.length} tokens, {work / seconds:.0f} GFLOP/s of matrix "
    )
    print(f"products, {work / seconds / peak:.0%} of the peak; products alone would take {1000 * work / peak:.1f} ms")
    for kind, share in _profile(str(folder.onnx.text.path), inputs).most_common(8):
        print(f"  {kind:24} {share:6.1%}")


def _product(depth: int, width: int) -> Callable[[], Any]:
    """Return a run of one int8 product."""
    draw = np.random.default_rng(0)
    weight = draw.integers(-64, 65, (depth, width), dtype=np.int8)
    constants = {"w": weight, "one": np.float32(1), "s": np.full(width, 0.01, np.float32), "z": np.uint8(128)}
    node = helper.make_node("MatMulIntegerToFloat", ["x", "w", "one", "s", "z"], ["y"], domain="com.microsoft")
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.UINT8, (_ROWS, depth))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (_ROWS, width))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    session = _session(helper.make_model(graph, opset_imports=opsets, ir_version=11).SerializeToString())
    tokens = draw.integers(0, 256, (_ROWS, depth), dtype=np.uint8)
    return lambda: session.run(None, {"x": tokens})


def _products(graph: onnx.GraphProto, batch: int, length: int) -> list[int]:
    """Return the multiplications of each product with weights and of attention; the last layer computes one token."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    weights = [
        shape
        for node in graph.node
        if node.op_type in ("MatMulIntegerToFloat", "MatMul", "Gemm", "QGemm", "MatMulInteger")
        for shape in (shapes.get(name, ()) for name in node.input)
        if len(shape) == 2
    ]
    hidden = min(side for shape in weights for side in shape)
    layers = sum(node.op_type == "Attention" for node in graph.node)
    # Of the last layer (query, key, value, output, feed-forward twice) only keys and values are those of all tokens.
    tokens = [batch * length] * (len(weights) - 6) + [batch, batch * length, batch * length, batch, batch, batch]
    products = [n * shape[0] * shape[1] for n, shape in zip(tokens, weights, strict=True)]
    asking = [batch * length] * (layers - 1) + [batch]
    return products + [2 * n * length * hidden for n in asking]


def _session(model: str | bytes, profile: str | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _seconds(run: Callable[[], Any]) -> float:
    run()
    found = []
    for _ in range(_REPEATS):
        began = time.thread_time()
        run()
        found.append(time.thread_time() - began)
    return statistics.median(found)


def _profile(model: str, inputs: dict[str, Any]) -> Counter[str]:
    """Return each operator's share of the time of all."""
    with tempfile.TemporaryDirectory() as folder:
        session = _session(model, str(Path(folder) / "profile"))
        for _ in range(_REPEATS):
            session.run(None, inputs)
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    times: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            times[event["args"]["op_name"]] += event["dur"]
    total = times.total()
    return Counter({kind: value / total for kind, value in times.items()})


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    return parser.parse_args()


if __name__ == "__main__":
    main()
