"""``gliclass eval``: metrics worked out by hand, stored predictions as live ones, tuning that helps, exact exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from gliclass_cli.cli.app import app
from gliclass_cli.evaluation.report import Report, evaluate
from gliclass_cli.evaluation.rows import Outcomes
from gliclass_cli.evaluation.tuning import best_threshold, fit, tune
from gliclass_cli.gold import gold_labels
from gliclass_cli.metrics import MULTI_METRICS, SINGLE_METRICS
from gliclass_cli.predictions import Choice
from gliclass_cli.records import FieldProblem

EXAMPLES = Path(__file__).parents[1] / "examples"
LABELS = ("--labels", str(EXAMPLES / "tickets.labels.txt"))
NAMES = (EXAMPLES / "tickets.labels.txt").read_text().splitlines()


def gliclass(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin, catch_exceptions=False)


def lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def tickets(count: int = 24) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (EXAMPLES / "tickets.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row.get("team") in NAMES][:count]
    return [{"id": row["id"], "text": row["text"], "label": row["team"]} for row in rows]


@pytest.fixture
def gold(tmp_path: Path) -> str:
    return lines(tmp_path / "gold.jsonl", tickets())


def report_of(result: Result) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(result.stdout)
    return value


# --- metrics --------------------------------------------------------------------------------------------------------


def single(gold: list[int], predicted: list[int], scores: list[list[float]], names: str = "abc") -> Report:
    values = np.array(scores)
    return evaluate(Outcomes(tuple(names), False, np.array(gold), np.array(predicted), values, values, values))


def multi(gold: list[list[int]], predicted: list[list[int]], scores: list[list[float]], names: str = "ab") -> Report:
    values = np.array(scores)
    flags = [np.array(each, dtype=np.bool_) for each in (gold, predicted)]
    return evaluate(Outcomes(tuple(names), True, flags[0], flags[1], values, values, values))


def test_single_label_metrics_by_hand() -> None:
    scores = [[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.4, 0.35, 0.25]]
    found = single([0, 1, 1, 0], [0, 0, 1, -1], scores)  # the last one abstains
    f1_a, f1_b = 0.5, 2 / 3  # a: 1 of 2 taken, 1 of 2 found; b: 1 of 1 taken, 1 of 2 found
    assert found.metrics == pytest.approx(
        {
            "accuracy": 0.5,
            "macro_precision": 0.75,
            "macro_recall": 0.5,
            "macro_f1": (f1_a + f1_b) / 2,  # c is neither right nor taken
            "micro_f1": 2 * 2 / (3 + 4),
            "weighted_f1": (f1_a + f1_b) / 2,
            "hit@1": 0.75,
            "ece": (0.2 + 0.6 + 0.3 + 0.6) / 4,
            "nll": -float(np.log([0.8, 0.3, 0.7, 0.4]).mean()),
            "abstained": 0.25,
        }
    )
    assert list(found.metrics) == [name for name in SINGLE_METRICS if name not in ("hit@3", "hit@5")]
    assert [(each.label, each.support, each.predicted) for each in found.labels] == [
        ("a", 2, 2),
        ("b", 2, 1),
        ("c", 0, 0),
    ]
    assert found.confusions() == [("b", "a", 1)]
    assert found.notes == ("1 of 3 labels are right for no row; averages leave out those never predicted either",)


def test_multi_label_metrics_by_hand() -> None:
    found = multi([[1, 1], [0, 0], [1, 0]], [[1, 0], [0, 0], [1, 1]], [[0.9, 0.2], [0.4, 0.3], [0.7, 0.6]])
    nll = -np.log([0.9, 0.2, 0.6, 0.7, 0.7, 0.4]).mean()
    assert found.metrics == pytest.approx(
        {
            "subset_accuracy": 1 / 3,
            "macro_precision": 0.5,
            "macro_recall": 0.5,
            "macro_f1": 0.5,  # a: 1, b: 0
            "micro_f1": 2 * 2 / (3 + 3),
            "weighted_f1": 2 / 3,
            "samples_f1": (2 / 3 + 1 + 2 / 3) / 3,
            "hamming_loss": 2 / 6,
            "hit@1": 1.0,  # of the two rows that have a right label
            "ece": (0.1 + 0.8 + 0.4 + 0.3 + 0.3 + 0.6) / 6,
            "nll": float(nll),
            "map": (1 + 1 / 3) / 2,
            "abstained": 1 / 3,
        }
    )
    assert set(found.metrics) <= set(MULTI_METRICS)
    assert found.confusion is None


def test_one_label_only() -> None:
    found = multi([[1], [0], [1]], [[1], [1], [0]], [[0.9], [0.8], [0.3]], "a")
    assert found.metrics["micro_f1"] == found.metrics["macro_f1"] == 0.5
    assert found.metrics["hamming_loss"] == pytest.approx(2 / 3)
    assert found.metrics["subset_accuracy"] == pytest.approx(1 / 3)
    assert len(found.labels) == 1
    assert single([0, 0], [0, -1], [[1.0], [1.0]], "a").metrics["accuracy"] == 0.5


def test_rows_without_any_right_or_predicted_label() -> None:
    found = multi([[0, 0]], [[0, 0]], [[0.1, 0.2]])
    assert found.metrics["samples_f1"] == found.metrics["subset_accuracy"] == 1
    assert found.metrics["micro_f1"] == 0
    assert "map" not in found.metrics


# --- right labels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "one", "several"),
    [
        (" a ", ("a",), ("a",)),
        ("a|b", ("a|b",), ("a", "b")),
        ("a| b |", ("a| b |",), ("a", "b")),
        ("", (), ()),
        (["a"], ("a",), ("a",)),
        (["b", "a"], ("b", "a"), ("b", "a")),
        ([], (), ()),
        ({"a": 0.5, "b": 0.49, "c": True}, ("a", "b", "c"), ("a", "b", "c")),
        ('["a", "b"]', ("a", "b"), ("a", "b")),
        ("[urgent]", ("[urgent]",), ("[urgent]",)),
    ],
)
def test_right_labels(value: Any, one: tuple[str, ...], several: tuple[str, ...]) -> None:
    assert tuple(gold_labels(value, "label", several=False)) == one
    assert tuple(gold_labels(value, "label")) == several


@pytest.mark.parametrize(
    "value", [None, 3, True, [1], ["a", ""], ["a", "a"], "a|a", {"a": "yes"}, {"a": 1.5}, {"a": float("nan")}]
)
def test_what_is_no_right_label(value: Any) -> None:
    with pytest.raises(FieldProblem, match="'label'"):
        gold_labels(value, "label")


# --- tuning ---------------------------------------------------------------------------------------------------------


def drawn(rows: int = 400, labels: int = 4, *, sharp: float = 4.0) -> tuple[Any, Any]:
    """Logits whose softmax at temperature ``sharp`` is right as often as it says, and the right labels."""
    random = np.random.default_rng(7)
    true = random.normal(size=(rows, labels)) * 1.5
    gold = (true + random.gumbel(size=true.shape)).argmax(axis=1)
    return true * sharp, gold


def outcomes_of(logits: Any, gold: Any, choice: Choice) -> Outcomes:
    from gliclass_cli.decoding import Decoder

    scores = Decoder(choice).scores(logits)
    predicted = scores >= 0.5 if choice.multi else logits.argmax(axis=1)
    names = tuple(f"label {j}" for j in range(logits.shape[1]))
    return Outcomes(names, choice.multi, gold, predicted, scores, logits, logits)


def test_temperature_is_found_and_the_error_falls_on_rows_held_out() -> None:
    logits, gold = drawn()
    tuned = tune(outcomes_of(logits, gold, Choice()), Choice())
    assert tuned.calibration.single_temperature == pytest.approx(4, rel=0.15)
    assert tuned.after["ece"] < 0.06 < 0.15 < tuned.before["ece"]
    assert tuned.after["nll"] < tuned.before["nll"]
    assert tuned.after["accuracy"] == tuned.before["accuracy"]


def test_temperature_bias_and_thresholds_are_found() -> None:
    random = np.random.default_rng(3)
    true = random.normal(size=(600, 5)) * 2
    gold = random.random(true.shape) < 1 / (1 + np.exp(-true))
    choice = Choice(multi=True)
    tuned = tune(outcomes_of((true - 3.0) * 2, gold, choice), choice)  # sigmoid(z / 2 + 3) is right
    assert tuned.calibration.multi_temperature == pytest.approx(2, rel=0.1)
    assert tuned.calibration.multi_bias == pytest.approx(3, rel=0.1)
    assert all(0.2 < least < 0.6 for least in tuned.calibration.thresholds.values())
    for name, better in (("ece", -1), ("nll", -1), ("micro_f1", 1), ("macro_f1", 1)):
        assert better * (tuned.after[name] - tuned.before[name]) > 0.05


def test_rare_labels_share_a_threshold() -> None:
    random = np.random.default_rng(5)
    logits = random.normal(size=(100, 3))
    gold = logits + random.normal(size=logits.shape) > 0.5
    gold[:, 1:] = False
    gold[:4, 1:] = True
    found = fit(logits, gold, ("a", "b", "c"), multi=True)
    assert found.thresholds["b"] == found.thresholds["c"]


def f1_at(least: float, scores: Any, right: Any) -> float:
    taken = scores >= least
    return float(2 * (taken & right).sum() / max(taken.sum() + right.sum(), 1))


@given(st.lists(st.tuples(st.integers(0, 1000), st.booleans()), min_size=1, max_size=30))
def test_no_threshold_has_a_better_f1(answers: list[tuple[int, bool]]) -> None:
    scores = np.array([score / 1000 for score, _ in answers])
    right = np.array([flag for _, flag in answers])
    least = best_threshold(scores, right)
    assert 0 <= least <= 1
    assert f1_at(least, scores, right) == pytest.approx(max(f1_at(each, scores, right) for each in [*scores, 1.1]))
    if f1_at(0.5, scores, right) == f1_at(least, scores, right):
        assert least == 0.5


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_report_as_text_and_as_json(gold: str, tmp_path: Path) -> None:
    result = gliclass("eval", gold, *LABELS, "--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.svg"))
    assert (result.exit_code, result.stderr) == (0, "")
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["rows"], found["errors"], found["mode"]) == (24, 0, "single")
    assert [each["label"] for each in found["labels"]] == NAMES
    assert f"accuracy         {found['accuracy']:.4f}\n" in result.stdout
    assert f"macro_f1         {found['macro_f1']:.4f}\n" in result.stdout
    assert "\033" not in result.stdout
    assert (tmp_path / "r.svg").read_bytes().startswith(b"<?xml")
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []
    answers = [
        json.loads(line)["prediction"]["label"] for line in gliclass("classify", gold, *LABELS).stdout.splitlines()
    ]
    right = sum(answer == row["label"] for answer, row in zip(answers, tickets(), strict=True))
    assert found["accuracy"] == pytest.approx(right / 24)


@pytest.mark.parametrize("mode", [(), ("--multi",), ("--threshold", "0.5"), ("--multi", "--threshold", "0.2")])
def test_stored_predictions_score_as_live_ones(gold: str, tmp_path: Path, mode: tuple[str, ...]) -> None:
    live = report_of(gliclass("eval", gold, *LABELS, *mode, "--json", "-"))
    stored = tmp_path / "stored.jsonl"
    gliclass("classify", gold, *LABELS, *mode, "--digits", "12", "-o", str(stored))
    flags = [flag for flag in mode if flag == "--multi"]
    found = report_of(gliclass("eval", str(stored), *flags, "--json", "-"))
    assert found["model"] is None
    for key, value in live.items():
        if key in ("model", "seconds", "rows_per_second", "truncated", "reliability"):
            continue
        assert found[key] == (pytest.approx(value, abs=1e-4) if isinstance(value, float) else value), key


@pytest.mark.parametrize(
    ("options", "missing"),
    [(["--top-k", "3"], {"nll", "hit@5"}), (["--no-scores"], {"nll", "hit@3", "hit@5"}), (["-o", "OUT.csv"], {"nll"})],
)
def test_stored_predictions_without_all_scores(
    gold: str, tmp_path: Path, options: list[str], missing: set[str]
) -> None:
    live = report_of(gliclass("eval", gold, *LABELS, "--json", "-"))
    stored = tmp_path / "OUT.csv"
    options = [str(stored) if option == "OUT.csv" else option for option in options]
    gliclass("classify", gold, *LABELS, *(options if "-o" in options else [*options, "-o", str(tmp_path / "o.jsonl")]))
    found = report_of(
        gliclass("eval", str(stored if "-o" in options else tmp_path / "o.jsonl"), *LABELS, "--json", "-")
    )
    assert not missing & set(found)
    assert any("nll left out" in note for note in found["notes"])
    for name in ("accuracy", "macro_f1", "labels", "confusions"):
        assert found[name] == live[name]
    assert found["ece"] == pytest.approx(live["ece"], abs=1e-4)


def test_predictions_under_another_name_and_nested(tmp_path: Path) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text('{"money": {"billing": null, "refund": null}, "praise": null}')
    rows = [{"text": "I was charged twice", "label": "money.billing"}, {"text": "Great lamp", "label": "praise"}]
    path, out = lines(tmp_path / "in.jsonl", rows), str(tmp_path / "out.jsonl")
    gliclass("classify", path, "--labels", str(labels), "--nested", "--as", "guess", "-o", out)
    found = report_of(gliclass("eval", out, "--as", "guess", "--json", "-"))
    assert [each["label"] for each in found["labels"]] == ["money.billing", "money.refund", "praise"]
    assert found["accuracy"] == 1


def test_labels_come_from_the_rows_where_none_are_given(gold: str) -> None:
    result = gliclass("eval", gold, "--json", "-")
    names = sorted({row["label"] for row in tickets()})
    assert [each["label"] for each in report_of(result)["labels"]] == names
    assert (
        result.stderr
        == f"gliclass: no labels given: choosing from the {len(names)} that the rows have: {', '.join(names)}\n"
    )


def test_gold_fields(tmp_path: Path) -> None:
    rows = [{"body": "I was charged twice", "x": {"y": ["billing"]}}, {"body": "Great lamp", "x": {"y": "praise"}}]
    path = lines(tmp_path / "in.jsonl", rows)
    assert gliclass("eval", path, *LABELS, "--gold-field", "x.y").exit_code == 0
    result = gliclass("eval", path, *LABELS)
    assert (result.exit_code, "which field holds the right label?" in result.stderr) == (2, True)
    # The field of the right label is no candidate for the only string.
    assert gliclass("eval", lines(tmp_path / "b.jsonl", [{"body": "Great", "label": "praise"}]), *LABELS).exit_code == 0
    result = gliclass(
        "eval", lines(tmp_path / "c.jsonl", [{"label": "Great", "gold": "praise"}]), *LABELS, "-t", "label"
    )
    assert result.exit_code == 0


def test_several_right_labels_need_multi(tmp_path: Path) -> None:
    rows = [{"text": "Great lamp", "labels": ["praise", "shipping"]}, {"text": "hm", "labels": []}]
    path = lines(tmp_path / "in.jsonl", rows)
    result = gliclass("eval", path, *LABELS)
    assert (result.exit_code, result.stderr) == (
        2,
        f"gliclass: {path}:1: field 'labels' has 2 right labels; use --multi\n",
    )
    assert report_of(gliclass("eval", path, *LABELS, "--multi", "--json", "-"))["rows"] == 2


@pytest.mark.parametrize("stored", [False, True])
def test_a_right_label_that_is_no_candidate_ends_the_run(gold: str, tmp_path: Path, stored: bool) -> None:
    rows = [*tickets(3), {"text": "x", "label": "Billing"}]
    path = lines(tmp_path / "in.jsonl", rows)
    if stored:
        gliclass("classify", path, *LABELS, "-o", str(tmp_path / "out.jsonl"))
        path = str(tmp_path / "out.jsonl")
    result = gliclass("eval", path, *(() if stored else LABELS), "--json", str(tmp_path / "r.json"))
    assert result.exit_code == 3
    assert f"{path}:4: the right label 'Billing' is not among the 7 labels (" in result.stderr
    assert not list(tmp_path.glob("r.json*"))


def test_bad_rows_are_told_and_left_out(tmp_path: Path) -> None:
    bad = ["{", {"label": "praise"}, {"text": "x"}, {"text": "x", "label": None}, {"text": "x", "label": 3}, "[1]", "3"]
    path = lines(tmp_path / "in.jsonl", [*tickets(2), *bad])
    result = gliclass("eval", path, *LABELS, "--json", "-", "--fail-under", "accuracy=2")
    found = report_of(result)
    assert (result.exit_code, found["rows"], found["errors"]) == (5, 2, 7)
    told = result.stderr.splitlines()
    assert [line.split(": ")[1] for line in told[:5]] == [f"{path}:{number}" for number in range(3, 8)]
    assert told[5] == "gliclass: ... and 2 more rows with errors"
    assert gliclass("eval", lines(tmp_path / "none.jsonl", bad), *LABELS).exit_code in (2, 3)
    assert gliclass("eval", lines(tmp_path / "empty.jsonl", []), *LABELS).exit_code == 3


def test_stored_errors_are_errors(tmp_path: Path) -> None:
    error = {"text": "x", "label": "a", "prediction": {"error": {"code": "c", "message": "too long", "line": 1}}}
    fine = {"text": "x", "label": "a", "prediction": {"label": "a", "score": 0.9, "labels": ["a"]}}
    wrong = [
        {"text": "x", "label": "a", "prediction": value}
        for value in (3, {"label": "a", "labels": []}, {"label": "a", "score": 2}, {"labels": "a"}, {"labels": [1]})
    ]
    result = gliclass("eval", lines(tmp_path / "in.jsonl", [fine, error, *wrong]), "--json", "-")
    assert (result.exit_code, report_of(result)["rows"], report_of(result)["errors"]) == (5, 1, 6)
    assert ":2: it was not classified: too long\n" in result.stderr


@pytest.mark.parametrize(
    ("goals", "code"),
    [
        (["accuracy=0"], 0),
        (["accuracy=1.01"], 1),
        (["accuracy=0", "macro_f1=1.01"], 1),
        (["hit@3=0.1", "rows=24", "rows_per_second=0.001"], 0),
        (["ece=1"], 0),
        (["ece=0"], 1),
        (["nll=0"], 1),
        (["errors=0"], 0),
        (["rows=25"], 1),
    ],
)
def test_fail_under(gold: str, goals: list[str], code: int) -> None:
    result = gliclass("eval", gold, *LABELS, *[part for goal in goals for part in ("--fail-under", goal)])
    assert result.exit_code == code
    assert result.stderr.count("missed, it is") == (1 if code else 0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--fail-under", "recall=1"], "known metrics are accuracy, macro_precision,"),
        (["--fail-under", "hit@2=1"], "known metrics are"),
        (["--fail-under", "hamming_loss=1"], "known metrics are"),
        (["--fail-under", "accuracy"], "a number belongs behind the ="),
        (["--fail-under", "accuracy=nan"], "a number belongs behind the ="),
        (["--plot", "report.pdf"], "must end in .png or .svg"),
        (["--plot", "-"], "must end in .png or .svg"),
        (["--tune", "-"], "name a file"),
        (["--json", ""], "name a file"),
        (["--json", "x.png", "--plot", "x.png"], "is read, or written by another option"),
        (["--calibration", "none.json"], "no such file"),
    ],
)
def test_usage_errors_come_before_any_work(gold: str, arguments: list[str], told: str) -> None:
    result = gliclass("eval", gold, "--model", "no such model", *LABELS, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr


def test_an_output_is_no_input(gold: str) -> None:
    for flag in ("--json", "--tune"):
        assert gliclass("eval", gold, *LABELS, flag, gold).exit_code == 2
    assert len(Path(gold).read_text().splitlines()) == 24


def test_a_metric_that_was_left_out_is_a_usage_error(tmp_path: Path) -> None:
    row = {"text": "x", "label": "a", "prediction": {"label": "a", "labels": ["a"]}}
    result = gliclass("eval", lines(tmp_path / "in.jsonl", [row]), "--fail-under", "ece=0.1")
    assert result.exit_code == 2
    assert "the report has no ece: " in result.stderr


def test_tune_then_classify_tag_and_eval_with_it(gold: str, tmp_path: Path) -> None:
    out = str(tmp_path / "calibration.json")
    result = gliclass("eval", gold, *LABELS, "--tune", out, "--json", "-")
    found, written = report_of(result), json.loads(Path(out).read_text())
    assert (result.exit_code, written["mode"], written["rows"]) == (0, "single", 24)
    assert found["tuning"]["temperature"] == written["temperature"]
    assert found["tuning"]["cross_validation"] == written["cross_validation"]
    after = report_of(gliclass("eval", gold, *LABELS, "--calibration", out, "--json", "-"))
    assert after["nll"] < found["nll"]
    assert after["accuracy"] == found["accuracy"]
    plain = gliclass("tag", "I was charged twice", *LABELS).stdout
    tagged = gliclass("tag", "I was charged twice", *LABELS, "--calibration", out)
    classified = gliclass("classify", *LABELS, "--calibration", out, stdin="I was charged twice")
    assert json.loads(tagged.stdout)["prediction"] == json.loads(classified.stdout)["prediction"]
    assert json.loads(tagged.stdout)["prediction"]["score"] != json.loads(plain)["prediction"]["score"]
    for command in ("tag", "classify", "eval"):
        result = gliclass(command, *(["x"] if command == "tag" else [gold]), *LABELS, "--multi", "--calibration", out)
        assert (result.exit_code, "was tuned without --multi" in result.stderr) == (2, True)


def test_thresholds_of_a_calibration_apply_unless_one_is_given(gold: str, tmp_path: Path) -> None:
    out = str(tmp_path / "calibration.json")
    assert gliclass("eval", gold, *LABELS, "--multi", "--tune", out).exit_code == 0
    value = json.loads(Path(out).read_text())
    value["thresholds"] = dict.fromkeys(NAMES, 1.0) | {"praise": 0.0}
    value["model"] = "another"
    Path(out).write_text(json.dumps(value))
    base = ("tag", "I was charged twice", *LABELS, "--multi", "--calibration", out)
    result = gliclass(*base)
    assert json.loads(result.stdout)["prediction"]["labels"] == ["praise"]
    assert "the calibration was tuned for another, not for " in result.stderr
    assert len(json.loads(gliclass(*base, "--threshold", "0").stdout)["prediction"]["labels"]) == 7
    found = report_of(gliclass("eval", gold, *LABELS, "--multi", "--calibration", out, "--json", "-"))
    assert [each["predicted"] for each in found["labels"]] == [24 if name == "praise" else 0 for name in NAMES]


def test_too_few_rows_to_tune(tmp_path: Path) -> None:
    out = tmp_path / "calibration.json"
    result = gliclass("eval", lines(tmp_path / "in.jsonl", tickets(19)), *LABELS, "--tune", str(out))
    assert (result.exit_code, out.exists(), list(tmp_path.glob("*.part"))) == (3, False, [])
    assert "--tune needs 20 rows with right labels or more; there are 19" in result.stderr


def test_stored_predictions_cannot_be_tuned(gold: str, tmp_path: Path) -> None:
    stored = str(tmp_path / "stored.jsonl")
    gliclass("classify", gold, *LABELS, "-o", stored)
    for flags in (("--tune", str(tmp_path / "c.json")), ("--threshold", "0.5")):
        result = gliclass("eval", stored, *flags)
        assert (result.exit_code, f"{flags[0]}: needs the model's own scores" in result.stderr) == (2, True)


def test_an_unwritable_output_ends_the_run_before_the_model(gold: str, tmp_path: Path) -> None:
    result = gliclass("eval", gold, *LABELS, "--model", "no such model", "--json", str(tmp_path / "none" / "r.json"))
    assert result.exit_code == 6


def test_a_missing_library_is_told_with_what_to_type(gold: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gliclass_cli.cli.evaluate.find_spec", lambda name: None)
    result = gliclass("eval", gold, *LABELS, "--plot", "x.png")
    assert result.exit_code == 4
    assert result.stderr == "gliclass: eval needs scikit-learn and matplotlib: pip install 'gliclass-cli[eval]'\n"


def test_scoring_stored_predictions_loads_no_model(tmp_path: Path) -> None:
    row = {
        "text": "x",
        "label": "a",
        "prediction": {"label": "a", "score": 0.9, "labels": ["a"], "scores": {"a": 0.9, "b": 0.1}},
    }
    code = (
        "import sys; from gliclass_cli.cli.app import app; app(standalone_mode=False); "
        "assert 'sklearn' in sys.modules and not {'matplotlib', 'torch', 'transformers'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "eval", lines(tmp_path / "in.jsonl", [row]), "--model", "none"],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "stored predictions" in result.stdout


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gliclass_cli", "eval", *LABELS, "--json", str(tmp_path / "r.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stderr
        try:
            # More than one window; the input stays open.
            process.stdin.write("".join(json.dumps(row) + "\n" for row in tickets() * 100))
            process.stdin.flush()
            deadline = time.monotonic() + 60
            while not (tmp_path / "r.json.part").exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(3)
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
            assert "interrupted; a report needs all rows" in process.stderr.read()
        finally:
            process.kill()
    assert list(tmp_path.iterdir()) == []


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys; from gliclass_cli.cli.app import app; app(standalone_mode=False); "
        "assert not {'numpy', 'sklearn', 'scipy', 'matplotlib', 'onnxruntime'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, "eval", "--help"], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "--fail-under" in result.stdout


def test_labels_without_a_threshold_are_told(gold: str, tmp_path: Path) -> None:
    out = str(tmp_path / "calibration.json")
    gliclass("eval", gold, *LABELS, "--multi", "--tune", out)
    result = gliclass("tag", "x", "-l", "billing", "-l", "weather", "--multi", "--calibration", out)
    assert "gliclass: the calibration has no threshold for 1 of the 2 labels ('weather'): 0.5 serves\n" in result.stderr
    assert result.exit_code == 0
