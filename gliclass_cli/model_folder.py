"""A model's folder: a GLiClass checkpoint, an exported model, or ONNX files that others published.

``config.json`` is that of a GLiClass checkpoint (see ``checkpoint.py``). An exported model has one more section there,
``onnx``, that says how to run its graphs:

    format_version                       1
    name, version, language, license     what the model is
    precision                            fp32 | int8
    text_graph, label_graph, scorer_graph  {file, sha256, inputs, output}; label_graph where labels are read by
                                         themselves, scorer_graph where texts and labels meet in a graph of its own
    weights                              {file, sha256}: the constants that the graphs share, where they are large
    tokenizer, label_tokenizer           file names; label_tokenizer only where labels have one of their own
    pad_token_id                         what fills shorter inputs up; never seen by the model
    max_length                           tokens of one input, special ones included
    label_template                       the label's wording, with {label} in it; a bi-encoder may have a list of
                                         them, and then compares a text with the mean of the label's vectors
    scorer                               {scale, bias} where a dot product outside the graphs gives the logits:
                                         logit = scale * (text . label) + bias
    calibration                          {single: {temperature, label_exponent (0)}, multi: {temperature, bias}}
    self_check                           {text, labels, logits, tolerance}: what a sound installation answers

A checkpoint may say how it is used in a section ``inference``, which ``gliclass train`` writes: label_template,
max_length and calibration, as above.
"""

import hashlib
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gliclass_cli.checkpoint import (
    BI_ENCODERS,
    CheckpointConfig,
    Values,
    file_inside,
    parse_checkpoint_config,
    read_json_object,
)
from gliclass_cli.errors import ModelUnusable
from gliclass_cli.predictions import Calibration
from gliclass_cli.prompts import LABEL_SLOT

DEFAULT_MODEL = "default"
FORMAT_VERSION = 1
# Tokens that a checkpoint reads where nothing else is said, as in the reference, and the most that one input may have.
_USUAL_LENGTH = 1024
_LONGEST = 65_536
_LEAST_LENGTH = 3  # a word between two special tokens
_BUNDLED = Path(__file__).parent / "default_model"
GRAPH_WEIGHTS = "weights.safetensors"  # the large constants of an exported model's graphs
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# Names under which others publish ONNX files, by precision, the usual one first.
_PUBLISHED = {
    "fp32": ("model.onnx",),
    "int8": ("model_quantized.onnx", "model-int8-quantized.onnx", "model_int8.onnx"),
}


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file that scores depend on; a published one has no digest."""

    path: Path
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Graph(ModelFile):
    """One ONNX file of a model, and the names of what goes in and comes out."""

    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """The graphs of a model, and the file of their large constants.

    ``scale`` and ``bias``: where a text's and a label's vectors are multiplied outside of the graphs. ``published``:
    made by others, from input ids and a mask to a fixed number of logits.
    """

    text: Graph
    label: Graph | None = None
    scorer: Graph | None = None
    weights: ModelFile | None = None
    precision: str = "fp32"
    scale: float = 1.0
    bias: float = 0.0
    published: bool = False

    @property
    def files(self) -> tuple[ModelFile, ...]:
        """The files that there are, each once."""
        found = (self.text, self.label, self.scorer, self.weights)
        return tuple(dict.fromkeys(file for file in found if file is not None))


@dataclass(frozen=True, slots=True)
class Usage:
    """How a model is used, unless the user says otherwise: tokens of an input, a label's wording, scores."""

    max_length: int
    label_templates: tuple[str, ...]
    calibration: Calibration

    def to_dict(self) -> dict[str, Any]:
        """Return what ``config.json`` says of it."""
        scores = self.calibration
        exponent = {"label_exponent": scores.label_exponent} if scores.label_exponent else {}
        templates = list(self.label_templates)
        return {
            "max_length": self.max_length,
            "label_template": templates if len(templates) > 1 else templates[0],
            "calibration": {
                "single": {"temperature": scores.single_temperature, **exponent},
                "multi": {"temperature": scores.multi_temperature, "bias": scores.multi_bias},
            },
        }


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """A text, labels, and the logits that a sound installation gives them, to ``tolerance``."""

    text: str
    labels: tuple[str, ...]
    logits: tuple[float, ...]
    tolerance: float


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a model's folder holds, checked. ``max_length`` is the usual length of an input, ``positions`` the most."""

    path: Path
    name: str
    version: str
    language: tuple[str, ...]
    license: str
    config: CheckpointConfig
    tokenizer: Path
    label_tokenizer: Path
    pad: int
    max_length: int
    positions: int
    label_templates: tuple[str, ...]
    calibration: Calibration
    onnx: OnnxModel | None
    has_weights: bool
    self_check: SelfCheck | None

    @property
    def usage(self) -> Usage:
        """How the model is used."""
        return Usage(self.max_length, self.label_templates, self.calibration)

    @property
    def bundled(self) -> bool:
        """Whether it is the model in the package."""
        return self.path == _BUNDLED

    def as_checkpoint(self) -> "ModelFolder":
        """Return the folder with the configuration that a checkpoint made of it is saved with."""
        raw = {name: value for name, value in self.config.raw.items() if name != "onnx"}
        raw["inference"] = self.usage.to_dict()
        return replace(self, config=parse_checkpoint_config(raw, str(self.path / "config.json")))

    @property
    def size(self) -> int:
        """Bytes of all files of the folder."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def unusable(self, problem: str) -> ModelUnusable:
        """Return the error that names this folder."""
        return ModelUnusable(f"{self.path}: {problem}")


def find_model(name: str) -> Path | None:
    """Return the folder of ``default`` (the bundled model) or of a path; None where there is none."""
    if name == DEFAULT_MODEL:
        return _BUNDLED
    path = Path(name)
    return path if _is(path, stat.S_ISDIR) else None


def read_model_folder(
    path: Path, *, precision: str = "auto", find_tokenizer: Callable[[str], Path] | None = None
) -> ModelFolder:
    """Read and check ``config.json``; no graph and no weights are loaded.

    ``precision`` chooses among several published ONNX files; ``find_tokenizer`` returns the ``tokenizer.json`` of a
    label encoder by its name.

    Raises:
        ModelUnusable: a file or value is missing or wrong; the message names it.
    """
    raw = read_json_object(path / "config.json")
    file = str(path / "config.json")
    config = parse_checkpoint_config(raw, file)
    values = Values(raw, file)
    if "onnx" in raw:
        return _exported(path, config, values.section("onnx"))
    published = _published(path, config, precision)
    has_weights = any(_is(path / name, stat.S_ISREG) for name in _WEIGHTS)
    if published is None and not has_weights:
        raise ModelUnusable(f"{path}: {_what_is_missing(path)}")
    tokenizer = _tokenizer(path)
    positions = min(_LONGEST, config.positions or _LONGEST)
    usual = Usage(min(_USUAL_LENGTH, positions), (LABEL_SLOT,), Calibration())
    usage = _usage(values.section("inference"), config) if "inference" in raw else usual
    return ModelFolder(
        path=path,
        name=path.name,
        version="",
        language=(),
        license="",
        config=config,
        tokenizer=tokenizer,
        label_tokenizer=_label_tokenizer(path, config, tokenizer, find_tokenizer),
        pad=_pad(values),
        max_length=usage.max_length,
        positions=positions,
        label_templates=usage.label_templates,
        calibration=usage.calibration,
        onnx=published,
        has_weights=has_weights,
        self_check=None,
    )


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises ModelUnusable."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelUnusable(f"{path}: {error.strerror}") from error


def model_digest(folder: ModelFolder, *, weights: bool, adapter: str | None = None) -> str:
    """Return one digest of all files that scores depend on: of PyTorch's ``weights``, or of the graphs.

    Raises:
        ModelUnusable: a file cannot be read.
    """
    files = () if folder.onnx is None else folder.onnx.files
    names = {file.path.name for file in files}
    found = {folder.path / "config.json", folder.tokenizer, folder.label_tokenizer}
    for parent in {folder.path, *(file.path.parent for file in files)}:
        # A large published graph keeps its numbers beside it, in a file whose name begins as its own.
        found |= {file for file in parent.iterdir() if file.name.startswith(tuple(names))}
    if weights:
        found |= set(folder.path.glob("*.safetensors"))
    if adapter is not None:
        found |= {Path(adapter) / "adapter_config.json", *Path(adapter).glob("*.safetensors")}
    digests = [f"{file.name} {file_digest(file)}\n" for file in sorted(found)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def check_digests(model: OnnxModel) -> None:
    """Raise ModelUnusable where a file is not the one that ``config.json`` means; a published one is not known."""
    for file in model.files:
        if file.sha256 is not None and file_digest(file.path) != file.sha256:
            raise ModelUnusable(f"{file.path}: is not the file it should be (SHA-256 differs); install it again")


def _exported(path: Path, config: CheckpointConfig, onnx: Values) -> ModelFolder:
    """Read the section ``onnx`` of an exported model."""
    version = onnx.get("format_version", int)
    if version != FORMAT_VERSION:
        raise ModelUnusable(f"{path}: format_version {version} is not known; this program knows {FORMAT_VERSION}")
    usage = _usage(onnx, config)
    tokenizer = _inside(path, onnx.get("tokenizer", str))
    label_tokenizer = onnx.optional("label_tokenizer", "")
    return ModelFolder(
        path=path,
        name=onnx.get("name", str),
        version=onnx.get("version", str),
        language=onnx.strings("language"),
        license=onnx.get("license", str),
        config=config,
        tokenizer=tokenizer,
        label_tokenizer=_inside(path, label_tokenizer) if label_tokenizer else tokenizer,
        pad=onnx.whole("pad_token_id", 0),
        max_length=usage.max_length,
        positions=max(usage.max_length, min(_LONGEST, config.positions or _LONGEST)),
        label_templates=usage.label_templates,
        calibration=usage.calibration,
        onnx=_graphs(path, config, onnx),
        has_weights=False,
        self_check=_self_check(onnx.section("self_check")),
    )


def _usage(values: Values, config: CheckpointConfig) -> Usage:
    """Read how a model is used."""
    templates = _label_templates(values, config)
    calibration = values.section("calibration")
    single = calibration.section("single")
    max_length = values.whole("max_length", _LEAST_LENGTH)
    if config.positions is not None and max_length > config.positions:
        raise values.wrong("max_length", f"the model has {config.positions} positions")
    return Usage(
        max_length=max_length,
        label_templates=templates,
        calibration=Calibration(
            single_temperature=single.positive("temperature"),
            label_exponent=single.number("label_exponent", 0.0, most=1.0),
            multi_temperature=calibration.section("multi").positive("temperature"),
            multi_bias=calibration.section("multi").number("bias"),
        ),
    )


def _label_templates(values: Values, config: CheckpointConfig) -> tuple[str, ...]:
    """Read the wording of a label, or a list of them."""
    several = isinstance(values.values.get("label_template"), list)
    templates = values.strings("label_template") if several else (values.get("label_template", str),)
    if not templates or len(set(templates)) != len(templates):
        raise values.wrong("label_template", "a wording, or a list of distinct ones, belongs here")
    if not all(LABEL_SLOT in template for template in templates):
        raise values.wrong("label_template", f"it must hold {LABEL_SLOT}")
    if len(templates) > 1 and config.architecture not in BI_ENCODERS:
        raise values.wrong("label_template", "only bi-encoders read a label in several wordings")
    return templates


def _graphs(path: Path, config: CheckpointConfig, onnx: Values) -> OnnxModel:
    if config.architecture == "decoder-kv":
        raise ModelUnusable(f"{path}: a decoder-kv model has no ONNX form")
    bi_encoder = config.architecture in BI_ENCODERS
    scorer_graph = onnx.values.get("scorer_graph") is not None
    outside = config.architecture == "bi-encoder" and not scorer_graph
    return OnnxModel(
        text=_graph(path, onnx, "text_graph"),
        label=_graph(path, onnx, "label_graph") if bi_encoder else None,
        scorer=_graph(path, onnx, "scorer_graph") if scorer_graph else None,
        weights=_weights_of_graphs(path, onnx),
        precision=onnx.one_of("precision", ("fp32", "int8")),
        scale=onnx.section("scorer").positive("scale") if outside else 1.0,
        bias=onnx.section("scorer").number("bias") if outside else 0.0,
    )


def _weights_of_graphs(path: Path, onnx: Values) -> ModelFile | None:
    if onnx.values.get("weights") is None:
        return None
    weights = onnx.section("weights")
    return ModelFile(_inside(path, weights.get("file", str)), weights.get("sha256", str))


def _graph(path: Path, onnx: Values, name: str) -> Graph:
    graph = onnx.section(name)
    inputs = graph.strings("inputs")
    if len(set(inputs)) != len(inputs) or not inputs:
        raise graph.wrong("inputs", "distinct names belong here")
    return Graph(
        path=_inside(path, graph.get("file", str)),
        sha256=graph.get("sha256", str),
        inputs=inputs,
        output=graph.get("output", str),
    )


def _self_check(check: Values) -> SelfCheck:
    labels, logits = check.strings("labels"), check.get("logits", list)
    if not labels or len({label.strip() for label in labels} - {""}) != len(labels):
        raise check.wrong("labels", "distinct labels belong here")
    if not all(type(logit) in (int, float) for logit in logits) or len(logits) != len(labels):
        raise check.wrong("logits", "a number for each of the labels belongs here")
    return SelfCheck(
        text=check.get("text", str),
        labels=labels,
        logits=tuple(float(logit) for logit in logits),
        tolerance=check.positive("tolerance"),
    )


def _published(path: Path, config: CheckpointConfig, precision: str) -> OnnxModel | None:
    """Find ONNX files that others made of a checkpoint: of a uni-encoder, in ``onnx/`` or beside ``config.json``."""
    wanted = ("fp32", "int8") if precision == "auto" else (precision,)
    for kind in wanted:
        for name in _PUBLISHED.get(kind, ()):
            for folder in (path / "onnx", path):
                if not _is(folder / name, stat.S_ISREG):
                    continue
                if config.architecture != "uni-encoder":
                    raise ModelUnusable(f"{folder / name}: published ONNX files are run of uni-encoders only")
                graph = Graph(_inside(folder, name, path), None, ("input_ids", "attention_mask"), "logits")
                return OnnxModel(graph, precision=kind, published=True)
    return None


def _tokenizer(path: Path) -> Path:
    if not _is(path / "tokenizer.json", stat.S_ISREG):
        raise ModelUnusable(
            f"{path}: no tokenizer.json; where transformers is installed, this makes one: python -c "
            f"'import sys, transformers as t; t.AutoTokenizer.from_pretrained(sys.argv[1])"
            f".save_pretrained(sys.argv[1])' {path}"
        )
    return _inside(path, "tokenizer.json")


def _label_tokenizer(
    path: Path, config: CheckpointConfig, tokenizer: Path, find_tokenizer: Callable[[str], Path] | None
) -> Path:
    """Return the tokenizer of the label encoder, which checkpoints name, but do not hold."""
    if config.label_encoder is None:
        return tokenizer
    if _is(path / "label_tokenizer.json", stat.S_ISREG):
        return _inside(path, "label_tokenizer.json")
    if config.label_model_name == config.encoder_model_name:
        return tokenizer
    if find_tokenizer is not None and config.label_model_name:
        return find_tokenizer(config.label_model_name)
    raise ModelUnusable(
        f"{path}: no label_tokenizer.json: copy the tokenizer.json of its label encoder, {config.label_model_name}, "
        "there under that name"
    )


def _pad(values: Values) -> int:
    """Return the padding token; the mask hides it, so that any id of the vocabulary will do."""
    encoder: Mapping[str, Any] = values.get("encoder_config", dict)
    for found in (values.values.get("pad_token_id"), encoder.get("pad_token_id")):
        if type(found) is int and 0 <= found < 2**31:
            return found
    return 0


def _what_is_missing(path: Path) -> str:
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES)
    if pickles:
        return (
            f"holds weights as {pickles[0]} only: such files can run code and are never loaded; "
            "ask for model.safetensors"
        )
    return "no model.safetensors and no ONNX file: this is not a whole model"


def _inside(folder: Path, name: str, model: Path | None = None) -> Path:
    """Return a file of the folder; a name or a link that leads out of the ``model`` (the folder itself) is refused."""
    path = file_inside(folder, name, model)
    if path is None:
        raise ModelUnusable(f"{folder}: config.json names the file {name!r}, which is not in the folder")
    return path


def _is(path: Path, kind: Callable[[int], bool]) -> bool:
    """Tell whether a path, links followed, is there and of a kind; any text may be asked for."""
    try:
        return kind(path.stat().st_mode)
    except (OSError, ValueError):
        return False
