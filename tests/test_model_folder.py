"""Model folders: a sound one is read; of a wrong one, file and key are named before anything is loaded."""

import copy
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gliclass_cli.errors import ModelUnusable
from gliclass_cli.labels import make_labels
from gliclass_cli.model_folder import DEFAULT_MODEL, ModelFolder, file_digest, find_model, read_model_folder
from gliclass_cli.predictions import Calibration

GRAPH = {"file": "model.onnx", "sha256": "0" * 64, "inputs": ["input_ids", "attention_mask"], "output": "embedding"}
BERT = {"model_type": "bert", "hidden_size": 8, "vocab_size": 30, "max_position_embeddings": 512}
CONFIG: dict[str, Any] = {
    "architecture_type": "bi-encoder",
    "pooling_strategy": "first",
    "encoder_config": BERT,
    "label_model_config": BERT,
    "onnx": {
        "format_version": 1,
        "name": "tiny",
        "version": "1",
        "language": ["en", "de"],
        "license": "MIT",
        "precision": "fp32",
        "text_graph": GRAPH,
        "label_graph": GRAPH,
        "tokenizer": "tokenizer.json",
        "pad_token_id": 0,
        "max_length": 512,
        "label_template": "About {label}.",
        "scorer": {"scale": 16, "bias": -11.5},
        "calibration": {
            "single": {"temperature": 0.5, "label_exponent": 0.25},
            "multi": {"temperature": 1, "bias": 0.25},
        },
        "self_check": {"text": "hello", "labels": ["a", "b"], "logits": [1, -0.5], "tolerance": 0.02},
    },
}
# All keys that must be there, as paths.
REQUIRED = [
    *((name,) for name in ("encoder_config", "label_model_config")),
    *(("onnx", name) for name in CONFIG["onnx"]),
    *(("onnx", "scorer", name) for name in ("scale", "bias")),
    ("onnx", "calibration", "single"),
    ("onnx", "calibration", "multi"),
    ("onnx", "calibration", "single", "temperature"),
    *(("onnx", "calibration", "multi", name) for name in ("temperature", "bias")),
    *(("onnx", "self_check", name) for name in ("text", "labels", "logits", "tolerance")),
]
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 600)
    | st.sampled_from([2**31, 10**30, "", "a", "\ud800", "x" * 300, "{label}", "a\0b", "../model.onnx"])
    | st.floats(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text("ab", max_size=2), below, max_size=2),
    max_leaves=4,
)


def make_folder(folder: Path, config: Any = CONFIG) -> Path:
    """Write a model folder whose config is this value (or these bytes), and whose files are there, but empty."""
    folder.mkdir(exist_ok=True)
    for name in ("model.onnx", "tokenizer.json"):
        (folder / name).touch()
    data = config if isinstance(config, bytes) else json.dumps(config).encode()
    (folder / "config.json").write_bytes(data)
    return folder


def changed(path: tuple[str, ...], change: Callable[[dict[str, Any], str], None]) -> dict[str, Any]:
    """The config with one value changed: in both graphs, where it is in the graph."""
    config: dict[str, Any] = json.loads(json.dumps(CONFIG))
    for graph in ("text_graph", "label_graph") if path[1:2] == ("graph",) else (None,):
        section = config
        for name in path[:-1]:
            section = section[graph if graph and name == "graph" else name]
        change(section, path[-1])
    return config


def with_value(path: str, value: Any) -> dict[str, Any]:
    return changed(tuple(path.split(".")), lambda section, name: section.__setitem__(name, value))


def test_a_sound_folder(tmp_path: Path) -> None:
    folder = read_model_folder(make_folder(tmp_path))
    assert (folder.path, folder.name, folder.version, folder.language) == (tmp_path, "tiny", "1", ("en", "de"))
    assert (folder.license, folder.config.architecture) == ("MIT", "bi-encoder")
    onnx = folder.onnx
    assert onnx and onnx.text == onnx.label
    assert onnx.text.path == tmp_path / "model.onnx"
    assert (onnx.text.inputs, onnx.text.output) == (("input_ids", "attention_mask"), "embedding")
    assert (onnx.precision, onnx.scale, onnx.bias) == ("fp32", 16.0, -11.5)
    assert folder.tokenizer == folder.label_tokenizer == tmp_path / "tokenizer.json"
    assert (folder.pad, folder.max_length, folder.positions) == (0, 512, 512)
    assert folder.label_templates == ("About {label}.",)
    assert folder.calibration == Calibration(0.5, 1.0, 0.25, label_exponent=0.25)
    assert folder.usage.to_dict()["calibration"] == CONFIG["onnx"]["calibration"]
    assert folder.self_check
    assert (folder.self_check.labels, folder.self_check.logits) == (("a", "b"), (1.0, -0.5))
    assert folder.size == len(json.dumps(CONFIG))


@pytest.mark.parametrize("path", REQUIRED, ids=".".join)
def test_a_missing_value_is_named(tmp_path: Path, path: tuple[str, ...]) -> None:
    config = changed(path, lambda section, name: section.pop(name))
    with pytest.raises(ModelUnusable, match=rf"{path[-1]}.* is missing") as caught:
        read_model_folder(make_folder(tmp_path, config))
    assert str(tmp_path) in str(caught.value)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("name", GRAPH)
def test_a_missing_value_of_the_graph_is_named(tmp_path: Path, name: str) -> None:
    config = changed(("onnx", "graph", name), lambda section, key: section.pop(key))
    with pytest.raises(ModelUnusable, match=rf"config\.json: onnx\.text_graph\.{name} is missing"):
        read_model_folder(make_folder(tmp_path, config))


@pytest.mark.parametrize("path", REQUIRED, ids=".".join)
@pytest.mark.parametrize("value", [None, {}, [{}], -1.5], ids=repr)
def test_a_value_of_another_type_is_refused(tmp_path: Path, path: tuple[str, ...], value: Any) -> None:
    if path[-1] == "bias" and isinstance(value, float):
        return
    config = changed(path, lambda section, name: section.__setitem__(name, value))
    with pytest.raises(ModelUnusable, match=rf"\.{path[-1]}\b|config\.json: {path[-1]}"):
        read_model_folder(make_folder(tmp_path, config))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("architecture_type", "gpt", r"architecture_type is \"gpt\"; known are uni-encoder, bi-encoder"),
        ("architecture_type", "decoder-kv", "has no ONNX form"),
        ("encoder_config", {"model_type": "bert", "auto_map": {}}, "code from a model's folder is never run"),
        ("onnx.format_version", 2, "format_version 2 is not known"),
        ("onnx.format_version", True, "onnx.format_version is true; a value of type int"),
        ("onnx.label_template", "no slot", r"onnx\.label_template is \"no slot\"; it must hold \{label\}"),
        ("onnx.label_template", [], r"onnx\.label_template is a list; a wording, or a list of distinct ones"),
        (
            "onnx.label_template",
            ["{label}", "{label}"],
            r"onnx\.label_template is a list; a wording, or a list of dist",
        ),
        ("onnx.label_template", ["{label}", "no slot"], r"onnx\.label_template is a list; it must hold \{label\}"),
        ("onnx.label_template", ["{label}", 1], r"onnx\.label_template is a list; a list of strings"),
        ("onnx.precision", "fp8", r"onnx\.precision is \"fp8\"; known are fp32, int8"),
        ("onnx.scorer_graph", "x", r"onnx\.scorer_graph is \"x\""),
        ("onnx.scorer.scale", 0, r"onnx\.scorer\.scale is 0; it must be above 0"),
        ("onnx.scorer.scale", 1e300, r"onnx\.scorer\.scale is 1e\+300"),
        ("onnx.scorer.bias", -1e300, r"onnx\.scorer\.bias is -1e\+300"),
        ("onnx.language", ["en", 1], r"onnx\.language is a list; a list of strings"),
        ("onnx.max_length", 2, r"onnx\.max_length is 2; it must be 3 or more"),
        ("onnx.max_length", -512, r"onnx\.max_length is -512"),
        ("onnx.max_length", 2**40, r"onnx\.max_length is 1099511627776"),
        ("onnx.pad_token_id", -1, r"onnx\.pad_token_id is -1; it must be 0 or more"),
        ("onnx.pad_token_id", 2**63, r"onnx\.pad_token_id is 9223372036854775808"),
        ("onnx.graph.inputs", [], r"onnx\.text_graph\.inputs is a list; distinct names"),
        ("onnx.graph.inputs", ["a", "a"], r"onnx\.text_graph\.inputs is a list; distinct names"),
        ("onnx.graph.inputs", ["a", None], r"onnx\.text_graph\.inputs is a list; a list of strings"),
        ("onnx.calibration.single.temperature", 0, r"onnx\.calibration\.single\.temperature is 0"),
        ("onnx.calibration.multi.temperature", 1e-300, r"onnx\.calibration\.multi\.temperature is 1e-300"),
        (
            "onnx.calibration.single.label_exponent",
            3,
            r"onnx\.calibration\.single\.label_exponent is 3; it must be from -1",
        ),
        ("onnx.calibration.multi.bias", 1e9, r"onnx\.calibration\.multi\.bias is 1000000000"),
        ("onnx.self_check.labels", [], r"onnx\.self_check\.labels is a list; distinct labels"),
        ("onnx.self_check.labels", ["a", "a "], r"onnx\.self_check\.labels is a list; distinct labels"),
        ("onnx.self_check.labels", ["a", " "], r"onnx\.self_check\.labels is a list; distinct labels"),
        ("onnx.self_check.logits", [1], r"onnx\.self_check\.logits is a list; a number for each"),
        ("onnx.self_check.logits", [1, "2"], r"onnx\.self_check\.logits is a list; a number for each"),
        ("onnx.self_check.tolerance", -0.1, r"onnx\.self_check\.tolerance is -0\.1"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, path: str, value: Any, message: str) -> None:
    with pytest.raises(ModelUnusable, match=message) as caught:
        read_model_folder(make_folder(tmp_path, with_value(path, value)))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'"a"', b"\xff\xfe{}", b"[" * 100_000, b'{"onnx": NaN}', b'{"architecture_type": "\\ud800"}'],
)
def test_a_config_that_is_no_json_object(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelUnusable, match=r"config\.json: is not (a )?JSON"):
        read_model_folder(make_folder(tmp_path, content))


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match=r"no config\.json: this is not a model folder"):
        read_model_folder(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelUnusable, match=r"config\.json: is no file of JSON \(a directory, a pipe, or too large\)"):
        read_model_folder(tmp_path)
    (tmp_path / "config.json").rmdir()
    for target in ("/dev/zero", "pipe"):  # one has no end, the other no beginning
        (tmp_path / "config.json").symlink_to(target)
        if target == "pipe":
            os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ModelUnusable, match="is no file of JSON"):
            read_model_folder(tmp_path)
        (tmp_path / "config.json").unlink()


# --- files of the folder, and only of the folder ---------------------------------------------------------------------


@pytest.mark.parametrize("path", ["onnx.tokenizer", "onnx.graph.file"])
@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "sub/file",
        "/etc/hostname",
        "",
        ".",
        "..",
        "missing",
        "sub",
        "x" * 300,
        "a\0b",
        "./model.onnx",
        "link",
        "loop",
        "up/secret",
    ],
)
def test_a_file_outside_of_the_folder_is_refused(tmp_path: Path, path: str, name: str) -> None:
    folder = make_folder(tmp_path / "model", with_value(path, name))
    (tmp_path / "secret").touch()
    (folder / "sub").mkdir()
    (folder / "sub" / "file").touch()
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    with pytest.raises(ModelUnusable, match=r"config\.json names the file .*, which is not in the folder"):
        read_model_folder(folder)


def test_links_that_stay_in_the_folder_or_lead_to_it_will_do(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", with_value("onnx.tokenizer", "link.json"))
    (folder / "link.json").symlink_to("tokenizer.json")
    (tmp_path / "alias").symlink_to(folder)
    assert read_model_folder(folder).tokenizer == folder / "link.json"
    assert read_model_folder(tmp_path / "alias").tokenizer == tmp_path / "alias" / "link.json"


def test_the_cache_of_the_hub_will_do(tmp_path: Path) -> None:
    """It keeps files in ``blobs``; a snapshot is a folder of links to them."""
    blobs = make_folder(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.onnx", "tokenizer.json"):
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert blobs != read_model_folder(snapshot).path


def test_files_that_all_models_of_the_cache_share_will_do(tmp_path: Path) -> None:
    """Newer versions keep the files once for all models: a snapshot's link leads to a link there."""
    (tmp_path / "blobs").mkdir()
    shared = make_folder(tmp_path / "blobs" / "ab")
    blobs, snapshot = (tmp_path / "models--a--b" / name for name in ("blobs", "snapshots/0123"))
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.onnx", "tokenizer.json"):
        (blobs / name).symlink_to(shared / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert read_model_folder(snapshot).tokenizer == snapshot / "tokenizer.json"
    (tmp_path / "secret").touch()
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelUnusable, match="is not in the folder"):
        read_model_folder(snapshot)


# --- any config ------------------------------------------------------------------------------------------------------


def check_whole(folder: ModelFolder) -> None:
    """What is read can be computed with and printed."""
    assert 3 <= folder.max_length < 2**31
    assert folder.max_length <= folder.positions
    assert 0 <= folder.pad < 2**31
    assert folder.onnx
    assert folder.onnx.text.inputs
    assert folder.self_check
    assert len(make_labels(folder.self_check.labels)) == len(folder.self_check.logits)
    numbers = [folder.onnx.scale, folder.onnx.bias, *folder.self_check.logits, folder.calibration.single_temperature]
    assert all(type(number) is float and abs(number) < 1e308 for number in numbers)
    ", ".join([folder.name, folder.version, *folder.language, folder.license, *folder.label_templates]).encode()


@given(path=st.sampled_from([*REQUIRED, *(("onnx", "graph", name) for name in GRAPH)]), value=JSON_VALUES)
def test_any_value_in_any_place_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, path: tuple[str, ...], value: Any
) -> None:
    config = changed(path, lambda section, name: section.__setitem__(name, value))
    folder = make_folder(tmp_path_factory.getbasetemp() / "any-config", config)
    try:
        check_whole(read_model_folder(folder))
    except ModelUnusable as error:
        assert str(folder) in str(error)
        str(error).encode()


@given(
    place=st.integers(0, 2000),
    length=st.integers(0, 30),
    replacement=st.text('{}[]":,1e9 \\u\0').map(str.encode) | st.binary(),
)
def test_any_damage_to_the_config_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, length: int, replacement: bytes
) -> None:
    data = json.dumps(CONFIG).encode()
    place %= len(data)
    folder = tmp_path_factory.getbasetemp() / "any-config"
    try:
        check_whole(read_model_folder(make_folder(folder, data[:place] + replacement + data[place + length :])))
    except ModelUnusable as error:
        assert str(folder) in str(error)


# --- finding, and checking files -------------------------------------------------------------------------------------


def test_find_model(tmp_path: Path) -> None:
    assert find_model(str(tmp_path)) == tmp_path
    bundled = find_model(DEFAULT_MODEL)
    assert bundled and read_model_folder(bundled).name


@pytest.mark.parametrize("name", ["no/such/folder", "x" * 5000, "a\0b", __file__])
def test_what_is_no_folder(name: str) -> None:
    assert find_model(name) is None


def test_file_digest(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"graph")
    assert file_digest(path) == hashlib.sha256(b"graph").hexdigest()
    with pytest.raises(ModelUnusable, match=r"missing\.onnx: No such file"):
        file_digest(tmp_path / "missing.onnx")


def test_only_bi_encoders_read_a_label_in_several_wordings(tmp_path: Path) -> None:
    config = copy.deepcopy(CONFIG)
    config["onnx"]["label_template"] = ["{label}", "About {label}."]
    assert read_model_folder(make_folder(tmp_path, config)).label_templates == ("{label}", "About {label}.")
    for architecture in ("uni-encoder", "encoder-decoder"):
        config["architecture_type"] = architecture
        with pytest.raises(ModelUnusable, match="only bi-encoders read a label in several wordings"):
            read_model_folder(make_folder(tmp_path, config))
