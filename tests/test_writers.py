"""Writers: a row keeps all its own fields, byte for byte, and what is written can be read again."""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gliclass_cli.errors import InputUnusable
from gliclass_cli.predictions import Prediction
from gliclass_cli.records import Record, RowError
from gliclass_cli.writers import CsvWriter, JsonlWriter, LabelWriter, SelectWriter, TableWriter, Writer, printable

Read = Callable[..., list[Record]]

ANSWER = Prediction("billing", 0.9731, ("billing", "refund"), {"billing": 0.9731, "refund": 0.6})
ABSTAINED = Prediction(None, None, (), {"billing": 0.2})
ERROR = RowError("invalid_json", "not valid JSON", 42)
BAD = Record("in.jsonl", 42, b"{\n", None, error=ERROR)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TABLES = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(TEXT, min_size=width, max_size=width), min_size=1, max_size=5)
)
# The values of an object as JSON spells them, with all that parsers like to change.
SPELLED = st.sampled_from(
    ["1.50", "1E2", "-0.0", "1e400", "123456789012345678901234567890", "[ 1.0,\t2 ]", '{"b":{}}', "null", "true"]
) | (st.text(max_size=5) | st.sampled_from(["\u2028", "\0", "🙂", "שלום"])).map(json.dumps)


def row(**fields: Any) -> Record:
    return Record("in", 1, b"", fields)


def write(writer: Writer, *rows: tuple[Record, Prediction | None]) -> bytes:
    return b"".join([writer.row(record, prediction) for record, prediction in rows] + [writer.end()])


def cells(data: bytes, delimiter: str = ",") -> list[list[str]]:
    return list(csv.reader(io.StringIO(data.decode(), newline=""), delimiter=delimiter, strict=True))


# --- JSON Lines ------------------------------------------------------------------------------------------------------


@given(pairs=st.lists(st.tuples(st.sampled_from(['"a"', '"text"', r'"\u0061"', '""']), SPELLED), max_size=5))
def test_jsonl_gains_one_key_and_keeps_every_byte(read: Read, pairs: list[tuple[str, str]]) -> None:
    body = ("{ " + " , ".join(f"{key} :{value}" for key, value in pairs) + "}").encode()
    [record] = read(b"  " + body + b"\t\r\n", "jsonl")
    line = JsonlWriter().row(record, ANSWER)
    comma = b"," if pairs else b""
    added = b'"prediction":{"label":"billing","score":0.9731,"labels":["billing","refund"],"scores":{"billing":0.9731,"refund":0.6}}}\n'
    assert line == body[:-1] + comma + added
    [again] = read(line, "jsonl")
    assert again.fields == {**(record.fields or {}), "prediction": json.loads(b"{" + added)["prediction"]}


@given(
    pairs=st.lists(st.tuples(st.sampled_from(['"a"', '"text"', '""']), SPELLED), min_size=1, max_size=5),
    indent=st.sampled_from(["", "\n ", "\r\n\t"]),
)
def test_json_elements_are_written_on_one_line(read: Read, pairs: list[tuple[str, str]], indent: str) -> None:
    spelled = f"{{{indent}" + f",{indent}".join(f"{key}:{value}" for key, value in pairs) + f"{indent}}}"
    [record] = read(f"[{indent}{spelled}{indent}]".encode(), "json")
    line = JsonlWriter().row(record, None)
    assert line.count(b"\n") == 1
    assert b"\r" not in line
    flat = spelled.replace("\n", " ").replace("\r", " ")
    assert line.startswith(flat.removesuffix("}").encode() + b',"prediction":')


@given(table=TABLES, format=st.sampled_from(["csv", "tsv"]))
def test_csv_cells_come_back_from_jsonl(read: Read, table: list[list[str]], format: str) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter="," if format == "csv" else "\t", quoting=csv.QUOTE_ALL).writerows(table)
    records = read(out.getvalue().encode(), format, header=False, text_fields=("1",))
    lines = [JsonlWriter().row(record, ABSTAINED) for record in records]
    again = [record.fields or {} for record in read(b"".join(lines), "jsonl")]
    assert [list(fields.values())[:-1] for fields in again] == table
    assert all(fields["prediction"] == ABSTAINED.to_dict() for fields in again)


def test_jsonl_errors_keep_the_fields_that_were_read() -> None:
    fields = Record("in.csv", 3, b"", {"id": "1"}, error=RowError("ragged_row", "ragged", 3))
    value: dict[str, Any] = {"label": None, "score": None, "labels": [], "scores": {}}
    assert json.loads(JsonlWriter().row(BAD, None)) == {
        "prediction": value | {"error": {"code": "invalid_json", "message": "not valid JSON", "line": 42}}
    }
    assert json.loads(JsonlWriter(with_source=True).row(fields, None)) == {
        "id": "1",
        "prediction": value | {"error": {"code": "ragged_row", "message": "ragged", "line": 3, "file": "in.csv"}},
    }


def test_jsonl_with_names_that_are_no_text() -> None:
    record = Record("caf\udce9.csv", 3, b"", {"id": "1"}, error=ERROR)
    line = json.loads(JsonlWriter("caf\udce9", with_source=True).row(record, None))
    assert line["caf\ufffd"]["error"]["file"] == "caf\ufffd.csv"


def test_a_field_is_never_overwritten() -> None:
    body, taken = b'{"text": "a", "prediction":  1.0}', row(text="a", prediction="gold")
    error = JsonlWriter().check(taken)
    assert error == RowError("key_taken", "the row already has a field 'prediction'; name another with --as", 1)
    assert JsonlWriter().row(taken, None) == b'{"text":"a","prediction":"gold"}\n'
    assert JsonlWriter().row(Record("in", 1, body, {"prediction": 1.0}, body), ANSWER) == body + b"\n"
    assert JsonlWriter("topic").check(taken) is None
    with pytest.raises(InputUnusable, match="in:1: the row already has a field 'prediction'; name another with --as"):
        CsvWriter().row(taken, ANSWER)


def test_another_key_and_no_rows() -> None:
    assert json.loads(JsonlWriter("topic").row(row(prediction="gold"), ANSWER)).keys() == {"prediction", "topic"}
    assert JsonlWriter().end() == b""


# --- CSV -------------------------------------------------------------------------------------------------------------


@given(table=TABLES, delimiter=st.sampled_from(",\t;"), prediction=st.sampled_from([ANSWER, ABSTAINED, None]))
def test_csv_cells_survive(read: Read, table: list[list[str]], delimiter: str, prediction: Prediction | None) -> None:
    columns = [f"c{number}" for number in range(len(table[0]))]
    writer = CsvWriter(delimiter=delimiter, columns=columns)
    data = write(writer, *((row(**dict(zip(columns, values, strict=True))), prediction) for values in table))
    records = read(data, "csv", delimiter=delimiter, text_fields=("c0",))
    assert [record.error for record in records] == [None] * len(table)
    added = ["billing", "0.9731", "billing|refund"] if prediction is ANSWER else ["", "", ""]
    assert [list((record.fields or {}).values()) for record in records] == [[*values, *added] for values in table]
    assert list(records[0].fields or {}) == [*columns, "prediction", "prediction_score", "prediction_labels"]


@given(line_end=st.sampled_from(["\n", "\r\n"]), table=TABLES)
def test_csv_read_written_and_read(read: Read, line_end: str, table: list[list[str]]) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\r\n").writerows(table)  # quotes carriage returns too
    data = (
        out.getvalue()
        if line_end == "\r\n" or "\r" in "".join(map("".join, table))
        else out.getvalue().replace("\r\n", "\n")
    )
    records = read(data.encode(), "csv", header=False, text_fields=("1",))
    written = write(
        CsvWriter(columns=tuple(map(str, range(1, len(table[0]) + 1))), header=False),
        *((record, ANSWER) for record in records),
    )
    assert [values[:-3] for values in cells(written)] == table


def test_csv_of_json_rows_spells_values_as_they_came(read: Read) -> None:
    data = b'{"text": "a", "n": 12.50, "big": 123456789012345678901234567890, "e": 1E400, "i": 7, "yes": true, "none": null, "list": [1, "\xc3\xa9"], "half": "\\ud83d"}\n'
    header, values = cells(write(CsvWriter(), *((record, None) for record in read(data, "jsonl"))))
    assert dict(zip(header, values, strict=True)) == {
        "text": "a",
        "n": "12.50",
        "big": "123456789012345678901234567890",
        "e": "1E400",
        "i": "7",
        "yes": "true",
        "none": "",
        "list": '[1,"é"]',
        "half": r"\ud83d",
        "prediction": "",
        "prediction_score": "",
        "prediction_labels": "",
    }


@pytest.mark.parametrize("extra", ["", ', "n": 1.5'])
def test_csv_of_deeply_nested_json(read: Read, extra: str) -> None:
    deep = '{"text": "a", "deep": ' + "[" * 900 + "]" * 900 + extra + "}"
    [record] = read(deep.encode(), "jsonl")
    try:
        assert b"[[[[" in CsvWriter().row(record, None)
    except InputUnusable as error:
        assert "nested too deeply" in str(error)  # either is right; nothing else is


def test_csv_takes_its_columns_from_the_first_row_that_has_fields() -> None:
    data = write(CsvWriter(), (BAD, None), (BAD, None), (row(text="a", n=1), ANSWER), (BAD, None), (row(n=2), None))
    assert cells(data) == [
        ["text", "n", "prediction", "prediction_score", "prediction_labels"],
        ["", "", "", "", ""],
        ["", "", "", "", ""],
        ["a", "1", "billing", "0.9731", "billing|refund"],
        ["", "", "", "", ""],
        ["", "2", "", "", ""],
    ]


@pytest.mark.parametrize(
    ("writer", "rows", "expected"),
    [
        (CsvWriter(columns=("id", "text")), [], b"id,text,prediction,prediction_score,prediction_labels\n"),
        (CsvWriter(key="p", delimiter="\t"), [], b"p\tp_score\tp_labels\n"),
        (CsvWriter(header=False), [], b""),
        (CsvWriter(), [(BAD, None)], b"prediction,prediction_score,prediction_labels\n,,\n"),
        (CsvWriter(header=False, digits=2), [(row(text="a"), ANSWER)], b"a,billing,0.97,billing|refund\n"),
    ],
)
def test_csv_is_whole_whatever_the_rows(writer: CsvWriter, rows: Any, expected: bytes) -> None:
    assert write(writer, *rows) == expected


@pytest.mark.parametrize("columns", [None, ("text",)])
def test_csv_rows_with_other_fields(columns: tuple[str, ...] | None) -> None:
    writer = CsvWriter(columns=columns)
    if columns is None:
        assert writer.check(row(text="a")) is None
        writer.row(row(text="a"), ANSWER)
    error = writer.check(row(text="a", n=1))
    assert error and error.code == "extra_field"
    assert error.message.startswith("field 'n' is not in the first row")
    assert "write --output-format jsonl" in error.message
    assert writer.check(row()) is writer.check(row(text="b")) is writer.check(BAD) is None
    ragged = Record("in", 3, b"", {"text": "a", "extra_1": "b"}, error=RowError("ragged_row", "ragged", 3))
    assert writer.row(ragged, None).endswith(b"a,,,\n")


@pytest.mark.parametrize("writer", [LabelWriter(), TableWriter(6), SelectWriter(frozenset())])
def test_the_others_can_write_any_row(writer: Writer) -> None:
    assert writer.check(row(prediction="gold")) is writer.check(BAD) is None


@pytest.mark.parametrize("name", ["prediction_score", "prediction_labels"])
def test_csv_columns_are_never_doubled(name: str) -> None:
    with pytest.raises(InputUnusable, match=f"already has a field '{name}'"):
        write(CsvWriter(columns=("text", name)))


# --- the others ------------------------------------------------------------------------------------------------------


def test_labels_are_aligned_with_the_input() -> None:
    odd = Prediction("two\nlines\tand\r\ud83d", 0.5, ("x",))
    data = write(LabelWriter(), (row(text="a"), ANSWER), (row(text="b"), ABSTAINED), (BAD, None), (row(text="c"), odd))
    assert data == b"billing\n\n\ntwo lines and \\ud83d\n"


@pytest.mark.parametrize(
    ("record", "prediction", "fields", "line"),
    [
        (row(id="x", text="I was\ncharged\x1b[31m"), ANSWER, (), "0.973  billin  I was charged [31m"),
        (row(id="x", body="B", title="T"), ANSWER, ("title",), "0.973  billin  T"),
        (row(id="x", user={"note": "N"}), ANSWER, ("user.note",), "0.973  billin  N"),
        (row(a="one", b="two"), ANSWER, ("b", "a"), "0.973  billin  two one"),
        (row(text="a"), ABSTAINED, (), "    -  -       a"),
        (BAD, None, (), "error  -       not valid JSON"),
        (row(text="x" * 10_000), ANSWER, (), "0.973  billin  " + "x" * 25),
        (row(text="\ud83d"), ANSWER, (), "0.973  billin"),
    ],
)
def test_a_table_line_fits_the_terminal(
    record: Record, prediction: Prediction | None, fields: tuple[str, ...], line: str
) -> None:
    assert TableWriter(6, 40, fields).row(record, prediction) == line.encode() + b"\n"


@given(text=st.text())
def test_nothing_on_a_terminal_is_a_control_character(text: str) -> None:
    assert printable(text).isprintable()
    assert len(printable(text)) == len(text)


def test_select_gives_the_lines_as_they_came() -> None:
    writer = SelectWriter(frozenset(["refund", "other"]), b"id,text\r\n")
    raws = [b'1,"a ""b""\nc"\r\n', b"2,x\r\n", b"3,y"]
    rows = [Record("in.csv", 1, raw, {}) for raw in raws]
    data = write(writer, (rows[1], ABSTAINED), (rows[0], ANSWER), (BAD, None), (rows[2], ANSWER))
    assert data == b"id,text\r\n" + raws[0] + raws[2] + b"\n"
    assert writer.found == 2
    assert write(SelectWriter(frozenset(["refund"]), b"id\n"), (rows[1], ABSTAINED)) == b""
