"""Parquet in and out: types stay, what JSON cannot say is spelled, and what was read in pieces is the whole."""

import datetime as dt
import io
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from gliclass_cli.cli.app import app
from gliclass_cli.errors import ModelUnusable
from gliclass_cli.files import open_source
from gliclass_cli.predictions import Prediction
from gliclass_cli.readers import ReadOptions, read_rows
from gliclass_cli.records import Record

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
from gliclass_cli import parquet  # noqa: E402 - needs pyarrow
from gliclass_cli.parquet import ParquetWriter  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "examples"
LABELS = ("-l", "billing", "-l", "shipping")
ANSWER = Prediction("billing", 0.9731, ("billing", "refund"), {"billing": 0.9731, "refund": 0.6})
ADDED = ["prediction", "prediction_score", "prediction_labels", "prediction_error"]
NOON = dt.datetime(2024, 1, 2, 12, 0, 0, 678901)
TYPED = pa.table(
    {
        "id": pa.array([2**53 + 1, 2**63 - 1, None], pa.int64()),
        "text": ["I was charged twice", "my parcel is late", "where is my refund"],
        "when": pa.array([NOON, None, dt.datetime(1969, 1, 1)], pa.timestamp("us", "UTC")),
        "exact": pa.array([1, 10**18 + 1, None], pa.timestamp("ns")),
        "day": pa.array([dt.date(2024, 1, 2)] * 3),
        "clock": pa.array([dt.time(1, 2, 3)] * 3, pa.time64("ns")),
        "took": pa.array([1500, None, 0], pa.duration("ms")),
        "price": pa.array([Decimal("12.50"), None, Decimal("-0.01")], pa.decimal128(9, 2)),
        "blob": pa.array([b"\xff\0", b"", None], pa.binary()),
        "x": [float("nan"), 1.5, float("-inf")],
        "user": [{"name": "a parcel", "seen": [NOON]}, {"name": "an invoice", "seen": []}, None],
        "m": pa.array([[("a", 1)], [], None], pa.map_(pa.string(), pa.int32())),
        "small": pa.array([1, 2, 3], pa.uint8()),
        "kind": pa.array(["u", "v", "u"]).dictionary_encode(),
    }
).replace_schema_metadata({"made by": "a test"})


def gliclass(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(app, [*arguments], input=stdin, catch_exceptions=False)


def records_of(path: Path, **options: Any) -> list[Record]:
    with open_source(str(path)) as source:
        return list(read_rows(source, ReadOptions(**options)).records)


def rows_of(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def typed(tmp_path: Path) -> Path:
    pq.write_table(TYPED, tmp_path / "typed.parquet", row_group_size=2)
    return tmp_path / "typed.parquet"


# --- reading ---------------------------------------------------------------------------------------------------------


def test_values_are_spelled_as_documented(typed: Path) -> None:
    first, second, third = [json.loads(record.body or b"") for record in records_of(typed)]
    assert first == {
        "id": 2**53 + 1,
        "text": "I was charged twice",
        "when": "2024-01-02T12:00:00.678901+00:00",
        "exact": "1970-01-01T00:00:00",
        "day": "2024-01-02",
        "clock": "01:02:03",
        "took": 1.5,
        "price": "12.50",
        "blob": "/wA=",
        "x": None,
        "user": {"name": "a parcel", "seen": ["2024-01-02T12:00:00.678901"]},
        "m": [["a", 1]],
        "small": 1,
        "kind": "u",
    }
    assert (second["id"], second["exact"], second["x"]) == (2**63 - 1, "2001-09-09T01:46:40", 1.5)
    assert (third["when"], third["price"], third["x"], third["user"]) == (
        "1969-01-01T00:00:00+00:00",
        "-0.01",
        None,
        None,
    )


def test_rows_are_counted_and_positions_grow_to_the_size_of_the_file(typed: Path) -> None:
    records = records_of(typed)
    assert [record.line for record in records] == [1, 2, 3]
    assert records[-1].position == typed.stat().st_size


def test_it_is_told_by_its_first_bytes_whatever_its_name_and_through_a_pipe(typed: Path) -> None:
    expected = gliclass("classify", str(typed), *LABELS, "-q").stdout
    unnamed = typed.rename(typed.with_name("rows"))
    assert gliclass("classify", str(unnamed), *LABELS, "-q").stdout == expected
    assert gliclass("classify", *LABELS, "-q", stdin=unnamed.read_bytes()).stdout == expected
    assert len(expected.splitlines()) == 3


def test_a_text_that_begins_like_parquet_is_text() -> None:
    assert [row["text"] for row in rows_of(gliclass("classify", *LABELS, stdin=b"PAR1 was late"))] == ["PAR1 was late"]


def test_nested_fields_skip_and_limit(typed: Path) -> None:
    rows = rows_of(gliclass("classify", str(typed), *LABELS, "-t", "user.name", "--skip", "1", "--limit", "1"))
    assert [(row["id"], row["prediction"]["label"]) for row in rows] == [(2**63 - 1, "billing")]


def test_only_text_is_classified(tmp_path: Path, typed: Path) -> None:
    pq.write_table(TYPED.select(["blob", "day", "price", "text"]).rename_columns(["a", "b", "c", "d"]), tmp_path / "in")
    assert [row["prediction"]["label"] for row in rows_of(gliclass("classify", str(tmp_path / "in"), *LABELS))] == [
        "billing",
        "shipping",
        "billing",
    ]
    result = gliclass("classify", str(typed), *LABELS, "-t", "blob", "--limit", "1")
    assert (result.exit_code, rows_of(result)[0]["prediction"]["error"]["code"]) == (5, "not_text")


def test_a_missing_column_is_told_at_once(typed: Path) -> None:
    result = gliclass("classify", str(typed), *LABELS, "-t", "body.plain")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no column 'body.plain'; columns: 'id', 'text'" in result.stderr


@pytest.mark.parametrize("cut", [0, 4, 1000])
def test_a_damaged_file_is_unusable(typed: Path, cut: int) -> None:
    typed.write_bytes(typed.read_bytes()[:cut])
    result = gliclass("classify", str(typed), *LABELS)
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith(f"gliclass: {typed}: is not Parquet, damaged or cut off: ")


def test_what_comes_before_a_damaged_place_is_kept(tmp_path: Path) -> None:
    rows = pa.table({"text": [f"{number} {'parcel ' * 50}" for number in range(40)]})
    sink = io.BytesIO()
    pq.write_table(rows, sink, row_group_size=10, compression="none", use_dictionary=False)
    data = bytearray(sink.getvalue())
    start = pq.read_metadata(io.BytesIO(data)).row_group(2).column(0).data_page_offset
    data[start : start + 40] = b"\xff" * 40
    (tmp_path / "in.parquet").write_bytes(data)
    out = tmp_path / "out.parquet"
    result = gliclass("classify", str(tmp_path / "in.parquet"), *LABELS, "-o", str(out), "--max-length", "16")
    assert (result.exit_code, out.exists()) == (3, False)
    kept = pq.read_table(tmp_path / "out.parquet.part")
    assert kept["text"].to_pylist() == rows["text"].to_pylist()[:20]


def test_a_value_that_python_cannot_hold_is_an_error_of_its_row(tmp_path: Path) -> None:
    table = pa.table({"text": ["a parcel", "a parcel"], "when": pa.array([2**60, 0], pa.timestamp("ms"))})
    pq.write_table(table, tmp_path / "in.parquet")
    result = gliclass("classify", str(tmp_path / "in.parquet"), *LABELS, "-o", str(tmp_path / "out.parquet"))
    assert result.exit_code == 5
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.select(["text", "when"]).equals(table)
    assert written["prediction"].to_pylist() == [None, "shipping"]
    assert written["prediction_error"][0].as_py().startswith("unreadable_value: ")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "in.parquet")
    result = gliclass("classify", str(tmp_path / "in.parquet"), *LABELS)
    assert (result.exit_code, "two columns 'text'" in result.stderr) == (3, True)


def test_without_pyarrow_the_extra_is_named(typed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gliclass_cli.errors.find_spec", lambda name: None)
    with pytest.raises(ModelUnusable, match=r"pip install 'gliclass-cli\[parquet\]'"):
        records_of(typed)
    result = gliclass("classify", "-l", "a", "-l", "b", "-o", "out.parquet", stdin=b"text")
    assert (result.exit_code, "pip install" in result.stderr) == (4, True)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_columns_keep_their_types_and_values(typed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    assert gliclass("classify", str(typed), *LABELS, "-o", str(out)).exit_code == 0
    written = pq.read_table(out)
    assert written.column_names == [*TYPED.column_names, *ADDED]
    assert written.schema.metadata[b"made by"] == b"a test"
    own, before = written.select(TYPED.column_names), pq.read_table(typed)
    assert own.schema.equals(before.schema)
    assert own.drop_columns("x").equals(before.drop_columns("x"))  # NaN equals nothing
    assert str(own["x"].to_pylist()) == str(before["x"].to_pylist())
    assert written["prediction"].to_pylist() == ["billing", "shipping", "billing"]
    assert all(0.5 < score <= 1 for score in written["prediction_score"].to_pylist())
    assert written["prediction_labels"].to_pylist() == [["billing"], ["shipping"], ["billing"]]
    assert written["prediction_error"].to_pylist() == [None] * 3


def test_rows_left_out_are_left_out(typed: Path, tmp_path: Path) -> None:
    table = TYPED.set_column(1, "text", pa.array(["a parcel", None, "an invoice"]))
    pq.write_table(table, typed)
    result = gliclass("classify", str(typed), *LABELS, "-o", str(tmp_path / "o.parquet"), "--on-error", "skip")
    assert result.exit_code == 5
    assert pq.read_table(tmp_path / "o.parquet")["small"].to_pylist() == [1, 3]


def test_a_table_without_rows_keeps_its_columns(typed: Path, tmp_path: Path) -> None:
    pq.write_table(TYPED.slice(0, 0), typed)
    gliclass("classify", str(typed), *LABELS, "-o", str(tmp_path / "o.parquet"))
    written = pq.read_table(tmp_path / "o.parquet")
    assert (written.num_rows, written.column_names) == (0, [*TYPED.column_names, *ADDED])
    assert gliclass("classify", *LABELS, "-o", str(tmp_path / "p.parquet"), stdin=b"").exit_code == 0
    assert pq.read_table(tmp_path / "p.parquet").column_names == ADDED


def test_inputs_of_other_columns_do_not_go_into_one_file(typed: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n')
    for second in ("b.parquet", "c.jsonl"):
        result = gliclass("classify", str(typed), str(tmp_path / second), *LABELS, "-o", str(tmp_path / "o.parquet"))
        assert (result.exit_code, f"{second}:1: has other columns" in result.stderr) == (3, True)
        assert pq.read_table(tmp_path / "o.parquet.part").num_rows == 3
        (tmp_path / "o.parquet.part").unlink()
    assert gliclass("classify", str(typed), str(typed), *LABELS, "-o", str(tmp_path / "o.parquet")).exit_code == 0
    assert pq.read_table(tmp_path / "o.parquet")["small"].to_pylist() == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--select", "billing", "-o", "hits.parquet"], "--select, -o hits.parquet: lines are written"),
        (["--rejects", "bad.parquet"], "--rejects bad.parquet: lines are written"),
    ],
)
def test_lines_do_not_go_into_parquet(arguments: list[str], told: str) -> None:
    result = gliclass("classify", *LABELS, *arguments, stdin=b"text")
    assert (result.exit_code, told in result.stderr) == (2, True)


def test_select_and_rejects_of_parquet_are_json_lines(typed: Path, tmp_path: Path) -> None:
    lines = gliclass("classify", str(typed), *LABELS, "--select", "shipping").stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [2**63 - 1]
    gliclass("classify", str(typed), *LABELS, "-t", "user.name", "--rejects", str(tmp_path / "bad.jsonl"))
    assert json.loads((tmp_path / "bad.jsonl").read_text())["small"] == 3


def written(*rows: dict[str, Any] | None, columns: tuple[str, ...] | None = None) -> Any:
    writer = ParquetWriter(columns=columns)
    data = b"".join(writer.row(Record("in", 1, b"", fields), ANSWER) for fields in rows) + writer.end()
    return pq.read_table(io.BytesIO(data))


def test_types_of_json_rows() -> None:
    rows = [
        {
            "i": 1,
            "f": 1,
            "b": True,
            "s": "x",
            "l": [1],
            "o": {"a": {"b": 1}},
            "n": None,
            "mixed": 1,
            "big": 2**64,
            "e": {},
        },
        {"i": None, "f": 0.5, "l": [], "o": {"c": ["x"]}, "mixed": "1", "late": [None, {"x": 1}]},
        None,
    ]
    table = written(*rows)
    kinds = {field.name: str(field.type) for field in table.schema if field.name not in ADDED}
    assert kinds == {
        "i": "int64",
        "f": "double",
        "b": "bool",
        "s": "string",
        "l": "list<element: int64>",
        "o": "struct<a: struct<b: int64>, c: list<element: string>>",
        "n": "string",
        "mixed": "string",
        "big": "string",
        "e": "string",
        "late": "list<element: struct<x: int64>>",
    }
    assert table["big"].to_pylist() == [str(2**64), None, None]
    assert table["mixed"].to_pylist() == ["1", "1", None]
    assert table["e"].to_pylist() == ["{}", None, None]
    assert table["o"].to_pylist() == [{"a": {"b": 1}, "c": None}, {"a": None, "c": ["x"]}, None]
    assert table["prediction_labels"].to_pylist() == [["billing", "refund"]] * 3


@pytest.mark.parametrize(
    ("late", "code", "kept"),
    [
        ({"text": "x", "n": "one"}, "wrong_type", {"text": "x", "n": None, "o": None}),
        ({"text": "x", "n": 2**63}, "wrong_type", {"text": "x", "n": None, "o": None}),
        ({"text": "x", "n": 1.5}, "wrong_type", {"text": "x", "n": None, "o": None}),
        ({"text": "x", "n": True}, "wrong_type", {"text": "x", "n": None, "o": None}),
        ({"text": "x", "o": {"a": 1, "b": 2}}, "wrong_type", {"text": "x", "n": None, "o": None}),
        ({"text": "x", "n": 5, "new": 1}, "extra_field", {"text": "x", "n": 5, "o": None}),
        ({"text": {"a": [1]}, "n": 5}, None, {"text": '{"a":[1]}', "n": 5, "o": None}),
    ],
)
def test_a_later_row_that_does_not_fit_is_an_error(
    late: dict[str, Any], code: str | None, kept: dict[str, Any]
) -> None:
    writer = ParquetWriter()
    first = Record("in", 1, b"", {"text": "x", "n": 1, "o": {"a": 1}})
    data = b"".join(writer.row(first, ANSWER) for _ in range(parquet._WINDOW_ROWS))
    record = Record("in", 2000, b"", late)
    error = writer.check(record)
    assert (error.code if error else None) == code
    data += writer.row(record, ANSWER) + writer.end()
    row = pq.read_table(io.BytesIO(data)).to_pylist()[-1]
    assert {name: row[name] for name in kept} == kept
    assert row["prediction_error"] == (error and f"{error.code}: {error.message}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


def same(found: Any, given: Any) -> bool:
    """Whether a value is what was given: keys that other rows have are null, mixed columns are JSON."""
    if found is None or given is None:
        return found is None and given is None
    if isinstance(found, dict) and isinstance(given, dict):
        return set(given) <= set(found) and all(same(value, given.get(name)) for name, value in found.items())
    if isinstance(found, list) and isinstance(given, list):
        return len(found) == len(given) and all(map(same, found, given))
    if isinstance(found, str) and not isinstance(given, str):
        return bool(json.loads(found) == given)
    return bool(found == given)


@given(rows=st.lists(st.dictionaries(st.sampled_from("xyz"), JSON, max_size=3), min_size=1, max_size=4))
def test_no_value_of_the_first_rows_is_lost(rows: list[dict[str, Any]]) -> None:
    table = written(*rows).to_pylist()
    assert all(
        same({name: row[name] for name in row if name not in ADDED}, given)
        for row, given in zip(table, rows, strict=True)
    )


def test_row_groups_are_written_while_rows_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_WINDOW_ROWS", 10)
    monkeypatch.setattr(parquet, "_GROUP_ROWS", 100)
    writer = ParquetWriter()
    pieces = [writer.row(Record("in", number, b"", {"n": number}), ANSWER) for number in range(1001)]
    assert [len(piece) > 4 for piece in pieces].count(True) == 10
    file = pq.ParquetFile(io.BytesIO(b"".join(pieces) + writer.end()))
    assert (file.num_row_groups, file.read()["n"].to_pylist()) == (11, list(range(1001)))


def test_a_key_that_is_taken_is_an_error(typed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    gliclass("classify", str(typed), *LABELS, "-o", str(out))
    pq.write_table(pq.read_table(out).slice(0, 0), tmp_path / "empty.parquet")
    for name in ("out.parquet", "empty.parquet"):
        result = gliclass("classify", str(tmp_path / name), *LABELS, "-o", str(tmp_path / "again.parquet"))
        assert (result.exit_code, "already has a field 'prediction'" in result.stderr) == (3, True)
        assert not (tmp_path / "again.parquet").exists()
    result = gliclass("classify", str(out), *LABELS, "-o", str(tmp_path / "again.parquet"), "--as", "second")
    assert (result.exit_code, pq.read_table(tmp_path / "again.parquet").num_columns) == (0, len(TYPED.columns) + 8)


# --- whole commands --------------------------------------------------------------------------------------------------


def test_parquet_and_json_lines_give_the_same_answers(tmp_path: Path) -> None:
    labels = str(EXAMPLES / "tickets.labels.txt")
    table, lines = tmp_path / "tickets.parquet", tmp_path / "tickets.jsonl"
    assert gliclass("classify", str(EXAMPLES / "tickets.jsonl"), "--labels", labels, "-o", str(table)).exit_code == 0
    gliclass("classify", str(EXAMPLES / "tickets.jsonl"), "--labels", labels, "-o", str(lines))
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    found = pq.read_table(table).to_pylist()
    assert [(row["id"], row["text"], row["prediction"], row["prediction_score"]) for row in found] == [
        (row["id"], row["text"], row["prediction"]["label"], row["prediction"]["score"]) for row in rows
    ]


@pytest.mark.parametrize("multi", [[], ["--multi"]])
def test_eval_reads_predictions_of_parquet_and_of_json_lines_alike(tmp_path: Path, multi: list[str]) -> None:
    pytest.importorskip("sklearn")
    lines = (EXAMPLES / "tickets.jsonl").read_text().splitlines()[:20]
    gold = ["billing", "shipping"]
    rows = [{"text": json.loads(line)["text"], "gold": gold[i % 2]} for i, line in enumerate(lines)]
    rows[3]["text"] = None
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reports = []
    for name in ("out.jsonl", "out.parquet"):
        arguments = ["--threshold", "0.9", *multi, "-o", str(tmp_path / name)]
        gliclass("classify", str(tmp_path / "rows.jsonl"), *LABELS, *arguments)
        result = gliclass("eval", str(tmp_path / name), *LABELS, *multi, "--json", "-")
        assert "it was not classified: " in result.stderr
        reports.append(json.loads(result.stdout))
    assert reports[0]["accuracy" if not multi else "micro_f1"] == reports[1]["accuracy" if not multi else "micro_f1"]
    assert reports[0]["errors"] == reports[1]["errors"] == 1


def test_parquet_is_imported_only_where_it_is_used() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from gliclass_cli.cli.app import app;"
        "CliRunner().invoke(app, ['classify', '-l', 'a', '-l', 'b'], input='text'); print('pyarrow' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
