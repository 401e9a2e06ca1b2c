"""``gliclass train``: losses fall, seeds decide everything, killed runs resume exactly, what comes out classifies."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner, Result

from gliclass_cli.backends.pytorch import open_model
from gliclass_cli.classifier import Classifier
from gliclass_cli.cli.app import app
from gliclass_cli.composer import Composer
from gliclass_cli.errors import UsageProblem
from gliclass_cli.labels import make_labels
from gliclass_cli.model import load_model
from gliclass_cli.model_folder import read_model_folder
from gliclass_cli.runtime import Runtime
from gliclass_cli.training.batches import Batcher, score
from gliclass_cli.training.optimizer import _height, count_layers, freeze
from gliclass_cli.training.sampling import Shown
from gliclass_cli.training.settings import Optimisation

KINDS = {
    "uni-encoder": "uni/deberta-v2/all",
    "uni-average": "uni/bert/all",
    "bi-encoder": "bi-encoder/bert/first/mlp",
    "bi-encoder-fused": "bi-encoder-fused/bert/first/mlp",
    "encoder-decoder": "encoder-decoder/t5/first/simple",
    "encoder-decoder-cls": "encoder-decoder-cls/t5/first/simple",
    "decoder-kv": "decoder-kv/plain",
}
WORDS = {
    "sports": ("team", "game", "won", "fast", "jumps"),
    "shipping": ("delivery", "order", "slow", "lost", "shipping"),
    "food": ("good", "bad", "very", "food", "not"),
}
# What it takes to learn three words; of T5 a step is cheap, of Qwen it is not.
STEPS = {"decoder-kv": "50", "encoder-decoder": "250", "encoder-decoder-cls": "250"}
FAST = ("--steps", "250", "--batch-size", "16", "--lr", "1e-3", "--others-lr", "1e-3", "--set", "shuffle_labels=false")


def case_of(kind: str) -> oracle.Case:
    by_name = {case.name: case for case in oracle.CASES}
    architecture = "uni-encoder" if kind.startswith("uni") else kind
    return by_name.get(KINDS[kind]) or next(case for case in oracle.CASES if case.architecture == architecture)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {kind: tmp_path_factory.mktemp("checkpoints") / kind for kind in KINDS}
    for kind, folder in folders.items():
        oracle.write_checkpoint(case_of(kind), folder)
    return folders


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 texts that are easy to tell apart."""
    draw = random.Random(0)
    lines = []
    for number in range(48):
        label = list(WORDS)[number % 3]
        text = " ".join(draw.choices(WORDS[label], k=draw.randint(3, 9)))
        lines.append(json.dumps({"id": number, "text": text, "label": label}))
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def multi_rows(rows: Path) -> Path:
    found = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
    path = rows.with_name("multi.jsonl")
    pairs = zip(found, found[1:] + found[:1], strict=True)
    both = [{"text": f"{a['text']} {b['text']}", "true_labels": [a["label"], b["label"]]} for a, b in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in both), "utf-8")
    return path


def gliclass(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def train(rows: Path, output: Path, *arguments: str) -> list[dict[str, Any]]:
    """Train, and return the lines of the metrics."""
    result = gliclass("train", str(rows), "-o", str(output), "-q", "--threads", "1", *arguments)
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text("utf-8").splitlines()]


def weights(folder: Path, name: str = "model.safetensors") -> dict[str, Any]:
    return load_file(folder / name)


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


# --- every architecture ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_scores_as_the_classifier_does(checkpoints: dict[str, Path], kind: str) -> None:
    """Training and inference compose the same inputs: the reference trains text first and infers labels first."""
    folder = read_model_folder(checkpoints[kind])
    labels = {"the team won": ("sports", "food"), "slow delivery of a very good phone": ("food", "shipping", "sports")}
    shown = [Shown(text, names, (1.0,) + (0.0,) * (len(names) - 1)) for text, names in labels.items()]
    batch = Batcher(Composer(folder), torch.device("cpu")).batch(shown)
    with torch.no_grad():
        logits = score(load_model(folder.path, folder.config), batch).logits.numpy()
    classifier = Classifier.load(folder.path)
    for row, (text, names) in enumerate(labels.items()):
        expected = classifier.logits(text, make_labels(names))
        assert logits[row, : len(names)] == pytest.approx(expected, abs=2e-5 * max(1.0, float(np.abs(expected).max())))
        assert batch.mask[row].tolist() == [slot < len(names) for slot in range(3)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls_and_the_model_classifies(
    checkpoints: dict[str, Path], rows: Path, tmp_path: Path, kind: str
) -> None:
    steps = STEPS.get(kind, "150")
    metrics = train(rows, tmp_path / "out", "--model", str(checkpoints[kind]), *FAST, "--steps", steps)
    losses = [line["loss"] for line in metrics]
    assert len(losses) == int(steps)
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])
    result = gliclass("classify", str(rows), "-q", "--model", str(tmp_path / "out"), *(f"-l{name}" for name in WORDS))
    predictions = [json.loads(line) for line in result.stdout.splitlines()]
    right = [row["prediction"]["label"] == row["label"] for row in predictions]
    assert np.mean(right) > 0.6  # a third by chance


def test_a_trained_checkpoint_is_one_of_the_reference_too(
    checkpoints: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    train(rows, tmp_path / "out", "--model", str(checkpoints["uni-average"]), "--steps", "3")
    request = oracle.REQUESTS["plain"]
    labels = make_labels(request.labels)
    expected = oracle.oracle_logits(tmp_path / "out", request)
    assert Classifier.load(tmp_path / "out").logits(request.text, labels) == pytest.approx(expected, abs=1e-4)


def test_it_exports(checkpoints: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    train(rows, tmp_path / "out", "--model", str(checkpoints["uni-encoder"]), *FAST)
    assert gliclass("export", str(tmp_path / "out"), str(tmp_path / "onnx")).exit_code == 0
    labels = make_labels(list(WORDS))
    torch_logits = Classifier.load(tmp_path / "out").logits("the team won", labels)
    assert Classifier.load(tmp_path / "onnx").logits("the team won", labels) == pytest.approx(torch_logits, abs=1e-3)


# --- determinism and resuming ---------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights(checkpoints: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    arguments = ("--model", str(checkpoints["uni-encoder"]), "--steps", "4")
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        train(rows, tmp_path / name, *arguments, "--seed", seed)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.mark.parametrize("method", ["supervised", "ppo"])
def test_a_killed_run_resumes_to_the_same_weights(
    checkpoints: dict[str, Path], multi_rows: Path, tmp_path: Path, method: str
) -> None:
    arguments = [
        "--model", str(checkpoints["uni-encoder"]), "--steps", "40", "--batch-size", "4", "--set", "save_every=3",
        "--method", method, "--lr", "1e-3", "--dev", str(multi_rows), "--set", "eval_every=20",
    ]  # fmt: skip
    train(multi_rows, tmp_path / "whole", *arguments)
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "gliclass_cli", "train", str(multi_rows), "-o", str(killed), "--threads", "1"]
    process = subprocess.Popen([*command, *arguments], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(killed.glob("checkpoint-*[0-9]")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "model.safetensors").exists()
    result = gliclass("train", str(multi_rows), "-o", str(killed), "--threads", "1", *arguments)
    assert result.exit_code == 2
    assert "--resume" in result.stderr
    metrics = train(multi_rows, killed, *arguments, "--resume")
    assert same(weights(tmp_path / "whole"), weights(killed))
    assert [line["step"] for line in metrics if "loss" in line] == list(range(1, 41))
    assert not list(killed.glob("checkpoint-*"))


def test_resuming_with_other_settings_is_refused(checkpoints: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    from gliclass_cli.errors import Interrupted, ModelUnusable
    from gliclass_cli.readers import ReadOptions
    from gliclass_cli.training.loop import Listeners
    from gliclass_cli.training.rows import read_sources
    from gliclass_cli.training.run import Job
    from gliclass_cli.training.run import train as run
    from gliclass_cli.training.settings import make_settings

    stop = threading.Event()
    sources = read_sources([str(rows)], ReadOptions())

    def job(**values: Any) -> Job:
        settings = make_settings({"steps": 4, "multi": False} | values)
        return Job(str(checkpoints["uni-encoder"]), sources, tmp_path / "out", settings, resume=True,
                   runtime=Runtime(threads=1))  # fmt: skip

    listeners = Listeners(step=lambda values: stop.set() if values["step"] == 2 else None)
    with pytest.raises(Interrupted, match="after step 2 of 4, which is saved"):
        run(job(), listeners, stop)
    with pytest.raises(ModelUnusable, match="other data, another model or other settings"):
        run(job(seed=5), Listeners(), threading.Event())
    assert run(job(), Listeners(), threading.Event()).steps == 4
    with pytest.raises(Exception, match="holds a finished model"):
        run(job(), Listeners(), threading.Event())


def test_a_run_that_starts_anew_takes_nothing_of_the_one_before(
    checkpoints: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    """Killed after a measurement, before its first checkpoint: its best weights are not those of the next run."""
    arguments = ("--model", str(checkpoints["uni-encoder"]), "--steps", "3")
    train(rows, tmp_path / "fresh", *arguments)
    other = tmp_path / "other"
    train(rows, other, *arguments, "--seed", "9")
    killed = tmp_path / "killed"
    (killed / "best").mkdir(parents=True)
    (killed / "best" / "weights.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    (killed / "train.toml").write_bytes((other / "train.toml").read_bytes())
    (killed / "metrics.jsonl").write_text('{"step": 1, "lo', "utf-8")
    train(rows, killed, *arguments, "--resume")
    assert same(weights(killed), weights(tmp_path / "fresh"))
    assert not (killed / "best").exists()


# --- what surrounds the steps ---------------------------------------------------------------------------------------


def test_the_best_weights_on_dev_are_kept_and_it_stops_early(
    checkpoints: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    metrics = train(rows, output, "--model", str(checkpoints["uni-encoder"]), "--dev", str(rows), "--patience", "2",
                    *FAST, "--steps", "200", "--set", "eval_every=5")  # fmt: skip
    measured = {line["step"]: line["dev"]["macro_f1"] for line in metrics if "dev" in line}
    best = max(measured, key=lambda step: (measured[step], -step))
    assert max(line["step"] for line in metrics) == best + 10 < 200
    result = gliclass("classify", str(rows), "-q", "--model", str(output), *(f"-l{name}" for name in WORDS))
    predictions = [json.loads(line) for line in result.stdout.splitlines()]
    from sklearn.metrics import f1_score

    found = f1_score([row["label"] for row in predictions], [row["prediction"]["label"] for row in predictions],
                     average="macro")  # fmt: skip
    assert found == pytest.approx(measured[best], abs=0.021)  # one text; training reads 512 tokens, not 1024
    import tomllib

    run = tomllib.loads((output / "train.toml").read_text("utf-8"))
    assert run["run"]["best_step"] == best
    assert run["optimisation"]["steps"] == 200
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_accumulation_takes_several_batches_a_step(checkpoints: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    """48 rows in batches of 12, two of them a step: as many tokens as all rows in two steps, and the mean loss."""
    model, info = str(checkpoints["uni-encoder"]), {}
    for accumulation, steps in ((1, 4), (2, 2)):
        info[steps] = train(rows, tmp_path / str(steps), "--model", model, "--batch-size", "12", "--steps", str(steps),
                            "--lr", "1e-12", "--others-lr", "1e-12", "--set", f"accumulation={accumulation}")  # fmt: skip
    assert [line["epoch"] for line in info[2]] == [0.5, 1.0]
    tokens = [line["tokens"] for line in info[4]]
    assert [line["tokens"] for line in info[2]] == [sum(tokens[:2]), sum(tokens[2:])]


def test_what_is_frozen_stays(checkpoints: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    train(rows, tmp_path / "out", "--model", str(checkpoints["uni-encoder"]), "--steps", "3", "--freeze", "encoder")
    before, after = weights(checkpoints["uni-encoder"]), weights(tmp_path / "out")
    moved = {name for name in after if not np.array_equal(before[name], after[name])}
    assert moved
    assert not [name for name in moved if name.startswith("model.encoder_model")]


def test_lower_layers_stay_and_others_move_by_their_height(
    checkpoints: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    model = str(checkpoints["bi-encoder"])
    for name, setting in (("frozen", "freeze_layers=1"), ("slow", "layer_decay=0.001")):
        train(rows, tmp_path / name, "--model", model, "--steps", "3", "--lr", "1e-3", "--set", setting,
              "--set", "dropout=false")  # fmt: skip
    before = weights(checkpoints["bi-encoder"])
    moved = {
        name: {key: float(np.abs(value - before[key]).max()) for key, value in weights(tmp_path / name).items()}
        for name in ("frozen", "slow")
    }
    lower = [key for key in before if ".layer.0." in key and "encoder" in key]
    upper = [key for key in before if ".layer.1." in key and "encoder" in key and key.endswith("weight")]
    embeddings = [key for key in before if "word_embeddings" in key]
    assert lower
    assert upper
    assert embeddings
    assert all(moved["frozen"][key] == 0 for key in lower + embeddings)
    assert all(moved["frozen"][key] > 0 for key in upper)
    assert max(moved["slow"][key] for key in lower) < 0.01 * max(moved["slow"][key] for key in upper)


def test_heights_of_parameters() -> None:
    names = ["encoder_model.embeddings.word.weight", "encoder_model.encoder.LayerNorm.weight",
             "encoder_model.encoder.layer.0.x", "encoder_model.encoder.layer.5.x", "encoder_model.norm.weight",
             "label_encoder.embed_tokens.weight", "label_encoder.h.2.x", "scorer.scorer_encoder.layer.9.x"]  # fmt: skip
    layers = count_layers(names)
    assert layers == {"encoder_model.": 6, "label_encoder.": 3}
    assert [_height(name, layers) for name in names[:7]] == [0, 0, 1, 6, 6, 0, 3]


@pytest.mark.parametrize("kind", ["uni-encoder", "encoder-decoder", "decoder-kv"])
def test_embeddings_are_frozen_alone(checkpoints: dict[str, Path], kind: str) -> None:
    model = open_model(read_model_folder(checkpoints[kind]), "cpu")
    freeze(model, Optimisation(freeze=("embeddings",)))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert any("embed" in name or "shared" in name for name in frozen)
    assert not [name for name in frozen if ".layer" in name or ".block" in name]


def test_layers_that_cannot_be_told_apart_are_said() -> None:
    model = torch.nn.ModuleDict({"encoder_model": torch.nn.Linear(2, 2)})
    with pytest.raises(UsageProblem, match="cannot be told apart"):
        freeze(model, Optimisation(freeze_layers=1))
    freeze(model, Optimisation(freeze=("embeddings",)))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_dropout_acts_unless_it_is_switched_off(checkpoints: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    model = ("--model", str(checkpoints["bi-encoder"]), "--steps", "1")
    losses = [
        train(rows, tmp_path / f"{dropout}{seed}", *model, "--set", f"dropout={dropout}", "--set", f"seed={seed}",
              "--batch-size", "48")[0]["loss"]
        for dropout in ("true", "false") for seed in (0, 1)
    ]  # fmt: skip
    assert losses[2] == pytest.approx(losses[3], abs=1e-6)  # the same rows in another order
    assert abs(losses[0] - losses[1]) > 1e-4


def test_sources_are_weighed_by_name(checkpoints: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(rows.read_text("utf-8"), "utf-8")
    model = ("--model", str(checkpoints["bi-encoder"]), "--batch-size", "12", "--epochs", "1", "-q")
    result = gliclass("train", str(rows), str(other), "-o", str(tmp_path / "out"), *model,
                      "--set", "source_weights=other=0.5")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert len((tmp_path / "out" / "metrics.jsonl").read_text("utf-8").splitlines()) == 4 + 2
    result = gliclass("train", str(rows), str(other), "-o", str(tmp_path / "pattern"), *model,
                      "--set", 'source_weights=["*=0.5", "other=0.25"]')  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert len((tmp_path / "pattern" / "metrics.jsonl").read_text("utf-8").splitlines()) == 2 + 1  # a name comes first
    for wrong, message in (("nobody=1", "fits none of the files: train, other"), ("other=x", "is no number"),
                           ('["other=0","train=0"]', "all of them are 0")):  # fmt: skip
        result = gliclass("train", str(rows), str(other), "-o", str(tmp_path / "wrong"), *model,
                          "--set", f"source_weights={wrong}")  # fmt: skip
        assert result.exit_code == 2
        assert message in result.stderr


def test_losses_and_augmentations_run_together(checkpoints: dict[str, Path], multi_rows: Path, tmp_path: Path) -> None:
    chances = [f"--set={name}=0.5" for name in
               ("label_removal", "label_addition", "text_addition", "description", "synonym", "examples")]  # fmt: skip
    info = tmp_path / "info.json"
    info.write_text(json.dumps({"sports": {"descriptions": ["games"], "synonyms": ["team games"]}}), "utf-8")
    metrics = train(
        multi_rows, tmp_path / "out", "--model", str(checkpoints["uni-encoder"]), "--loss", "focal", "--loss",
        "contrastive=0.1", "--steps", "12", "--label-info", str(info), *chances,
    )  # fmt: skip
    assert {"loss", "focal", "contrastive", "grad_norm", "rate"} <= metrics[0].keys()


def test_ppo_raises_the_reward(checkpoints: dict[str, Path], multi_rows: Path, tmp_path: Path) -> None:
    found = [json.loads(line) for line in multi_rows.read_text("utf-8").splitlines()]
    path = tmp_path / "rows.jsonl"  # one label right of four: who says yes to all of them gets 0.4
    rows = [{"text": row["text"], "label": row["true_labels"][:1], "all_labels": [*WORDS, "weather"]} for row in found]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    metrics = train(path, tmp_path / "out", "--model", str(checkpoints["decoder-kv"]), "--method", "ppo", "--steps", "50",
                    "--lr", "1e-3", "--others-lr", "1e-3", "--set", "kl=0.01", "--set", "multi=true")  # fmt: skip
    reward = [line["reward"] for line in metrics]
    assert np.mean(reward[-10:]) > np.mean(reward[:5]) + 0.1
    assert {"policy", "value", "kl", "reward", "entropy"} <= metrics[0].keys()
    assert "entropy_bonus" not in metrics[0]


def test_ppo_moves_with_one_row_a_batch_and_on_any_architecture(
    checkpoints: dict[str, Path], multi_rows: Path, tmp_path: Path
) -> None:
    for kind in ("uni-encoder", "bi-encoder", "encoder-decoder"):
        train(multi_rows, tmp_path / kind, "--model", str(checkpoints[kind]), "--method", "ppo", "--steps", "3",
              "--batch-size", "1", "--lr", "1e-3", "--set", "kl=0", "--set", "weight_decay=0")  # fmt: skip
        assert not same(weights(tmp_path / kind), weights(checkpoints[kind]))


def test_ppo_needs_several_labels_a_row(rows: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    result = gliclass("train", str(rows), "-o", str(tmp_path / "x"), "--method", "ppo", "--model",
                      str(checkpoints["uni-encoder"]))  # fmt: skip
    assert result.exit_code == 2
    assert "each row here has one" in result.stderr


def test_a_step_that_fails_stops_the_run(checkpoints: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    result = gliclass("train", str(rows), "-o", str(tmp_path / "x"), "--model", str(checkpoints["uni-encoder"]),
                      "--lr", "1e8", "--others-lr", "1e8", "--steps", "50")  # fmt: skip
    assert result.exit_code == 4
    assert "lower the learning rates" in result.stderr
    assert not (tmp_path / "x" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--patience", "2"), "--patience needs --dev"),
        (("--lora", "--adapter", "x"), "--lora makes new adapters"),
        (("--precision", "int8"), "training takes fp32, or bf16 on CUDA"),
        (("--negatives", "candidates"), "some rows bring none"),
        (("--loss", "hinge"), "known are auto, bce, focal, softmax, contrastive"),
        (("--set", "max_length=100000"), "positions"),
        (("--set", "max_length=9"), "not even two labels fit"),
        (("--set", "epochs=" + "9" * 400), "setting epochs is 9999"),
        (("--lora", "--lora-rank", "99999999"), "the most that makes sense"),
        (("--set", "multi=false", "--loss", "bce", "--steps", "0"), "is not in the range"),
    ],
)
def test_what_cannot_be_is_refused(
    checkpoints: dict[str, Path], rows: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = gliclass("train", str(rows), "-o", str(tmp_path / "x"), "--model", str(checkpoints["uni-encoder"]), "-q",
                      "--threads", "1", *arguments)  # fmt: skip
    assert result.exit_code in (2, 4)
    assert message in result.stderr


@pytest.mark.parametrize("info", ["[]", "{", '{"a": 1}', '{"a": {"synonyms": "meal"}}', '{"a": {"words": []}}'])
def test_label_info_is_checked(rows: Path, tmp_path: Path, info: str) -> None:
    path = tmp_path / "info.json"
    path.write_text(info, "utf-8")
    result = gliclass("train", str(rows), "-o", str(tmp_path / "x"), "--label-info", str(path))
    assert result.exit_code == 2
    assert "belongs here" in result.stderr


def test_bad_rows_are_told_before_the_output_is_made(rows: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(rows.read_text("utf-8") + '{"text": "no label"}\n', "utf-8")
    result = gliclass("train", str(bad), "-o", str(tmp_path / "x"))
    assert result.exit_code == 3
    assert f"{bad}:49: no right labels" in result.stderr
    assert not (tmp_path / "x").exists()


# --- LoRA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uni-encoder", "bi-encoder", "encoder-decoder", "decoder-kv"])
def test_adapters_are_trained_loaded_and_merged(
    checkpoints: dict[str, Path], rows: Path, tmp_path: Path, kind: str
) -> None:
    adapter, base = tmp_path / "adapter", str(checkpoints[kind])
    steps = STEPS.get(kind, "150")
    metrics = train(
        rows, adapter, "--model", base, "--lora", "--lora-rank", "8", *FAST, "--lr", "3e-3", "--steps", steps
    )
    losses = [line["loss"] for line in metrics]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert (adapter / "adapter_model.safetensors").stat().st_size < 0.7 * (
        checkpoints[kind] / "model.safetensors"
    ).stat().st_size
    labels = make_labels(list(WORDS))
    plain = Classifier.load(base).logits("the team won", labels)
    adapted = Classifier.load(base, None, Runtime(adapter=str(adapter))).logits("the team won", labels)
    assert not np.allclose(plain, adapted, atol=1e-3)
    if kind != "decoder-kv":
        result = gliclass("export", base, str(tmp_path / "onnx"), "--adapter", str(adapter))
        assert result.exit_code == 0, result.stderr
        size = max(1.0, float(np.abs(adapted).max()))
        assert Classifier.load(tmp_path / "onnx").logits("the team won", labels) == pytest.approx(
            adapted, abs=1e-3 * size
        )


def test_an_adapter_of_another_model_is_refused(checkpoints: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    train(rows, adapter, "--model", str(checkpoints["uni-encoder"]), "--lora", "--steps", "1")
    for folder, message in ((adapter, "is it for another model?"), (rows.parent, "this is not an adapter")):
        result = gliclass("classify", str(rows), "-l", "x", "-l", "y", "--model", str(checkpoints["bi-encoder"]),
                          "--adapter", str(folder))  # fmt: skip
        assert result.exit_code == 4
        assert message in result.stderr


def test_lora_targets(checkpoints: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    model = str(checkpoints["uni-encoder"])
    train(rows, tmp_path / "a", "--model", model, "--lora", "--steps", "1", "--lora-targets", "query_proj")
    assert {name.rsplit(".", 3)[-3] for name in weights(tmp_path / "a", "adapter_model.safetensors")} == {"query_proj"}
    result = gliclass(
        "train", str(rows), "-o", str(tmp_path / "b"), "--model", model, "--lora", "--lora-targets", "nope"
    )
    assert result.exit_code == 2
    assert "no linear layer ends so" in result.stderr


# --- the bundled model ----------------------------------------------------------------------------------------------


def test_the_bundled_model_trains_from_its_int8_weights(rows: Path, tmp_path: Path) -> None:
    labels, text = make_labels(list(WORDS)), "the team won its game"
    restored = Classifier.load("default", None, Runtime(backend="torch")).logits(text, labels)
    assert restored == pytest.approx(Classifier.load("default").logits(text, labels), abs=0.25)
    metrics = train(rows, tmp_path / "out", "--shots", "2", "--steps", "6")
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    folder = read_model_folder(tmp_path / "out")
    assert folder.label_templates == Classifier.load("default").folder.label_templates
    assert folder.calibration == Classifier.load("default").folder.calibration
    assert not list((tmp_path / "out").glob("*.onnx"))
    assert Classifier.load(tmp_path / "out").predict([text], list(WORDS))[0].label in WORDS


def test_the_output_must_be_a_place_of_its_own(rows: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", "utf-8")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine", "utf-8")
    for output, code, message in (
        (tmp_path / "file", 2, "is a file"),
        (tmp_path / "full", 2, "is not empty"),
        (tmp_path / "file" / "below", 6, "the folder cannot be made"),
        ("", 2, "name a folder"),
    ):
        result = gliclass("train", str(rows), "-o", str(output), "--model", str(checkpoints["uni-encoder"]))
        assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
