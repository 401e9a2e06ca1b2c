"""Readers: from a file's bytes to records, lazily, one row at a time, never losing a row's place.

A row that cannot be read becomes a record with an error; only an input that cannot be read on raises.
"""

import codecs
import csv
import io
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import orjson

from gliclass_cli.errors import InputUnusable, UsageProblem
from gliclass_cli.files import COMPRESSED_SUFFIXES, Source
from gliclass_cli.records import Record, RowError, string_fields

FORMATS = ("jsonl", "json", "csv", "tsv", "text")
_BY_SUFFIX = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".txt": "text",
    ".text": "text",
    ".log": "text",
    ".md": "text",
}
_BLOCK = 1 << 16
_BOM_UTF8 = codecs.BOM_UTF8
_WIDE_BOMS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read an input; ``format`` None means by its name, else by its first byte."""

    format: str | None = None
    encoding: str = "utf-8"
    delimiter: str | None = None
    header: bool = True
    text_fields: tuple[str, ...] = ()


@dataclass(slots=True)
class Rows:
    """The rows of one input; ``columns`` are known before the first row only where the input has a header."""

    records: Iterator[Record]
    format: str
    columns: tuple[str, ...] | None = None
    header_raw: bytes = b""


def read_rows(source: Source, options: ReadOptions) -> Rows:
    """Start reading ``source``.

    Raises:
        InputUnusable: it is binary, its header is no use, or (while iterating) it cannot be read on.
        UsageProblem: the encoding or delimiter does not exist, or the text's column must be named.
    """
    lines = _Lines(source, options.encoding)
    kind = options.format or _format_of(lines, source.name)
    if kind in ("csv", "tsv"):
        return _read_csv(lines, kind, options)
    readers: dict[str, Callable[[_Lines], Iterator[Record]]] = {
        "jsonl": _read_jsonl,
        "json": _read_json,
        "text": _read_text,
    }
    return Rows(readers[kind](lines), kind)


class _Lines:
    """The input line by line, as bytes in an encoding in which a line end is one byte, and where we are in it."""

    def __init__(self, source: Source, encoding: str) -> None:
        self.source = source
        self.number = 0  # of the line read last, from 1
        self.position = 0
        self._at_start = True
        self.encoding = _text_encoding(encoding)
        wide = "\n".encode(self.encoding) != b"\n"  # UTF-16 and the like: recoded as a whole
        self._recoded = io.TextIOWrapper(source.stream, self.encoding, newline="") if wide else None
        if wide:
            self.encoding = "utf-8"

    def head(self) -> bytes:
        """Return some of the first bytes, in ``self.encoding``, without consuming them."""
        head = self.source.peek()
        if self._recoded is not None:
            return head.decode(self._recoded.encoding, "ignore").encode()
        if self.encoding == "utf-8":
            wide = next((name for bom, name in _WIDE_BOMS.items() if head.startswith(bom)), None)
            if wide:
                raise InputUnusable(f"{self.source.name}: is {wide.upper()} text; add --encoding {wide}")
        return head.removeprefix(_BOM_UTF8)

    def __iter__(self) -> Iterator[bytes]:
        """Yield line after line with its line end; a byte order mark is dropped."""
        stream: Iterator[bytes] = iter(self.source.stream)
        if self._recoded is not None:
            stream = (line.encode() for line in self._recoded)
        while line := self._read(lambda: next(stream, b"")):
            self.number += 1
            yield line

    def blocks(self) -> Iterator[bytes]:
        """Yield the input in UTF-8 block by block, as it comes in; ``number`` is left to the caller."""
        if self._recoded is None and self.encoding != "utf-8":
            self._recoded = io.TextIOWrapper(self.source.stream, self.encoding, newline="")
            self.encoding = "utf-8"
        recoded = self._recoded
        read = self.source.stream.read1 if recoded is None else lambda size: recoded.read(size).encode()
        while block := self._read(lambda: read(_BLOCK)):
            yield block

    def _read(self, read: Callable[[], bytes]) -> bytes:
        with self.source.reading():
            try:
                data = read()
            except UnicodeDecodeError as error:
                raise InputUnusable(
                    f"{self.source.name}:{self.number + 1}: not {error.encoding} text ({error.reason}); "
                    "name its encoding with --encoding"
                ) from error
        self.position = self.source.consumed() if self.source.compressed else self.position + len(data)
        if self._at_start and data:
            self._at_start = False
            if self.encoding == "utf-8":
                return data.removeprefix(_BOM_UTF8) or self._read(read)
        return data

    def record(self, line: int, raw: bytes, fields: dict[str, Any] | None, **extra: Any) -> Record:
        """Build the record of a row that starts on ``line``."""
        return Record(self.source.name, line, raw, fields, position=self.position, **extra)

    def bad(self, line: int, raw: bytes, code: str, message: str, fields: dict[str, Any] | None = None) -> Record:
        """Build the record of a row that cannot be used."""
        return self.record(line, raw, fields, error=RowError(code, message, line))

    def undecodable(self, line: int, raw: bytes) -> Record:
        """Build the record of a row whose bytes are not in the encoding."""
        hint = "name its encoding with --encoding, for example --encoding cp1252"
        return self.bad(line, raw, "undecodable", f"not {self.encoding} text; {hint}")


def _format_of(lines: _Lines, name: str) -> str:
    """Tell the format by the file's name, else by the first byte (``{`` means jsonl); refuse what is binary."""
    path = PurePath(name.lower())
    if path.suffix in COMPRESSED_SUFFIXES:
        path = path.with_suffix("")
    if path.suffix == ".parquet":
        raise InputUnusable(f"{name}: Parquet is not read yet; convert it to JSONL or CSV first")
    head = lines.head()
    if b"\0" in head:
        raise InputUnusable(
            f"{name}: looks like a binary file (it has NUL bytes); give text, or say --encoding utf-16 or --format text"
        )
    by_content = "jsonl" if head.lstrip().startswith(b"{") else "text"
    return _BY_SUFFIX.get(path.suffix, by_content)


def _read_jsonl(lines: _Lines) -> Iterator[Record]:
    for raw in lines:
        body = raw.strip()
        if body:
            yield _json_record(lines, lines.number, raw, body)


def _json_record(lines: _Lines, line: int, raw: bytes, body: bytes) -> Record:
    """Build the record of one JSON object; ``body`` is its text without surrounding space."""
    try:
        if lines.encoding != "utf-8":
            body = body.decode(lines.encoding).encode()
        value = orjson.loads(body)
    except UnicodeDecodeError:
        return lines.undecodable(line, raw)
    except orjson.JSONDecodeError as error:
        try:
            body.decode()
        except UnicodeDecodeError:
            return lines.undecodable(line, raw)
        return lines.bad(line, raw, "invalid_json", f"not valid JSON: {error.msg} (at character {error.pos + 1})")
    if not isinstance(value, dict):
        return lines.bad(line, raw, "not_an_object", 'not a JSON object; a row looks like {"text": "..."}')
    return lines.record(line, raw, value, body=body)


# What matters when looking for the end of a JSON value: inside a string, and outside of one.
_SPACE = re.compile(rb"\s*")
_IN_STRING = re.compile(rb'["\\]')
_OUTSIDE = re.compile(rb'["\[\]{},]')


def _read_json(lines: _Lines) -> Iterator[Record]:
    """Read the objects of one JSON array, or JSON objects one after another, without reading the whole file."""
    for line, raw in _json_values(lines):
        # Line ends in JSON stand between tokens only, so that a space says the same: a row is one line.
        body = raw.replace(b"\r", b" ").replace(b"\n", b" ").strip()
        yield _json_record(lines, line, raw.strip() + b"\n", body)


def _json_values(lines: _Lines) -> Iterator[tuple[int, bytes]]:
    """Yield (line, text) of each element of a top-level array, or of each top-level object."""
    value = bytearray()
    line = start = lines.number = 1
    depth, in_array, quoted, escaped = 0, False, False, False
    for block in lines.blocks():
        at = 0
        while at < len(block):
            if not value:  # white space before a value is not part of it
                space = _SPACE.match(block, at)
                end = space.end() if space else at
                line += block.count(b"\n", at, end)
                at, start = end, line
                if at == len(block):
                    break
            if escaped:
                found, end, escaped = None, at + 1, False
            else:
                found = (_IN_STRING if quoted else _OUTSIDE).search(block, at)
                end = found.end() if found else len(block)
            value += block[at:end]
            line += block.count(b"\n", at, end)
            lines.number, at = line, end
            token = found.group() if found else b""
            if not token:
                continue
            if quoted:
                escaped, quoted = token == b"\\", token != b'"'
            elif token == b'"':
                quoted = True
            elif token == b"[" and depth == 0 and value == b"[":
                in_array, depth, value = True, 1, bytearray()
            elif token in b"[{":
                depth += 1
            elif token == b"," and depth == in_array:
                yield start, bytes(value[:-1])
                value.clear()
            elif token in b"]}":
                depth = max(0, depth - 1)
                if depth == 0:
                    closed_array = in_array and token == b"]"
                    element = bytes(value[:-1] if closed_array else value)
                    in_array = in_array and not closed_array
                    if element.strip():
                        yield start, element
                    value.clear()
    if value.strip():
        yield start, bytes(value)
    elif in_array:
        raise InputUnusable(f"{lines.source.name}:{line}: the JSON array is not closed: the file is cut off")


def _read_text(lines: _Lines) -> Iterator[Record]:
    for raw in lines:
        try:
            text = raw.removesuffix(b"\n").removesuffix(b"\r").decode(lines.encoding)
        except UnicodeDecodeError:
            yield lines.undecodable(lines.number, raw)
        else:
            yield lines.record(lines.number, raw, {"text": text})


class _CsvRows:
    """Rows of cells with the raw bytes of the lines that each row took."""

    def __init__(self, lines: _Lines, delimiter: str) -> None:
        # Cells of any size; strict: what is not CSV is an error in its place, never guessed at.
        csv.field_size_limit(sys.maxsize)
        self._lines = lines
        self._raw: list[bytes] = []
        self._cells = csv.reader(self._decoded(), delimiter=delimiter, strict=True)

    def _decoded(self) -> Iterator[str]:
        for raw in self._lines:
            self._raw.append(raw)
            yield raw.decode(self._lines.encoding, "surrogateescape")

    def __iter__(self) -> Iterator[tuple[int, bytes, list[str] | None, str]]:
        """Yield (line, raw, cells, problem); cells are None where the row is not CSV. Blank lines are no rows."""
        while True:
            self._raw.clear()
            start = self._lines.number + 1
            problem, cells = "", None
            try:
                cells = next(self._cells)
            except StopIteration:
                return
            except csv.Error as error:
                problem = str(error)
            if cells or problem:
                yield start, b"".join(self._raw), cells, problem


def _read_csv(lines: _Lines, kind: str, options: ReadOptions) -> Rows:
    delimiter = _delimiter(options.delimiter, kind)
    rows = _CsvRows(lines, delimiter)
    stream = iter(rows)
    first = next(stream, None)
    if first is None:
        return Rows(iter(()), kind, () if options.header else None)
    line, raw, cells, problem = first
    if cells is None or (options.header and not _clean(cells)):
        what = f"not CSV: {problem}" if cells is None else f"not {lines.encoding} text; name it with --encoding"
        raise InputUnusable(f"{lines.source.name}:{line}: the first row is {what}")
    if options.header:
        columns = _distinct(cells)
        _check_text_column(columns, lines.source.name, options)
        return Rows(_csv_records(lines, stream, columns), kind, columns, raw)
    columns = tuple(str(number) for number in range(1, len(cells) + 1))
    _check_text_column(columns, lines.source.name, options)

    def all_rows() -> Iterator[tuple[int, bytes, list[str] | None, str]]:
        yield line, raw, cells, problem
        yield from stream

    return Rows(_csv_records(lines, all_rows(), columns), kind, columns)


def _csv_records(
    lines: _Lines, rows: Iterator[tuple[int, bytes, list[str] | None, str]], columns: tuple[str, ...]
) -> Iterator[Record]:
    for line, raw, cells, problem in rows:
        if cells is None:
            yield lines.bad(line, raw, "invalid_csv", f"not CSV: {problem}")
        elif not _clean(cells):
            yield lines.undecodable(line, raw)
        elif len(cells) != len(columns):
            message = f"ragged row: {len(cells)} cells where the header has {len(columns)}"
            names = [*columns, *(f"extra_{number}" for number in range(1, len(cells) - len(columns) + 1))]
            yield lines.bad(line, raw, "ragged_row", message, dict(zip(names, cells, strict=False)))
        else:
            yield lines.record(line, raw, dict(zip(columns, cells, strict=True)))


def _clean(cells: list[str]) -> bool:
    """Tell whether all bytes were in the encoding: what was not has become a lone surrogate."""
    return all(cell.isascii() or cell.isprintable() or not _SURROGATE.search(cell) for cell in cells)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _distinct(names: list[str]) -> tuple[str, ...]:
    """Give a header's second ``x`` the name ``x_2``, so that no cell is lost."""
    distinct: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in distinct:
            number += 1
            candidate = f"{name}_{number}"
        distinct.append(candidate)
    return tuple(distinct)


def _check_text_column(columns: tuple[str, ...], name: str, options: ReadOptions) -> None:
    """Raise UsageProblem now where no row could ever have a text."""
    shown = ", ".join(repr(column) for column in columns[:20])
    if not options.text_fields and "text" not in columns and len(string_fields(dict.fromkeys(columns, ""))) != 1:
        raise UsageProblem(f"{name}: which column holds the text? Name it with --text-field; columns: {shown}")
    if options.text_fields and not set(options.text_fields) & set(columns):
        wanted = ", ".join(repr(field) for field in options.text_fields)
        raise UsageProblem(f"{name}: no column {wanted}; columns: {shown}")


def _delimiter(given: str | None, kind: str) -> str:
    delimiter = (given or {"csv": ",", "tsv": "\t"}[kind]).replace("\\t", "\t")
    if len(delimiter) != 1 or delimiter in '\r\n"':
        raise UsageProblem(f"--delimiter {given!r} must be one character, for example ';' or '\\t'")
    return delimiter


def _text_encoding(name: str) -> str:
    """Return the codec's own name. Raises UsageProblem where it is none for text."""
    try:
        info = codecs.lookup(name)
        "\n".encode(name)
    except (LookupError, UnicodeError) as error:
        raise UsageProblem(
            f"--encoding {name}: no such encoding; for example utf-8, latin-1, cp1252, utf-16"
        ) from error
    return "utf-8" if info.name == "utf-8-sig" else info.name
