"""Write the graphs of a model, and the large constants of them all in one safetensors file beside them.

A graph names the bytes of its constants there, as external data of ONNX. ONNX Runtime maps the file instead of parsing
and copying it, so a start takes less time and memory, processes share its pages, graphs share constants, and no graph
meets the 2 GB at which ONNX files end.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from safetensors.numpy import save_file

from gliclass_cli.model_folder import GRAPH_WEIGHTS, file_digest

# Naming the bytes of smaller constants would take as many.
_SMALL: Final = 1024


def save_graphs(graphs: Mapping[str, onnx.ModelProto], folder: Path) -> dict[str, Any]:
    """Write ``ROLE.onnx`` for each graph, and their constants; the graphs lose these on the way.

    Returns:
        What ``config.json`` says of the files: ``ROLE_graph`` and ``weights``.
    """
    kept: dict[str, NDArray[Any]] = {}
    named: list[tuple[TensorProto, str]] = []
    for role, model in graphs.items():
        for constant in model.graph.initializer:
            if len(constant.raw_data) >= _SMALL:
                value, name = numpy_helper.to_array(constant), constant.name
                if name in kept and not np.array_equal(kept[name], value):
                    name = f"{role}.{name}"
                kept[name] = value
                named.append((constant, name))
    sections: dict[str, Any] = {}
    if kept:
        path = folder / GRAPH_WEIGHTS
        save_file(kept, path)
        path.chmod(folder.stat().st_mode & 0o666)  # safetensors lets only the owner read what it writes
        places = _places(path)
        for constant, name in named:
            _name_bytes(constant, path.name, *places[name])
        sections["weights"] = {"file": path.name, "sha256": file_digest(path)}
    for role, model in graphs.items():
        data = model.SerializeToString(deterministic=True)
        path = folder / f"{role}.onnx"
        path.write_bytes(data)
        sections[f"{role}_graph"] = {
            "file": path.name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "inputs": [item.name for item in model.graph.input],
            "output": model.graph.output[0].name,
        }
    return sections


def _places(path: Path) -> dict[str, tuple[int, int]]:
    """Return where in a safetensors file each tensor begins, and how many bytes it has."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    offsets = {name: tensor["data_offsets"] for name, tensor in header.items()}
    return {name: (8 + length + start, end - start) for name, (start, end) in offsets.items()}


def _name_bytes(constant: TensorProto, file: str, offset: int, length: int) -> None:
    """Let a constant name its bytes in a file instead of holding them."""
    constant.ClearField("raw_data")
    constant.data_location = TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", offset), ("length", length)):
        constant.external_data.add(key=key, value=str(value))
