"""``gliclass bench``, and how much work a fixed input may take: counts, no clock."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gliclass_cli.benchmark import Setting, builtin_sample, measure_start, open_counting, settings_of
from gliclass_cli.classifier import Classifier, Query
from gliclass_cli.cli.app import app
from gliclass_cli.composer import Composer
from gliclass_cli.errors import ModelUnusable
from gliclass_cli.labels import make_labels
from gliclass_cli.prompts import Reading
from gliclass_cli.runtime import Runtime

TEXTS, LABELS = builtin_sample()


def classify(classifier: Classifier, texts: Sequence[str], labels: Any) -> int:
    queries = (Query(None, text, labels) for text in texts)
    return sum(len(window) for window in classifier.stream(queries))


def test_each_text_and_each_label_is_computed_once_with_next_to_no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenised: list[str] = []
    compose = Composer.compose
    monkeypatch.setattr(
        Composer, "compose", lambda self, texts, labels: tokenised.extend(texts) or compose(self, texts, labels)
    )
    classifier, counter = open_counting("default", Reading(), Runtime(threads=2))
    few, many = make_labels(LABELS.names[:16]), make_labels(LABELS.names[:20])
    assert classify(classifier, TEXTS * 5, few) == 5 * len(TEXTS)
    work = counter.take()
    assert len(tokenised) == len(TEXTS)
    assert (work["text"].rows, work["label"].rows) == (len(TEXTS), 2 * 16)  # two wordings
    assert work["text"].runs <= 33
    assert work["text"].padding < 0.03
    assert classify(classifier, TEXTS[:1], many) == 1
    assert counter.take()["label"].rows == 2 * 4  # those that are new


def test_batches_hold_as_many_tokens_as_the_backend_wants() -> None:
    classifier, counter = open_counting("default", Reading(), Runtime(threads=1))
    largest = []
    run = counter.run
    counter.run = lambda part, inputs: (  # type: ignore[method-assign]
        largest.append(inputs["attention_mask"].size) or run(part, inputs)
    )
    classify(classifier, TEXTS, make_labels(["a", "b"]))
    alone = max(len(text.split()) for text in TEXTS) * 2
    assert max(largest) <= max(counter.batch_tokens, alone)
    assert sum(largest) / len(largest) > counter.batch_tokens / 2


def test_all_combinations_are_measured() -> None:
    assert settings_of({"threads": (1, 2), "labels": (3,)}) == [
        Setting(threads=1, labels=3),
        Setting(threads=2, labels=3),
    ]
    assert settings_of({}) == [Setting()]
    usual = Runtime(backend="onnx", threads=4)
    assert Setting(threads=1).runtime(usual) == Runtime(backend="onnx", threads=1)
    assert len(LABELS) == 128


def test_bench_tells_rates_latency_and_start(tmp_path: Path) -> None:
    rows, labels = tmp_path / "rows.jsonl", tmp_path / "labels.txt"
    rows.write_text(
        "".join(json.dumps({"text": f"{text} {n}"}) + "\n" for n, text in enumerate(TEXTS[:12])) + "{\n", "utf-8"
    )
    labels.write_text("billing\nshipping\npraise\n", "utf-8")
    command = ["bench", str(rows), "--labels", str(labels), "--repeats", "1", "--plot", str(tmp_path / "x.svg")]
    result = CliRunner().invoke(app, [*command, "--json", "-"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["texts"] == 12
    assert [point["labels"] for point in found["points"]] == [1, 2, 3]
    for point in found["points"]:
        assert point["rows_per_second"] > 0 < point["tokens_per_second"]
        assert 0 <= point["padding"] < 1
        assert 0 < point["computing"] <= 1
        assert 0 < point["p50"] <= point["p95"]
    assert found["start"]["cpu_seconds"] > 0 and found["start"]["peak_megabytes"] > 30
    assert (tmp_path / "x.svg").read_text("utf-8").startswith("<?xml")
    table = CliRunner().invoke(app, [*command[:4], "--repeats", "1", "--vary", "batch_tokens=64,512"]).stdout
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["batch_tokens", "64", "512"]
    assert "gliclass tag of one text: " in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vary", "colour=red"], "--vary 'colour=red': known are backend, precision, threads, batch_tokens, labels"),
        (["--vary", "labels=0"], "--vary 'labels=0': numbers above 0 belong behind the =, for example labels=1,2"),
        (["--vary", "backend=tpu"], "--vary 'backend=tpu': known are onnx, torch"),
        (["--vary", "labels=4", "-l", "a"], "--vary labels=4: there are 1 labels"),
        (["--plot", "x.pdf"], "--plot 'x.pdf': must end in .png or .svg"),
    ],
)
def test_what_bench_refuses(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert (result.exit_code, result.stderr) == (2, f"gliclass: {message}\n")


def test_an_input_without_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"n": 1}\n', "utf-8")
    result = CliRunner().invoke(app, ["bench", str(tmp_path / "x.jsonl")])
    assert (result.exit_code, result.stderr) == (3, f"gliclass: {tmp_path / 'x.jsonl'}: no row has a text\n")


def test_a_start_that_fails_is_told() -> None:
    with pytest.raises(ModelUnusable, match=r"^no model 'nowhere'"):
        measure_start("nowhere", LABELS, Runtime(), repeats=1)
