"""The command line as a user meets it: exact output, messages and exit codes."""

import csv
import gzip
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from gliclass_cli.cells import cells
from gliclass_cli.cli.app import app
from gliclass_cli.cli.options import Format
from gliclass_cli.readers import FORMATS

EXAMPLES = Path(__file__).parents[1] / "examples"
TICKETS = str(EXAMPLES / "tickets.jsonl")
LABELS = ("-l", "billing", "-l", "shipping", "-l", "praise")
SUMMARY = re.compile(r"gliclass: [\d,]+ rows?(, [\d,]+ with errors)?(, [\d,]+ truncated)?, [\d,.]+ rows/s, [\d.]+ s\n")


def gliclass(*arguments: str, stdin: bytes | str = b"", env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin, env=env, catch_exceptions=False)


def spawn(*arguments: str, **options: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "gliclass_cli", *arguments], **options)


def rows_of(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def rewritten(result: Result) -> str:
    """The output with each score replaced: scores belong to the model, the rest to the command line."""
    return re.sub(r"\d\.\d+", "S", result.stdout)


# --- input ----------------------------------------------------------------------------------------------------------


def test_jsonl_keeps_the_row_as_it_came_and_gains_one_key() -> None:
    line = '{ "id":1.0,"big":123456789012345678901234567890, "text":"charged \\u0074wice","x":{"a":[1, 2]}}'
    result = gliclass("classify", *LABELS, stdin=line)
    assert result.exit_code == 0
    assert rewritten(result) == (
        '{ "id":1.0,"big":123456789012345678901234567890, "text":"charged \\u0074wice","x":{"a":[1, 2]},'
        '"prediction":{"label":"billing","score":S,"labels":["billing"],"scores":{"billing":S,"shipping":S,"praise":S}}}\n'
    ).replace("1.0", "S")
    assert SUMMARY.fullmatch(result.stderr)


def test_scores_are_between_0_and_1_and_add_up() -> None:
    for row in rows_of(gliclass("classify", TICKETS, *LABELS, "--limit", "10")):
        scores = row["prediction"]["scores"]
        assert list(scores) == ["billing", "shipping", "praise"]
        assert sum(scores.values()) == pytest.approx(1, abs=2e-4)
        assert row["prediction"]["label"] == max(scores, key=scores.get)
        assert row["prediction"]["score"] == max(scores.values())
        assert row["prediction"]["labels"] == [row["prediction"]["label"]]


def test_all_formats_give_the_same_answers(tmp_path: Path) -> None:
    texts = ["I was charged twice", 'She said "great", twice', "my parcel\nis late"]
    one_line = [text.replace("\n", " ") for text in texts]
    files = {
        "rows.jsonl": "\n".join(json.dumps({"text": text}) for text in texts),
        "rows.json": json.dumps([{"text": text} for text in texts], indent=2),
        "rows.csv": "text\r\n" + "\r\n".join('"' + text.replace('"', '""') + '"' for text in texts),
        "rows.tsv": "text\n" + "\n".join('"' + text.replace('"', '""') + '"' for text in texts),
        "rows.txt": "\n".join(one_line),
    }
    expected = None
    for name, content in files.items():
        (tmp_path / name).write_bytes(content.encode())
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
        for path in (name, f"{name}.gz"):
            rows = rows_of(gliclass("classify", str(tmp_path / path), *LABELS))
            assert [row["text"] for row in rows] == (one_line if "txt" in name else texts)
            predictions = [row["prediction"] for row in rows]
            expected = expected or predictions
            assert predictions == expected


def test_every_format_that_is_read_can_be_named() -> None:
    assert tuple(Format) == FORMATS


def test_several_files_and_stdin_come_one_after_another(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text":"one"}\n')
    (tmp_path / "b.csv").write_text("text,n\ntwo,2\n")
    rows = rows_of(
        gliclass("classify", str(tmp_path / "a.jsonl"), "-", str(tmp_path / "b.csv"), *LABELS, stdin="three")
    )
    assert [row["text"] for row in rows] == ["one", "three", "two"]


@pytest.mark.parametrize(
    ("arguments", "row", "same_as"),
    [
        ([], {"text": "parcel", "n": 1}, "parcel"),
        ([], {"id": 7, "body": "parcel"}, "parcel"),
        (["-t", "a.b.1"], {"text": "no", "a": {"b": ["x", "parcel"]}}, "parcel"),
        (["-t", "subject", "-t", "body"], {"subject": "my", "body": "parcel"}, "my parcel"),
        (["-t", "subject", "-t", "body"], {"subject": None, "body": "parcel"}, "parcel"),
        (["-t", "a.b"], {"a.b": "parcel", "a": {"b": "no"}}, "parcel"),
    ],
)
def test_the_text_field(arguments: list[str], row: dict[str, Any], same_as: str) -> None:
    found = rows_of(gliclass("classify", *arguments, *LABELS, stdin=json.dumps(row)))[0]
    expected = rows_of(gliclass("classify", *LABELS, stdin=json.dumps({"text": same_as})))[0]
    assert found["prediction"] == expected["prediction"]
    assert {key: value for key, value in found.items() if key != "prediction"} == row


def test_skip_and_limit_count_rows() -> None:
    rows = rows_of(gliclass("classify", TICKETS, *LABELS, "--skip", "5", "--limit", "3"))
    assert [row["id"] for row in rows] == [6, 7, 8]
    assert gliclass("classify", TICKETS, *LABELS, "--limit", "0").stdout == ""


def test_encodings(tmp_path: Path) -> None:
    for encoding in ("latin-1", "cp1252", "utf-16", "utf-8-sig"):
        path = tmp_path / f"{encoding}.csv"
        path.write_bytes("name,text\nJosé,café déjà vu\n".encode(encoding))
        row = rows_of(gliclass("classify", str(path), *LABELS, "--encoding", encoding))[0]
        assert (row["name"], row["text"]) == ("José", "café déjà vu")
    result = gliclass("classify", str(tmp_path / "latin-1.csv"), *LABELS)
    assert result.exit_code == 5
    assert "latin-1.csv:2: not utf-8 text; name its encoding with --encoding" in result.stderr
    result = gliclass("classify", str(tmp_path / "utf-16.csv"), *LABELS)
    assert result.exit_code == 3
    assert "add --encoding utf-16" in result.stderr


# --- labels and choice ----------------------------------------------------------------------------------------------


def test_labels_from_flags_and_files_join_in_order(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_text("\ufeffshipping\tparcels\r\n\r\n  praise  \r\n")
    rows = rows_of(gliclass("classify", "-l", "billing", "--labels", str(path), stdin="x"))
    assert list(rows[0]["prediction"]["scores"]) == ["billing", "shipping", "praise"]


def test_hierarchies_flatten_and_nest_back(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text('{"topic": {"shipping": "parcels", "money": ["billing", "refund"]}, "praise": null}')
    flat = rows_of(gliclass("classify", "--labels", str(path), stdin="x"))[0]["prediction"]
    assert list(flat["scores"]) == ["topic.shipping", "topic.money.billing", "topic.money.refund", "praise"]
    nested = rows_of(gliclass("classify", "--labels", str(path), "--nested", stdin="x"))[0]["prediction"]
    assert nested["scores"]["topic"]["money"]["refund"] == flat["scores"]["topic.money.refund"]
    assert nested["label"] == flat["label"]


def test_rows_with_their_own_labels() -> None:
    rows = [
        {"text": "parcel", "candidates": ["billing", "shipping"]},
        {"text": "parcel", "candidates": {"shipping": "parcels and couriers", "praise": ""}},
        {"text": "parcel", "candidates": "praise|weather"},
        {"text": "parcel", "candidates": ["a", "a"]},
        {"text": "parcel", "candidates": []},
        {"text": "parcel"},
    ]
    stdin = "\n".join(map(json.dumps, rows))
    result = gliclass("classify", "--labels-field", "candidates", stdin=stdin)
    predictions = [row["prediction"] for row in rows_of(result)]
    assert [list(prediction["scores"]) for prediction in predictions[:3]] == [
        ["billing", "shipping"],
        ["shipping", "praise"],
        ["praise", "weather"],
    ]
    assert [prediction["error"]["code"] for prediction in predictions[3:]] == ["bad_labels", "bad_labels", "no_labels"]
    assert result.exit_code == 5
    with_default = gliclass("classify", "--labels-field", "candidates", *LABELS, stdin=json.dumps(rows[5]))
    assert list(rows_of(with_default)[0]["prediction"]["scores"]) == ["billing", "shipping", "praise"]


def test_threshold_abstains_in_single_mode() -> None:
    prediction = rows_of(gliclass("classify", *LABELS, "--threshold", "1", stdin="hm"))[0]["prediction"]
    assert (prediction["label"], prediction["score"], prediction["labels"]) == (None, None, [])
    assert len(prediction["scores"]) == 3


def test_multi_takes_every_label_at_or_above_the_threshold() -> None:
    text = "The refund for the parcel that never arrived was charged wrongly"
    for threshold in ("0", "0.2", "0.5", "1"):
        prediction = rows_of(gliclass("classify", *LABELS, "--multi", "--threshold", threshold, stdin=text))[0][
            "prediction"
        ]
        ranked = sorted(prediction["scores"], key=lambda name: -prediction["scores"][name])
        assert prediction["labels"] == [name for name in ranked if prediction["scores"][name] >= float(threshold)]
        assert prediction["label"] == (ranked[0] if prediction["labels"] else None)


def test_top_k_digits_and_no_scores() -> None:
    prediction = rows_of(gliclass("classify", *LABELS, "--top-k", "2", "--digits", "2", stdin="charged twice"))[0][
        "prediction"
    ]
    assert next(iter(prediction["scores"])) == prediction["label"] == "billing"
    assert len(prediction["scores"]) == 2
    assert all(round(score, 2) == score for score in prediction["scores"].values())
    assert "scores" not in rows_of(gliclass("classify", *LABELS, "--no-scores", stdin="x"))[0]["prediction"]


def test_truncation_is_reported_in_the_row_and_the_summary() -> None:
    result = gliclass("classify", *LABELS, "--max-length", "16", stdin="word " * 50)
    assert rows_of(result)[0]["prediction"]["truncated"] == {"tokens": 52, "limit": 16}
    assert "1 truncated" in result.stderr


def test_options_come_from_the_environment_and_flags_win() -> None:
    env = {"GLICLASS_LABEL": "failed login\nshipping", "GLICLASS_TOP_K": "1"}
    scores = rows_of(gliclass("classify", stdin="x", env={"GLICLASS_LABEL": "failed login\nshipping"}))[0][
        "prediction"
    ]["scores"]
    assert list(scores) == ["failed login", "shipping"]
    assert len(rows_of(gliclass("classify", stdin="x", env=env))[0]["prediction"]["scores"]) == 1
    assert len(rows_of(gliclass("classify", "--top-k", "2", stdin="x", env=env))[0]["prediction"]["scores"]) == 2


# --- output ---------------------------------------------------------------------------------------------------------


def test_csv_output(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text('id,text\n1,"charged, ""twice"""\n2,"my\nparcel"\n3\n')
    result = gliclass("classify", str(source), *LABELS, "--multi", "--threshold", "0", "-o", str(tmp_path / "out.csv"))
    assert (result.exit_code, result.stdout) == (5, "")
    rows = list(csv.reader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert rows[0] == ["id", "text", "prediction", "prediction_score", "prediction_labels"]
    assert rows[1][:3] == ["1", 'charged, "twice"', "billing"]
    assert sorted(rows[1][4].split("|")) == ["billing", "praise", "shipping"]
    assert rows[3] == ["3", "", "", "", ""]
    assert not (tmp_path / "out.csv.part").exists()


def test_label_output_is_aligned_with_the_input() -> None:
    result = gliclass(
        "classify",
        *LABELS,
        "-f",
        "jsonl",
        "--output-format",
        "label",
        stdin='{"text":"charged twice"}\n{bad\n{"text":"my parcel"}\n',
    )
    assert result.stdout == "billing\n\nshipping\n"


def test_tsv_and_table_output() -> None:
    result = gliclass("classify", *LABELS, "--output-format", "tsv", "--as", "tag", stdin="charged twice")
    assert rewritten(result) == "text\ttag\ttag_score\ttag_labels\ncharged twice\tbilling\tS\tbilling\n"
    result = gliclass("classify", *LABELS, "--output-format", "table", stdin="charged twice\nshipping \x1b[31mparcel")
    assert rewritten(result) == "S  billing   charged twice\nS  shipping  shipping  [31mparcel\n"


def test_empty_input_gives_valid_empty_output(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("id,text\n")
    assert gliclass("classify", *LABELS, stdin="").stdout == ""
    result = gliclass("classify", str(tmp_path / "empty.csv"), *LABELS, "--output-format", "csv")
    assert result.stdout == "id,text,prediction,prediction_score,prediction_labels\n"
    assert result.exit_code == 0


def test_select_prints_original_lines_and_answers_by_exit_code(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_bytes(b'text , n\r\n"charged ""twice""",1\r\nmy parcel is late,2\r\nlate\nparcel,3')
    result = gliclass(
        "classify", str(source), "-t", "text ", "-l", "billing", "-l", "shipping", "--select", "billing", "-q"
    )
    assert result.stdout_bytes == b'text , n\r\n"charged ""twice""",1\r\n'
    assert result.exit_code == 5  # a ragged row
    result = gliclass(
        "classify", "-l", "billing", "-l", "shipping", "--select", "shipping", stdin="I paid the invoice twice"
    )
    assert (result.stdout, result.exit_code) == ("", 1)
    result = gliclass("classify", "-l", "billing", "-l", "shipping", "--select", "x", stdin="a")
    assert (result.exit_code, result.stderr) == (
        2,
        "gliclass: --select 'x' is not one of the labels: billing, shipping\n",
    )


def test_as_renames_the_key_and_a_taken_key_is_an_error() -> None:
    row = '{"text":"x","prediction":"gold"}'
    result = gliclass("classify", *LABELS, stdin=row)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "stdin:1: the row already has a field 'prediction'; name another with --as" in result.stderr
    renamed = rows_of(gliclass("classify", *LABELS, "--as", "found", stdin=row))[0]
    assert renamed["prediction"] == "gold"
    assert renamed["found"]["label"] in ("billing", "shipping", "praise")


def test_output_files_are_complete_or_absent(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl.gz"
    out.write_bytes(b"before")
    bad = tmp_path / "in.csv"
    bad.write_text("id,text\n1,one\n2\n")
    result = gliclass("classify", str(bad), *LABELS, "--on-error", "stop", "-o", str(out))
    assert result.exit_code == 3
    assert (
        f"in.csv:3: ragged row: 1 cells where the header has 2 (--on-error stop) (written so far: {out}.part; rename it before the next run)"
        in result.stderr
    )
    assert out.read_bytes() == b"before"
    assert json.loads(gzip.decompress((tmp_path / "out.jsonl.gz.part").read_bytes()))["text"] == "one"
    assert gliclass("classify", str(bad), *LABELS, "--limit", "1", "-o", str(out), "-q").stderr == ""
    assert json.loads(gzip.decompress(out.read_bytes()))["text"] == "one"
    assert not (tmp_path / "out.jsonl.gz.part").exists()


def test_a_run_that_wrote_nothing_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    result = gliclass("classify", *LABELS, "-o", str(out), stdin='{"subject":"a","body":"b"}')
    assert (result.exit_code, "written so far" in result.stderr) == (2, False)
    assert list(tmp_path.iterdir()) == []


def test_a_device_keeps_nothing_that_could_be_renamed() -> None:
    result = gliclass(
        "classify", *LABELS, "-o", os.devnull, "-f", "csv", "--on-error", "stop", stdin="text,n\none,1\ntwo\n"
    )
    assert result.exit_code == 3
    assert result.stderr.endswith("(--on-error stop)\n")


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "out"
    result = gliclass("classify", TICKETS, *LABELS, "-o", str(missing))
    assert (result.exit_code, result.stderr) == (
        6,
        f"gliclass: {missing}: there is no folder {missing.parent}; make it first\n",
    )
    with (
        Path("/dev/full").open("wb") as full,
        spawn("classify", TICKETS, *LABELS, stdout=full, stderr=subprocess.PIPE) as process,
    ):
        _, stderr = process.communicate()
    assert process.returncode == 6
    assert b"standard output: cannot be written: no space left on the disk" in stderr


def test_a_taken_key_after_the_first_row_is_a_bad_row_as_it_came() -> None:
    stdin = '{"text":"a"}\n{"text":"b", "prediction":  "gold"}\n{"text":"c"}\n'
    result = gliclass("classify", *LABELS, stdin=stdin)
    assert result.exit_code == 5
    assert result.stdout.splitlines()[1] == '{"text":"b", "prediction":  "gold"}'
    assert len(rows_of(result)) == 3
    assert "stdin:2: the row already has a field 'prediction'" in result.stderr


def test_a_field_without_a_column_is_a_bad_row() -> None:
    stdin = '{"text":"charged twice"}\n{"text":"charged twice","x":1}\n{"text":"charged twice"}\n'
    result = gliclass("classify", *LABELS, "--output-format", "csv", stdin=stdin)
    assert result.exit_code == 5
    assert rewritten(result) == (
        "text,prediction,prediction_score,prediction_labels\n" + "charged twice,billing,S,billing\n" * 3
    )
    assert "stdin:2: field 'x' is not in the first row, so that it has no column" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["in.jsonl", "--rejects", "in.jsonl"],
        ["in.jsonl", "--rejects", "./link.jsonl"],
        ["in.jsonl.part", "-f", "jsonl", "-o", "in.jsonl"],
        ["in.jsonl", "-o", "out", "--rejects", "out"],
        ["in.jsonl", "-o", "out", "--rejects", "out.part"],
        ["in.jsonl", "--rejects", "-"],
        ["in.jsonl", "-o", ""],
        ["in.jsonl", "--labels", "in.jsonl.part", "-o", "in.jsonl"],
        ["in.jsonl", "--skip", "1", "-o", "in.jsonl"],
    ],
)
def test_no_file_is_written_over_another(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = '{"text":"a"}\n{"text":"b"}\n'
    for name in ("in.jsonl", "in.jsonl.part"):
        Path(name).write_text(content)
    Path("link.jsonl").symlink_to("in.jsonl")
    result = gliclass("classify", *LABELS, *arguments)
    assert result.exit_code == 2
    assert Path("in.jsonl").read_text() == Path("in.jsonl.part").read_text() == content


def test_results_may_replace_their_input(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text":"a"}\n{"text":"b"}\n')
    assert gliclass("classify", str(path), *LABELS, "-o", str(path)).exit_code == 0
    assert ['"prediction"' in line for line in path.read_text().splitlines()] == [True, True]


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    out = str(tmp_path / "out.jsonl")
    with spawn("classify", *LABELS, "-o", out, "-q", stdin=subprocess.PIPE) as first:
        assert first.stdin
        deadline = time.monotonic() + 60
        while not Path(f"{out}.part").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        second = gliclass("classify", *LABELS, "-o", out, stdin="b")
        assert (second.exit_code, "another run is writing it" in second.stderr) == (6, True)
        first.stdin.write(b"a\n")
        first.stdin.close()
        assert first.wait() == 0
    assert [json.loads(line)["text"] for line in Path(out).read_text().splitlines()] == ["a"]


def test_dev_stdout_is_standard_output(tmp_path: Path) -> None:
    target = tmp_path / "all"
    target.write_text("before\n")
    with target.open("ab") as stream, spawn("tag", "a", *LABELS, stdout=stream) as process:
        assert process.wait() == 0
    command = f"{sys.executable} -m gliclass_cli classify -q -l a -l b -o /dev/stdout >> {target}"
    subprocess.run(["bash", "-c", command], input=b"x\n", check=True)
    assert [line[:9] for line in target.read_text().splitlines()] == ["before", '{"text":"', '{"text":"']


# --- bad rows -------------------------------------------------------------------------------------------------------

BAD = '{"text":"one"}\n{bad\n{"text":5}\n{"x":1}\n[1]\n{"text":"two"}\n'


def test_bad_rows_keep_their_place_and_the_run_goes_on(tmp_path: Path) -> None:
    rejects = tmp_path / "rejects"
    result = gliclass("classify", *LABELS, "--rejects", str(rejects), stdin=BAD)
    rows = rows_of(result)
    errors = [row["prediction"].get("error", {}) for row in rows]
    assert [error.get("code") for error in errors] == [
        None,
        "invalid_json",
        "not_text",
        "no_text_field",
        "not_an_object",
        None,
    ]
    assert [error.get("line") for error in errors] == [None, 2, 3, 4, 5, None]
    assert rows[2]["text"] == 5
    assert all(row["prediction"]["label"] is None and row["prediction"]["labels"] == [] for row in rows[1:5])
    assert result.exit_code == 5
    assert "gliclass: stdin:3: field 'text' is a number, not text\n" in result.stderr
    assert "6 rows, 4 with errors" in result.stderr
    assert rejects.read_text() == '{bad\n{"text":5}\n{"x":1}\n[1]\n'


def test_rejected_csv_rows_can_be_mended_and_read_again(tmp_path: Path) -> None:
    source, rejects = tmp_path / "in.csv", tmp_path / "rejects.csv"
    source.write_text('id,text\n1,one\n2\n3,"three\nlines",\n4,"open\n')
    result = gliclass("classify", str(source), *LABELS, "--rejects", str(rejects))
    assert "in.csv:6: not CSV: a quote is opened and never closed (1 lines, to the end of the file)" in result.stderr
    assert rejects.read_text() == 'id,text\n2\n3,"three\nlines",\n4,"open\n'


def test_bad_rows_are_skipped_or_stop_the_run() -> None:
    skipped = gliclass("classify", *LABELS, "--on-error", "skip", stdin=BAD)
    assert [row["text"] for row in rows_of(skipped)] == ["one", "two"]
    assert skipped.exit_code == 5
    stopped = gliclass("classify", *LABELS, "--on-error", "stop", stdin=BAD)
    assert [row["text"] for row in rows_of(stopped)] == ["one"]
    assert (stopped.exit_code, "stdin:2: not valid JSON" in stopped.stderr) == (3, True)


def test_only_the_first_bad_rows_are_told() -> None:
    result = gliclass("classify", *LABELS, "-f", "jsonl", stdin="{bad\n" * 20)
    assert result.stderr.count("not valid JSON") == 5
    assert "... and 15 more rows with errors (--rejects FILE keeps them all)" in result.stderr


def test_an_unclear_text_field_is_asked_for() -> None:
    result = gliclass("classify", *LABELS, stdin='{"subject":"a","body":"b"}')
    assert result.exit_code == 2
    assert (
        "stdin:1: which field holds the text? no field 'text'; name one with --text-field: 'subject', 'body'"
        in result.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["classify", "nowhere.jsonl", *LABELS], 3, "gliclass: nowhere.jsonl: no such file\n"),
        (["classify", str(EXAMPLES), *LABELS], 3, f"gliclass: {EXAMPLES}: is a directory; name its files, for example {EXAMPLES}/*.jsonl\n"),
        (["classify", TICKETS + "x", *LABELS], 3, f"gliclass: {TICKETS}x: no such file; did you mean {TICKETS}?\n"),
        (["classify", TICKETS], 2, "gliclass: no labels: give -l LABEL for each, --labels FILE, or --labels-field FIELD\n"),
        (["classify", TICKETS, "-l", "a", "-l", " a "], 2, "gliclass: label 'a' is given twice; remove one\n"),
        (["classify", TICKETS, "--labels", "nowhere"], 2, "gliclass: label file nowhere: no such file\n"),
        (["classify", TICKETS, *LABELS, "--model", "x"], 4, "gliclass: no model 'x': give 'default' (the bundled model), a folder with a config.json, or the name of a model on the Hugging Face hub: org/name\n"),
        (["classify", TICKETS, *LABELS, "--encoding", "x"], 2, "gliclass: --encoding x: no such encoding; for example utf-8, latin-1, cp1252, utf-16\n"),
        (["classify", TICKETS, *LABELS, "--template", "x"], 2, "gliclass: --template 'x' has no {label}; for example 'This text is about {label}.'\n"),
        (["classify", "-", "-", *LABELS], 2, "gliclass: standard input (-) can be read once only\n"),
        (["classify", "--labels", "-"], 2, "gliclass: standard input (-) cannot be both the label file and the input\n"),
        (["classify", "", *LABELS], 3, "gliclass: the name of an input is empty\n"),
        (["classify", TICKETS, *LABELS, "--threshold", "nan"], 2, "gliclass: --threshold nan: must be a number from 0 to 1\n"),
        (["classify", TICKETS, *LABELS, "--select", "praise", "--output-format", "csv"], 2, "gliclass: --select writes the original lines; leave --output-format out\n"),
        (["tag", "--labels", "-"], 2, "gliclass: standard input (-) cannot be both the label file and the texts\n"),
        (["tag", "x"], 2, "gliclass: no labels: give -l LABEL for each, or --labels FILE\n"),
    ],
)  # fmt: skip
def test_messages_say_what_where_and_what_to_do(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = gliclass(*arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", message)


def test_label_files_say_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("a\nb\n\na\n")
    assert gliclass("classify", TICKETS, "--labels", str(path)).stderr == (
        f"gliclass: {path}: label 'a' is given twice (lines 1 and 4); remove one\n"
    )
    path.write_bytes(b"a\nb\xff\n")
    assert (
        f"label file {path}:2: not UTF-8 text (byte 0xff)"
        in gliclass("classify", TICKETS, "--labels", str(path)).stderr
    )


def test_one_label_without_multi_is_pointed_out() -> None:
    result = gliclass("classify", "-l", "billing,shipping", "-q", stdin="x")
    assert "one label only ('billing,shipping'): every row gets it; repeat -l for more, or use --multi" in result.stderr


def test_usage_errors_exit_with_2() -> None:
    for arguments in (["clasify"], ["classify", "--threshold", "2"], ["classify", "--nope"], ["completions", "tcsh"]):
        assert gliclass(*arguments).exit_code == 2


@settings(max_examples=30)
@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.lists(
            st.sampled_from(
                [b'{"text":"a"}', b"{", b'{"text":', b"\n", b'"', b",", b"\xff", b"\0", b"[1,2]", b"\x1f\x8b"]
            )
        ).map(b"".join),
    ),
    kind=st.sampled_from([None, "jsonl", "json", "csv", "tsv", "text"]),
)
def test_any_bytes_end_in_results_or_a_clean_error(data: bytes, kind: str | None) -> None:
    arguments = ["classify", *LABELS, "--max-length", "16", *(["-f", kind] if kind else [])]
    result = gliclass(*arguments, stdin=data)
    assert result.exit_code in (0, 2, 3, 5)
    for line in result.stdout_bytes.splitlines():
        prediction = json.loads(line)["prediction"]
        assert ("error" in prediction) or prediction["label"] in ("billing", "shipping", "praise")
    assert "Traceback" not in result.stderr


# --- processes, pipes, terminals ------------------------------------------------------------------------------------


def test_head_ends_quietly() -> None:
    command = (
        f"{sys.executable} -m gliclass_cli classify {TICKETS} {TICKETS} -l a -l b | head -1; echo ${{PIPESTATUS[0]}}"
    )
    result = subprocess.run(["bash", "-c", command], capture_output=True, check=True)
    first, code = result.stdout.splitlines()
    assert json.loads(first)["id"] == 1
    # All may be written before head goes: then it is an ordinary end.
    assert int(code) in (141, 0)
    assert b"Traceback" not in result.stderr


def test_a_closed_pipe_gives_141(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with spawn("classify", TICKETS, *LABELS, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        _, stderr = process.communicate()
    assert (process.returncode, stderr) == (141, b"")


def test_a_live_pipe_is_answered_row_by_row() -> None:
    with spawn("classify", *LABELS, "-q", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        for text in ("charged twice", "my parcel"):
            process.stdin.write(text.encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["text"] == text
        process.stdin.close()
        assert process.wait() == 0


def wait_for_line(stream: Any) -> bytes:
    ready, _, _ = select.select([stream], [], [], 60)
    assert ready
    return bytes(stream.readline())


def test_ctrl_c_writes_what_is_done_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with spawn(
        "classify", *LABELS, "-o", str(out), stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdin and process.stderr
        process.stdin.write(b"charged twice\nmy parcel\n")
        process.stdin.flush()
        part = tmp_path / "out.jsonl.part"
        deadline = time.monotonic() + 60
        # The rows wait in the process until it is told to stop; standard input stays open.
        while not part.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        stderr = process.stderr.read().decode()
        assert process.wait() == 130
        process.stdin.close()
    assert f"interrupted; 2 rows are done and written (written so far: {part}; rename it before the next run)" in stderr
    assert [json.loads(line)["text"] for line in part.read_text().splitlines()] == ["charged twice", "my parcel"]
    assert not out.exists()


def on_terminal(*arguments: str, env: dict[str, str] | None = None) -> tuple[str, int]:
    """Run with stdin, stdout and stderr on a terminal of 80 columns; return what it shows, and the exit code."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **(env or {})}
    with spawn(*arguments, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        shown = b""
        # The end of a terminal's output is not told everywhere: nothing more comes of a process that has ended.
        while select.select([master], [], [], 0.2)[0] or process.poll() is None:
            try:
                shown += os.read(master, 65536) if select.select([master], [], [], 0)[0] else b""
            except OSError:
                break
    os.close(master)
    return shown.decode(), process.returncode


def test_tag_on_a_terminal_shows_bars_the_best_first() -> None:
    shown, code = on_terminal("tag", "I was charged twice", *LABELS)
    assert code == 0
    lines = re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()
    assert lines[0] == "I was charged twice"
    assert re.fullmatch(r"  billing   0\.\d{3} ━+", lines[1])
    assert len(lines) == 4
    assert "\x1b[" in shown
    plain, _ = on_terminal("tag", "I was charged twice", *LABELS, env={"NO_COLOR": "1"})
    assert "\x1b[3" not in plain


def test_tag_in_a_pipe_gives_jsonl() -> None:
    result = gliclass("tag", "I was charged twice", "my parcel", *LABELS)
    assert [(row["text"], row["prediction"]["label"]) for row in rows_of(result)] == [
        ("I was charged twice", "billing"),
        ("my parcel", "shipping"),
    ]
    assert rows_of(gliclass("tag", *LABELS, stdin="one\n\ntwo\n")) == [
        *rows_of(gliclass("tag", "one", "", "two", *LABELS)),
    ]


def test_tag_goes_on_after_a_bad_line_and_says_so() -> None:
    result = gliclass("tag", *LABELS, stdin=b"one\n\xff\ntwo\n")
    assert result.exit_code == 5
    assert [row.get("text") for row in rows_of(result)] == ["one", None, "two"]
    assert "stdin:2: not utf-8 text" in result.stderr


def test_tag_on_a_terminal_without_scores_or_without_unicode() -> None:
    shown, _ = on_terminal("tag", "I was charged twice", *LABELS, "--no-scores", env={"NO_COLOR": "1", "TERM": "dumb"})
    assert re.fullmatch(r"I was charged twice\s+billing 0?\s*0\.\d{3} =+\s*", shown)
    shown, code = on_terminal("tag", "I was charged twice", *LABELS, env={"PYTHONIOENCODING": "ascii"})
    assert (code, "===" in shown) == (0, True)


def test_wide_characters_are_aligned() -> None:
    shown, _ = on_terminal("tag", "届かない 🎉", "-l", "配送", "-l", "billing", env={"NO_COLOR": "1"})
    assert re.search(r"^  配送    +\d", shown, re.M)
    assert re.search(r"^  billing +\d", shown, re.M)
    rows = gliclass("classify", "-l", "配送", "-l", "billing", "--output-format", "table", stdin="届\ncharged\n").stdout
    columns = {cells(re.split(r"  (?=届|charged)", line)[0]) for line in rows.splitlines()}
    assert columns == {5 + 2 + 7}


def test_colours_follow_the_environment() -> None:
    stored = '{"text":"a","label":"x","prediction":{"label":"x","score":1.0,"labels":["x"],"scores":{"x":1.0}}}\n'
    for env, coloured in (({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)):
        assert ("\x1b[1m" in gliclass("eval", stdin=stored, env=env).stdout) == coloured
    for env, coloured in (({}, True), ({"TERM": "dumb"}, False), ({"NO_COLOR": "1"}, False)):
        assert ("\x1b[" in on_terminal("tag", "x", *LABELS, env=env)[0]) == coloured


def test_windows_line_ends(tmp_path: Path) -> None:
    labels, examples = tmp_path / "labels.txt", tmp_path / "solved.jsonl"
    labels.write_bytes(b"\xef\xbb\xbfbilling\tmoney\r\nshipping\r\n\r\npraise\r\n")
    examples.write_bytes(b'{"text":"x","labels":["billing"]}\r\n{"text":"y","labels":["shipping"]}\r\n')
    texts = ["charged twice", "my parcel"]
    inputs = {
        "rows.jsonl": b"".join(b'{"text":"%s"}\r\n' % text.encode() for text in texts),
        "rows.csv": b"text\r\n" + b"".join(text.encode() + b"\r\n" for text in texts),
        "rows.txt": b"".join(text.encode() + b"\r\n" for text in texts),
    }
    for name, data in inputs.items():
        (tmp_path / name).write_bytes(data)
        arguments = ("classify", str(tmp_path / name), "--labels", str(labels), "--examples", str(examples))
        found = rows_of(gliclass(*arguments))
        assert [row["text"] for row in found] == texts
        assert list(found[0]["prediction"]["scores"]) == ["billing", "shipping", "praise"]
        selected = gliclass(
            *arguments, *(word for name in ("billing", "shipping", "praise") for word in ("--select", name))
        )
        assert selected.stdout_bytes == data
    assert [row["text"] for row in rows_of(gliclass("tag", "--labels", str(labels), stdin=inputs["rows.txt"]))] == texts


def test_tag_ends_with_130_on_ctrl_c() -> None:
    with spawn("tag", *LABELS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"one\n")
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130


@pytest.mark.parametrize(
    ("redirect", "code"), [("<&-", 0), ("2>&-", 0), (">&-", 6), (">&- -o out.jsonl", 0), (">/dev/full", 6)]
)
def test_closed_and_full_standard_streams(redirect: str, code: int, tmp_path: Path) -> None:
    source = "" if "<" in redirect else TICKETS
    command = f"{sys.executable} -m gliclass_cli classify {source} --limit 3 -l a -l b {redirect}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, cwd=tmp_path, check=False)
    assert result.returncode == code
    assert b"Traceback" not in result.stderr
    help_result = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m gliclass_cli --help >/dev/full"], capture_output=True, check=False
    )
    assert help_result.returncode == 6


def test_ctrl_c_while_starting_is_quiet() -> None:
    program = (
        "import os, signal, sys, gliclass_cli.cli.app as app; sys.argv = ['gliclass', 'doctor'];"
        "app.run = lambda: os.kill(os.getpid(), signal.SIGINT);"
        "from gliclass_cli.__main__ import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (result.returncode, result.stderr) == (-signal.SIGINT, b"")


def test_a_terminal_as_stdin_gets_help_instead_of_hanging() -> None:
    shown, code = on_terminal("classify", *LABELS)
    assert code == 2
    assert "nothing to classify: name files, or pipe rows in" in shown
    shown, code = on_terminal("tag", *LABELS)
    assert code == 2
    assert "nothing to tag" in shown


def test_progress_is_shown_on_a_terminal_only() -> None:
    shown, code = on_terminal("classify", TICKETS, *LABELS, "-o", os.devnull)
    assert code == 0
    assert "100%|" in shown or "%|" in shown
    assert "rows/s" in shown
    quiet, _ = on_terminal("classify", TICKETS, *LABELS, "-o", os.devnull, "-q")
    assert quiet == ""


# --- the other commands ---------------------------------------------------------------------------------------------


def test_models(tmp_path: Path) -> None:
    path = gliclass("models", "path").stdout.strip()
    assert Path(path, "config.json").is_file()
    assert gliclass("models", "list").stdout.startswith("default\t")
    assert len(gliclass("models", "list", path).stdout.splitlines()) == 2
    info = json.loads(gliclass("models", "info", "--json").stdout)
    assert info["path"] == path
    assert "max_length" in gliclass("models", "info", path).stdout
    result = gliclass("models", "info", str(tmp_path))
    assert (result.exit_code, result.stderr) == (
        4,
        f"gliclass: {tmp_path}: no config.json: this is not a model folder\n",
    )


def test_doctor(tmp_path: Path) -> None:
    result = gliclass("doctor", "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["ready"]) == (0, True)
    assert report["cores"] >= 1
    assert report["devices"].startswith("cpu")
    assert "ready" in gliclass("doctor").stdout
    folder = shutil.copytree(report["model"].rsplit(" in ", 1)[1], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["onnx"]["max_length"] = 100_000
    (folder / "config.json").write_text(json.dumps(config))
    result = gliclass("classify", *LABELS, "--model", str(folder), stdin="word " * 2000)
    assert result.exit_code == 4
    assert "onnx.max_length is 100000; the model has 512 positions" in result.stderr
    shutil.copy(EXAMPLES.parent / "gliclass_cli" / "default_model" / "config.json", folder)
    (folder / "text.onnx").write_bytes(b"garbage")
    result = gliclass("doctor", "--model", str(folder))
    assert (result.exit_code, "is not the file it should be (SHA-256 differs)" in result.stdout) == (4, True)
    broken = gliclass("doctor", "--model", "nowhere", "--json")
    assert (broken.exit_code, json.loads(broken.stdout)["ready"]) == (4, False)


def test_any_changed_byte_of_an_exported_model_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    folder = shutil.copytree(EXAMPLES.parent / "gliclass_cli" / "default_model", tmp_path / "model")
    for name in ("text.onnx", "label.onnx", "weights.safetensors"):
        data = (folder / name).read_bytes()
        for place in (0, len(data) // 2, len(data) - 1):
            (folder / name).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            result = gliclass("tag", "a", *LABELS, "--model", str(folder))
            assert (result.exit_code, result.stdout) == (4, "")
            assert f"{name}: is not the file it should be (SHA-256 differs)" in result.stderr
        (folder / name).write_bytes(data)


def test_rows_that_are_too_long_are_errors_and_no_rejects(tmp_path: Path) -> None:
    rejects = tmp_path / "rejects"
    long = "x" * 300
    result = gliclass("classify", *LABELS, "--max-row-bytes", "200", "--rejects", str(rejects), stdin=f"a\n{long}\nb\n")
    assert result.exit_code == 5
    assert [row["prediction"].get("error", {}).get("code") for row in rows_of(result)] == [None, "row_too_long", None]
    assert (
        "stdin:2: the row has more than 200 bytes: it was read past; --max-row-bytes takes longer ones" in result.stderr
    )
    assert rejects.read_bytes() == b""
    assert gliclass("classify", *LABELS, "--max-row-bytes", "0", stdin="a").exit_code == 2


@pytest.mark.parametrize(
    "arguments", [["--output-format", "table"], ["--output-format", "label"], ["--select", "b\x9bl"], []]
)
def test_nothing_in_a_row_steers_the_terminal(arguments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "in\x1b[31mput.csv"
    path.write_text('text\n"a\x1b]0;owned\x07\u202e"\n"x","y"\n', "utf-8")
    shown, code = on_terminal(
        "classify", str(path), "-l", "b\x9bl", "-l", "\x1b[2Jc", "--multi", "--threshold", "0", *arguments
    )
    assert code == 5
    assert "ragged row" in shown
    assert not {"\x07", "\x9b", "\u202e"} & set(shown)
    assert "\x1b]" not in shown and "\x1b[31m" not in shown and "\x1b[2J" not in shown


def test_bugs_are_admitted_with_exit_70() -> None:
    program = (
        "import sys, gliclass_cli.cli.doctor as d; sys.argv = ['gliclass', 'doctor'];"
        "d._version = lambda name: 1 / 0\n"
        "from gliclass_cli.__main__ import main; main()"
    )
    for debug in ("", "1"):
        env = {**os.environ, "GLICLASS_DEBUG": debug}
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=False)
        assert result.returncode == 70
        assert "this is a bug of ours: ZeroDivisionError" in result.stderr
        assert ("Traceback" in result.stderr) == bool(debug)
