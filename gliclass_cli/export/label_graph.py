"""The graph that reads labels for an int8 sentence encoder: the same int8 weights, but activations stay in float32.

What rounding does to a label's vector is the same for all texts of a run, and with few labels it decides between them;
what it does to a text's vector evens out over texts. Labels are encoded once a run, so they can be read with more
care.
"""

import onnx
from onnx import TensorProto, helper

from gliclass_cli.export.bert_graph import TOKEN_SCALE
from gliclass_cli.export.builder import MICROSOFT


def build_label_graph(text: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph of labels for the int8 graph that `bert_graph` built, with those of its constants it needs."""
    model = onnx.ModelProto()
    model.CopyFrom(text)
    graph = model.graph
    nodes = _needed(_in_float32(graph), {output.name for output in graph.output})
    used = {name for node in nodes for name in node.input}
    constants = [constant for constant in graph.initializer if constant.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    return model


def _in_float32(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes, each product of int8 weights with a float32 input that is not quantised."""
    nodes: list[onnx.NodeProto] = []
    same: dict[str, str] = {}  # what was quantised, or rescaled, is what it was made of
    for node in graph.node:
        inputs, [output] = [same.get(name, name) for name in node.input], node.output
        if node.op_type == "QuantizeLinear" or node.input[-1].endswith(TOKEN_SCALE):
            same[output] = inputs[0]
        elif node.op_type == "MatMulIntegerToFloat" and node.domain == MICROSOFT:
            nodes.extend(_product(output, inputs))
        else:
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            del copied.input[:]
            copied.input.extend(inputs)
            nodes.append(copied)
    return nodes


def _product(output: str, inputs: list[str]) -> list[onnx.NodeProto]:
    """Return tokens times int8 weights times the scale of each column, and the bias added where there is one."""
    tokens, weight, _, scale, *rest = inputs
    bias = rest[-1] if len(rest) == 3 else None
    nodes = [
        helper.make_node("Cast", [weight], [f"{output}.float"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", [tokens, f"{output}.float"], [f"{output}.product"]),
        helper.make_node("Mul", [f"{output}.product", scale], [f"{output}.scaled" if bias else output]),
    ]
    return [*nodes, helper.make_node("Add", [f"{output}.scaled", bias], [output])] if bias else nodes


def _needed(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Return the nodes that the outputs come of, in order."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]
