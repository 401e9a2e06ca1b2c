"""``classify --dry-run`` and ``labels check``: what is told before anything is computed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gliclass_cli.cli.app import app

EXAMPLES = Path(__file__).parents[1] / "examples"
TICKETS = str(EXAMPLES / "tickets.jsonl")
LABELS = ("-l", "billing", "-l", "shipping")


def gliclass(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin, catch_exceptions=False)


def check(tmp_path: Path, content: str, *arguments: str, name: str = "labels.txt") -> Result:
    (tmp_path / name).write_text(content)
    return gliclass("labels", "check", str(tmp_path / name), *arguments)


def test_a_dry_run_tells_what_would_be_done(tmp_path: Path) -> None:
    csv, out = tmp_path / "more.csv", tmp_path / "out.jsonl"
    csv.write_text("text\nmy parcel\n")
    result = gliclass("classify", TICKETS, str(csv), *LABELS, "--dry-run", "--max-length", "40", "-o", str(out))
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "inputs"
    assert lines[1].split() == [TICKETS, "jsonl", "14,512", "bytes"]
    assert lines[2].split() == [str(csv), "csv", "15", "bytes"]
    assert lines[3].endswith(", bi-encoder, reads 40 tokens")
    assert lines[4:7] == ["2 labels and their tokens", "  billing   8", "  shipping  8"]
    assert lines[7] == "all 61 rows: 0 with errors"
    assert lines[-4:-2] == ["first input", lines[-3]]
    assert lines[-3].startswith("  [CLS] hi, my tindlewick lamp")
    assert lines[-2:] == ["first label", "  [CLS] this text is about billing. [SEP]"]
    assert not list(tmp_path.glob("out*"))


def test_a_dry_run_cuts_as_many_texts_as_a_run() -> None:
    arguments = ("classify", TICKETS, *LABELS, "--max-length", "40")
    real = gliclass(*arguments).stdout.splitlines()
    cut = [json.loads(line)["prediction"].get("truncated") for line in real]
    dry = gliclass(*arguments, "--dry-run").stdout
    share = sum(item is not None for item in cut) / len(cut)
    assert 0 < share < 1
    assert f"  {sum(item is not None for item in cut)} texts do not fit ({share:.1%}): each is cut\n" in dry
    assert f"the longest input has {max(item['tokens'] for item in cut if item)} tokens\n" in dry
    assert "each is read in chunks" in gliclass(*arguments, "--dry-run", "--long", "chunk").stdout


def test_a_dry_run_loads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gliclass_cli.loading.open_backend", lambda *_: pytest.fail("a backend was opened"))
    assert gliclass("classify", *LABELS, "--dry-run", stdin="x").exit_code == 0
    assert gliclass("labels", "check", str(EXAMPLES / "tickets.labels.txt")).exit_code == 0


def test_a_dry_run_of_a_long_input_looks_at_its_beginning() -> None:
    result = gliclass("classify", *LABELS, "--dry-run", stdin="x\n" * 5000)
    assert "the first 1,000 rows: 0 with errors\n" in result.stdout
    assert "  -  text\n" in result.stdout
    limited = gliclass("classify", *LABELS, "--dry-run", "--skip", "1", "--limit", "2", stdin="x\n" * 5)
    assert "all 2 rows: 0 with errors\n" in limited.stdout


def test_a_dry_run_tells_bad_rows_and_labels() -> None:
    stdin = '{"text":"x","c":["a","b"]}\n{bad\n{"text":"x"}\n'
    result = gliclass("classify", "--labels-field", "c", "--dry-run", stdin=stdin)
    assert result.exit_code == 5
    assert "all 3 rows: 2 with errors\n  stdin:2: not valid JSON" in result.stdout
    assert gliclass("classify", *LABELS, "--dry-run", "--model", "nowhere", stdin="x").exit_code == 4
    long = gliclass("classify", "-l", "word " * 600, "-l", "b", "--dry-run", stdin="x")
    assert (long.exit_code, "labels are never cut" in long.stderr) == (2, True)
    assert "all 0 rows" in gliclass("classify", *LABELS, "--dry-run").stdout


def test_good_labels(tmp_path: Path) -> None:
    result = check(tmp_path, "billing\tinvoices, 配送\r\n配送\r\nC\r\nC++\r\n")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "4 labels, 1 with a description"
    assert lines[1].endswith(" tokens; the model has room for 512 each")
    assert [line.split()[0] for line in lines[2:]] == ["billing", "配送", "C", "C++"]
    assert lines[2].endswith("  invoices, 配送")
    assert lines[3].startswith("  配送     ")


def test_a_hierarchy_is_shown_as_it_is_read(tmp_path: Path) -> None:
    result = check(tmp_path, '{"topic": {"money": ["billing", "refund"]}, "praise": null}', name="labels.json")
    assert result.stdout.startswith("3 labels, a hierarchy of 3 levels\n")
    assert [line.split()[0] for line in result.stdout.splitlines()[2:]] == [
        "topic.money.billing",
        "topic.money.refund",
        "praise",
    ]


@pytest.mark.parametrize(
    ("content", "doubt"),
    [
        ("Billing\nbilling\n", "'Billing' and 'billing' differ only in case, space or punctuation"),
        ("bug report\nbug-report\n", "'bug report' and 'bug-report' differ only in case, space or punctuation"),
        ("e\u0301cole\n\u00e9cole\n", "differ only in case, space or punctuation"),
        ("a\tthe same\nb\tthe same\n", "'a' and 'b' have the same description"),
    ],
)
def test_doubtful_labels(tmp_path: Path, content: str, doubt: str) -> None:
    result = check(tmp_path, content)
    assert result.exit_code == 1
    assert f"doubtful: {result.stdout.split('doubtful: ', 1)[1]}".count(doubt) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\nb\na\n", "label 'a' is given twice (lines 1 and 3); remove one"),
        ("", "no labels"),
        ("word " * 600 + "\nb\n", "labels are never cut, and there is room for 512: shorten it"),
    ],
)
def test_labels_that_classify_refuses(tmp_path: Path, content: str, message: str) -> None:
    result = check(tmp_path, content)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_wrong_template_is_told(tmp_path: Path) -> None:
    assert check(tmp_path, "a\nb\n", "--template", "x").exit_code == 2
