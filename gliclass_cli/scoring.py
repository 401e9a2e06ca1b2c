"""From prompts to logits: the same steps whatever computes the parts of the model."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from gliclass_cli.backends import Backend, Part
from gliclass_cli.batching import plan_batches
from gliclass_cli.checkpoint import BI_ENCODERS, ENCODER_DECODERS
from gliclass_cli.composer import LabelGroup, PreparedLabels, Prompt, Shown
from gliclass_cli.decoding import Floats
from gliclass_cli.model_folder import ModelFolder
from gliclass_cli.prototypes import Product, make_prototypes
from gliclass_cli.tokens import Ids

# Label vectors kept for rows that bring their own labels; one takes about 2 kB.
_LABEL_CACHE = 16_384
_ENCODED_TOKENS = 256
_TINY = 1e-12


class Scorer:
    """Scores prompts with a backend. A bi-encoder's labels are encoded once, whatever number of texts there is."""

    def __init__(self, folder: ModelFolder, backend: Backend) -> None:
        """Take a loaded backend."""
        self._folder = folder
        self._architecture = folder.config.architecture
        self._pad = folder.pad
        self.backend = backend
        self._vectors: OrderedDict[bytes, Floats] = OrderedDict()
        self._examples: tuple[tuple[Ids, ...], Floats] | None = None
        self._lock = threading.Lock()

    def prepare(self, labels: PreparedLabels) -> PreparedLabels:
        """Encode labels that are read by themselves, and move them towards examples; others stay as they are."""
        if self._architecture not in BI_ENCODERS:
            return labels
        inputs = {_key(worded): worded for group in labels.groups for worded in group.inputs}
        vectors = self._label_vectors(inputs)
        stacked = [np.stack([vectors[_key(worded)] for worded in group.inputs]) for group in labels.groups]
        groups = [replace(group, vectors=found) for group, found in zip(labels.groups, stacked, strict=True)]
        if labels.shown is not None and len(labels.shown.chosen):
            groups = [self._taught(group, labels.shown) for group in groups]
        return replace(labels, groups=tuple(groups))

    def score(self, prompts: Sequence[Prompt]) -> list[Floats]:
        """Return for each prompt the logits (C,) of its labels, independent of the other prompts."""
        inputs: dict[str, NDArray[np.generic]] = {**pad_inputs([prompt.ids for prompt in prompts], self._pad)}
        if self._architecture == "bi-encoder":
            return self._compare(self.backend.run("text", inputs), prompts)
        if self._architecture == "bi-encoder-fused":
            inputs |= self._label_arrays(prompts)
        if self._architecture in ENCODER_DECODERS:
            names = {"input_ids": "class_input_ids", "attention_mask": "class_attention_mask"}
            padded = pad_inputs([prompt.group.ids for prompt in prompts], self._pad)
            inputs |= {names[name]: value for name, value in padded.items()}
        return self._rows(self.backend.run("text", inputs), prompts)

    def batches(self, prompts: Sequence[Prompt], batch_tokens: int) -> list[list[int]]:
        """Return the indices of prompts in batches of similar length, the longest first."""
        if self.backend.alone:
            return [[index] for index in range(len(prompts))]
        apart = self._architecture in ENCODER_DECODERS  # the labels are an input of their own
        return plan_batches([len(p) + apart * len(p.group.ids) for p in prompts], batch_tokens)

    def _compare(self, vectors: Floats, prompts: Sequence[Prompt]) -> list[Floats]:
        """Return the logits of texts' vectors (B, D) against their labels' vectors."""
        if self.backend.product is None:
            logits = self.backend.run("scorer", {"text": vectors, **self._label_arrays(prompts)})
            return self._rows(logits, prompts)
        self._check_vectors(vectors, len(prompts), prompts[0].group.vectors.shape[1])
        scale, bias = map(np.float32, self.backend.product)
        rows = []
        for vector, prompt in zip(vectors, prompts, strict=True):
            row = (prompt.group.vectors @ vector) * scale + bias
            rows.append(row if prompt.group.shifts is None else row + prompt.group.shifts)
        return rows

    def _taught(self, group: LabelGroup, shown: Shown) -> LabelGroup:
        """Move the label vectors of a group towards the examples' text vectors."""
        if self.backend.product is None:  # the composer has refused
            return group
        texts = self._example_vectors(shown.inputs)[shown.chosen]
        self._check_vectors(texts, len(texts), group.vectors.shape[1])
        product = Product(*self.backend.product, self._folder.calibration)
        made = make_prototypes(group.vectors, texts, shown.carried[:, group.columns], product)
        return replace(group, vectors=made.vectors, shifts=made.shifts)

    def _example_vectors(self, inputs: tuple[Ids, ...]) -> Floats:
        """Return the text vectors (N, D) of all examples of a run, computed together at first."""
        with self._lock:
            if self._examples is None or self._examples[0] is not inputs:
                self._examples = inputs, np.stack(self._encode("text", inputs))
            return self._examples[1]

    def _rows(self, logits: Floats, prompts: Sequence[Prompt]) -> list[Floats]:
        """Return each prompt's own logits of a batch (B, C). Raises ModelUnusable where the model gives none."""
        most = max(len(prompt.group.columns) for prompt in prompts)
        if logits.ndim != 2 or logits.shape[0] != len(prompts) or logits.shape[1] < most:
            raise self._folder.unusable(
                f"scores of shape {logits.shape} came out for {len(prompts)} texts of {most} labels; the graph, or "
                "class_token_index in config.json, is not that of this model"
            )
        rows = [row[: len(prompt.group.columns)] for row, prompt in zip(logits, prompts, strict=True)]
        if not all(np.isfinite(row).all() for row in rows):
            raise self._folder.unusable("the model computes scores that are no numbers (infinite, or NaN)")
        return rows

    def _check_vectors(self, vectors: Floats, rows: int, size: int | None = None) -> None:
        """Raise ModelUnusable where an encoder's output is no vector for each row, of the size of the others."""
        if vectors.ndim != 2 or vectors.shape[0] != rows or (size is not None and vectors.shape[1] != size):
            raise self._folder.unusable(
                f"vectors of shape {vectors.shape} came out for {rows} texts or labels; the graph is not this model's"
            )
        if not np.isfinite(vectors).all():
            raise self._folder.unusable("the model computes vectors that are no numbers (infinite, or NaN)")

    def _label_vectors(self, inputs: dict[bytes, tuple[Ids, ...]]) -> dict[bytes, Floats]:
        """Return the vector (D,) of each label, from the cache or the label encoder."""
        with self._lock:
            vectors = {key: self._vectors[key] for key in inputs if key in self._vectors}
        new = [key for key in inputs if key not in vectors]
        encoded = iter(self._encode("label", [ids for key in new for ids in inputs[key]]))
        vectors |= {key: _mean_vector(list(islice(encoded, len(inputs[key])))) for key in new}
        with self._lock:
            for key, vector in vectors.items():
                self._vectors[key] = vector
                self._vectors.move_to_end(key)
            while len(self._vectors) > _LABEL_CACHE:
                self._vectors.popitem(last=False)
        return vectors

    def _encode(self, part: Part, inputs: Sequence[Ids]) -> list[Floats]:
        """Return the vector (D,) of each input, in order."""
        vectors: dict[int, Floats] = {}
        for batch in plan_batches([len(ids) for ids in inputs], _ENCODED_TOKENS):
            output = self.backend.run(part, pad_inputs([inputs[i] for i in batch], self._pad))
            self._check_vectors(output, len(batch))
            vectors |= {i: row.copy() for i, row in zip(batch, output, strict=True)}  # not the whole batch
        return [vectors[i] for i in range(len(inputs))]

    def _label_arrays(self, prompts: Sequence[Prompt]) -> dict[str, NDArray[np.generic]]:
        """Return the label vectors (B, C, D) of B prompts, padded to the most labels, and which are real (B, C)."""
        counts = [len(prompt.group.columns) for prompt in prompts]
        size = prompts[0].group.vectors.shape[1]
        labels = np.zeros((len(prompts), max(counts), size), dtype=np.float32)
        for row, prompt in enumerate(prompts):
            labels[row, : counts[row]] = prompt.group.vectors
        mask = (np.arange(max(counts)) < np.array(counts)[:, None]).astype(np.int64)
        return {"labels": labels, "label_mask": mask}


def _key(worded: tuple[Ids, ...]) -> bytes:
    """Return what tells a label from others; each input begins and ends with tokens that no text has."""
    return b"".join(ids.tobytes() for ids in worded)


def _mean_vector(vectors: Sequence[Floats]) -> Floats:
    """Return the vector (D,) of a label from those of its wordings: their mean, as long as they are on average.

    What rounding does to a label's vector shifts the scores of all texts of a run; the mean over wordings that say the
    same has less of it (prompt ensembling in embedding space: Radford et al. 2021, arXiv 2103.00020, section 3.1.4).
    """
    if len(vectors) == 1:
        return vectors[0]
    worded = np.stack(vectors).astype(np.float64)
    mean = worded.mean(axis=0)
    length = np.linalg.norm(worded, axis=1).mean() / max(float(np.linalg.norm(mean)), _TINY)
    scaled: Floats = (mean * length).astype(np.float32)
    return scaled


def pad_inputs(ids: Sequence[Ids], pad: int) -> dict[str, NDArray[np.int64]]:
    """Return ids and mask (B, L) of B inputs, padded to the longest."""
    lengths = [len(item) for item in ids]
    padded = np.full((len(ids), max(lengths)), pad, dtype=np.int64)
    for row, item in enumerate(ids):
        padded[row, : lengths[row]] = item
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return {"input_ids": padded, "attention_mask": mask}
