"""The bundled model in PyTorch: the weights of its int8 graph, read back into float32, so that no second copy ships."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gliclass_cli.checkpoint import CheckpointConfig
from gliclass_cli.errors import ModelUnusable
from gliclass_cli.model.architectures import GliclassModel, build_model

Floats = NDArray[np.float32]


def restore_model(
    graph: Path, config: CheckpointConfig, *, scale: float, bias: float, device: str, dtype: torch.dtype = torch.float32
) -> GliclassModel:
    """Load a bi-encoder with a shared encoder from the int8 graph that ``export.bert_graph`` built.

    It computes what the graph does but for the rounding of activations: cosines agree to about .998.

    Raises:
        ModelUnusable: another kind of graph, or the package onnx is missing.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise ModelUnusable(
            f"{graph}: reading the weights back from ONNX needs the package onnx: pip install 'gliclass-cli[export]'"
        ) from error
    try:
        stored = {item.name: numpy_helper.to_array(item) for item in onnx.load(str(graph)).graph.initializer}
    except Exception as error:
        raise ModelUnusable(f"{graph}: cannot be read: {error}") from error
    model = build_model(config)
    try:
        weights = _read_bert(stored, int(config.encoder["num_hidden_layers"]))
    except KeyError as error:
        raise ModelUnusable(
            f"{graph}: it has no {error}: its weights cannot be read back; take the checkpoint that it came from"
        ) from error
    tensors = {f"encoder_model.{name}": torch.from_numpy(value.copy()) for name, value in weights.items()}
    tensors |= {"logit_scale": torch.tensor(scale), "logit_bias": torch.tensor(bias)}
    _fill(model, tensors)
    return model.to(device=device, dtype=dtype).eval()


def _fill(model: GliclassModel, tensors: dict[str, Tensor]) -> None:
    """Give a model its tensors; BERT's own pooler is not used, and is 0."""
    for name, parameter in model.state_dict().items():
        if ".pooler." in name:
            tensors[name] = torch.zeros_like(parameter)
    model.load_state_dict(tensors)


def _read_bert(stored: dict[str, NDArray[Any]], layers: int) -> dict[str, Floats]:
    """Return weights named as in Hugging Face's BertModel. Raises KeyError.

    Biases that were moved into a neighbour stay there, and token types are part of the positions: nothing of what is
    computed changes.
    """

    def linear(name: str, site: str) -> dict[str, Floats]:
        matrix = stored[f"{name}.weight"].astype(np.float32) * stored[f"{name}.scale"]
        if f"{site}.evener" in stored:
            matrix *= stored[f"{site}.evener"][:, None]
        bias = stored.get(f"{name}.bias", np.zeros(matrix.shape[1], np.float32))
        return {f"{name}.weight": np.ascontiguousarray(matrix.T), f"{name}.bias": bias}

    def norm(name: str) -> dict[str, Floats]:
        return {f"{name}.weight": stored[f"{name}.scale"], f"{name}.bias": stored[f"{name}.bias"]}

    words = stored["words"].astype(np.float32) * stored["words.scale"]
    weights = {
        "embeddings.word_embeddings.weight": words,
        "embeddings.position_embeddings.weight": stored["positions"],
        "embeddings.token_type_embeddings.weight": np.zeros((2, words.shape[1]), np.float32),
        **norm("embeddings.LayerNorm"),
    }
    for name in (f"encoder.layer.{layer}" for layer in range(layers)):
        for part in ("query", "key", "value"):
            weights |= linear(f"{name}.attention.self.{part}", f"{name}.tokens")
        weights |= linear(f"{name}.attention.output.dense", f"{name}.attended")
        weights |= norm(f"{name}.attention.output.LayerNorm")
        weights |= linear(f"{name}.intermediate.dense", f"{name}.middle")
        weights |= linear(f"{name}.output.dense", "") | norm(f"{name}.output.LayerNorm")
    return weights
