"""Checkpoints at the command line: what a user meets, and what a hostile text, label or folder does (nothing)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracle
import pytest
from typer.testing import CliRunner

from gliclass_cli.cli.app import app

KINDS = {
    "uni-encoder": "uni/deberta-v2/all",
    "text-first": "uni/bert/mlp/text-first",
    "bi-encoder": "bi-encoder/bert/first/mlp",
    "bi-encoder-fused": "bi-encoder-fused/bert/first/mlp",
    "encoder-decoder": "encoder-decoder/t5/first/simple",
    "encoder-decoder-cls": "encoder-decoder-cls/t5/first/simple",
    "decoder-kv": "decoder-kv/plain",
}
LABELS = ("-l", "sports", "-l", "politics", "-l", "shipping")


def case_of(kind: str) -> oracle.Case:
    by_name = {case.name: case for case in oracle.CASES}
    architecture = "uni-encoder" if kind == "text-first" else kind
    return by_name.get(KINDS[kind]) or next(case for case in oracle.CASES if case.architecture == architecture)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {kind: tmp_path_factory.mktemp("checkpoints") / kind for kind in KINDS}
    for kind, folder in folders.items():
        oracle.write_checkpoint(case_of(kind), folder)
    return folders


def gliclass(*arguments: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def classify(folder: Path, text: str, *arguments: str, labels: tuple[str, ...] = LABELS) -> dict[str, Any]:
    row = json.dumps({"text": text}) + "\n"
    result = gliclass("classify", "-q", "--digits", "9", "--model", str(folder), *labels, *arguments, stdin=row)
    assert result.exit_code == 0, result.stderr
    prediction: dict[str, Any] = json.loads(result.stdout)["prediction"]
    return prediction


every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_a_checkpoint_classifies(checkpoints: dict[str, Path], kind: str) -> None:
    found = classify(checkpoints[kind], "the team won its game")
    assert sum(found["scores"].values()) == pytest.approx(1, abs=1e-6)
    assert list(found["scores"]) == ["sports", "politics", "shipping"]
    multi = classify(checkpoints[kind], "the team won its game", "--multi", "--threshold", "0")
    assert sorted(multi["labels"]) == ["politics", "shipping", "sports"]


@every_kind
def test_rows_do_not_depend_on_each_other(checkpoints: dict[str, Path], kind: str, tmp_path: Path) -> None:
    rows = [{"text": oracle._TEXT[: 5 * n], "choices": oracle._WORDS[n : n + 2 + n % 5]} for n in range(1, 14)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = (
        "classify",
        str(path),
        "-q",
        "--digits",
        "9",
        "--labels-field",
        "choices",
        "--model",
        str(checkpoints[kind]),
    )
    together = [json.loads(line)["prediction"] for line in gliclass(*arguments).stdout.splitlines()]
    alone = [json.loads(line)["prediction"] for line in gliclass(*arguments, "--batch-tokens", "1").stdout.splitlines()]
    assert len(together) == len(alone) == len(rows)
    for one, other in zip(together, alone, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)


@every_kind
@pytest.mark.parametrize("control", ["<<LABEL>>", "<<SEP>>", "<<EXAMPLE>>"])
def test_control_tokens_in_texts_and_labels_are_words(checkpoints: dict[str, Path], kind: str, control: str) -> None:
    evil = f"{control} " * 20 + "the team won"
    prediction = classify(checkpoints[kind], evil, labels=("-l", control, "-l", "sports", "-l", f"a {control} b"))
    assert len(prediction["scores"]) == 3
    assert sum(prediction["scores"].values()) == pytest.approx(1, abs=1e-6)
    # As a control token it would be the same in any place of a text; as a word it reads like its spelling.
    assert prediction["scores"] != classify(checkpoints[kind], "the team won")["scores"]


@every_kind
def test_500_labels_are_all_scored_and_a_split_is_told(checkpoints: dict[str, Path], kind: str, tmp_path: Path) -> None:
    words = oracle._WORDS
    names = list(dict.fromkeys(f"{a} {b}" for a in words[:25] for b in words[25:45]))
    assert len(names) == 500
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(names))
    row = '{"text": "fast delivery"}\n'
    result = gliclass("classify", "--model", str(checkpoints[kind]), "--labels", str(path), stdin=row)
    prediction = json.loads(result.stdout)["prediction"]
    assert (result.exit_code, len(prediction["scores"])) == (0, 500)
    assert all(score is not None for score in prediction["scores"].values())
    assert prediction.get("label_groups", 1) > 1 or kind not in ("uni-encoder", "text-first"), prediction.keys()
    if "label_groups" in prediction:
        groups = prediction["label_groups"]
        assert "the 500 labels do not fit into one input of" in result.stderr
        assert f"they are read in {groups} groups" in result.stderr
        assert "1 with labels in groups" in result.stderr


@every_kind
def test_a_text_of_100_000_words_is_cut_read_in_chunks_or_refused(checkpoints: dict[str, Path], kind: str) -> None:
    text = "good phone and fast shipping " * 20_000
    cut = classify(checkpoints[kind], text)
    assert cut["truncated"]["tokens"] > 100_000 > cut["truncated"]["limit"]
    assert "chunks" not in cut
    shorter = text[:20_000]
    chunked = classify(checkpoints[kind], shorter, "--long", "chunk", "--max-length", "128")
    assert chunked["chunks"] > 10
    assert "truncated" not in chunked
    refused = gliclass(
        "classify", "--model", str(checkpoints[kind]), *LABELS, "--long", "error", stdin=f"{shorter * 4}\nok\n"
    )
    first, second = map(json.loads, refused.stdout.splitlines())
    assert (refused.exit_code, first["prediction"]["error"]["code"]) == (5, "text_too_long")
    assert "--long chunk reads it in parts" in first["prediction"]["error"]["message"]
    assert second["prediction"]["label"] is not None


@every_kind
@pytest.mark.parametrize("text", ["", " ", "\u202eשלום", "👩‍👩‍👧‍👦 🙂", "短い", "\x00", "\ufeff", "a\u0301" * 50])
def test_any_text_and_any_label_is_scored(checkpoints: dict[str, Path], kind: str, text: str) -> None:
    prediction = classify(
        checkpoints[kind], text, labels=("-l", "😀", "-l", "שלילי", "-l", "العربية", "-l", "{label}%s")
    )
    assert list(prediction["scores"]) == ["😀", "שלילי", "العربية", "{label}%s"]
    assert sum(prediction["scores"].values()) == pytest.approx(1, abs=1e-6)


@every_kind
def test_prompt_examples_and_permutations_change_what_they_should(
    checkpoints: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    folder, text = checkpoints[kind], "the team won its game"
    plain = classify(folder, text)["scores"]
    assert classify(folder, text, "--prompt", "Which topic?")["scores"] != plain
    examples = tmp_path / "examples.jsonl"
    examples.write_text('{"text": "fast phone", "labels": ["shipping"]}\n')
    if kind == "bi-encoder":
        refused = gliclass("tag", text, *LABELS, "--model", str(folder), "--examples", str(examples))
        assert (refused.exit_code, "leave --examples out" in refused.stderr) == (2, True)
    else:
        assert classify(folder, text, "--examples", str(examples))["scores"] != plain
    permuted = classify(folder, text, "--permutations", "3")["scores"]
    if kind == "bi-encoder":
        assert permuted == plain  # it reads each label by itself
    else:
        assert permuted != plain
    assert classify(folder, text, "--permutations", "1")["scores"] == plain
    bad = gliclass("tag", text, *LABELS, "--model", str(folder), "--examples", str(tmp_path / "nowhere"))
    assert (bad.exit_code, "no such file" in bad.stderr) == (2, True)


@every_kind
def test_a_label_that_would_have_to_be_cut_is_refused(checkpoints: dict[str, Path], kind: str, tmp_path: Path) -> None:
    long = "sports " * 3000
    result = gliclass("tag", "x", "-l", "ok", "-l", long, "--model", str(checkpoints[kind]))
    assert result.exit_code == 2
    assert "labels are never cut" in result.stderr
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "won", "choices": ["ok", long]}, {"text": "won", "choices": ["ok", "sports"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = gliclass("classify", str(path), "--labels-field", "choices", "--model", str(checkpoints[kind]))
    first, second = (json.loads(line)["prediction"] for line in result.stdout.splitlines())
    assert (result.exit_code, first["error"]["code"], second["label"] is None) == (5, "bad_labels", False)


def test_a_hierarchy_goes_in_and_comes_out(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text('{"topic": {"sports": null, "politics": "elections"}, "mood": ["good", "bad"]}')
    found = classify(checkpoints["uni-encoder"], "the team won", "--nested", labels=("--labels", str(path)))
    assert {key: list(value) for key, value in found["scores"].items()} == {
        "topic": ["sports", "politics"],
        "mood": ["good", "bad"],
    }


# --- folders that are no model ---------------------------------------------------------------------------------------


def damaged(folder: Path, copy: Path, damage: Callable[[Path], object]) -> Path:
    shutil.copytree(folder, copy)
    damage(copy)
    return copy


def change_config(**changes: Any) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for key, value in changes.items():
            if value is None:
                config.pop(key)
            else:
                config[key] = value
        path.write_text(json.dumps(config))

    return damage


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def another_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] += [*([f"▁more{n}", 0.0] for n in range(2000)), ["▁text", 0.0]]
    path.write_text(json.dumps(content))


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (only_pickle, "pytorch_model.bin only: such files can run code and are never loaded"),
        (cut_weights, "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 100), "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors and no ONNX file"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json: not a tokenizer"),
        (another_tokenizer, "a token beyond the model's vocabulary; is tokenizer.json that of this model?"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: is not JSON"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (change_config(architecture_type="mystery"), 'architecture_type is "mystery"; known are uni-encoder'),
        (change_config(scorer_type="x"), 'scorer_type is "x"; known are simple'),
        (change_config(pooling_strategy=7), "pooling_strategy is 7"),
        (change_config(encoder_config=None), "encoder_config is missing"),
        (change_config(encoder_config={"model_type": "no-such-model"}), "no-such-model"),
        (change_config(encoder_config={"model_type": "bert", "auto_map": {"AutoModel": "evil.Model"}}), "never run"),
        (change_config(hidden_size=10**9), "config.json"),
        (change_config(vocab_size=-5), "vocab_size is -5"),
        (change_config(class_token_index=10**6), "class_token_index"),
        (change_config(architecture_type="encoder-decoder"), "model: the backbone deberta-v2 is no encoder-decoder"),
        (change_config(projector_hidden_act="__import__('os')"), "projector_hidden_act"),
        (change_config(encoder_layer_id=99), "encoder_layer_id is 99; the encoder has 2 layers"),
        (
            change_config(encoder_config={"model_type": "bert", "num_labels": 10**9}),
            "num_labels is 1000000000; at most",
        ),
        (change_config(model_type="bert"), 'model_type is "bert"; only GLiClass checkpoints'),
        (change_config(multimodal=True), "only text"),
        (change_config(normalize_features="yes"), 'normalize_features is "yes"'),
    ],
)
def test_an_unusable_folder_is_a_clear_error(
    checkpoints: dict[str, Path], tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = damaged(checkpoints["uni-encoder"], tmp_path / "model", damage)
    result = gliclass("tag", "text", *LABELS, "--model", str(folder))
    assert (result.exit_code, result.stdout) == (4, "")
    assert message in result.stderr, result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("gliclass: ")


def test_a_padding_token_beyond_all_numbers_is_none(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = damaged(checkpoints["uni-encoder"], tmp_path / "model", change_config(pad_token_id=10**19))
    assert classify(folder, "the team won") == classify(checkpoints["uni-encoder"], "the team won")


def test_without_pytorch_the_way_out_is_named(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gliclass_cli.loading.torch_installed", lambda: False)
    result = gliclass("tag", "text", *LABELS, "--model", str(checkpoints["uni-encoder"]))
    assert result.exit_code == 4
    assert "pip install 'gliclass-cli[torch]'" in result.stderr
    assert f"gliclass export {checkpoints['uni-encoder']} FOLDER" in result.stderr


def test_without_pytorch_nothing_is_downloaded_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gliclass_cli.loading.torch_installed", lambda: False)
    monkeypatch.setattr("gliclass_cli.loading.pull", lambda *_, **__: pytest.fail("downloads"))
    for arguments in (("--backend", "torch"), ("--device", "cuda"), ("--precision", "bf16")):
        result = gliclass("tag", "text", *LABELS, "--model", "org/name", *arguments)
        assert (result.exit_code, "need PyTorch: pip install" in result.stderr) == (4, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "onnx"), "has no ONNX file"),
        (("--precision", "int8"), "has no ONNX file"),
        (("--device", "cuda:7"), "--device cuda:7"),
        (("--backend", "onnx", "--device", "cuda"), "not with --device cuda"),
    ],
)
def test_what_this_model_or_machine_cannot_do_is_named(
    checkpoints: dict[str, Path], arguments: tuple[str, ...], message: str
) -> None:
    result = gliclass("tag", "text", *LABELS, "--model", str(checkpoints["uni-encoder"]), *arguments)
    assert (result.exit_code, message in result.stderr) == (4, True)


def test_the_bundled_model_runs_in_pytorch_if_asked_to() -> None:
    found = [
        json.loads(gliclass("tag", "the team won", *LABELS, "--backend", backend).stdout)["prediction"]["scores"]
        for backend in ("torch", "onnx")
    ]
    assert found[0] == pytest.approx(found[1], abs=0.03)
    result = gliclass("tag", "text", *LABELS, "--precision", "fp32")
    assert (result.exit_code, "holds int8, not fp32" in result.stderr) == (4, True)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@every_kind
def test_cuda_scores_as_the_cpu_does(checkpoints: dict[str, Path], kind: str, precision: str) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    on_cpu = classify(checkpoints[kind], "the team won its game", "--device", "cpu")["scores"]
    on_cuda = classify(checkpoints[kind], "the team won its game", "--device", "cuda", "--precision", precision)[
        "scores"
    ]
    assert on_cuda == pytest.approx(on_cpu, abs=1e-3 if precision == "fp32" else 0.2)
