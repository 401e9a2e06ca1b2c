"""A small language for ONNX graphs: constants, nodes, and the layers that all transformers share, in fp32 or int8.

Token matrices are flat, (N, D) with N = B * L, wherever tokens are independent of each other: one matrix product then
serves the whole batch. int8 quantises the input of a product row by row at run time (|max| of the row, zero point
128), so that a token's result cannot depend on other tokens or rows. Weights are symmetric per output in -64..64: one
bit less than int8 holds, so that the 16-bit sums of AVX2 machines without VNNI cannot saturate.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gliclass_cli.errors import ModelUnusable

Floats = NDArray[np.float32]
Weights = Mapping[str, Floats]
Precision = Literal["fp32", "int8"]
Kind = Literal["float", "int", "bool"]

MICROSOFT: Final = "com.microsoft"
OPSET: Final = 23
_IR: Final = 11  # the first one that knows opset 23
_KINDS: Final = {"float": TensorProto.FLOAT, "int": TensorProto.INT64, "bool": TensorProto.BOOL}
_WEIGHT_LEVELS: Final = 64
# Share of the mean variance that is added to each channel before a covariance is inverted, so that it can be.
_DAMPING: Final = 0.01
_LEAST_DAMPING: Final = 1e-8
_BLOCK: Final = 128  # rows that are rounded before the others hear of it
_EMBEDDING_LEVELS: Final = 127
_ZERO_POINT: Final = 128
_LEAST_SCALE: Final = 1e-12
_LAYER: Final = re.compile(r"\b(?:layer|layers|block)\.(\d+)\.")


class Builder:
    """Collects the nodes and constants of one graph. Methods return the name of the tensor that they add.

    ``exact_layers``: layers of the backbone that stay in float32 in an int8 graph, counted from 0.
    """

    def __init__(self, precision: Precision = "fp32", exact_layers: Collection[int] = ()) -> None:
        self.precision = precision
        self._exact_layers = frozenset(exact_layers)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._quantized: dict[str, tuple[str, str]] = {}
        self._count = 0

    # --- the graph -------------------------------------------------------------------------------------------------

    def input(self, name: str, shape: Sequence[str | int], *, floats: bool = False) -> str:
        """Declare an input: int64, or float32."""
        kind = TensorProto.FLOAT if floats else TensorProto.INT64
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def constant(self, values: Any, name: str | None = None) -> str:
        """Add a constant; plain integers become int64, plain floats float32. Equal names are stored once."""
        array = np.asarray(values, order="C")
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        if name is None:
            name = (
                f"constant.{array.dtype}.{array.shape}.{array.tolist()}" if array.size <= 8 else self._name("constant")
            )
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(array, name)
        return name

    def add(self, operator: str, *inputs: str, output: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output."""
        output = output or self._name(operator)
        self._nodes.append(helper.make_node(operator, list(inputs), [output], name=output, domain=domain, **attributes))
        return output

    def add_many(self, operator: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> list[str]:
        """Add a node with several outputs."""
        names = [self._name(operator) for _ in range(outputs)]
        self._nodes.append(helper.make_node(operator, list(inputs), names, name=names[0], **attributes))
        return names

    def either(
        self, condition: str, then: Callable[[], str], otherwise: Callable[[], str], *, kind: Kind = "float"
    ) -> str:
        """Compute one of two tensors of a kind, as a bool decides at run time; both see what was added before."""
        branches, nodes = {}, self._nodes
        for name, compute in (("then_branch", then), ("else_branch", otherwise)):
            self._nodes = []
            result = helper.make_tensor_value_info(compute(), _KINDS[kind], None)
            branches[name] = helper.make_graph(self._nodes, name, [], [result])
        self._nodes = nodes
        return self.add("If", condition, **branches)

    def model(self, output: str, name: str, shape: Sequence[str | int], *, title: str = "gliclass") -> onnx.ModelProto:
        """Return the finished model, whose only output is the tensor ``output`` under ``name``."""
        if output != name:
            self.add("Identity", output, output=name)
        result = helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
        graph = helper.make_graph(self._nodes, title, self._inputs, [result], list(self._constants.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR, producer_name="gliclass")

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}.{self._count}"

    # --- shapes ----------------------------------------------------------------------------------------------------

    def shape_of(self, tensor: str, axis: int) -> str:
        """Return one dimension of a tensor, as a vector of one."""
        return self.add("Shape", tensor, start=axis, end=axis + 1)

    def shape(self, *dimensions: str | int) -> str:
        """Return a shape (n,) of vectors of one and plain numbers; -1 and 0 as Reshape takes them."""
        parts = [part if isinstance(part, str) else self.constant([part]) for part in dimensions]
        return self.add("Concat", *parts, axis=0)

    def reshape(self, tensor: str, *dimensions: str | int) -> str:
        """Return a tensor in another shape."""
        if all(isinstance(dimension, int) for dimension in dimensions):
            return self.add("Reshape", tensor, self.constant(list(dimensions)))
        return self.add("Reshape", tensor, self.shape(*dimensions))

    def transpose(self, tensor: str, *axes: int) -> str:
        """Return a tensor with its axes in another order."""
        return self.add("Transpose", tensor, perm=list(axes))

    def unsqueeze(self, tensor: str, *axes: int) -> str:
        """Return a tensor with new axes of size 1."""
        return self.add("Unsqueeze", tensor, self.constant(list(axes)))

    def squeeze(self, tensor: str, *axes: int) -> str:
        """Return a tensor without axes of size 1."""
        return self.add("Squeeze", tensor, self.constant(list(axes)))

    def slice(self, tensor: str, start: str | int, end: str | int, axis: int) -> str:
        """Return a part of a tensor along one axis; the ends are plain numbers or vectors of one."""
        ends = [part if isinstance(part, str) else self.constant([part]) for part in (start, end)]
        return self.add("Slice", tensor, *ends, self.constant([axis]))

    def cast(self, tensor: str, kind: Kind) -> str:
        """Return a tensor as float32, int64 or bool."""
        return self.add("Cast", tensor, to=_KINDS[kind])

    def range_to(self, size: str) -> str:
        """Return 0, 1, 2 ... up to a vector of one."""
        return self.add("Range", self.constant(np.array(0)), self.squeeze(size, 0), self.constant(np.array(1)))

    def reduce(self, operator: str, tensor: str, axis: int, *, keep: bool = True) -> str:
        """Reduce along one axis: ReduceSum, ReduceMax, ReduceMean ..."""
        return self.add(operator, tensor, self.constant([axis]), keepdims=int(keep))

    # --- layers ----------------------------------------------------------------------------------------------------

    def linear(self, tokens: str, weight: Floats, bias: Floats | None = None, *, exact: bool = False) -> str:
        """Multiply flat tokens (N, D) by a weight (O, D), as torch keeps it, and add a bias (O,): (N, O).

        ``exact``: in float32 also in an int8 graph. Products of one input share its quantisation.
        """
        if self.precision == "int8" and not exact:
            return self._linear_int8(tokens, weight, bias)
        inputs = [tokens, self.constant(np.ascontiguousarray(weight.T), self._name("weight"))]
        if bias is None:
            return self.add("MatMul", *inputs)
        return self.add("Gemm", *inputs, self.constant(bias, self._name("bias")))

    def dense(self, tensor: str, weight: Floats, bias: Floats | None) -> str:
        """Multiply the last axis of a tensor of any shape by a weight (O, D), in float32: for small heads."""
        product = self.add("MatMul", tensor, self.constant(np.ascontiguousarray(weight.T), self._name("weight")))
        return product if bias is None else self.add("Add", product, self.constant(bias, self._name("bias")))

    def is_exact(self, name: str) -> bool:
        """Tell whether the weight of this name belongs to a layer that stays in float32."""
        layer = _LAYER.search(name)
        return layer is not None and int(layer[1]) in self._exact_layers

    def embed(self, ids: str, table: Floats) -> str:
        """Look ids up in a table (V, D); int8 keeps a scale for each row."""
        if self.precision == "fp32":
            return self.add("Gather", self.constant(table, self._name("table")), ids)
        rows, scales = quantize_rows(table)
        found = self.cast(self.add("Gather", self.constant(rows, self._name("table")), ids), "float")
        return self.add("Mul", found, self.add("Gather", self.constant(scales, self._name("scale")), ids))

    def layer_norm(self, tokens: str, weight: Floats, bias: Floats | None, epsilon: float) -> str:
        """Normalise the last axis to mean 0 and variance 1, then scale and shift it."""
        inputs = [tokens, self.constant(weight, self._name("norm"))]
        if bias is not None:
            inputs.append(self.constant(bias, self._name("norm")))
        return self.add("LayerNormalization", *inputs, axis=-1, epsilon=epsilon)

    def rms_norm(self, tokens: str, weight: Floats, epsilon: float) -> str:
        """Divide the last axis by the root of its mean square, then scale it (T5)."""
        scale = self.constant(weight, self._name("norm"))
        return self.add("SimplifiedLayerNormalization", tokens, scale, axis=-1, epsilon=epsilon, stash_type=1)

    def activation(self, name: str, tensor: str) -> str:
        """Apply an activation by its name in transformers. Raises ModelUnusable."""
        if name in ("gelu", "gelu_python"):
            return self.add("Gelu", tensor, domain=MICROSOFT)
        if name in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"):
            return self.add("Gelu", tensor, approximate="tanh")
        if name in ("silu", "swish"):
            return self.add("Mul", tensor, self.add("Sigmoid", tensor))
        plain = {"relu": "Relu", "tanh": "Tanh", "sigmoid": "Sigmoid", "linear": "Identity", "mish": "Mish"}
        if name not in plain:
            raise ModelUnusable(f"the activation {name!r} cannot be exported; --backend torch runs the checkpoint")
        return self.add(plain[name], tensor)

    def l2_normalize(self, tensor: str, *, added: float = 0.0, least: float = 0.0) -> str:
        """Divide the last axis by its length, to which ``added`` is added, or which is ``least`` at least."""
        norm = self.reduce("ReduceL2", tensor, -1)
        norm = self.add("Add", norm, self.constant(added)) if added else norm
        norm = self.add("Max", norm, self.constant(least)) if least else norm
        return self.add("Div", tensor, norm)

    # --- int8 ------------------------------------------------------------------------------------------------------

    def _linear_int8(self, tokens: str, weight: Floats, bias: Floats | None) -> str:
        rows, scale = self._quantized_rows(tokens)
        columns, scales = quantize_columns(np.ascontiguousarray(weight.T))
        product = self.add(
            "MatMulIntegerToFloat",
            rows,
            self.constant(columns, self._name("weight")),
            self.constant(1.0),
            self.constant(scales, self._name("scale")),
            self.constant(np.array(_ZERO_POINT, np.uint8)),
            domain=MICROSOFT,
        )
        product = self.add("Mul", product, scale)
        return product if bias is None else self.add("Add", product, self.constant(bias, self._name("bias")))

    def _quantized_rows(self, tokens: str) -> tuple[str, str]:
        """Return flat tokens as uint8 (N, D) and the scale of each row (N, 1)."""
        if tokens not in self._quantized:
            largest = self.reduce("ReduceMax", self.add("Abs", tokens), 1)
            scale = self.add("Mul", largest, self.constant(1 / (255 - _ZERO_POINT)))
            scale = self.add("Max", scale, self.constant(_LEAST_SCALE))
            scales = self.reshape(scale, -1)
            zero = numpy_helper.from_array(np.array([_ZERO_POINT], np.uint8))
            points = self.add("ConstantOfShape", self.add("Shape", scales), value=zero)
            self._quantized[tokens] = self.add("QuantizeLinear", tokens, scales, points, axis=0), scale
        return self._quantized[tokens]


def quantize_columns(matrix: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Return a matrix (D, O) that tokens are multiplied by as int8, and the scale of each column (O,)."""
    columns, scales = _quantize(matrix, axis=0, levels=_WEIGHT_LEVELS)
    return columns, scales[0]


def round_columns(matrix: Floats, covariance: NDArray[np.float64]) -> tuple[NDArray[np.int8], Floats]:
    """Return a matrix (D, O) as `quantize_columns` does, rounded such that products change least.

    Its inputs have the covariance (D, D). Rows are rounded one after the other, those of the liveliest channels first,
    and the rows that are left take on what rounding changed, as far as their channels go along (GPTQ, arXiv
    2210.17323).
    """
    _, scales = quantize_columns(matrix)
    order = np.argsort(-covariance.diagonal(), kind="stable")
    remaining = matrix[order].astype(np.float64)
    sorted_covariance = covariance[np.ix_(order, order)]
    damping = max(_DAMPING * float(covariance.diagonal().mean()), _LEAST_DAMPING)
    # The Cholesky factor of the inverse tells how much of a row's change each later row can make up for.
    upper = np.linalg.cholesky(np.linalg.inv(sorted_covariance + damping * np.eye(len(order)))).T
    columns = np.empty(matrix.shape, np.int8)
    for start in range(0, len(order), _BLOCK):  # what a block changes reaches the rows behind it in one product
        end = min(start + _BLOCK, len(order))
        changed = np.empty((end - start, matrix.shape[1]))
        for row in range(start, end):
            place, done = order[row], row - start
            mended = remaining[row] - upper[start:row, row] @ changed[:done]
            columns[place] = np.clip(np.rint(mended / scales), -_WEIGHT_LEVELS, _WEIGHT_LEVELS)
            changed[done] = (mended - columns[place] * scales) / upper[row, row]
        remaining[end:] -= upper[start:end, end:].T @ changed
    return columns, scales


def quantize_rows(table: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Return a table of embeddings (V, D) as int8, and the scale of each row (V, 1)."""
    return _quantize(table, axis=1, levels=_EMBEDDING_LEVELS)


def serialize(model: onnx.ModelProto) -> bytes:
    """Return the bytes of a model, the same ones for the same model."""
    return bytes(model.SerializeToString(deterministic=True))


def _quantize(matrix: Floats, *, axis: int, levels: int) -> tuple[NDArray[np.int8], Floats]:
    """Return a matrix as int8 and its scales, one for each slice along ``axis`` (kept as a dimension of 1)."""
    scales = np.abs(matrix).max(axis=axis, keepdims=True) / np.float32(levels)
    scales[scales == 0] = 1
    return np.rint(matrix / scales).astype(np.int8), scales.astype(np.float32)
