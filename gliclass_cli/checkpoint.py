"""The ``config.json`` of a GLiClass checkpoint: every switch that changes a score, checked before a model is loaded."""

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gliclass_cli.errors import ModelUnusable

ARCHITECTURES = (
    "uni-encoder",
    "bi-encoder",
    "bi-encoder-fused",
    "encoder-decoder",
    "encoder-decoder-cls",
    "decoder-kv",
)
POOLINGS = ("first", "last", "avg", "max", "sum", "rms", "abs_max", "abs_avg", "pass")
CLASS_TOKEN_POOLINGS = ("first", "average")
SCORERS = ("simple", "weighted-dot", "mlp", "hopfield", "cross-attn", "decoder-kv")
BI_ENCODERS = ("bi-encoder", "bi-encoder-fused")
ENCODER_DECODERS = ("encoder-decoder", "encoder-decoder-cls")
_LARGEST = 2**31
_MOST_LABELS = 100_000  # of a backbone's own head, which is not used
_LARGEST_FILE = 100_000_000  # bytes of a JSON file
# What transformers takes where a backbone's configuration does not say.
_DEFAULT_POSITIONS = {
    "bert": 512,
    "deberta-v2": 512,
    "modernbert": 8192,
    "qwen3": 32768,
    "roberta": 512,
    "electra": 512,
}


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """What a checkpoint's ``config.json`` says; names and defaults are those of the reference package.

    ``encoder`` and ``label_encoder`` are the configurations of the backbones as transformers writes them. ``raw`` is
    the whole file, so that a checkpoint is saved with everything it came with. ``shared_encoder`` is our own: a
    bi-encoder whose labels go through the text encoder too, with nothing between pooling and scorer.
    """

    architecture: str
    encoder: Mapping[str, Any]
    label_encoder: Mapping[str, Any] | None
    encoder_model_name: str | None
    label_model_name: str | None
    hidden_size: int
    vocab_size: int
    class_token_index: int
    text_token_index: int
    example_token_index: int
    pooling: str
    class_token_pooling: str
    scorer: str
    prompt_first: bool
    embed_class_token: bool
    normalize_features: bool
    extract_text_features: bool
    use_lstm: bool
    squeeze_layers: bool
    encoder_layer_id: int
    use_segment_embeddings: bool
    projector_hidden_act: str
    logit_scale_init_value: float
    dropout: float
    scorer_num_heads: int
    scorer_mlp_hidden_size: int
    scorer_attn_dropout: float
    scorer_encoder_num_layers: int
    scorer_full_sequence: bool
    shared_encoder: bool
    problem_type: str
    raw: Mapping[str, Any]

    @property
    def backbone(self) -> str:
        """The kind of the (text) encoder: ``deberta-v2``, ``modernbert``, ``t5`` ..."""
        return str(self.encoder["model_type"])

    @property
    def positions(self) -> int | None:
        """The longest input in tokens that the backbones can read at all; None where nothing but memory limits it."""
        limits = [_positions(encoder) for encoder in (self.encoder, self.label_encoder) if encoder is not None]
        return min((limit for limit in limits if limit is not None), default=None)


class Values:
    """A JSON object whose values are taken by name and type; what is wrong is named by file and path."""

    def __init__(self, values: Mapping[str, Any], file: str, prefix: str = "") -> None:
        """Wrap an object of the file ``file``, at the path ``prefix``."""
        self.values = values
        self.file = file
        self.prefix = prefix

    def get(self, name: str, kind: type) -> Any:
        """Return a value of a type; an int will do as a float."""
        value = self.values.get(name)
        if kind is float and type(value) is int:
            return float(value) if abs(value) < _LARGEST else value
        if type(value) is not kind:
            raise self.wrong(name, f"a value of type {kind.__name__} belongs here")
        return value

    def optional(self, name: str, default: Any, kind: type | None = None) -> Any:
        """Return a value of the type of ``default`` (or ``kind``), or ``default`` where it is missing or null."""
        return default if self.values.get(name) is None else self.get(name, kind or type(default))

    def wrong(self, name: str, needed: str) -> ModelUnusable:
        """Return the error that names a value, what it is, and what is needed instead."""
        value = self.values.get(name)
        kind = (
            "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else json.dumps(value)[:40]
        )
        found = f"is {kind}" if name in self.values else "is missing"
        return ModelUnusable(f"{self.file}: {self.prefix}{name} {found}; {needed}")

    def positive(self, name: str) -> float:
        """Return a number well above zero, with which logits can be computed."""
        value: float = self.get(name, float)
        if not 1e-6 < value < 1e6:
            raise self.wrong(name, "it must be above 0, from 1e-6 to 1e6")
        return value

    def number(self, name: str, default: float | None = None, *, most: float = 1e6) -> float:
        """Return a number with which logits can be computed, from -``most`` to ``most``."""
        value: float = self.get(name, float) if default is None else self.optional(name, default)
        if not -most <= value <= most:
            raise self.wrong(name, f"it must be from -{most:g} to {most:g}")
        return value

    def whole(self, name: str, least: int, default: int | None = None) -> int:
        """Return a whole number of at least ``least``."""
        value: int = self.get(name, int) if default is None else self.optional(name, default)
        if not least <= value < _LARGEST:
            raise self.wrong(name, f"it must be {least} or more")
        return value

    def one_of(self, name: str, choices: tuple[str, ...], default: str | None = None) -> str:
        """Return one of several strings."""
        value: str = self.get(name, str) if default is None else self.optional(name, default)
        if value not in choices:
            raise self.wrong(name, f"known are {', '.join(choices)}")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        """Return a list of strings."""
        values = self.get(name, list)
        if not all(isinstance(value, str) for value in values):
            raise self.wrong(name, "a list of strings belongs here")
        return tuple(values)

    def section(self, name: str) -> "Values":
        """Return an object inside."""
        return Values(self.get(name, dict), self.file, f"{self.prefix}{name}.")


def read_json_object(path: Path) -> Mapping[str, Any]:
    """Read a JSON object from a file of a model folder. Raises ModelUnusable."""
    import orjson  # not for --help

    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST_FILE:
            raise ModelUnusable(f"{path}: is no file of JSON (a directory, a pipe, or too large)")
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelUnusable(f"{path.parent}: no {path.name}: this is not a model folder") from error
    except OSError as error:
        raise ModelUnusable(f"{path}: cannot be read: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise ModelUnusable(f"{path}: is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelUnusable(f"{path}: is not a JSON object")
    return value


def file_inside(folder: Path, name: str, model: Path | None = None) -> Path | None:
    """Return a file of a folder of a ``model`` (the folder itself); None where there is none, or it leads out of it.

    The cache of the Hugging Face hub keeps files in ``blobs``, of the model or of all models, to which its snapshots
    link: those count as inside.
    """
    path, home = folder / name, (model or folder).resolve()
    try:
        if Path(name).name != name or not stat.S_ISREG(path.stat().st_mode):
            return None
        target = path.resolve()
    except (OSError, ValueError):
        return None
    snapshots, repository, cache = (*home.parents, home, home, home)[:3]
    of_the_hub = snapshots.name == "snapshots" and (
        target.parent == repository / "blobs" or target.parent.parent == cache / "blobs"
    )
    return path if target.is_relative_to(home) or of_the_hub else None


def read_checkpoint_config(path: Path) -> CheckpointConfig:
    """Read and check the ``config.json`` at ``path``. Raises ModelUnusable."""
    return parse_checkpoint_config(read_json_object(path), str(path))


def parse_checkpoint_config(raw: Mapping[str, Any], file: str) -> CheckpointConfig:
    """Check the values of a checkpoint's configuration, which come from ``file``.

    Raises:
        ModelUnusable: a value is missing, wrong, unknown, or asks for what is not implemented; the message names it.
    """
    config = Values(raw, file)
    if config.optional("model_type", "GLiClass") != "GLiClass":
        raise config.wrong("model_type", "only GLiClass checkpoints can be run")
    architecture = config.one_of("architecture_type", ARCHITECTURES, "uni-encoder")
    _refuse_unknown(config, architecture)
    encoder = _backbone(config, "encoder_config")
    shared = config.optional("shared_encoder", False)
    label_encoder = None
    if architecture in BI_ENCODERS:
        label_encoder = encoder if shared else _backbone(config, "label_model_config")
    # Older files hold of a backbone only what differs from its kind's defaults; these two are always at the top too.
    vocab_size = config.whole("vocab_size", 1, encoder.values.get("vocab_size"))
    checked = CheckpointConfig(
        architecture=architecture,
        encoder=encoder.values,
        label_encoder=label_encoder.values if label_encoder else None,
        encoder_model_name=_name(config, "encoder_model_name"),
        label_model_name=_name(config, "label_model_name"),
        hidden_size=config.whole("hidden_size", 1, encoder.values.get("hidden_size", encoder.values.get("d_model"))),
        vocab_size=vocab_size,
        class_token_index=_token(config, "class_token_index", vocab_size),
        text_token_index=_token(config, "text_token_index", vocab_size + 1),
        example_token_index=_token(config, "example_token_index", vocab_size + 2),
        pooling=config.one_of("pooling_strategy", POOLINGS, "first"),
        class_token_pooling=config.one_of("class_token_pooling", CLASS_TOKEN_POOLINGS, "first"),
        scorer=config.one_of("scorer_type", SCORERS, "simple"),
        prompt_first=config.optional("prompt_first", False),
        embed_class_token=config.optional("embed_class_token", True),
        normalize_features=config.optional("normalize_features", False),
        extract_text_features=config.optional("extract_text_features", False),
        use_lstm=config.optional("use_lstm", False),
        squeeze_layers=config.optional("squeeze_layers", False),
        encoder_layer_id=config.optional("encoder_layer_id", -1),
        use_segment_embeddings=config.optional("use_segment_embeddings", False),
        projector_hidden_act=config.optional("projector_hidden_act", "gelu"),
        logit_scale_init_value=config.number("logit_scale_init_value", 2.6592),
        dropout=_share(config, "dropout"),
        scorer_num_heads=config.whole("scorer_num_heads", 1, 16),
        scorer_mlp_hidden_size=config.whole("scorer_mlp_hidden_size", 2, 1024),
        scorer_attn_dropout=_share(config, "scorer_attn_dropout"),
        scorer_encoder_num_layers=config.whole("scorer_encoder_num_layers", 1, 2),
        scorer_full_sequence=config.optional("scorer_full_sequence", False),
        shared_encoder=shared,
        problem_type=config.optional("problem_type", "single_label_classification"),
        raw=raw,
    )
    _check_combination(checked, config)
    return checked


def _check_combination(checked: CheckpointConfig, config: Values) -> None:
    """Refuse switches that make no sense together, as the reference would fail on them."""
    if checked.architecture != "decoder-kv" and checked.scorer == "decoder-kv":
        raise config.wrong("scorer_type", "that scorer belongs to the architecture decoder-kv")
    if (checked.scorer == "cross-attn") != (checked.pooling == "pass") and checked.architecture == "uni-encoder":
        raise config.wrong(
            "pooling_strategy", "the scorer cross-attn needs the pooling pass, and no other scorer takes it"
        )
    if checked.pooling == "pass" and checked.architecture in (*BI_ENCODERS, "encoder-decoder"):
        raise config.wrong("pooling_strategy", f"a {checked.architecture} needs one vector for each text")
    if checked.scorer == "cross-attn" and checked.architecture != "uni-encoder":
        raise config.wrong("scorer_type", "it belongs to the architecture uni-encoder")
    if checked.shared_encoder and (checked.architecture, checked.scorer) != ("bi-encoder", "simple"):
        raise config.wrong("shared_encoder", "it belongs to a bi-encoder with the scorer simple")
    if checked.scorer == "cross-attn" and checked.hidden_size % checked.scorer_num_heads:
        raise config.wrong("scorer_num_heads", f"it must divide hidden_size, {checked.hidden_size}")
    layers = checked.encoder.get("num_hidden_layers", checked.encoder.get("num_layers"))
    if isinstance(layers, int) and not -layers - 1 <= checked.encoder_layer_id <= layers:
        raise config.wrong("encoder_layer_id", f"the encoder has {layers} layers")


def _refuse_unknown(config: Values, architecture: str) -> None:
    """Raise ModelUnusable for features of newer checkpoints that would silently change scores if they were ignored."""
    if config.optional("multimodal", False):
        raise config.wrong("multimodal", "images and audio are not supported, only text")
    if config.optional("use_calibrator", False):
        raise config.wrong("use_calibrator", "checkpoints with a calibrator are not supported")
    if architecture == "decoder-kv" and config.whole("recurrent_steps", 1, 1) > 1:
        raise config.wrong("recurrent_steps", "recurrent scorers are not supported")


def _backbone(config: Values, name: str) -> Values:
    """Return the configuration of a backbone; it names its kind and never code."""
    values = config.section(name)
    values.get("model_type", str)
    if "auto_map" in values.values:
        raise values.wrong("auto_map", "code from a model's folder is never run")
    if values.optional("num_labels", 2) > _MOST_LABELS:  # transformers would name every one of them
        raise values.wrong("num_labels", f"at most {_MOST_LABELS}")
    return values


def _name(config: Values, name: str) -> str | None:
    value = config.values.get(name)
    return value if isinstance(value, str) else None


def _token(config: Values, name: str, default: int) -> int:
    """Return a token id; -1 stands for the default, as in the reference."""
    value: int = config.optional(name, -1)
    if value != -1 and not 0 <= value < _LARGEST:
        raise config.wrong(name, "a token id belongs here, or -1")
    return default if value == -1 else value


def _share(config: Values, name: str) -> float:
    """Return a dropout, of 0.1 where nothing is said."""
    value = config.number(name, 0.1)
    if not 0 <= value <= 1:
        raise config.wrong(name, "it must be from 0 to 1")
    return value


def _positions(encoder: Mapping[str, Any]) -> int | None:
    """Return how many positions a backbone knows: the rows of its table, or the length it was built for."""
    kind = encoder.get("model_type")
    positions = encoder.get("max_position_embeddings", _DEFAULT_POSITIONS.get(str(kind)))
    if not isinstance(positions, int) or kind in ("t5", "mt5", "umt5"):
        return None
    if kind in ("deberta-v2", "deberta") and encoder.get("position_biased_input", True) is False:
        return None
    # RoBERTa and its kin number positions from pad_token_id + 1.
    return positions - 2 if kind in ("roberta", "xlm-roberta", "camembert") else positions
