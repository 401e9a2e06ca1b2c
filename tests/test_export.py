"""Exported models: equal to PyTorch for every architecture and switch, blind to company, refused where they disagree."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import oracle
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from gliclass_cli.backends.onnx import OnnxBackend
from gliclass_cli.backends.pytorch import TorchBackend
from gliclass_cli.classifier import Classifier
from gliclass_cli.cli.app import app
from gliclass_cli.composer import Composer, Prompt
from gliclass_cli.decoding import Floats
from gliclass_cli.errors import ModelUnusable, UsageProblem
from gliclass_cli.export import convert
from gliclass_cli.export.builder import Builder, Precision
from gliclass_cli.export.convert import ParityReport, Sample, builtin_sample, export_model, read_sample, report_lines
from gliclass_cli.labels import make_labels, parse_labels
from gliclass_cli.loading import open_backend
from gliclass_cli.model_folder import ModelFolder, file_digest, read_model_folder
from gliclass_cli.predictions import Choice
from gliclass_cli.prompts import Example, Reading
from gliclass_cli.runtime import Runtime
from gliclass_cli.scoring import Scorer

CASES = [case for case in oracle.CASES if case.architecture != "decoder-kv"]
UNI = next(case for case in CASES if case.name == "uni/bert/all")
TEXTS = ["fast delivery", "the team won its game and the phone was lost", "good " * 40]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    folder = tmp_path_factory.mktemp("uni") / "tiny"
    oracle.write_checkpoint(UNI, folder)
    return read_model_folder(folder)


@pytest.fixture(scope="module")
def exported(checkpoint: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFolder, ParityReport]:
    output = tmp_path_factory.mktemp("exported") / "tiny-onnx"
    report = export_model(checkpoint, output, builtin_sample(), precision="fp32")
    return read_model_folder(output), report


def prompts_of(folder: ModelFolder, scorer: Scorer, case: oracle.Case) -> Iterator[Prompt]:
    """The prompts of all requests of a case: of different lengths and numbers of labels."""
    for name in case.requests:
        request = oracle.REQUESTS[name]
        if request.examples and case.architecture == "bi-encoder":
            continue
        examples = tuple(Example(example["text"], tuple(example["labels"])) for example in request.examples)
        composer = Composer(folder, Reading(prompt=request.prompt, examples=examples))
        prepared = scorer.prepare(composer.labels(parse_labels(request.labels)))
        yield composer.compose([request.text], prepared)[0].prompts[0]


def scores(folder: ModelFolder, backend: Any, case: oracle.Case) -> tuple[Floats, Floats]:
    """The logits of all requests of a case, each by itself and all in one batch."""
    scorer = Scorer(folder, backend)
    prompts = list(prompts_of(folder, scorer, case))
    alone = np.concatenate([scorer.score([prompt])[0] for prompt in prompts])
    return alone, np.concatenate(scorer.score(prompts))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_graphs_equal_pytorch_and_do_not_depend_on_company(case: oracle.Case, tmp_path: Path) -> None:
    oracle.write_checkpoint(case, tmp_path / "checkpoint")
    folder = read_model_folder(tmp_path / "checkpoint")
    torch = TorchBackend(folder, device="cpu", precision="fp32", threads=1)
    exact, together = scores(folder, torch, case)
    size = max(1.0, float(np.abs(exact).max()))
    assert together == pytest.approx(exact, abs=1e-5 * size)
    precisions: tuple[tuple[Precision, float], ...] = (("fp32", 1e-4), ("int8", 0.3 * size))
    for precision, tolerance in precisions:
        graphs = convert._write(folder, torch.model, tmp_path / precision, precision)
        alone, together = scores(graphs, open_backend(graphs), case)
        assert alone == pytest.approx(exact, abs=tolerance)
        assert together == pytest.approx(alone, abs=1e-5 * size)


def test_an_exported_model_runs_without_pytorch_and_says_what_it_is(
    exported: tuple[ModelFolder, ParityReport], checkpoint: ModelFolder
) -> None:
    folder, report = exported
    assert report.logit_difference < 1e-4
    assert (report.texts, report.precision, report.agreement) == (len(builtin_sample()), "fp32", None)
    assert report.megabytes == pytest.approx(folder.size / 1e6, rel=0.01)
    names = sorted(path.name for path in folder.path.iterdir())
    assert names == ["config.json", "text.onnx", "tokenizer.json", "weights.safetensors"]
    assert folder.onnx and folder.onnx.weights
    assert {file.path.name for file in folder.onnx.files} == {"text.onnx", "weights.safetensors"}
    assert all(file.sha256 == file_digest(file.path) for file in folder.onnx.files)
    assert not folder.has_weights
    config = json.loads((folder.path / "config.json").read_text())
    assert config["onnx"]["parity"]["logit_difference"] == report.logit_difference
    assert {**config, "onnx": None} == {**checkpoint.config.raw, "onnx": None}  # nothing of the checkpoint is lost
    classifier = Classifier.load(folder.path)
    assert classifier.self_check() < 1e-4
    theirs = Classifier.load(checkpoint.path).predict(TEXTS, ["sports", "shipping"], Choice(digits=9))
    ours = classifier.predict(TEXTS, ["sports", "shipping"], Choice(digits=9))
    for one, other in zip(ours, theirs, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-4)


def test_int8_reports_how_often_it_decides_alike(checkpoint: ModelFolder, tmp_path: Path) -> None:
    report = export_model(checkpoint, tmp_path / "out", builtin_sample(), precision="int8")
    assert report.agreement is not None and report.agreement > 0.8
    assert report.multi_agreement and report.score_difference is not None
    folder = read_model_folder(tmp_path / "out")
    assert folder.onnx and folder.onnx.precision == "int8"
    assert Classifier.load(tmp_path / "out").self_check() < 1e-3


def test_int8_leaves_the_layer_in_float32_that_it_harms_most(checkpoint: ModelFolder, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint.path, broken)
    weights = load_file(broken / "model.safetensors")
    # The same function, but for a residual: one channel is small, its weights are so large that no others are left.
    [layer] = [name.partition("intermediate")[0] for name in weights if "layer.1.intermediate.dense.weight" in name]
    weights[f"{layer}intermediate.dense.weight"][:, 0] *= 3_000
    for name in ("weight", "bias"):
        weights[f"{layer}attention.output.LayerNorm.{name}"][0] /= 3_000
    save_file(weights, broken / "model.safetensors")
    samples = builtin_sample()[:40]
    report = export_model(read_model_folder(broken), tmp_path / "out", samples, precision="int8")
    assert report.exact_layers == (1,)
    assert "stay in fp32" in report_lines(report)[-2]
    graph = onnx.load(tmp_path / "out" / "text.onnx").graph
    assert sum(node.op_type == "MatMulIntegerToFloat" for node in graph.node) == 6  # those of the other layer
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert config["onnx"]["parity"]["exact_layers"] == [1]


def test_int8_that_decides_otherwise_is_not_kept(
    checkpoint: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gliclass_cli.export.builder._WEIGHT_LEVELS", 1)  # as if weights had two bits
    with pytest.raises(ModelUnusable, match=r"int8 changes the best label of \d+% of 127 texts"):
        export_model(checkpoint, tmp_path / "out", builtin_sample(), precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_disagrees_is_not_kept(
    checkpoint: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer_norm = Builder.layer_norm

    def wrong(self: Builder, tokens: str, weight: Floats, bias: Floats | None, epsilon: float) -> str:
        return layer_norm(self, tokens, weight * 1.01, bias, epsilon)

    monkeypatch.setattr(Builder, "layer_norm", wrong)
    with pytest.raises(ModelUnusable, match="the exported graph disagrees with PyTorch: a logit differs by"):
        export_model(checkpoint, tmp_path / "out", builtin_sample(), precision="fp32")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(checkpoint: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageProblem, match="is there already"):
        export_model(checkpoint, tmp_path / "out", builtin_sample(), precision="fp32")


def test_a_folder_of_someone_else_is_not_touched(checkpoint: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "out.part").mkdir()
    (tmp_path / "out.part" / "mine").touch()
    with pytest.raises(UsageProblem, match=r"out\.part: is there already"):
        export_model(checkpoint, tmp_path / "out", builtin_sample()[:2], precision="fp32")
    assert (tmp_path / "out.part" / "mine").exists()


def test_a_label_of_the_sample_that_is_too_long_is_named(checkpoint: ModelFolder, tmp_path: Path) -> None:
    sample = tmp_path / "sample.jsonl"
    sample.write_text(json.dumps({"text": "x", "labels": ["a " * 3000, "b"]}) + "\n")
    result = gliclass("export", str(checkpoint.path), str(tmp_path / "out"), "--sample", str(sample))
    assert (result.exit_code, f"{sample}: label " in result.stderr) == (2, True)
    sample.write_text('{"text": null, "labels": ["a", "b"]}\n')
    result = gliclass("export", str(checkpoint.path), str(tmp_path / "out"), "--sample", str(sample))
    assert (result.exit_code, f"{sample}:1: " in result.stderr) == (2, True)


@pytest.mark.parametrize("name", ["decoder-kv", "roberta"])
def test_what_cannot_be_exported_says_so(tmp_path: Path, name: str) -> None:
    decoder = next(case for case in oracle.CASES if case.architecture == "decoder-kv")
    case = decoder if name == "decoder-kv" else UNI
    oracle.write_checkpoint(case, tmp_path / "checkpoint")
    folder = read_model_folder(tmp_path / "checkpoint")
    if name == "roberta":
        from gliclass_cli.export.graphs import build_graphs

        with pytest.raises(ModelUnusable, match="over roberta cannot be exported, only over bert"):
            build_graphs(folder.config, {}, {"model_type": "roberta"}, None)
        return
    with pytest.raises(ModelUnusable, match="decoder-kv model cannot be exported; --backend torch runs"):
        export_model(folder, tmp_path / "out", builtin_sample()[:2], precision="fp32")
    assert not (tmp_path / "out.part").exists()


def test_the_builtin_sample_is_real_text_of_many_kinds() -> None:
    samples = builtin_sample()
    assert len(samples) > 100
    assert len({sample.labels.names for sample in samples}) >= 4
    assert max(len(sample.text.split()) for sample in samples) > 150
    assert read_sample('{"text": "a", "labels": ["b"]}\n\n') == [Sample("a", make_labels(["b"]))]


# --- ONNX files that others published --------------------------------------------------------------------------------


def publish(checkpoint: ModelFolder, folder: Path, *, slots: int | None, length: int | None = None) -> Path:
    """Write a folder as others publish it: the checkpoint's files, and a graph with a fixed number of logits."""
    import onnx
    from onnx import helper, numpy_helper

    torch = TorchBackend(checkpoint, device="cpu", precision="fp32", threads=1)
    part = convert._write(checkpoint, torch.model, folder.parent / f"{folder.name}.graph", "fp32")
    assert part.onnx
    model = onnx.load(part.onnx.text.path)
    if slots is not None:  # pad the logits with a constant, as a traced graph does
        widths = numpy_helper.from_array(np.array([0, 0, 0, slots]), "widths")
        level = numpy_helper.from_array(np.array(0.5, np.float32), "level")
        ends = [numpy_helper.from_array(np.array([n]), name) for n, name in ((0, "from"), (slots, "to"), (1, "axis"))]
        model.graph.initializer.extend([widths, level, *ends])
        model.graph.node[-1].output[0] = "free"
        model.graph.node.append(helper.make_node("Pad", ["free", "widths", "level"], ["wide"]))
        model.graph.node.append(helper.make_node("Slice", ["wide", "from", "to", "axis"], ["logits"]))
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = slots
    if length is not None:
        for item in model.graph.input:
            item.type.tensor_type.shape.dim[0].dim_value = 1
            item.type.tensor_type.shape.dim[1].dim_value = length
    shutil.copytree(checkpoint.path, folder)
    (folder / "model.safetensors").unlink()
    (folder / "onnx").mkdir()
    onnx.save(model, folder / "onnx" / "model.onnx")
    return folder


@pytest.mark.parametrize(("slots", "length"), [(4, None), (None, None), (4, 64)])
def test_published_graphs_run(checkpoint: ModelFolder, tmp_path: Path, slots: int | None, length: int | None) -> None:
    folder = publish(checkpoint, tmp_path / "published", slots=slots, length=length)
    theirs, ours = Classifier.load(folder), Classifier.load(checkpoint.path)
    labels = ["sports", "politics", "shipping"]
    for one, other in zip(
        theirs.predict(TEXTS, labels, Choice(digits=9)), ours.predict(TEXTS, labels, Choice(digits=9)), strict=True
    ):
        assert one.scores == pytest.approx(other.scores, abs=1e-5)
    if slots is not None:  # more labels than slots are read in groups
        many = oracle._WORDS[:10]
        [prediction] = theirs.predict(["fast delivery"], many)
        assert prediction.coverage.label_groups == 3
        assert prediction.scores and len(prediction.scores) == 10
    if length is not None:
        [prediction] = theirs.predict(["good " * 300], labels)
        assert prediction.coverage.truncated and prediction.coverage.truncated.limit == 64


def test_a_published_graph_reads_data_of_its_own_folder_only(checkpoint: ModelFolder, tmp_path: Path) -> None:
    folder = publish(checkpoint, tmp_path / "published", slots=None) / "onnx"
    model = onnx.load(folder / "model.onnx")
    name = "model.onnx_data"
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location=name, size_threshold=256)
    assert (folder / name).stat().st_size
    Classifier.load(folder.parent).predict(["a text"], ["sports", "politics"])
    moved = (folder / name).rename(tmp_path / "secret")
    for location in ("../../secret", str(moved), "*/_ORT_MEM_ADDR_/*", name):
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = location if entry.key == "location" else entry.value
        (folder / "evil").write_bytes(model.SerializeToString())
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(moved)  # the last one is a link out of the folder
        (folder / "evil").replace(folder / "model.onnx")
        with pytest.raises(ModelUnusable, match="ONNX Runtime cannot load it"):
            Classifier.load(folder.parent)


def test_a_published_graph_that_mixes_rows_computes_each_by_itself(checkpoint: ModelFolder, tmp_path: Path) -> None:
    """Dynamic int8 takes one scale over a batch; alone, a row's score is its own."""
    from onnxruntime.quantization import quantize_dynamic

    folder = publish(checkpoint, tmp_path / "published", slots=None)
    names = [folder / "onnx" / name for name in ("model.onnx", "model_quantized.onnx")]
    quantize_dynamic(*names, op_types_to_quantize=["MatMul", "Gemm"], extra_options={"DefaultTensorType": 1})
    found = read_model_folder(folder, precision="int8")
    assert found.onnx and found.onnx.text.path.name == "model_quantized.onnx"
    classifier = Classifier.load(folder, runtime=Runtime(precision="int8"))
    assert classifier._scorer.backend.alone
    labels = ["sports", "shipping"]
    together = classifier.predict(TEXTS, labels, Choice(digits=9))
    alone = [classifier.predict([text], labels, Choice(digits=9))[0] for text in TEXTS]
    assert together == alone
    assert not Classifier.load(folder)._scorer.backend.alone  # fp32 is preferred, and batches


def test_a_graph_with_other_inputs_is_refused(exported: tuple[ModelFolder, ParityReport], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported[0].path, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["onnx"]["text_graph"]["inputs"] = ["ids", "attention_mask"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnusable, match="its inputs are attention_mask, input_ids, not ids, attention_mask"):
        Classifier.load(folder)
    config["onnx"]["text_graph"] |= {"inputs": ["input_ids", "attention_mask"], "output": "scores"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnusable, match="it has no output scores"):
        Classifier.load(folder)


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        ("ReduceMax", r"scores of shape \(\) came out for 1 texts of 2 labels"),
        ("Flatten", r"scores of shape \(1, 1, .*\) came out|cannot load it"),
        ("Log", "scores that are no numbers"),
    ],
)
def test_a_graph_whose_output_is_no_score_is_refused(
    exported: tuple[ModelFolder, ParityReport], tmp_path: Path, operator: str, message: str
) -> None:
    import onnx
    from onnx import helper

    folder = Path(shutil.copytree(exported[0].path, tmp_path / "model"))
    model = onnx.load(folder / "text.onnx")
    model.graph.node[-1].output[0] = "free"
    if operator == "ReduceMax":
        model.graph.node.append(helper.make_node("ReduceMax", ["free"], ["logits"], keepdims=0))
    elif operator == "Flatten":
        model.graph.node.append(helper.make_node("Unsqueeze", ["free", "constant.int64.(1,).[0]"], ["logits"]))
    else:  # of minus a square: never a number
        model.graph.node.append(helper.make_node("Mul", ["free", "free"], ["square"]))
        model.graph.node.append(helper.make_node("Neg", ["square"], ["less"]))
        model.graph.node.append(helper.make_node("Log", ["less"], ["logits"]))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, folder / "text.onnx")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["onnx"]["text_graph"]["sha256"] = file_digest(folder / "text.onnx")
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelUnusable, match=message):
        Classifier.load(folder).predict(["fast delivery"], ["sports", "shipping"])


def test_the_backend_says_what_it_is(exported: tuple[ModelFolder, ParityReport], checkpoint: ModelFolder) -> None:
    assert Classifier.load(exported[0].path).backend == f"ONNX Runtime {onnxruntime.__version__}, CPU, fp32"
    assert Classifier.load(checkpoint.path).backend.startswith("PyTorch ")
    assert isinstance(open_backend(exported[0]), OnnxBackend)


# --- the command -----------------------------------------------------------------------------------------------------


def gliclass(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_the_command_exports_and_the_result_classifies(checkpoint: ModelFolder, tmp_path: Path) -> None:
    output = tmp_path / "onnx"
    result = gliclass("export", str(checkpoint.path), str(output))
    assert result.exit_code == 0
    assert result.stderr == "gliclass: building the graphs, and comparing them with PyTorch on 127 texts ...\n"
    assert "fp32 against PyTorch: largest difference of a logit" in result.stdout
    tagged = gliclass("tag", "fast delivery", "-l", "sports", "-l", "shipping", "--model", str(output))
    assert tagged.exit_code == 0
    assert json.loads(tagged.stdout)["prediction"]["label"] in ("sports", "shipping")
    assert gliclass("doctor", "--model", str(output)).exit_code == 0
    again = gliclass("export", str(checkpoint.path), str(output))
    assert (again.exit_code, "is there already" in again.stderr) == (2, True)
    info = json.loads(gliclass("models", "info", str(output), "--json").stdout)
    assert (info["runs_on"], info["architecture"], info["backbone"]) == ("ONNX Runtime", "uni-encoder", "bert")
    other = gliclass("export", str(output), str(tmp_path / "other"))
    assert (other.exit_code, "only checkpoints are exported" in other.stderr) == (4, True)
    torch = gliclass("tag", "x", "-l", "a", "-l", "b", "--model", str(output), "--backend", "torch")
    assert (torch.exit_code, "needs the checkpoint" in torch.stderr) == (4, True)


def test_the_command_takes_a_sample(checkpoint: ModelFolder, tmp_path: Path) -> None:
    sample = tmp_path / "sample.jsonl"
    sample.write_text('{"text": "fast delivery", "labels": ["sports", "shipping"]}\n{"text": "won", "labels": "a|b"}\n')
    result = gliclass("export", str(checkpoint.path), str(tmp_path / "a"), "--sample", str(sample), "--json")
    report = json.loads(result.stdout)
    assert (report["texts"], report["logits"]) == (2, 4)
    sample.write_text("fast delivery\nthe team won\n")
    plain = gliclass("export", str(checkpoint.path), str(tmp_path / "b"), "--sample", str(sample), "-l", "x", "-l", "y")
    assert "compared on 2 texts, 4 logits" in plain.stdout
    unlabelled = gliclass("export", str(checkpoint.path), str(tmp_path / "c"), "--sample", str(sample))
    assert unlabelled.exit_code == 2
    assert f"{sample}:1: needs a text and labels" in unlabelled.stderr


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gliclass_cli.cli.export.find_spec", lambda name: None)
    result = gliclass("export", "x", str(tmp_path / "out"))
    assert result.exit_code == 4
    assert "pip install 'gliclass-cli[torch,export]'" in result.stderr
