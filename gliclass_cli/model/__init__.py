"""GLiClass in PyTorch (arXiv 2508.07662): every architecture of the reference, read from and saved to its checkpoints.

This package owns torch, transformers and safetensors: whoever runs ONNX graphs never imports it. Top to bottom:

    weights          load_model, save_model: safetensors read strictly, the reference's names
    adapters         add_lora, save_lora, merge_lora: low-rank adapters through peft
    restored         restore_model: the bundled model, out of its int8 graph
    architectures    who encodes what, and how text and labels meet
    scorers          one logit for each label from a text vector and the label vectors
    layers           projectors, the LSTM, attention over layers
    poolings         masked pooling, label vectors, sections of a row
    backbones        the encoders and decoders of transformers

A row's logits never depend on the rows beside it: whatever pools, normalises or attends sees real tokens only.
"""

from gliclass_cli.model.adapters import add_lora, merge_lora, save_lora
from gliclass_cli.model.architectures import (
    BiEncoder,
    BiEncoderFused,
    DecoderKv,
    EncoderDecoder,
    EncoderDecoderCls,
    Features,
    GliclassModel,
    SharedBiEncoder,
    UniEncoder,
    build_model,
)
from gliclass_cli.model.restored import restore_model
from gliclass_cli.model.weights import load_model, save_model

__all__ = [
    "BiEncoder",
    "BiEncoderFused",
    "DecoderKv",
    "EncoderDecoder",
    "EncoderDecoderCls",
    "Features",
    "GliclassModel",
    "SharedBiEncoder",
    "UniEncoder",
    "add_lora",
    "build_model",
    "load_model",
    "merge_lora",
    "restore_model",
    "save_lora",
    "save_model",
]
