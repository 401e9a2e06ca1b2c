"""ONNX Runtime on the CPU: bi-encoders whose texts and labels go through the same graph."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime

from gliclass_cli.backends import PreparedLabels, Prompt
from gliclass_cli.batching import plan_batches
from gliclass_cli.decoding import Floats
from gliclass_cli.errors import ModelUnusable
from gliclass_cli.labels import LabelSet
from gliclass_cli.model_folder import Graph, ModelFolder
from gliclass_cli.prompts import word_label
from gliclass_cli.tokens import Tokenizer, Tokens

# Label vectors kept for rows that bring their own labels; one takes about 2 kB.
_LABEL_CACHE = 16_384
_LABEL_BATCH_TOKENS = 256


class OnnxBackend:
    """Encodes texts and labels apart: logit = scale * cosine + bias. A label is encoded once per run.

    One run computes on one thread: several batches run side by side instead, so that the number of threads
    cannot change a score.
    """

    def __init__(self, folder: ModelFolder, *, max_length: int | None = None, template: str | None = None) -> None:
        """Load tokenizer and graph. Raises ModelUnusable."""
        self.max_length = min(folder.max_length, max_length or folder.max_length)
        self._folder = folder
        self._template = template or folder.label_template
        self._tokenizer = Tokenizer(folder.tokenizer, folder.special_tokens)
        self._session = _open_session(folder.graph)
        self._label_vectors: OrderedDict[str, Floats] = OrderedDict()

    def prepare(self, labels: LabelSet) -> PreparedLabels:
        """Encode the labels that are not in the cache; ``data`` is their vectors, transposed: (D, L)."""
        worded = [
            word_label(self._template, name, description)
            for name, description in zip(labels.names, labels.descriptions, strict=True)
        ]
        vectors = {text: self._label_vectors[text] for text in worded if text in self._label_vectors}
        new = list(dict.fromkeys(text for text in worded if text not in vectors))
        tokens = self._tokenizer.encode(new, self._folder.max_length)
        for batch in plan_batches([len(item.ids) for item in tokens], _LABEL_BATCH_TOKENS):
            for index, vector in zip(batch, self._embed([tokens[i] for i in batch]), strict=True):
                vectors[new[index]] = vector.copy()  # not the whole batch
        for text in worded:
            self._label_vectors[text] = vectors[text]
            self._label_vectors.move_to_end(text)
        while len(self._label_vectors) > _LABEL_CACHE:
            self._label_vectors.popitem(last=False)
        return PreparedLabels(labels, np.stack([vectors[text] for text in worded], axis=1))

    def compose(self, texts: Sequence[str], labels: PreparedLabels) -> list[Prompt]:
        """Tokenise texts; a bi-encoder reads no labels beside them."""
        return [Prompt(tokens, labels) for tokens in self._tokenizer.encode(texts, self.max_length)]

    def score(self, prompts: Sequence[Prompt]) -> list[Floats]:
        """Return the logits (L,) of each prompt."""
        vectors = self._embed([prompt.tokens for prompt in prompts])
        scale, bias = np.float32(self._folder.scale), np.float32(self._folder.bias)
        return [(vector @ prompt.labels.data) * scale + bias for vector, prompt in zip(vectors, prompts, strict=True)]

    def _embed(self, tokens: Sequence[Tokens]) -> Floats:
        """Return the normalised vectors (B, D) of B inputs, padded to the longest."""
        lengths = [len(item.ids) for item in tokens]
        ids = np.full((len(tokens), max(lengths)), self._tokenizer.pad, dtype=np.int64)
        for row, item in enumerate(tokens):
            ids[row, : lengths[row]] = item.ids
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        graph = self._folder.graph
        try:
            output: Floats = self._session.run([graph.output], dict(zip(graph.inputs, (ids, mask), strict=True)))[0]
        except Exception as error:
            raise ModelUnusable(
                f"{graph.path}: ONNX Runtime cannot run it on {ids.shape[0]} x {ids.shape[1]} tokens: {error}"
            ) from error
        return output


def _open_session(graph: Graph) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # The exported graph is final: nothing to optimise at every start.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(graph.path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelUnusable(f"{graph.path}: ONNX Runtime cannot load it: {error}") from error
    inputs = tuple(item.name for item in session.get_inputs())
    if set(inputs) != set(graph.inputs) or graph.output not in [item.name for item in session.get_outputs()]:
        raise ModelUnusable(f"{graph.path}: its inputs {inputs} are not those that config.json names")
    return session
