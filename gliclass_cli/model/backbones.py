"""Backbones: encoders and decoders of transformers, built from a checkpoint's configuration and nothing else.

No name is looked up, no code of a checkpoint is run, nothing is downloaded.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import CRITICAL
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from gliclass_cli.errors import ModelUnusable

T5_FAMILY = ("t5", "mt5", "umt5")
# The reference turns these decoders into encoders with the package llm2vec, whose attention is its own.
_LLM2VEC = ("gemma", "llama", "mistral", "qwen2")
# What says how a model is run or where it came from, not what it is: the checkpoint has no say in it.
_IGNORED = (
    "attn_implementation",
    "dtype",
    "experts_implementation",
    "gradient_checkpointing",
    "model_type",
    "name_or_path",
    "output_attentions",
    "output_hidden_states",
    "quantization_config",
    "return_dict",
    "torch_dtype",
    "torchscript",
    "transformers_version",
)


def build_encoder(values: Mapping[str, Any], vocab_size: int | None = None) -> PreTrainedModel:
    """Build an encoder: input ids to one state for each token. ``vocab_size`` counts added tokens too.

    Raises:
        ModelUnusable: transformers does not know the backbone or its configuration, or it is no encoder of text.
    """
    kind = str(values["model_type"])
    if kind in _LLM2VEC:
        raise ModelUnusable(f"the backbone {kind} is a decoder: LLM2Vec checkpoints are not supported")
    config = _read_config(values, vocab_size)
    if kind in T5_FAMILY:
        return _build(AutoModelForTextEncoding, config)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelUnusable(f"the backbone {kind} is an encoder-decoder, where an encoder belongs")
    return _build(AutoModel, config)


def build_encoder_decoder(values: Mapping[str, Any]) -> PreTrainedModel:
    """Build a model of the T5 family, encoder and decoder. Raises ModelUnusable."""
    kind = str(values["model_type"])
    config = _read_config(values)
    if not getattr(config, "is_encoder_decoder", False):
        raise ModelUnusable(f"the backbone {kind} is no encoder-decoder; known are {', '.join(T5_FAMILY)}")
    return _build(AutoModel, config)


def build_decoder(values: Mapping[str, Any], vocab_size: int) -> PreTrainedModel:
    """Build the causal decoder of decoder-kv. Raises ModelUnusable."""
    kind = str(values["model_type"])
    if kind != "qwen3":
        raise ModelUnusable(f"the backbone {kind} of a decoder-kv is not supported; known is qwen3")
    return _build(AutoModel, _read_config(values, vocab_size))


@contextmanager
def silent() -> Iterator[None]:
    """Keep the loggers of transformers from writing to standard error."""
    before = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _read_config(values: Mapping[str, Any], vocab_size: int | None = None) -> PretrainedConfig:
    """Return a backbone's configuration as transformers reads it."""
    kind = str(values["model_type"])
    known = {name: value for name, value in values.items() if name not in _IGNORED and not name.startswith("_")}
    if vocab_size is not None:
        known["vocab_size"] = vocab_size
    if kind == "modernbert":
        known["reference_compile"] = False  # True compiles with torch.compile at the first batch
    try:
        with silent():
            config: PretrainedConfig = AutoConfig.for_model(kind, **known)
    except Exception as error:  # of any kind: it checks values in many ways
        raise _unusable(kind, error) from error
    return config


def _build(factory: Any, config: PretrainedConfig) -> PreTrainedModel:
    """Build a model with PyTorch's attention where the backbone supports it, else with its own."""
    try:
        with silent():
            try:
                model = factory.from_config(config, trust_remote_code=False, attn_implementation="sdpa")
            except ValueError:
                model = factory.from_config(config, trust_remote_code=False, attn_implementation="eager")
    except Exception as error:
        raise _unusable(config.model_type, error) from error
    if not isinstance(model, PreTrainedModel) or model.main_input_name != "input_ids":
        raise ModelUnusable(f"the backbone {config.model_type} does not read text")
    return model


def _unusable(kind: str, error: Exception) -> ModelUnusable:
    reason = " ".join(str(error).split())
    reason = reason if len(reason) <= 200 else f"{reason[:199]}…"
    return ModelUnusable(f"the backbone {kind} cannot be built from config.json: {type(error).__name__}: {reason}")
