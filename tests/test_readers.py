"""Readers: any bytes end in records or a clean error, and no row is lost, changed or moved."""

import codecs
import contextlib
import csv
import gzip
import io
import json
import os
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gliclass_cli.errors import GliclassError, InputUnusable, UsageProblem
from gliclass_cli.files import open_source
from gliclass_cli.readers import FORMATS, ReadOptions, Rows, read_rows
from gliclass_cli.records import Record
from gliclass_cli.streaming import Ahead

LINE_FORMATS = tuple(format for format in FORMATS if format != "parquet")
Read = Callable[..., list[Record]]

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(-1e300, 1e300) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
ROWS = st.lists(st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=4), max_size=4)
# What JSON allows and parsers like to change: spellings of numbers, escapes, keys given twice, halves of characters.
SPELLED = st.sampled_from(
    ["1.50", "1E2", "-0", "1e400", "123456789012345678901234567890", "9" * 5000, "[1.0,\t2]", "{}", "null"]
) | st.sampled_from([r'"\u00e9\/"', r'"\ud83d"', r'"\u0000"', '"\u2028"'])
SPELLED_ROWS = st.lists(st.tuples(st.sampled_from(['"a"', '"text"', r'"\u0061"']), SPELLED), min_size=1, max_size=5)
TABLES = st.integers(1, 4).flatmap(
    lambda width: st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=width, max_size=width),
        max_size=5,
    )
)
SAMPLES = [
    b'{"text": "a", "n": 1}\n{"text": "b\\n"}\n\n',
    b'[{"text": "a"},\n {"text": "[{,\\"}]"}, {"text": "c"}]\n',
    b'id,text\n1,"a ""quoted"", long\ncell"\n2,b\n\n3,"c"\n',
    b"id\ttext\n1\ta\n2\tb\n",
    "first line\nsecond é 🙂\r\n\nlast".encode(),
    '{"text": "é"}\n'.encode("utf-16"),
]
ENCODINGS = ["utf-8", "ascii", "cp1252", "shift_jis", "gb18030", "utf-16", "utf-16-le", "utf-32", "utf-7", "hz"]
ENCODINGS += ["iso2022_jp", "iso2022_kr", "cp424", "johab"]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid sample, cut and with some bytes overwritten."""
    data = bytearray(draw(st.sampled_from(SAMPLES)))
    for place, byte in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=4)):
        data[place] = byte
    return bytes(data[: draw(st.integers(0, len(data)))])


ANY_BYTES = st.binary(max_size=80) | damaged() | st.text('{}[]",:\\\n\r\t a1-+~&\x1b$B\x0e\0é').map(str.encode)


def start(data: bytes, path: Path, format: str | None = None, **options: Any) -> Rows:
    """The rows of a small file, read to the end, with what is known of them before."""
    path.write_bytes(data)
    with open_source(str(path)) as source:
        rows = read_rows(source, ReadOptions(format, **options))
        rows.records = iter(list(rows.records))
    return rows


def texts(records: Iterable[Record]) -> list[str | None]:
    return [record.fields["text"] if record.fields else None for record in records]


def codes(records: Iterable[Record]) -> list[str | None]:
    return [record.error.code if record.error else None for record in records]


def lines_of(records: Iterable[Record]) -> list[int]:
    return [record.line for record in records]


def assert_nothing_lost(data: bytes, records: Iterable[Record], *, blank: bytes | None) -> None:
    """The raw bytes of the records, in order, are the input; only ``blank`` bytes stand between them."""
    at = 0
    for record in records:
        place = data.index(record.raw, at)
        assert not data[at:place].strip(blank)
        assert record.line == data[:place].count(b"\n") + 1
        at = place + len(record.raw)
    assert not data[at:].strip(blank)


def as_csv(table: Iterable[list[str]], delimiter: str = ",", line_end: str = "\n") -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, lineterminator="\r\n", quoting=csv.QUOTE_ALL).writerows(table)
    # Outside of cells only: all cells are quoted.
    return out.getvalue().replace('"\r\n"', f'"{line_end}"').removesuffix("\r\n").encode()


# --- every row comes, as it came -------------------------------------------------------------------------------------


@given(rows=ROWS, line_end=st.sampled_from(["\n", "\r\n", "\n\n", " \n"]), last=st.booleans(), bom=st.booleans())
def test_jsonl_rows_survive(read: Read, rows: list[dict[str, Any]], line_end: str, last: bool, bom: bool) -> None:
    data = line_end.join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    data += line_end.encode() if last and data else b""
    records = read(codecs.BOM_UTF8 * bom + data, "jsonl")
    assert [record.fields for record in records] == json.loads(json.dumps(rows))
    assert not any(codes(records))
    assert_nothing_lost(data, records, blank=None)


@given(pairs=SPELLED_ROWS)
def test_jsonl_rows_keep_every_byte(read: Read, pairs: list[tuple[str, str]]) -> None:
    body = ("{" + " , ".join(f"{key} : {value}" for key, value in pairs) + "}").encode()
    [record] = read(b" " + body + b"\r\n", "jsonl")
    assert record.error is None
    assert record.body == body


@given(rows=ROWS, indent=st.sampled_from([None, 1, "\t"]), array=st.booleans())
def test_json_rows_survive_pretty_printed_or_in_one_line(
    read: Read, rows: list[dict[str, Any]], indent: Any, array: bool
) -> None:
    spelled = [json.dumps(row, ensure_ascii=False, indent=indent) for row in rows]
    data = json.dumps(rows, indent=indent) if array else "\n".join(spelled)
    records = read(data.encode(), "json")
    assert [record.fields for record in records] == json.loads(json.dumps(rows))
    for record in records:
        assert record.body is not None
        assert b"\n" not in record.body
        assert json.loads(record.body) == record.fields
    lines = data.split("\n")
    assert all(lines[record.line - 1].lstrip(" \t[").startswith("{") for record in records)


@given(table=TABLES, delimiter=st.sampled_from(",;\t|\x1f"), line_end=st.sampled_from(["\n", "\r\n"]))
def test_csv_cells_survive(read: Read, table: list[list[str]], delimiter: str, line_end: str) -> None:
    data = as_csv(table, delimiter, line_end)
    records = read(data, "csv", delimiter=delimiter, header=False, text_fields=("1",))
    assert [list(record.fields or ()) for record in records] == [[str(n + 1) for n in range(len(r))] for r in table]
    assert [list((record.fields or {}).values()) for record in records] == table
    assert not any(codes(records))
    assert_nothing_lost(data, records, blank=b"")


@given(lines=st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]))), last=st.booleans())
def test_text_lines_survive(read: Read, lines: list[str], last: bool) -> None:
    data = "\n".join(lines).encode() + (b"\n" if last and lines else b"")
    records = read(codecs.BOM_UTF8 + data, "text")
    expected = data.decode().removesuffix("\n").split("\n") if data else []
    assert texts(records) == [line.removesuffix("\r") for line in expected]
    assert lines_of(records) == list(range(1, len(expected) + 1))
    assert b"".join(record.raw for record in records) == data


@pytest.mark.parametrize(
    ("format", "data", "expected"),
    [
        ("jsonl", b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}', ["a", "b"]),
        ("json", b'\xef\xbb\xbf[{"text": "a"},\r\n{"text": "b"}]', ["a", "b"]),
        ("csv", b'\xef\xbb\xbf"text",n\r\na,1\r\n\r\nb,2', ["a", "b"]),
        ("tsv", b"\xef\xbb\xbftext\tn\na\t1\nb\t2\n\n", ["a", "b"]),
        ("text", b"\xef\xbb\xbfa\r\nb", ["a", "b"]),
        ("text", b"a\r\n\r\nb\r\n\n", ["a", "", "b", ""]),
        ("text", b"old\rmac\n", ["old\rmac"]),
    ],
)
def test_byte_order_mark_crlf_blank_lines_and_no_last_line_end(
    read: Read, format: str, data: bytes, expected: list[str]
) -> None:
    assert texts(read(data, format)) == expected


@pytest.mark.parametrize("data", [b"", b"\n", b"\r\n \n\t\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
@pytest.mark.parametrize("format", ["jsonl", "json"])
def test_nothing_is_no_row(read: Read, format: str, data: bytes) -> None:
    assert read(data, format) == []


@pytest.mark.parametrize("format", LINE_FORMATS)
def test_an_empty_file_is_no_row(read: Read, format: str) -> None:
    assert read(b"", format) == read(codecs.BOM_UTF8, format) == []


# --- any bytes at all ------------------------------------------------------------------------------------------------


@given(data=ANY_BYTES, format=st.sampled_from([None, *LINE_FORMATS]), encoding=st.sampled_from(ENCODINGS), header=...)
@example(data=b"+2AA-\n+AGE-x\n", format="text", encoding="utf-7", header=True)
@example(data=b'{"text": "+2AA-"}\n', format="jsonl", encoding="utf-7", header=True)
@example(data=b"~x\n", format="csv", encoding="hz", header=False)
@example(data=b"\x1b\n", format="csv", encoding="iso2022_jp", header=False)
def test_any_bytes_end_in_records_or_a_clean_error(
    read: Read, data: bytes, format: str | None, encoding: str, header: bool
) -> None:
    try:
        records = read(data, format, encoding=encoding, header=header, text_fields=("text", "1"))
    except GliclassError as error:
        assert str(error)
        return
    for record in records:
        assert (record.error is None) == (record.error is None and record.fields is not None)
        assert record.error is None or record.error.line == record.line
        if record.body is None:  # writers spell such fields in JSON
            json.dumps(record.fields, ensure_ascii=False).encode()


@given(data=ANY_BYTES, encoding=st.sampled_from(["utf-8", "cp1252", "shift_jis"]))
def test_any_bytes_are_accounted_for(read: Read, data: bytes, encoding: str) -> None:
    if data.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, b"\x1f\x8b", b"(\xb5/\xfd")):
        return
    text = read(data, "text", encoding=encoding)
    assert b"".join(record.raw for record in text) == data
    assert len(text) == data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    assert_nothing_lost(data, read(data, "jsonl", encoding=encoding), blank=None)
    try:
        rows = read(data, "csv", encoding=encoding, header=False, text_fields=("1",))
    except InputUnusable:
        return  # its first row is not CSV
    assert_nothing_lost(data, rows, blank=b"\r\n")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"text": "x"', "invalid_json"),
        (b'{"text": NaN}', "invalid_json"),
        (b'{"text": "a\tb"}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "invalid_json"),
        (b'\xef\xbb\xbf{"text": "x"}', "invalid_json"),
        (b"\0\0", "invalid_json"),
        (b'["x"]', "not_an_object"),
        (b'"x"', "not_an_object"),
        (b'{"text": "\xff"}', "undecodable"),
        (b'{"text": "\xed\xa0\x80"}', "undecodable"),
    ],
)
def test_a_bad_jsonl_row_keeps_its_place(read: Read, line: bytes, code: str) -> None:
    records = read(b'{"text": "a"}\n' + line + b'\n{"text": "c"}\n', "jsonl")
    assert texts(records) == ["a", None, "c"]
    assert codes(records) == [None, code, None]
    assert records[1].raw == line + b"\n"
    assert records[1].error and records[1].error.line == 2


# --- JSON arrays -----------------------------------------------------------------------------------------------------


class Dribble(io.RawIOBase):
    """A raw stream that gives its bytes in pieces of given sizes, over and over."""

    def __init__(self, data: bytes, sizes: Iterable[int]) -> None:
        self._data = data
        self._sizes = list(sizes)
        self.consumed = 0
        self.reads = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._data[self.consumed :][: min(self._sizes[self.reads % len(self._sizes)], len(buffer))]
        buffer[: len(piece)] = piece
        self.consumed += len(piece)
        self.reads += 1
        return len(piece)


def read_dribbling(data: bytes, sizes: Iterable[int], format: str | None = "json", **options: Any) -> Iterator[Record]:
    """Read standard input that comes in small pieces."""
    stdin = mock.Mock(buffer=Dribble(data, sizes), **{"fileno.side_effect": io.UnsupportedOperation})
    with mock.patch("sys.stdin", stdin), open_source("-") as source:
        yield from read_rows(source, ReadOptions(format, **options)).records


def outcome(start: Callable[[], Iterator[Record]]) -> list[Any]:
    """All that a caller sees of records: those that come, and the error that ends them."""
    seen: list[Any] = []
    try:
        seen.extend((record.line, record.raw, record.fields, record.error) for record in start())
    except InputUnusable as error:
        seen.append(str(error))
    return seen


JSON_PIECES = st.lists(
    st.sampled_from(["[", "]", "{", "}", ",", '"', "\\", "\n", " ", '{"a": "]\\"}"}', '{"b": [{}, 1]}', "é", "x"])
)


@given(data=JSON_PIECES.map(lambda pieces: "".join(pieces).encode()) | damaged(), sizes=st.lists(st.integers(1, 5)))
@example(data=b'\xef\xbb\xbf[{"a": "\\""}]', sizes=[1])
def test_json_does_not_depend_on_the_blocks_it_comes_in(data: bytes, sizes: list[int]) -> None:
    whole = outcome(lambda: read_dribbling(data, [1 << 16]))
    assert outcome(lambda: read_dribbling(data, [1])) == whole
    assert outcome(lambda: read_dribbling(data, sizes or [2])) == whole


@pytest.mark.parametrize("data", [b'\xef\xbb\xbf{"text": "a"}', b"\xef\xbb\xbfa\nb", "text".encode("utf-16")])
def test_the_format_does_not_depend_on_the_blocks_that_a_byte_order_mark_comes_in(data: bytes) -> None:
    whole = outcome(lambda: read_dribbling(data, [1 << 16], None))
    assert outcome(lambda: read_dribbling(data, [1], None)) == whole


def test_utf_16_does_not_depend_on_the_blocks_it_comes_in() -> None:
    data = '[{"text": "é🙂"},\n{"text": "短"}]'.encode("utf-16")
    assert texts(read_dribbling(data, [1, 3], encoding="utf-16")) == ["é🙂", "短"]


@pytest.mark.parametrize(
    ("data", "expected", "lines"),
    [
        (b"[]", [], []),
        (b"[ \n ]\n", [], []),
        (b'[\n]\n{"text": "a"}', ["a"], [3]),
        (b'[{"text": "a"}][{"text": "b"}]', ["a", "b"], [1, 1]),
        (b'{"text": "a"}{"text": "b"}\n\n{"text": "c"}', ["a", "b", "c"], [1, 1, 3]),
        (b'[{"text": "a"},\n\n  {"text":\n"b"}\n,{"text": "c"},\n]', ["a", "b", "c"], [1, 3, 5]),
        (b'[{"text": "a"}, 1, {"text": "c"}]', ["a", None, "c"], [1, 1, 1]),
        (b'[{"text": "a"},, {"text": "c"}]', ["a", None, "c"], [1, 1, 1]),
        (b'[{"text": "a"},\n{"text"; "b"},\n{"text": "c"}]', ["a", None, "c"], [1, 2, 3]),
        (b'[{"text": "a"},\n{"text": "b"]},\n{"text": "c"}]', ["a", None, "c"], [1, 2, 3]),
        (b'[{"text": "a"},\n},\n{"text": "c"}]', ["a", None, "c"], [1, 2, 3]),
        (b'[{"text": "a"}] tail', ["a", None], [1, 1]),
        (b'head [{"text": "a"}]', [None], [1]),
        (b'[{"text": "a\nb"}]', [None], [1]),
    ],
)
def test_json_elements_and_their_lines(read: Read, data: bytes, expected: list[str | None], lines: list[int]) -> None:
    records = read(data, "json")
    assert texts(records) == expected
    assert lines_of(records) == lines
    assert all(record.error for record in records if record.fields is None)


@pytest.mark.parametrize("end", [b"", b" \n", b',{"text": ', b',{"text": "b'])
def test_a_json_array_that_is_cut_off_gives_its_rows_and_an_error(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "in.json"
    path.write_bytes(b'[\n{"text": "a"}' + b",\n" * bool(end.strip()) + end.lstrip(b","))
    seen: list[Record] = []
    with open_source(str(path)) as source, pytest.raises(InputUnusable, match=r"in\.json:\d: .* not closed.*cut off"):
        seen.extend(read_rows(source, ReadOptions()).records)  # extend keeps what came before the error
    assert texts(seen)[:1] == ["a"]


@pytest.mark.parametrize(
    ("data", "count"),
    [
        pytest.param(b'[{"text":"' + b"x" * 5_000_000 + b'"}]', 1, id="a 5 MB string"),
        pytest.param(b'[{"text":"' + b'\\"[,' * 1_250_000 + b'"}]', 1, id="a 5 MB string of escapes"),
        pytest.param(
            b"[" + b",".join([b'{"text":"%s","tags":[1,2]}' % (b"word " * 200)] * 19_000) + b"]", 19_000, id="20 MB"
        ),
        pytest.param(b"[" + b" " * 5_000_000 + b"{}]", 1, id="5 MB of space"),
        pytest.param(b'[{"a":' + b"[" * 2_000_000, 1, id="brackets"),
        pytest.param(b'"' * 1_000_001, 1, id="quotes"),
    ],
)
def test_json_takes_time_in_proportion_to_its_size(tmp_path: Path, data: bytes, count: int) -> None:
    path = tmp_path / "in.json"
    path.write_bytes(data)
    before = time.process_time()
    with open_source(str(path)) as source:
        records = outcome(lambda: read_rows(source, ReadOptions()).records)
    assert len([seen for seen in records if isinstance(seen, tuple)]) == count
    assert time.process_time() - before < 10  # quadratic: minutes


# --- CSV -------------------------------------------------------------------------------------------------------------


def test_csv_rows_that_do_not_fit_keep_their_place_and_all_their_cells(read: Read) -> None:
    data = b'id,text,extra_1\n1,a,x\n2\n\n3,c,y,"more\ncells",last\n4,d,z\n'
    records = read(data, "csv")
    assert codes(records) == [None, "ragged_row", "ragged_row", None]
    assert lines_of(records) == [2, 3, 5, 7]
    assert records[1].fields == {"id": "2"}
    assert list((records[2].fields or {}).values()) == ["3", "c", "y", "more\ncells", "last"]
    assert records[2].raw == b'3,c,y,"more\ncells",last\n'
    assert records[1].error and records[1].error.message == "ragged row: 1 cells where the header has 3"


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (b'2,"b"x\n', "invalid_csv"),
        (b'2,"He said \\"hi\\""\n', "invalid_csv"),
        (b"2,a\rb\n", "invalid_csv"),
        (b"2,\xff\n", "undecodable"),
        (b"2,\xed\xa0\x80\n", "undecodable"),
    ],
)
def test_a_bad_csv_row_keeps_its_place(read: Read, bad: bytes, code: str) -> None:
    records = read(b"id,text\n1,a\n" + bad + b"3,c\n", "csv")
    assert codes(records) == [None, code, None]
    assert lines_of(records) == [2, 3, 4]
    assert records[1].raw == bad
    assert texts(records)[::2] == ["a", "c"]


def test_an_unclosed_quote_is_one_bad_row_that_keeps_the_rest(read: Read) -> None:
    records = read(b'id,text\n1,a\n2,"b\n3,c\n', "csv")
    assert codes(records) == [None, "invalid_csv"]
    assert records[1].raw == b'2,"b\n3,c\n'


def test_cells_of_any_size(read: Read) -> None:
    [record] = read(b"id,text\n1," + b"x" * 1_000_000 + b"\n", "csv")
    assert record.fields and len(record.fields["text"]) == 1_000_000


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        (b"text,x,x,x_2,x", ("text", "x", "x_2", "x_2_2", "x_3")),
        (b"text,,", ("text", "", "_2")),
        (b'"te\nxt",text', ("te\nxt", "text")),
        (b"only", ("only",)),
    ],
)
def test_columns_are_distinct_and_known_before_the_first_row(
    tmp_path: Path, header: bytes, columns: tuple[str, ...]
) -> None:
    cells = b",".join(b"%d" % number for number in range(len(columns)))
    rows = start(header + b"\n" + cells + b"\n", tmp_path / "in.csv")
    assert rows.columns == columns
    assert rows.header_raw == header + b"\n"
    assert [record.fields for record in rows.records] == [dict(zip(columns, cells.decode().split(","), strict=True))]


def test_a_header_of_many_equal_names_is_read_at_once(tmp_path: Path) -> None:
    before = time.process_time()
    rows = start(b"text" + b"," * 20_000 + b"\n", tmp_path / "in.csv")
    assert rows.columns and len(set(rows.columns)) == 20_001
    assert time.process_time() - before < 5


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("data", [b"", b"\n\r\n", b"\xef\xbb\xbf"])
def test_an_empty_csv_has_no_rows(tmp_path: Path, data: bytes, header: bool) -> None:
    rows = start(data, tmp_path / "in.csv", header=header)
    assert list(rows.records) == []
    assert rows.columns == (() if header else None)


def test_a_csv_with_a_header_only_has_columns(tmp_path: Path) -> None:
    rows = start(b"id,text", tmp_path / "in.csv")
    assert rows.columns == ("id", "text")
    assert list(rows.records) == []


def test_without_header_columns_are_numbers_and_the_first_row_counts(tmp_path: Path) -> None:
    rows = start(b"1,a\n2,b\n", tmp_path / "in.csv", header=False, text_fields=("2",))
    assert (rows.columns, rows.header_raw) == (("1", "2"), b"")
    assert [record.fields for record in rows.records] == [{"1": "1", "2": "a"}, {"1": "2", "2": "b"}]


@pytest.mark.parametrize(
    ("options", "data", "problem", "message"),
    [
        ({}, b"id,name\n1,a\n", UsageProblem, "which column holds the text.*columns: 'id', 'name'"),
        ({"text_fields": ("body",)}, b"id,text\n", UsageProblem, "no column 'body'; columns: 'id', 'text'"),
        ({"delimiter": ""}, b"text\n", UsageProblem, "--delimiter"),
        ({"delimiter": ";;"}, b"text\n", UsageProblem, "--delimiter"),
        ({"delimiter": '"'}, b"text\n", UsageProblem, "--delimiter"),
        ({"delimiter": "\udcff"}, b"text\n", UsageProblem, "--delimiter"),
        ({}, b'text,"id\n', InputUnusable, ":1: the first row is not CSV"),
        ({}, b"\ntext,\xff\n", InputUnusable, ":2: the first row is not utf-8 text"),
    ],
)
def test_a_csv_without_a_usable_text_says_so_at_once(
    tmp_path: Path, options: dict[str, Any], data: bytes, problem: type[GliclassError], message: str
) -> None:
    with pytest.raises(problem, match=message):
        start(data, tmp_path / "in.csv", **options)


@pytest.mark.parametrize(("format", "delimiter"), [("tsv", None), ("csv", "\\t"), ("csv", "\t")])
def test_tabs_as_delimiter(read: Read, format: str, delimiter: str | None) -> None:
    assert texts(read(b"id\ttext\n1\ta,b\n", format, delimiter=delimiter)) == ["a,b"]


# --- encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", LINE_FORMATS)
@pytest.mark.parametrize(
    ("encoding", "text"),
    [("latin-1", "café"), ("cp1252", "“café” €"), ("shift_jis", "表示ソ能"), ("gb18030", "短い🙂")]
    + [(name, "短い é 🙂") for name in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7")]
    + [("iso2022_jp", "表示 ソ"), ("iso2022_kr", "한국"), ("hz", "你好"), ("cp500", "café"), ("big5", "功蓋")],
)
def test_encodings(read: Read, format: str, encoding: str, text: str) -> None:
    data = {
        "jsonl": f'{{"text": "{text}"}}\n{{"text": "b"}}\n',
        "json": f'[{{"text": "{text}"}},\n{{"text": "b"}}]\n',
        "csv": f"id,text\n1,{text}\n2,b\n",
        "tsv": f"id\ttext\n1\t{text}\n2\tb\n",
        "text": f"{text}\nb\n",
    }[format]
    records = read(data.encode(encoding), format, encoding=encoding)
    assert texts(records) == [text, "b"]
    assert records[0].raw.decode("utf-8" if records[0].raw.isascii() else "latin-1")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "shift_jis", "utf-8"])
def test_raw_lines_stay_in_their_encoding(read: Read, encoding: str) -> None:
    data = "¥ a\r\nb".encode(encoding)
    assert b"".join(record.raw for record in read(data, "text", encoding=encoding)) == data


@pytest.mark.parametrize("data", ['{"text": "a"}\n', '\ufeff{"text": "a"}\n'])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16", "utf-8"])
def test_the_format_is_told_in_any_encoding(read: Read, encoding: str, data: str) -> None:
    assert read(data.encode(encoding), encoding=encoding)[0].fields == {"text": "a"}


@pytest.mark.parametrize(
    ("format", "encoding", "data", "expected"),
    [
        ("text", "utf-8", b"a\nb\xff\nc\n", ["a", None, "c"]),
        ("text", "cp1252", b"a\nb\x81\nc\n", ["a", None, "c"]),
        ("text", "shift_jis", b"a\nb\x81\nc\n", ["a", None, "c"]),
        ("text", "utf-16-le", "a\nb".encode("utf-16-le") + b"\x00\xd8" + "\nc\n".encode("utf-16-le"), ["a", None, "c"]),
        ("text", "utf-16", "a\nb".encode("utf-16") + b"\x00", ["a", None]),
        ("text", "utf-32-le", "a\nb".encode("utf-32-le") + b"\xff" * 4 + "\nc".encode("utf-32-le"), ["a", None, "c"]),
        ("text", "utf-7", b"a\n+2AA-\nc\n", ["a", None, "c"]),
        ("text", "hz", b"a\n~x\nc\n", ["a", None, "c"]),
        ("csv", "iso2022_jp", b"text\na\n\x1b$B\x7f\x7f\x1b(B\nc\n", ["a", None, "c"]),
        ("jsonl", "ascii", b'{"text":"a"}\n{"text":"\xe9"}\n{"text":"c"}\n', ["a", None, "c"]),
        ("json", "cp1252", b'[{"text":"a"},{"text":"\x81"},{"text":"c"}]', ["a", None, "c"]),
        ("json", "utf-16-le", '[{"text":"a"},{"text":"\ud800"}]'.encode("utf-16-le", "surrogatepass"), ["a", None]),
    ],
)
def test_undecodable_bytes_cost_one_row(
    read: Read, format: str, encoding: str, data: bytes, expected: list[str | None]
) -> None:
    records = read(data, format, encoding=encoding)
    assert texts(records) == expected
    assert codes(records) == [None if text is not None else "undecodable" for text in expected]
    bad = records[1].error
    assert bad and bad.message.startswith(f"not {codecs.lookup(encoding).name} text")


@pytest.mark.parametrize(
    "name",
    ["", "klingon", "base64", "rot13", "idna", "punycode", "unicode_escape", "undefined", "a\0b", "\udcff", "../x"],
)
def test_names_of_no_encoding_are_a_usage_problem(read: Read, name: str) -> None:
    with pytest.raises(UsageProblem, match="no such encoding"):
        read(b"a\n", "text", encoding=name)


@pytest.mark.parametrize("format", [None, *LINE_FORMATS])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_wide_text_without_its_encoding_is_refused_with_the_remedy(
    read: Read, format: str | None, encoding: str
) -> None:
    with pytest.raises(InputUnusable, match=f"add --encoding {encoding}"):
        read("text\na\n".encode(encoding), format)


@pytest.mark.parametrize("format", LINE_FORMATS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_wide_text_without_byte_order_mark_is_refused_with_the_remedy(read: Read, format: str, encoding: str) -> None:
    with pytest.raises(InputUnusable, match="BOM; name its byte order, for example --encoding utf-16-le"):
        read("text\na\n".encode(f"{encoding}-le"), format, encoding=encoding)


# --- the format, and where it ends -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "format"),
    [
        ("in.jsonl", b"", "jsonl"),
        ("in.NDJSON", b"", "jsonl"),
        ("in.json", b"", "json"),
        ("in.csv", b"", "csv"),
        ("in.csv.gz", b"", "csv"),
        ("in.tsv.zst", b"", "tsv"),
        ("in.log", b'{"a": 1}', "text"),
        ("in", b'\n {"a": 1}', "jsonl"),
        ("in.unknown", b'\xef\xbb\xbf{"a": 1}', "jsonl"),
        ("in", b"plain", "text"),
        ("in", b"[urgent] plain", "text"),
        ("in", b"", "text"),
        (".gz", b"plain", "text"),
    ],
)
def test_the_format_is_told_by_name_then_by_the_first_byte(tmp_path: Path, name: str, data: bytes, format: str) -> None:
    assert start(data, tmp_path / name).format == format


def test_an_option_overrides_the_name(tmp_path: Path) -> None:
    assert start(b'{"text": "a"}', tmp_path / "in.csv", "jsonl").format == "jsonl"


@pytest.mark.parametrize("name", ["in", "in.jsonl", "in.csv", "in.txt"])
def test_binary_data_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputUnusable, match="binary"):
        start(b"\x7fELF\0\0\0", tmp_path / name)


def test_nul_bytes_are_text_where_the_format_is_given(read: Read) -> None:
    assert texts(read(b"a\0b\n", "text")) == ["a\0b"]


@pytest.mark.parametrize(
    ("format", "pieces", "expected"),
    [
        ("jsonl", [b'{"text": "a"}\n', b'{"text": "b"}\n'], ["a", "b"]),
        (None, [b'{"text": "a"}\n', b'{"text": "b"}\n'], ["a", "b"]),
        ("csv", [b"id,text\n", b"1,a\n", b'2,"b"\n'], [None, "a", "b"]),
        ("text", [b"a\n", b"b\n"], ["a", "b"]),
        (None, [b"a\n", b"b\n"], ["a", "b"]),
        ("json", [b'{"text": "a"}', b'{"text": "b"}'], ["a", "b"]),
        ("json", [b"[", b'{"text": "a"},', b'{"text": "b"}]'], [None, "a", "b"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_a_row_comes_before_the_next_one_is_written(
    format: str | None, pieces: list[bytes], expected: list[str | None], encoding: str
) -> None:
    """Live: each piece is read, and gives its row, while the writer still waits."""
    reading, writing = os.pipe()

    def records() -> Iterator[Record]:
        with open_source(f"/dev/fd/{reading}") as source:
            yield from read_rows(source, ReadOptions(format, encoding=encoding)).records

    ahead = Ahead(records(), 10, "read")
    for piece, text in zip(pieces, expected, strict=True):
        os.write(writing, piece.decode().encode(encoding))
        if text is not None:
            assert texts([ahead.take(5)]) == [text]
    os.close(writing)
    with pytest.raises(StopIteration):
        ahead.take(5)
    os.close(reading)


@pytest.mark.parametrize("format", LINE_FORMATS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_positions_grow_to_the_size_of_the_file(read: Read, format: str, encoding: str) -> None:
    data = {"json": '[{"text": "a"}, {"text": "b"}]', "jsonl": '{"text": "a"}\n{"text": "b"}\n'}.get(
        format, "text\nb\n"
    )
    positions = [record.position for record in read(data.encode(encoding), format, encoding=encoding)]
    assert positions == sorted(positions)
    assert positions[-1] == len(data.encode(encoding))


# --- rows that are too long ------------------------------------------------------------------------------------------

LONG = "x" * 50
TOO_LONG = "the row has more than 20 bytes: it was read past; --max-row-bytes takes longer ones"


@pytest.mark.parametrize(
    ("format", "data", "lines", "good"),
    [
        ("text", f"a\n{LONG}\nb\n{LONG}", [1, 2, 3, 4], ["a", None, "b", None]),
        ("text", "x" * 20 + "\n" + "y" * 19 + "\n", [1, 2], [None, "y" * 19]),
        ("jsonl", f'{{"text": "a"}}\n{{"text": "{LONG}"}}\n\n{{"text": "b"}}', [1, 2, 4], ["a", None, "b"]),
        ("json", f'[{{"text": "a"}},\n {{"text":\n "{LONG}"}},\n{{"text": "b"}}]', [1, 2, 4], ["a", None, "b"]),
        ("json", f'{{"text": "a"}}\n{{"text": "{LONG}"}}' + "\n" * 60 + '{"text": "b"}', [1, 2, 62], ["a", None, "b"]),
        ("csv", f"text,n\na,1\n{LONG},2\nb,3\n", [2, 3, 4], ["a", None, "b"]),
        # A quoted cell goes on over lines: the row ends where its quotes do.
        ("csv", f'text,n\na,1\n"{LONG}\n{LONG}""\nc,4\n",2\nb,3\n', [2, 3, 7], ["a", None, "b"]),
        ("csv", 'text,n\na,1\n"' + "c\n" * 30 + '",2\nb,3\n', [2, 3, 34], ["a", None, "b"]),
        ("csv", 'text,n\na,1\n"' + "c\n" * 30, [2, 3], ["a", None]),
    ],
)
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_a_row_that_is_too_long_costs_itself_only(
    read: Read, format: str, data: str, lines: list[int], good: list[str | None], bom: str
) -> None:
    if format == "text" and data.startswith("xxx") and bom:
        return  # its first line is too long with the mark, and without
    records = read((bom + data).encode(), format, max_row_bytes=20)
    assert texts(records) == good
    assert [record.line for record in records] == lines
    for record in records:
        if record.fields is None:
            assert record.error
            assert (record.error.code, record.error.message, record.raw) == ("row_too_long", TOO_LONG, b"")


def test_a_header_that_is_too_long_is_refused(read: Read) -> None:
    with pytest.raises(InputUnusable, match=r":1: the first row has more than 20 bytes"):
        read(LONG.encode(), "csv", max_row_bytes=20)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["line", "quoted", "lines of one cell"])
def test_a_row_without_end_takes_no_memory(format: str, kind: str, tmp_path: Path) -> None:
    """As a bomb: 16 MB of one row, out of a few kB of gzip."""
    head = {"csv": b"text\n", "tsv": b"text\n", "json": b'[{"text": "', "jsonl": b'{"text": "'}.get(format, b"")
    piece = {"line": b"x", "quoted": b'"' + b"x" * 1022 + b'"', "lines of one cell": b"x" * 4095 + b"\n"}[kind]
    piece *= (1 << 20) // len(piece)
    first = b'"' if kind == "lines of one cell" and format in ("csv", "tsv") else b""
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(head + first)
        for _ in range(16):
            file.write(piece)
    tracemalloc.start()
    try:
        with open_source(str(path)) as source, contextlib.suppress(InputUnusable):
            for record in read_rows(source, ReadOptions(format, max_row_bytes=1 << 16)).records:
                if kind == "line":
                    assert record.error and record.error.code == "row_too_long"
                break
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()
