"""Writers: from records and predictions to bytes, in each output format. A row keeps all its own fields."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from gliclass_cli.cells import cut, fit
from gliclass_cli.errors import InputUnusable
from gliclass_cli.labels import CELL_SEPARATOR
from gliclass_cli.predictions import Prediction
from gliclass_cli.records import FieldProblem, Record, RowError, text_of

_LINE_ENDS = str.maketrans("\r\n\t", "   ")


class Writer(Protocol):
    """Turns one row after another into bytes, then says what ends the output."""

    def check(self, record: Record) -> RowError | None:
        """Return why a row cannot be written as it should be, or None."""

    def row(self, record: Record, prediction: Prediction | None) -> bytes:
        """Return the bytes of a row; a row with an error has no prediction."""

    def end(self) -> bytes:
        """Return what makes the output whole, for example the header of a table without rows."""

    def state(self) -> dict[str, Any]:
        """Return what another writer must know to write the next row as this one would, in JSON."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Write on as the writer that gave ``state`` would; most have no state."""
        return


@dataclass(slots=True)
class JsonlWriter(Writer):
    """One JSON object a line: the row as it came, and one more key."""

    key: str = "prediction"
    with_source: bool = False

    def check(self, record: Record) -> RowError | None:
        """Return an error where the row has a field ``key`` already: it is never overwritten."""
        if record.fields and self.key in record.fields:
            return RowError("key_taken", key_taken(self.key), record.line)
        return None

    def row(self, record: Record, prediction: Prediction | None) -> bytes:
        """Return the row with its prediction, or its error, under ``key``; as it came where it has ``key`` already."""
        if record.fields and self.key in record.fields:
            return (orjson.dumps(record.fields) if record.body is None else record.body) + b"\n"
        value = orjson.dumps(self._value(record, prediction))
        # What cannot be said in JSON (a lone surrogate) has become an error in the readers of other formats.
        body = orjson.dumps(record.fields or {}) if record.body is None else record.body
        comma = b"," if record.fields else b""
        return b"%s%s%s:%s}\n" % (body[:-1], comma, orjson.dumps(_valid(self.key)), value)

    def _value(self, record: Record, prediction: Prediction | None) -> dict[str, Any]:
        if prediction is not None:
            return prediction.to_dict()
        error: dict[str, Any] = {}
        if record.error is not None:
            error = {"code": record.error.code, "message": record.error.message, "line": record.error.line}
            if self.with_source:
                error["file"] = _valid(record.source)
        return {"label": None, "score": None, "labels": [], "scores": {}, "error": error}

    def end(self) -> bytes:
        """Return nothing: JSON Lines need no end."""
        return b""


@dataclass(slots=True)
class CsvWriter(Writer):
    """CSV or TSV: the row's own columns, then the prediction, its score, and all its labels joined by ``|``.

    Where the columns are not known before, they are those of the first row that has fields.
    """

    key: str = "prediction"
    delimiter: str = ","
    digits: int = 4
    header: bool = True
    columns: Sequence[str] | None = None
    _started: bool = False
    _held: int = 0  # rows without fields before the header
    _buffer: io.StringIO = field(default_factory=lambda: io.StringIO(newline=""))

    def check(self, record: Record) -> RowError | None:
        """Return an error where a field has no column: it is not in the header, or in the first row."""
        if self.columns is None or (record.fields or {}).keys() <= set(self.columns):
            return None
        extra = next(name for name in record.fields or () if name not in self.columns)
        message = f"field {extra!r} is not in the first row, so that it has no column; write --output-format jsonl"
        return RowError("extra_field", message, record.line)

    def row(self, record: Record, prediction: Prediction | None) -> bytes:
        """Return the row, after the header where it is the first. Raises InputUnusable: ``key`` is a column."""
        if self.columns is None and not record.fields:
            self._held += 1
            return b""
        start = self._start(record)
        fields = _spelled(record)
        columns = self.columns or ()
        cells = [_cell(fields.get(name), record) for name in columns]
        if prediction is None or prediction.label is None or prediction.score is None:
            cells += ["", "", ""]
        else:
            score = f"{prediction.score:.{self.digits}f}"
            cells += [prediction.label, score, CELL_SEPARATOR.join(prediction.labels)]
        return start + self._line(cells)

    def end(self) -> bytes:
        """Return the header, and the rows without fields, where there was no other row."""
        return self._start(None)

    def state(self) -> dict[str, Any]:
        """Return the columns, whether they are written, and how many rows wait for them."""
        columns = None if self.columns is None else list(self.columns)
        return {"columns": columns, "started": self._started, "held": self._held}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what ``state`` returned."""
        self.columns, self._started, self._held = state["columns"], state["started"], state["held"]

    def _start(self, first: Record | None) -> bytes:
        """Return, once, the header and the rows that waited for it."""
        if self._started:
            return b""
        self._started = True
        if self.columns is None:
            self.columns = tuple(first.fields) if first and first.fields else ()
        added = (self.key, f"{self.key}_score", f"{self.key}_labels")
        for name in added:
            if name in self.columns:
                where = f"{first.where}: " if first else ""
                raise InputUnusable(where + key_taken(name))
        header = self._line([*self.columns, *added]) if self.header else b""
        return header + self._line([""] * (len(self.columns) + len(added))) * self._held

    def _line(self, cells: Sequence[str]) -> bytes:
        self._buffer.seek(0)
        self._buffer.truncate()
        # With this line end a carriage return inside of a cell is quoted too.
        csv.writer(self._buffer, delimiter=self.delimiter, lineterminator="\r\n").writerow(cells)
        return self._buffer.getvalue().removesuffix("\r\n").encode("utf-8", "backslashreplace") + b"\n"


@dataclass(frozen=True, slots=True)
class LabelWriter(Writer):
    """One label a line, the best accepted one, aligned with the input; an empty line where there is none."""

    def check(self, record: Record) -> RowError | None:
        """Return None: any row will do."""

    def row(self, record: Record, prediction: Prediction | None) -> bytes:
        """Return the label of the row."""
        label = (prediction.label if prediction else None) or ""
        return label.translate(_LINE_ENDS).encode("utf-8", "backslashreplace") + b"\n"

    def end(self) -> bytes:
        """Return nothing."""
        return b""


@dataclass(frozen=True, slots=True)
class TableWriter(Writer):
    """Columns for people: score, label, and the beginning of the text, cut to the width of the terminal."""

    label_width: int
    width: int = 80
    text_fields: tuple[str, ...] = ()

    def check(self, record: Record) -> RowError | None:
        """Return None: any row will do."""

    def row(self, record: Record, prediction: Prediction | None) -> bytes:
        """Return one line."""
        if prediction is None:
            message = record.error.message if record.error else ""
            return self._line("error", "-", message)
        score = "-" if prediction.score is None else f"{prediction.score:.3f}"
        return self._line(score, prediction.label or "-", self._text(record.fields or {}))

    def end(self) -> bytes:
        """Return nothing."""
        return b""

    def _text(self, fields: Mapping[str, Any]) -> str:
        try:
            return text_of(fields, self.text_fields)
        except FieldProblem:
            return ""

    def _line(self, score: str, label: str, text: str) -> bytes:
        label = printable(label)
        line = f"{score:>5}  {fit(label, self.label_width)}  {printable(text)}"
        return cut(line, self.width).rstrip().encode("utf-8", "backslashreplace") + b"\n"


@dataclass(slots=True)
class SelectWriter(Writer):
    """Grep by meaning: only the original lines of rows that got one of ``wanted``, as they came."""

    wanted: frozenset[str]
    header_raw: bytes = b""
    found: int = 0

    def check(self, record: Record) -> RowError | None:
        """Return None: any row will do."""

    def row(self, record: Record, prediction: Prediction | None) -> bytes:
        """Return the original bytes of a matching row, the header of its CSV before the first."""
        if prediction is None or self.wanted.isdisjoint(prediction.labels):
            return b""
        self.found += 1
        header = self.header_raw if self.found == 1 else b""
        return header + record.raw + (b"" if record.raw.endswith(b"\n") else b"\n")

    def end(self) -> bytes:
        """Return nothing."""
        return b""

    def state(self) -> dict[str, Any]:
        """Return how many rows matched: the header is written once."""
        return {"found": self.found}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what ``state`` returned."""
        self.found = state["found"]


@dataclass(frozen=True, slots=True)
class ReviewWriter(Writer):
    """Only the rows whose answer is uncertain, as another writer writes them."""

    writer: Writer

    def check(self, record: Record) -> RowError | None:
        """Return what the other writer says."""
        return self.writer.check(record)

    def row(self, record: Record, prediction: Prediction | None) -> bytes:
        """Return the bytes of an uncertain row."""
        return self.writer.row(record, prediction) if prediction is not None and prediction.uncertain else b""

    def end(self) -> bytes:
        """Return what makes the output whole."""
        return self.writer.end()

    def state(self) -> dict[str, Any]:
        """Return that of the other writer."""
        return self.writer.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Write on as the other writer would."""
        self.writer.restore(state)


def printable(text: str) -> str:
    """Return text fit for a terminal's line: what is not printable, escape sequences too, becomes a space."""
    return "".join(character if character.isprintable() else " " for character in text[:4096])


def _spelled(record: Record) -> Mapping[str, Any]:
    """Return the fields, fractions and integers of any size as they came: 12.50 stays 12.50."""
    fields = record.fields or {}
    if record.body is None or not any(isinstance(value, float) for value in fields.values()):
        return fields
    try:
        spelled = json.loads(record.body, parse_float=str, parse_int=str)
    except RecursionError:
        return fields
    return {name: spelled[name] if isinstance(value, float) else value for name, value in fields.items()}


def _cell(value: Any, record: Record) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError as error:
        raise InputUnusable(f"{record.where}: nested too deeply for a cell; write --output-format jsonl") from error


def _valid(text: str) -> str:
    """Return text that can be written: bytes of a file name that are not UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def key_taken(key: str) -> str:
    """Say that a row has the key that is to be added."""
    return f"the row already has a field {key!r}; name another with --as"
