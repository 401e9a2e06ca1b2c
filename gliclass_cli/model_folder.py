"""The folder of an exported GLiClass model: ``config.json``, a tokenizer and ONNX graphs.

``config.json`` is that of an official GLiClass checkpoint (``architecture_type``, ``pooling_strategy``, ...) with
one more section, ``onnx``, that says how to run the exported graphs:

    name, version, language, license     what the model is
    precision                            fp32 | int8
    text_graph, label_graph              {file, sha256, inputs, output}; a graph that scores labels itself has no
                                         label_graph
    tokenizer, special_tokens            file name; ids by role: cls, sep, pad, label ...
    max_length                           tokens of one input, special ones included
    prompt                               {layout, text, label}: which token goes where, and the label's wording
    scorer                               {in_graph, type, scale, bias}: logit = scale * cosine + bias
    label_cache                          true where labels can be encoded without the text, once for all texts
    calibration                          {single: {temperature}, multi: {temperature, bias}}
    self_check                           {text, labels, logits, tolerance}: what a sound installation answers
"""

import hashlib
import json
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gliclass_cli.errors import ModelUnusable
from gliclass_cli.predictions import Calibration
from gliclass_cli.prompts import LABEL_SLOT

DEFAULT_MODEL = "default"
FORMAT_VERSION = 1
_LEAST_LENGTH = 3  # tokens: a word between the two special ones
_BUNDLED = Path(__file__).parent / "default_model"


@dataclass(frozen=True, slots=True)
class Graph:
    """One ONNX file of a model, and the names of what goes in and comes out."""

    path: Path
    sha256: str
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """A text, labels, and the logits that a sound installation gives them, to ``tolerance``."""

    text: str
    labels: tuple[str, ...]
    logits: tuple[float, ...]
    tolerance: float


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a model's ``config.json`` says, checked."""

    path: Path
    name: str
    version: str
    language: tuple[str, ...]
    license: str
    architecture: str
    precision: str
    graph: Graph
    tokenizer: Path
    special_tokens: Mapping[str, int]
    max_length: int
    label_template: str
    scale: float
    bias: float
    calibration: Calibration
    self_check: SelfCheck

    @property
    def size(self) -> int:
        """Bytes of all files of the folder."""
        return sum(file.stat().st_size for file in self.path.iterdir() if file.is_file())


def find_model(name: str) -> Path:
    """Return the folder of ``default`` (the bundled model) or of a path. Raises ModelUnusable."""
    if name == DEFAULT_MODEL:
        return _BUNDLED
    path = Path(name)
    if not _is(path, stat.S_ISDIR):
        raise ModelUnusable(
            f"no model {name!r}: give {DEFAULT_MODEL!r} (the bundled model) or a folder with a config.json"
        )
    return path


def read_model_folder(path: Path) -> ModelFolder:
    """Read and check ``config.json``; no graph is loaded.

    Raises:
        ModelUnusable: a file or value is missing or wrong; the message names it.
    """
    config = _Values(_read_config(path / "config.json"), str(path / "config.json"), "")
    if "onnx" not in config.values:
        raise ModelUnusable(f"{path}: config.json has no section 'onnx': this is not an exported model")
    onnx = config.section("onnx")
    version = onnx.get("format_version", int)
    if version != FORMAT_VERSION:
        raise ModelUnusable(f"{path}: format_version {version} is not known; this program knows {FORMAT_VERSION}")
    architecture = config.get("architecture_type", str)
    prompt, scorer = onnx.section("prompt"), onnx.section("scorer")
    if architecture != "bi-encoder" or prompt.get("layout", str) != "bi-encoder" or scorer.get("in_graph", bool):
        raise ModelUnusable(
            f"{path}: only bi-encoders that are scored outside the graph can be run, not {architecture}"
        )
    template = prompt.get("label", str)
    if LABEL_SLOT not in template:
        raise ModelUnusable(f"{path}: onnx.prompt.label has no {LABEL_SLOT}")
    calibration = onnx.section("calibration")
    return ModelFolder(
        path=path,
        name=onnx.get("name", str),
        version=onnx.get("version", str),
        language=onnx.strings("language"),
        license=onnx.get("license", str),
        architecture=architecture,
        precision=onnx.get("precision", str),
        graph=_graph(path, onnx),
        tokenizer=_inside(path, onnx.get("tokenizer", str)),
        special_tokens={name: onnx.section("special_tokens").whole(name, 0) for name in ("cls", "sep", "pad")},
        max_length=onnx.whole("max_length", _LEAST_LENGTH),
        label_template=template,
        scale=scorer.positive("scale"),
        bias=scorer.number("bias"),
        calibration=Calibration(
            single_temperature=calibration.section("single").positive("temperature"),
            multi_temperature=calibration.section("multi").positive("temperature"),
            multi_bias=calibration.section("multi").number("bias"),
        ),
        self_check=_self_check(onnx.section("self_check")),
    )


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises ModelUnusable."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelUnusable(f"{path}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class _Values:
    """A JSON object whose values are taken by name and type; what is wrong is named by file and path."""

    values: Mapping[str, Any]
    file: str
    prefix: str

    def get(self, name: str, kind: type) -> Any:
        """Return a value of a type; an int will do as a float."""
        value = self.values.get(name)
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise self.wrong(name, f"a value of type {kind.__name__} belongs here")
        return value

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

    def number(self, name: str) -> float:
        """Return a number with which logits can be computed."""
        value: float = self.get(name, float)
        if not -1e6 < value < 1e6:
            raise self.wrong(name, "it must be from -1e6 to 1e6")
        return value

    def whole(self, name: str, least: int) -> int:
        """Return a whole number of at least ``least``."""
        value: int = self.get(name, int)
        if not least <= value < 2**31:
            raise self.wrong(name, f"it must be {least} or more")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        """Return a list of strings."""
        values = self.get(name, list)
        if not all(isinstance(value, str) for value in values):
            raise self.wrong(name, "a list of strings belongs here")
        return tuple(values)

    def section(self, name: str) -> "_Values":
        """Return an object inside."""
        return _Values(self.get(name, dict), self.file, f"{self.prefix}{name}.")


def _read_config(path: Path) -> Mapping[str, Any]:
    import orjson  # not for --help

    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelUnusable(f"{path.parent}: no config.json: this is not a model folder") from error
    except OSError as error:
        raise ModelUnusable(f"{path}: cannot be read: {error.strerror}") from error
    except orjson.JSONDecodeError as error:
        raise ModelUnusable(f"{path}: is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelUnusable(f"{path}: is not a JSON object")
    return value


def _graph(path: Path, onnx: _Values) -> Graph:
    text, label = onnx.section("text_graph"), onnx.section("label_graph")
    if text.values != label.values:
        raise ModelUnusable(f"{path}: text_graph and label_graph differ; only tied encoders can be run")
    inputs = text.strings("inputs")
    if len(set(inputs)) != 2:
        raise text.wrong("inputs", "two names belong here: of the token ids and of their mask")
    return Graph(
        path=_inside(path, text.get("file", str)),
        sha256=text.get("sha256", str),
        inputs=inputs,
        output=text.get("output", str),
    )


def _self_check(check: _Values) -> SelfCheck:
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


def _inside(folder: Path, name: str) -> Path:
    """Return a file of the folder; a name or a link that leads out of it is refused."""
    path = folder / name
    if Path(name).name == name and _is(path, stat.S_ISREG):
        home = folder.resolve()
        # The cache of the Hugging Face hub keeps files in ``blobs``, to which its snapshots link.
        if path.resolve().parent in (home, home.parents[min(1, len(home.parents) - 1)] / "blobs"):
            return path
    raise ModelUnusable(f"{folder}: config.json names the file {name!r}, which is not in the folder")


def _is(path: Path, kind: Callable[[int], bool]) -> bool:
    """Tell whether a path, links followed, is there and of a kind; any text may be asked for."""
    try:
        return kind(path.stat().st_mode)
    except (OSError, ValueError):
        return False
