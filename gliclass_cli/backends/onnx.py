"""ONNX Runtime on the CPU."""

import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from gliclass_cli.backends import Arrays, Part
from gliclass_cli.decoding import Floats
from gliclass_cli.errors import ModelUnusable, OutOfMemory
from gliclass_cli.model_folder import Graph, ModelFolder, OnnxModel, check_digests

# More tokens in one run do not compute faster, and leave the processor's cache.
_BATCH_TOKENS = 256
# An operator that takes one scale over a whole batch: each row's scores would depend on its company.
_NO_MEMORY = re.compile("Failed to allocate memory|bad_alloc")
_MIXES_ROWS = b"DynamicQuantizeLinear"


class OnnxBackend:
    """Runs exported graphs, and those that others published.

    One run computes on one thread: several batches run side by side instead, so that the number of threads cannot
    change a score.
    """

    def __init__(self, folder: ModelFolder, onnx: OnnxModel, *, threads: int) -> None:
        """Load the graphs. Raises ModelUnusable."""
        # A changed byte can end the process inside of ONNX Runtime; data outside of the folder it refuses.
        # The bundled files came with the package, and `gliclass doctor` checks them: tag starts sooner.
        if not folder.bundled:
            check_digests(onnx)
        graphs: dict[Part, Graph | None] = {"text": onnx.text, "label": onnx.label, "scorer": onnx.scorer}
        sessions: dict[Path, Any] = {}
        for graph in graphs.values():
            if graph is not None and graph.path not in sessions:
                sessions[graph.path] = _open_session(graph, published=onnx.published)
        self._graphs = {part: (graph, sessions[graph.path]) for part, graph in graphs.items() if graph is not None}
        self._pad = folder.pad
        self._published = onnx.published
        self.batch_tokens = _BATCH_TOKENS
        self.workers = threads
        self.description = f"ONNX Runtime {onnxruntime.__version__}, CPU, {onnx.precision}"
        outside = folder.config.architecture == "bi-encoder" and onnx.scorer is None
        self.product = (onnx.scale, onnx.bias) if outside else None
        self.alone = False
        self.slots: int | None = None
        self.length: int | None = None
        if onnx.published:
            self._read_limits(onnx.text)

    def run(self, part: Part, inputs: Arrays) -> Floats:
        """Run a graph. Raises ModelUnusable."""
        graph, session = self._graphs[part]
        arrays = self._fixed(inputs, session) if self._published else {name: inputs[name] for name in graph.inputs}
        try:
            output: Floats = session.run([graph.output], arrays)[0]
        except Exception as error:
            shapes = ", ".join(f"{name} {' x '.join(map(str, value.shape))}" for name, value in arrays.items())
            if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
                raise OutOfMemory(f"there is not enough memory to compute {shapes}; --max-length takes less") from error
            raise ModelUnusable(f"{graph.path}: ONNX Runtime cannot run it on {shapes}: {error}") from error
        return output

    def _read_limits(self, graph: Graph) -> None:
        """Find out what a published graph was made for: its slots, and sizes that are fixed."""
        session = self._graphs["text"][1]
        batch, length = (*session.get_inputs()[0].shape, None, None)[:2]
        slots = next(iter(session.get_outputs()[0].shape[-1:]), None)  # a scalar has no sizes
        self.slots = slots if isinstance(slots, int) else None
        self.length = length if isinstance(length, int) else None
        self.alone = isinstance(batch, int) or _contains(graph.path, _MIXES_ROWS)

    def _fixed(self, inputs: Arrays, session: Any) -> dict[str, Any]:
        """Return inputs as the graph wants them: padded to a fixed length, token types added where it asks for them."""
        arrays = dict(inputs)
        if self.length is not None:
            ids = arrays["input_ids"]
            padding = ((0, 0), (0, self.length - ids.shape[1]))
            arrays["input_ids"] = np.pad(ids, padding, constant_values=self._pad)
            arrays["attention_mask"] = np.pad(arrays["attention_mask"], padding)
        for extra in session.get_inputs():
            if extra.name not in arrays:
                arrays[extra.name] = np.zeros_like(arrays["input_ids"])
        return arrays


def _open_session(graph: Graph, *, published: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Each weight of a graph of labels is made float32 right before its product, not all of them at the beginning.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    levels = onnxruntime.GraphOptimizationLevel
    # An exported graph is final: nothing to optimise at every start.
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if published else levels.ORT_DISABLE_ALL
    try:
        # A fallback to other providers would say so on standard output.
        session = onnxruntime.InferenceSession(
            str(graph.path), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        inputs = {item.name: item.shape for item in session.get_inputs()}
        outputs = {item.name: item.shape for item in session.get_outputs()}
    except Exception as error:  # a name that is no text too
        raise ModelUnusable(f"{graph.path}: ONNX Runtime cannot load it: {error}") from error
    names = inputs.keys() - ({"token_type_ids"} if published else set())
    if names != set(graph.inputs):
        raise ModelUnusable(f"{graph.path}: its inputs are {', '.join(sorted(names))}, not {', '.join(graph.inputs)}")
    if graph.output not in outputs:
        raise ModelUnusable(f"{graph.path}: it has no output {graph.output}")
    return session


def _contains(path: Path, words: bytes) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(words) >= 0
