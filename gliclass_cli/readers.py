"""Readers: from a file's bytes to records, lazily, one row at a time, never losing a row's place.

A row that cannot be read becomes a record with an error; only an input that cannot be read on raises.
"""

import codecs
import contextlib
import csv
import io
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, NoReturn

import orjson

from gliclass_cli.errors import InputUnusable, UsageProblem, check_extra
from gliclass_cli.files import COMPRESSED_SUFFIXES, PARQUET_MAGIC, Source
from gliclass_cli.json_scanner import JsonScanner
from gliclass_cli.records import MAX_ROW_BYTES, Record, RowError, string_fields

FORMATS = ("jsonl", "json", "csv", "tsv", "text", "parquet")
_BY_SUFFIX = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".log": "text",
    ".md": "text",
}
_BLOCK = 1 << 16
_BOM_UTF8 = codecs.BOM_UTF8
_WIDE_BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",  # begins like UTF-16: first
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# A line of these cannot be read without those before it.
_STATEFUL = ("utf-7", "hz", "iso2022")
# Python knows these as text encodings; no file is written in them.
_NO_FILES = ("idna", "punycode", "raw-unicode-escape", "unicode-escape")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read an input; ``format`` None means by its name, else by its first byte.

    A row of more than ``max_row_bytes``, decompressed, is an error in its place and never in memory as a whole.
    """

    format: str | None = None
    encoding: str = "utf-8"
    delimiter: str | None = None
    header: bool = True
    text_fields: tuple[str, ...] = ()
    max_row_bytes: int = MAX_ROW_BYTES


@dataclass(slots=True)
class Rows:
    """The rows of one input; ``columns`` are known before the first row only where the input has a header.

    ``schema``: of Parquet, the types of the columns.
    """

    records: Iterator[Record]
    format: str
    columns: tuple[str, ...] | None = None
    header_raw: bytes = b""
    schema: Any = None


def read_rows(source: Source, options: ReadOptions) -> Rows:
    """Start reading ``source``.

    Raises:
        InputUnusable: it is binary, its header is no use, or (while iterating) it cannot be read on.
        UsageProblem: the encoding or delimiter does not exist, or the text's column must be named.
    """
    lines = _Lines(source, options.encoding, options.max_row_bytes)
    head = lines.head()
    kind = options.format or _format_of(head, source.name)
    if kind == "parquet":
        return _read_parquet(source, options)
    if kind in ("csv", "tsv"):
        return _read_csv(lines, kind, options)
    readers: dict[str, Callable[[_Lines], Iterator[Record]]] = {
        "jsonl": _read_jsonl,
        "json": _read_json,
        "text": _read_text,
    }
    return Rows(readers[kind](lines), kind)


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Put a lone surrogate, which no text holds, in the place of bytes that cannot be decoded."""
    if isinstance(error, UnicodeDecodeError):
        return "\udcff", error.end
    raise error


_MARK = "gliclass.mark"
codecs.register_error(_MARK, _mark)


class _Recoded(io.RawIOBase):
    """A stream of another encoding as UTF-8; what cannot be decoded there cannot be decoded here either."""

    def __init__(self, stream: "io.BufferedReader[Any]", encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)(_MARK)
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b"more"
        while data and not self._ready:
            data = self._stream.read1(_BLOCK)
            self._ready = self._decoder.decode(data, not data).encode("utf-8", "surrogatepass")
        piece, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(piece)] = piece
        return len(piece)


class _Lines:
    """The input line by line, as bytes in an encoding in which a line end is one byte, and where we are in it.

    ``cut``: the line read last has more than ``most`` bytes, and only its beginning was given.
    """

    def __init__(self, source: Source, encoding: str, most: int = MAX_ROW_BYTES) -> None:
        self.source = source
        self.most = most
        self.cut = False
        self.number = 0  # of the line read last, from 1
        self.position = 0
        self.given = self.encoding = _text_encoding(encoding)
        self._stream = source.stream
        self._recoded = False
        if "\n".encode(self.encoding) != b"\n" or self.encoding.startswith(_STATEFUL):
            self._recode()

    def _recode(self) -> None:
        """Read the input as UTF-8 from here on."""
        if self.encoding != "utf-8":
            self._stream = io.BufferedReader(_Recoded(self._stream, self.encoding), _BLOCK)
            self.encoding, self._recoded = "utf-8", True

    def head(self) -> bytes:
        """Return some of the first bytes without consuming them. Raises InputUnusable where they show UTF-16."""
        with self._reading():
            head = self._stream.peek(1)
        wide = next((name for bom, name in _WIDE_BOMS.items() if head.startswith(bom)), None)
        if wide and self.encoding == "utf-8":
            raise InputUnusable(f"{self.source.name}: is {wide.upper()} text; add --encoding {wide}")
        return head.removeprefix(_BOM_UTF8)

    def __iter__(self) -> Iterator[bytes]:
        """Yield line after line with its line end; a byte order mark is dropped."""
        for line in self._pieces(lambda: self._stream.readline(self.most + 1)):
            self.number += 1
            self.cut = len(line) > self.most
            if self.number == 1 and self.encoding == "utf-8":
                line = line.removeprefix(_BOM_UTF8)
            if line:
                yield line

    def rest(self, line: bytes) -> Iterator[bytes]:
        """Yield the rest of a ``line`` that was cut, block by block."""
        pieces = self._pieces(lambda: self._stream.readline(_BLOCK))
        while not line.endswith(b"\n") and (line := next(pieces, b"")):
            yield line

    def blocks(self) -> Iterator[bytes]:
        """Yield the input in UTF-8 block by block, as it comes in, without its byte order mark."""
        self._recode()
        pieces = self._pieces(lambda: self._stream.read1(_BLOCK))
        start = b""
        while start != _BOM_UTF8 and _BOM_UTF8.startswith(start) and (more := next(pieces, b"")):
            start += more
        if start := start.removeprefix(_BOM_UTF8):
            yield start
        yield from pieces

    def _pieces(self, read: Callable[[], bytes]) -> Iterator[bytes]:
        exact = not (self.source.compressed or self._recoded)
        with self._reading():
            while piece := read():
                self.position = self.position + len(piece) if exact else self.source.consumed()
                yield piece

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        with self.source.reading():
            try:
                yield
            except UnicodeError as error:  # no byte order mark, where the encoding needs one
                raise InputUnusable(
                    f"{self.source.name}: {error}; name its byte order, for example --encoding utf-16-le"
                ) from error

    def record(self, line: int, raw: bytes, fields: dict[str, Any] | None, **extra: Any) -> Record:
        """Build the record of a row that starts on ``line``."""
        return Record(self.source.name, line, raw, fields, position=self.source.start + self.position, **extra)

    def bad(self, line: int, raw: bytes, code: str, message: str, fields: dict[str, Any] | None = None) -> Record:
        """Build the record of a row that cannot be used."""
        return self.record(line, raw, fields, error=RowError(code, message, line))

    def too_long(self, line: int) -> Record:
        """Build the record of a row that was read past; nothing of it is kept."""
        message = f"the row has more than {self.most:,} bytes: it was read past; --max-row-bytes takes longer ones"
        return self.bad(line, b"", "row_too_long", message)

    def undecodable(self, line: int, raw: bytes) -> Record:
        """Build the record of a row whose bytes are not in the encoding."""
        hint = "name its encoding with --encoding, for example --encoding cp1252"
        return self.bad(line, raw, "undecodable", f"not {self.given} text; {hint}")


def _format_of(head: bytes, name: str) -> str:
    """Tell the format by the file's name, else by its first bytes (``{`` means jsonl); refuse what is binary."""
    path = PurePath(name.lower())
    if path.suffix in COMPRESSED_SUFFIXES:
        path = path.with_suffix("")
    if path.suffix == ".parquet" or head.startswith(PARQUET_MAGIC):
        return "parquet"
    if b"\0" in head:
        raise InputUnusable(
            f"{name}: looks like a binary file (it has NUL bytes); give text, or say --encoding utf-16 or --format text"
        )
    by_content = "jsonl" if head.lstrip().startswith(b"{") else "text"
    return _BY_SUFFIX.get(path.suffix, by_content)


def _short(lines: _Lines) -> Iterator[bytes | None]:
    """Yield line after line; None for one that is too long, which is read past."""
    for raw in lines:
        if lines.cut:
            for _ in lines.rest(raw):
                pass
        yield None if lines.cut else raw


def _read_jsonl(lines: _Lines) -> Iterator[Record]:
    for raw in _short(lines):
        if raw is None:
            yield lines.too_long(lines.number)
        elif body := raw.strip():
            yield _json_record(lines, lines.number, raw, body)


def _json_record(lines: _Lines, line: int, raw: bytes, text: bytes) -> Record:
    """Build the record of one JSON object; ``text`` is ``raw`` without surrounding space."""
    try:
        body = text if lines.encoding == "utf-8" else text.decode(lines.encoding).encode()
        value = _load_json(body)
    except UnicodeDecodeError:
        return lines.undecodable(line, raw)
    except orjson.JSONDecodeError as error:
        return lines.bad(line, raw, "invalid_json", f"not valid JSON: {error.msg} (at character {error.pos + 1})")
    if not isinstance(value, dict):
        return lines.bad(line, raw, "not_an_object", 'not a JSON object; a row looks like {"text": "..."}')
    # Line ends in JSON stand between tokens only, so that a space says the same: a row is one line.
    return lines.record(line, raw, value, body=body.replace(b"\r", b" ").replace(b"\n", b" "))


def _load_json(body: bytes) -> Any:
    """Read JSON, also the little that orjson refuses: lone surrogates, numbers beyond a double.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
        orjson.JSONDecodeError: it is not JSON, or nested too deeply.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        text = body.decode()
        if "depth" in error.msg or "ecursion" in error.msg:
            raise  # how deep the other reader goes depends on the version of Python
        try:
            return json.loads(text, parse_int=_whole, parse_constant=_not_json)
        except (ValueError, RecursionError):
            raise error from None


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) < 4000 else float(digits)  # Python refuses to read more


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _read_json(lines: _Lines) -> Iterator[Record]:
    """Read the objects of one JSON array, or JSON objects one after another, without reading the whole file."""
    scanner = JsonScanner(lines.most)
    elements = itertools.chain(itertools.chain.from_iterable(map(scanner.feed, lines.blocks())), scanner.rest())
    for line, raw in elements:
        yield lines.too_long(line) if raw is None else _json_record(lines, line, raw + b"\n", raw)
    if scanner.in_array:
        raise InputUnusable(f"{lines.source.name}:{scanner.line}: the JSON array is not closed: the file is cut off")


def _read_text(lines: _Lines) -> Iterator[Record]:
    for raw in _short(lines):
        if raw is None:
            yield lines.too_long(lines.number)
            continue
        try:
            text = raw.removesuffix(b"\n").removesuffix(b"\r").decode(lines.encoding)
        except UnicodeDecodeError:
            yield lines.undecodable(lines.number, raw)
        else:
            yield lines.record(lines.number, raw, {"text": text})


class _RowTooLong(Exception):
    """A row has more bytes than may be kept."""


class _CsvRows:
    """Rows of cells with the raw bytes of the lines that each row took."""

    def __init__(self, lines: _Lines, delimiter: str) -> None:
        # Cells of any size; strict: what is not CSV is an error in its place, never guessed at.
        csv.field_size_limit(sys.maxsize)
        self._lines = lines
        self._delimiter = delimiter
        self._raw: list[bytes] = []
        self._cells = self._reader()

    def _reader(self) -> Iterator[list[str]]:
        return csv.reader(self._decoded(), delimiter=self._delimiter, strict=True)

    def _decoded(self) -> Iterator[str]:
        """Yield the lines. Raises _RowTooLong, after the row that is too long was read past."""
        size = 0
        for raw in self._lines:
            size = size + len(raw) if self._raw else len(raw)
            self._raw.append(raw)
            if size > self._lines.most:
                self._read_past(raw)
                raise _RowTooLong
            yield raw.decode(self._lines.encoding, _MARK)

    def _read_past(self, line: bytes) -> None:
        """Read to the end of a row: to the first line end with as many quotes opened as closed before it."""
        quotes = sum(piece.count(b'"') for piece in self._raw)
        self._raw.clear()
        lines = iter(self._lines)
        while line:
            if self._lines.cut:
                quotes += sum(piece.count(b'"') for piece in self._lines.rest(line))
            if quotes % 2 == 0:
                return
            line = next(lines, b"")
            quotes += line.count(b'"')

    def __iter__(self) -> Iterator[tuple[int, bytes, list[str] | None, str]]:
        """Yield (line, raw, cells, problem); cells are None where the row is not CSV. Blank lines are no rows.

        Of a row that is too long there is nothing but its line.
        """
        while True:
            self._raw.clear()
            start = self._lines.number + 1
            problem, cells = "", None
            try:
                cells = next(self._cells)
            except StopIteration:
                return
            except _RowTooLong:
                self._cells = self._reader()
                yield start, b"", None, ""
            except csv.Error as error:
                problem = str(error)
                if problem == "unexpected end of data":
                    taken = self._lines.number - start + 1
                    problem = f"a quote is opened and never closed ({taken} lines, to the end of the file)"
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
    if not raw:
        raise InputUnusable(f"{lines.source.name}:{line}: the first row has more than {lines.most:,} bytes")
    if cells is None or (options.header and not _clean(cells)):
        what = f"not CSV: {problem}" if cells is None else f"not {lines.given} text; name its encoding with --encoding"
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
        if cells is None and not raw:
            yield lines.too_long(line)
        elif cells is None:
            yield lines.bad(line, raw, "invalid_csv", f"not CSV: {problem}")
        elif not _clean(cells):
            yield lines.undecodable(line, raw)
        elif len(cells) != len(columns):
            message = f"ragged row: {len(cells)} cells where the header has {len(columns)}"
            names = _distinct([*columns, *(f"extra_{number}" for number in range(1, len(cells) - len(columns) + 1))])
            yield lines.bad(line, raw, "ragged_row", message, dict(zip(names, cells, strict=False)))
        else:
            yield lines.record(line, raw, dict(zip(columns, cells, strict=True)))


def _clean(cells: list[str]) -> bool:
    """Tell whether all bytes were in the encoding: what was not has become a lone surrogate."""
    return all(cell.isascii() or cell.isprintable() or not _SURROGATE.search(cell) for cell in cells)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Give a header's second ``x`` the name ``x_2``, so that no cell is lost."""
    distinct: dict[str, None] = {}
    last: dict[str, int] = {}
    for name in names:
        candidate, number = name, last.get(name, 1)
        while candidate in distinct:
            number += 1
            candidate = f"{name}_{number}"
        last[name] = number
        distinct[candidate] = None
    return tuple(distinct)


def _check_text_column(columns: tuple[str, ...], name: str, options: ReadOptions) -> None:
    """Raise UsageProblem now where no row could ever have a text."""
    if not options.text_fields and "text" not in columns and len(string_fields(dict.fromkeys(columns, ""))) != 1:
        raise UsageProblem(
            f"{name}: which column holds the text? Name it with --text-field; columns: {_shown(columns)}"
        )
    if options.text_fields and not set(options.text_fields) & set(columns):
        raise _no_column(columns, name, options)


def _no_column(columns: tuple[str, ...], name: str, options: ReadOptions) -> UsageProblem:
    wanted = ", ".join(repr(field) for field in options.text_fields)
    return UsageProblem(f"{name}: no column {wanted}; columns: {_shown(columns)}")


def _shown(columns: tuple[str, ...]) -> str:
    return ", ".join(repr(column) for column in columns[:20])


def _read_parquet(source: Source, options: ReadOptions) -> Rows:
    check_extra("pyarrow", "parquet", f"{source.name}: Parquet")
    from gliclass_cli.parquet import open_parquet

    schema, records = open_parquet(source)
    columns = tuple(schema.names)
    if options.text_fields and not {field.partition(".")[0] for field in options.text_fields} & set(columns):
        raise _no_column(columns, source.name, options)
    return Rows(records, "parquet", columns, schema=schema)


def _delimiter(given: str | None, kind: str) -> str:
    delimiter = {"csv": ",", "tsv": "\t"}[kind] if given is None else given.replace("\\t", "\t")
    if len(delimiter) != 1 or delimiter in '\r\n"' or _SURROGATE.match(delimiter):
        raise UsageProblem(f"--delimiter {given!r} must be one character, for example ';' or '\\t'")
    return delimiter


def _text_encoding(name: str) -> str:
    """Return the codec's own name. Raises UsageProblem where it is none for text."""
    try:
        info = codecs.lookup(name)
        "\n".encode(name)
        if info.name in _NO_FILES:
            raise LookupError(name)
    except (LookupError, ValueError) as error:
        raise UsageProblem(
            f"--encoding {name}: no such encoding; for example utf-8, latin-1, cp1252, utf-16"
        ) from error
    return "utf-8" if info.name == "utf-8-sig" else info.name
