"""Bi-encoders with one encoder for texts and labels: PyTorch, both exports, and the weights read back from int8."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import oracle
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file

from gliclass_cli.backends.pytorch import open_model
from gliclass_cli.checkpoint import parse_checkpoint_config
from gliclass_cli.classifier import Classifier
from gliclass_cli.errors import ModelUnusable
from gliclass_cli.export.convert import Sample, export_model
from gliclass_cli.labels import LabelSet, make_labels
from gliclass_cli.model import save_model
from gliclass_cli.model_folder import ModelFolder, read_model_folder
from gliclass_cli.prompts import Reading
from gliclass_cli.runtime import Runtime

LABELS = make_labels(["sports", "science news", "slow delivery", "food"])
TEXTS = ["the team won its game", "a very good phone", "the order was lost", "fast", "weather and travel in the news"]
SAMPLES = [Sample(text, LABELS) for text in TEXTS]


@pytest.fixture(scope="module", params=["first", "avg"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    path = tmp_path_factory.mktemp("shared") / "tiny"
    oracle.write_shared_encoder(path, request.param)
    return read_model_folder(path)


def test_a_checkpoint_says_how_it_is_used(checkpoint: ModelFolder) -> None:
    assert checkpoint.label_templates == ("It is {label}.",)
    assert checkpoint.max_length == 64
    assert checkpoint.calibration.single_temperature == 0.5
    assert checkpoint.calibration.multi_bias == -1.0


def test_texts_and_labels_go_through_the_same_encoder(checkpoint: ModelFolder) -> None:
    classifier = Classifier.load(checkpoint.path)
    [logit] = classifier.logits("It is food.", make_labels(["food"]))
    assert logit == pytest.approx(12.0 - 3.0, abs=1e-4)  # a text that is the label as it is worded: cosine 1


def test_a_label_in_several_wordings_is_their_mean(checkpoint: ModelFolder, tmp_path: Path) -> None:
    templates = ["It is {label}.", "It is {label}!", "All about {label}"]
    config = json.loads((checkpoint.path / "config.json").read_text("utf-8"))
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((checkpoint.path / name).read_bytes())
    config["inference"]["label_template"] = templates
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    folder = read_model_folder(tmp_path)
    assert folder.label_templates == tuple(templates)
    assert read_model_folder(tmp_path).usage.to_dict()["label_template"] == templates

    def cosines(**reading: Any) -> np.ndarray[Any, Any]:
        """Of each text with each label; the model's logits are 12 times that, less 3."""
        classifier = Classifier.load(tmp_path, Reading(**reading))
        return np.array([(classifier.logits(text, LABELS) + 3) / 12 for text in TEXTS])

    alone = [cosines(template=template) for template in templates]
    apart = [Classifier.load(tmp_path, Reading(template=template)) for template in templates]
    vectors = [one._prepare(LABELS)[1].groups[0].vectors for one in apart]
    lengths = np.linalg.norm(np.mean(vectors, axis=0), axis=1)
    assert (lengths < 1 - 1e-4).all()  # the wordings differ: the mean has to be made as long as they are
    assert cosines() == pytest.approx(np.mean(alone, axis=0) / lengths, abs=1e-5)
    # An export takes the wordings with it, and gives the same.
    export_model(folder, tmp_path / "onnx", SAMPLES, precision="fp32")
    assert Classifier.load(tmp_path / "onnx").logits(TEXTS[0], LABELS) == pytest.approx(
        Classifier.load(tmp_path).logits(TEXTS[0], LABELS), abs=1e-4
    )
    assert read_model_folder(tmp_path / "onnx").label_templates == tuple(templates)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("int8", 0.5)])
def test_exports_equal_pytorch(checkpoint: ModelFolder, tmp_path: Path, precision: Any, tolerance: float) -> None:
    export_model(checkpoint, tmp_path / "onnx", SAMPLES, precision=precision)
    exported = read_model_folder(tmp_path / "onnx")
    assert exported.onnx and exported.onnx.label
    one = exported.onnx.text.path == exported.onnx.label.path  # one graph serves both
    assert one == (precision == "fp32")
    assert exported.usage == checkpoint.usage
    assert "inference" not in json.loads((tmp_path / "onnx" / "config.json").read_text("utf-8"))
    ours, theirs = Classifier.load(tmp_path / "onnx"), Classifier.load(checkpoint.path)
    for text in TEXTS:
        assert ours.logits(text, LABELS) == pytest.approx(theirs.logits(text, LABELS), abs=tolerance)


def test_int8_reads_labels_with_the_same_weights_and_exact_activations(checkpoint: ModelFolder, tmp_path: Path) -> None:
    export_model(checkpoint, tmp_path / "onnx", SAMPLES, precision="int8")

    def vectors(name: Path, backend: Any = "onnx", labels: LabelSet = LABELS) -> np.ndarray[Any, Any]:
        classifier = Classifier.load(name, None, Runtime(backend=backend))
        return np.asarray(classifier._prepare(labels)[1].groups[0].vectors)

    found = vectors(tmp_path / "onnx")
    assert found == pytest.approx(vectors(tmp_path / "onnx", "torch"), abs=1e-4)  # int8 weights read back, no rounding
    alone = [vectors(tmp_path / "onnx", labels=make_labels([name]))[0] for name in LABELS.names]
    assert found == pytest.approx(np.stack(alone), abs=1e-6)
    # The weights are not stored twice: both graphs name them in one file, which anyone can read.
    stored = load_file(tmp_path / "onnx" / "weights.safetensors")
    for role in ("text", "label"):
        constants = onnx.load(str(tmp_path / "onnx" / f"{role}.onnx"), load_external_data=False).graph.initializer
        assert all(len(constant.raw_data) < 1024 for constant in constants)
        whole = onnx.load(str(tmp_path / "onnx" / f"{role}.onnx")).graph.initializer
        large = {constant.name: numpy_helper.to_array(constant) for constant in whole if len(constant.raw_data) >= 1024}
        assert large and all(np.array_equal(stored[name], value) for name, value in large.items())
    config = json.loads((tmp_path / "onnx" / "config.json").read_text("utf-8"))
    config["onnx"]["label_graph"] = config["onnx"]["text_graph"]
    (tmp_path / "onnx" / "config.json").write_text(json.dumps(config), "utf-8")
    exact = vectors(checkpoint.path, "torch")
    assert np.abs(found - exact).mean() < np.abs(vectors(tmp_path / "onnx") - exact).mean()


def test_weights_come_back_from_an_int8_graph(checkpoint: ModelFolder, tmp_path: Path) -> None:
    export_model(checkpoint, tmp_path / "onnx", SAMPLES, precision="int8")
    back = Classifier.load(tmp_path / "onnx", None, Runtime(backend="torch"))
    int8, exact = Classifier.load(tmp_path / "onnx"), Classifier.load(checkpoint.path)
    for text in TEXTS:
        logits = back.logits(text, LABELS)
        assert logits == pytest.approx(exact.logits(text, LABELS), abs=0.4)
        assert logits == pytest.approx(int8.logits(text, LABELS), abs=0.4)
    # What was restored is a checkpoint like any other.
    folder = read_model_folder(tmp_path / "onnx").as_checkpoint()
    save_model(open_model(folder, "cpu"), tmp_path / "again")
    (tmp_path / "again" / "tokenizer.json").write_bytes(folder.tokenizer.read_bytes())
    again = Classifier.load(tmp_path / "again")
    assert again.logits(TEXTS[0], LABELS) == pytest.approx(back.logits(TEXTS[0], LABELS), abs=1e-4)


def test_other_graphs_are_not_read_back(tmp_path: Path) -> None:
    case = next(case for case in oracle.CASES if case.architecture == "bi-encoder" and case.scorer == "simple")
    oracle.write_checkpoint(case, tmp_path / "tiny")
    export_model(read_model_folder(tmp_path / "tiny"), tmp_path / "onnx", SAMPLES, precision="fp32")
    with pytest.raises(ModelUnusable, match="holds ONNX files only"):
        Classifier.load(tmp_path / "onnx", None, Runtime(backend="torch"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorer_type": "mlp"}, "shared_encoder is true; it belongs to a bi-encoder with the scorer simple"),
        ({"architecture_type": "uni-encoder"}, "shared_encoder is true; it belongs to a bi-encoder"),
        ({"shared_encoder": 1}, "shared_encoder is 1; a value of type bool belongs here"),
    ],
)
def test_what_a_shared_encoder_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelUnusable) as caught:
        parse_checkpoint_config(oracle.shared_encoder_config("first", 100) | changes, "config.json")
    assert message in str(caught.value)


def test_usage_is_checked(checkpoint: ModelFolder, tmp_path: Path) -> None:
    raw = json.loads((checkpoint.path / "config.json").read_text("utf-8"))
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((checkpoint.path / name).read_bytes())
    for key, value in (("label_template", "no slot"), ("max_length", 10_000), ("calibration", None)):
        raw_changed = {**raw, "inference": {**raw["inference"], key: value}}
        (tmp_path / "config.json").write_text(json.dumps(raw_changed), "utf-8")
        with pytest.raises(ModelUnusable, match=f"inference.{key}"):
            read_model_folder(tmp_path)
    assert np.isfinite(Classifier.load(checkpoint.path).logits("x", LABELS)).all()
