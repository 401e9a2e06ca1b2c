"""Which rows are taken, which go out, and how labels are counted: --sample, --review, --summary."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from gliclass_cli.classification import Sample
from gliclass_cli.cli.app import app
from gliclass_cli.cli.summary import LabelCounts
from gliclass_cli.labels import make_labels
from gliclass_cli.predictions import Prediction
from gliclass_cli.records import Record

EXAMPLES = Path(__file__).parents[1] / "examples"
TICKETS = ("classify", str(EXAMPLES / "tickets.jsonl"), "--labels", str(EXAMPLES / "tickets.labels.txt"))


def gliclass(*arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin, env=env, catch_exceptions=False)


def ids(result: Result) -> list[int]:
    return [json.loads(line)["id"] for line in result.stdout.splitlines()]


def records(count: int) -> list[Record]:
    return [Record("x", number, b"", {}) for number in range(count)]


@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 5))
def test_a_sample_is_so_many_rows_in_their_order(rows: int, wanted: int, seed: int) -> None:
    lines = [record.line for record in Sample(wanted, seed).draw(iter(records(rows)))]
    assert len(lines) == min(rows, wanted)
    assert lines == sorted(set(lines))
    assert lines == [record.line for record in Sample(wanted, seed).draw(iter(records(rows)))]


def test_each_row_is_drawn_as_often() -> None:
    drawn = Counter(record.line for seed in range(2000) for record in Sample(3, seed).draw(records(12)))
    assert len(drawn) == 12
    assert all(400 < count < 600 for count in drawn.values())  # 500 expected


def test_a_sample_of_an_input() -> None:
    first, again = gliclass(*TICKETS, "--sample", "6", "-q"), gliclass(*TICKETS, "--sample", "6", "-q")
    assert first.stdout == again.stdout
    assert len(ids(first)) == 6
    assert ids(first) == sorted(ids(first))
    assert ids(gliclass(*TICKETS, "--sample", "6", "--seed", "1", "-q")) != ids(first)
    assert set(ids(gliclass(*TICKETS, "--skip", "10", "--limit", "5", "--sample", "3", "-q"))) < set(range(11, 16))


def test_review_writes_uncertain_rows_only() -> None:
    whole = [json.loads(line) for line in gliclass(*TICKETS, "-q", "--digits", "15").stdout.splitlines()]
    wanted = [row["id"] for row in whole if 0.3 <= row["prediction"]["score"] <= 0.6]
    found = gliclass(*TICKETS, "--review", "0.3:0.6")
    assert ids(found) == wanted
    assert 0 < len(wanted) < 60
    assert f"gliclass: 60 rows, {len(wanted)} to review, " in found.stderr
    # The score counts, not whether it is accepted or written.
    assert ids(gliclass(*TICKETS, "--review", ":0.6", "--threshold", "0.9", "--no-scores", "-q")) == [
        row["id"] for row in whole if row["prediction"]["score"] <= 0.6
    ]


def test_review_of_several_labels_looks_at_each() -> None:
    whole = [json.loads(line) for line in gliclass(*TICKETS, "--multi", "-q", "--digits", "15").stdout.splitlines()]
    wanted = [row["id"] for row in whole if any(0.4 <= score <= 0.6 for score in row["prediction"]["scores"].values())]
    assert ids(gliclass(*TICKETS, "--multi", "--review", "0.4:0.6", "--top-k", "1", "-q")) == wanted
    assert 0 < len(wanted) < 60


def test_review_in_other_formats(tmp_path: Path) -> None:
    out = tmp_path / "review.csv"
    assert gliclass(*TICKETS, "--review", "1:1", "-o", str(out), "-q").exit_code == 0
    assert out.read_text() == "prediction,prediction_score,prediction_labels\n"
    bad = gliclass("classify", "-l", "a", "-l", "b", "--review", "0:1", stdin='{"text":"x"}\n{bad\n')
    assert (bad.exit_code, len(bad.stdout.splitlines())) == (5, 1)


@pytest.mark.parametrize("wrong", ["0.5", "0.7:0.3", "a:b", "-1:1", "0:2", "nan:1", ""])
def test_a_wrong_range_is_told_before_anything_is_loaded(wrong: str) -> None:
    result = gliclass(*TICKETS, "--review", wrong, "--model", "nowhere")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "two scores from 0 to 1 belong here, for example 0.4:0.7" in result.stderr


def test_the_summary_counts_labels_on_stderr() -> None:
    arguments = ("classify", "-l", "billing", "-l", "配送", "-l", "praise", "--summary", "-q")
    result = gliclass(*arguments, stdin='{"text":"I was charged twice"}\n{"text":"charged again"}\n{bad\n')
    assert result.stderr.splitlines()[1:] == [
        "  billing  2   66.7%  " + "━" * 40,
        "  配送     0    0.0%",
        "  praise   0    0.0%",
        "  (error)  1   33.3%  " + "━" * 20,
    ]
    assert "%" not in result.stdout
    plain = gliclass(*arguments, "--threshold", "1", stdin="x", env={"TERM": "dumb"})
    assert plain.stderr.splitlines()[-1] == "  (no label)  1  100.0%  " + "=" * 40


def test_the_summary_of_very_many_labels_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"label {number}" for number in range(100)]
    counts = LabelCounts(make_labels(names))
    for name in names:
        counts.count(Prediction(name, 1.0, (name,)))
    counts.tell()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 31
    assert lines[-1].split()[:4] == ["(70", "more", "labels)", "70"]


def test_the_summary_of_nothing_is_nothing() -> None:
    assert gliclass("classify", "--labels-field", "x", "--summary", "-q").stderr == ""
