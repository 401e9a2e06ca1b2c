"""Parquet in and out: columns keep their types, row groups come and go one by one. Needs the extra ``parquet``."""

import base64
import io
import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import date, time, timedelta
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from gliclass_cli.errors import InputUnusable
from gliclass_cli.files import Source
from gliclass_cli.predictions import Prediction
from gliclass_cli.records import Record, RowError, Spelled
from gliclass_cli.writers import Writer, key_taken

# Rows that are read in one go, and their bytes.
_BATCH_ROWS = 1024
_BATCH_BYTES = 1 << 24
# A column is read in pieces of this size, not whole.
_BUFFER = 1 << 20
# The rows by which the types of columns are told where the input has none, and those of a row group.
_WINDOW_ROWS = 1024
_GROUP_ROWS = 1 << 16
_GROUP_BYTES = 1 << 26
# What Arrow raises for values that Python cannot hold: a date after the year 9999, bytes that are not UTF-8.
_NO_VALUE = (ValueError, OverflowError, KeyError, pa.ArrowException)


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row as it is stored: a writer of Parquet takes it from its batch, untouched."""

    batch: Any
    index: int


# --- reading ---------------------------------------------------------------------------------------------------------


def open_parquet(source: Source) -> tuple[Any, Iterator[Record]]:
    """Return the schema and the rows of ``source``; what does not lie in a plain file is copied to a temporary one.

    The fields of a row are what JSON can say: binary is base64; decimals, dates and times are text, durations seconds,
    NaN and infinity null, maps lists of [key, value]. ``Record.line`` counts rows.

    Raises:
        InputUnusable: it is not Parquet, or (while iterating) it cannot be read on.
    """
    with ExitStack() as opened:
        place = source.path or opened.enter_context(_spooled(source))
        with _reading(source.name):
            file = opened.enter_context(pq.ParquetFile(place, buffer_size=_BUFFER))
            schema = file.schema_arrow
        names: list[str] = schema.names
        if double := next((name for name in names if names.count(name) > 1), None):
            raise InputUnusable(f"{source.name}: has two columns {double!r}; rename one of them")
        return schema, _records(source, file, opened.pop_all())


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputUnusable(f"{name}: is not Parquet, damaged or cut off: {reason}") from error


@contextmanager
def _spooled(source: Source) -> Iterator[Any]:
    """Copy what comes through a pipe, or compressed, to a file: Parquet is read from its end."""
    with tempfile.TemporaryFile() as spool:
        with source.reading():
            shutil.copyfileobj(source.stream, spool)
        spool.seek(0)
        yield spool


def _records(source: Source, file: Any, opened: ExitStack) -> Iterator[Record]:
    total = file.metadata.num_rows
    number = 0
    with opened:
        for batch in _batches(source, file):
            for index, fields in enumerate(_rows(batch)):
                number += 1
                position = source.start + (source.size or 0) * number // total
                stored = StoredRow(batch, index)
                if isinstance(fields, Exception):
                    error = RowError("unreadable_value", f"a value cannot be read: {fields}", number)
                    yield Record(source.name, number, b"{}\n", None, None, position, error, stored)
                else:
                    body = orjson.dumps(fields)
                    yield Record(source.name, number, body + b"\n", fields, body, position, None, stored)


def _batches(source: Source, file: Any) -> Iterator[Any]:
    """Yield the rows of one row group after another, so that a damaged one harms none before it."""
    for group in range(file.num_row_groups):
        found = file.metadata.row_group(group)
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES * found.num_rows // max(1, found.total_byte_size)))
        with _reading(source.name):
            batches = file.iter_batches(rows, row_groups=[group], use_threads=False)
            batch = next(batches, None)
        while batch is not None:
            yield batch
            with _reading(source.name):
                batch = next(batches, None)


def _rows(batch: Any) -> list[dict[str, Any] | Exception]:
    """Return the rows of a batch as JSON can say them, or what hinders that."""
    if "[ns" in str(batch.schema):  # Python's times count microseconds
        coarse = pa.schema([pa.field(field.name, _coarse(field.type)) for field in batch.schema])
        batch = batch.cast(coarse, safe=False)
    try:
        return [_plain(row) for row in batch.to_pylist()]
    except _NO_VALUE:
        return [_row(batch.slice(index, 1)) for index in range(batch.num_rows)]


def _row(batch: Any) -> dict[str, Any] | Exception:
    try:
        [row] = batch.to_pylist()
        fields: dict[str, Any] = _plain(row)
    except _NO_VALUE as error:
        return error
    return fields


def _coarse(kind: Any) -> Any:
    """Return a type with microseconds in the place of nanoseconds."""
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return pa.duration("us")
    if pa.types.is_time64(kind):
        return pa.time64("us")
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _coarse(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_coarse(kind.value_type))
    if pa.types.is_map(kind):
        return pa.map_(kind.key_type, _coarse(kind.item_type))
    return kind


def _plain(value: Any) -> Any:
    """Return a value as JSON can say it."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return Spelled(base64.b64encode(value).decode())
    return Spelled(value.isoformat() if isinstance(value, date | time) else value)


# --- writing ---------------------------------------------------------------------------------------------------------


class _Sink(io.RawIOBase):
    """What Arrow writes to; the bytes are taken from here, so that they go where all results go."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._taken = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._data += data
        return len(data)

    def tell(self) -> int:
        return self._taken + len(self._data)

    def take(self) -> bytes:
        data = bytes(self._data)
        self._taken += len(data)
        self._data.clear()
        return data


class ParquetWriter(Writer):
    """Parquet: the row's own columns, then the prediction, its score, all its labels, and why there is none.

    Rows of Parquet keep their types. The types of other rows are told by the first 1,024: numbers, true and false,
    text, lists, objects; where these rows disagree the column is text, each value as JSON spells it.
    """

    def __init__(self, key: str = "prediction", *, schema: Any = None, columns: Sequence[str] | None = None) -> None:
        """Write rows of ``schema``, or those of a format whose ``columns`` are all text, or any."""
        self._added = (key, f"{key}_score", f"{key}_labels", f"{key}_error")
        self._schema = schema
        self._stored = schema is not None
        if schema is None and columns is not None:
            self._schema = pa.schema([(name, pa.string()) for name in columns])
        self._waiting: list[tuple[Record, Prediction | None]] = []
        self._tables: list[Any] = []
        self._seen: Any = None  # the batch that was looked at last
        self._sink = _Sink()
        self._file: Any = None

    def check(self, record: Record) -> RowError | None:
        """Return an error where a field has no column, or a column of another type."""
        fields = record.fields or {}
        if taken := next((name for name in self._added if name in fields), None):
            return RowError("key_taken", key_taken(taken), record.line)
        if self._stored or self._schema is None:
            return None
        for name, value in fields.items():
            place = self._schema.get_field_index(name)
            if place < 0:
                problem, code = "is not in the first rows, so that it has no column", "extra_field"
            elif not _fits(value, kind := self._schema.field(place).type):
                problem, code = f"does not fit its column, which is {kind} by the first rows", "wrong_type"
            else:
                continue
            return RowError(code, f"field {name!r} {problem}; write --output-format jsonl", record.line)
        return None

    def row(self, record: Record, prediction: Prediction | None) -> bytes:
        """Take a row, and return a row group when it is complete. Raises InputUnusable: the input has other columns."""
        if self._stored:
            self._check_schema(record)
        self._waiting.append((record, prediction))
        if len(self._waiting) < _WINDOW_ROWS:
            return b""
        self._gather()
        rows, size = (sum(getattr(table, what) for table in self._tables) for what in ("num_rows", "nbytes"))
        if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
            self._write_group()
        return self._sink.take()

    def end(self) -> bytes:
        """Return the last row group and what makes a Parquet file whole."""
        self._gather()
        self._write_group()
        self._file.close()
        return self._sink.take()

    def _check_schema(self, record: Record) -> None:
        batch = record.stored.batch if record.stored else None
        if batch is self._seen is not None:
            return
        if batch is None or not batch.schema.equals(self._schema):
            raise InputUnusable(
                f"{record.where}: has other columns than the first input, which one Parquet file cannot hold; classify "
                "it by itself, or write --output-format jsonl"
            )
        self._seen = batch

    def _gather(self) -> None:
        """Make a table of the rows that wait."""
        if self._schema is None:
            self._schema = _schema_of([record.fields or {} for record, _ in self._waiting], self._added)
        for name in self._added:
            if self._schema.get_field_index(name) >= 0:  # of a table without rows
                raise InputUnusable(key_taken(name))
        if not self._waiting:
            return
        records = [record for record, _ in self._waiting]
        own = self._slices(records) if self._stored else self._columns(records)
        added = [self._answer(record, prediction) for record, prediction in self._waiting]
        self._tables.append(_joined(own, pa.Table.from_pylist(added, _added_schema(self._added))))
        self._waiting.clear()

    def _slices(self, records: Sequence[Record]) -> Any:
        """Return the rows as they are stored: slices of their batches."""
        rows = [(place, record.stored) for place, record in enumerate(records) if record.stored]
        runs = itertools.groupby(rows, key=lambda row: (id(row[1].batch), row[1].index - row[0]))
        slices = []
        for _, run in runs:
            stored = [row for _, row in run]
            slices.append(stored[0].batch.slice(stored[0].index, len(stored)))
        return pa.Table.from_batches(slices, self._schema.remove_metadata()).replace_schema_metadata(
            self._schema.metadata
        )

    def _columns(self, records: Sequence[Record]) -> Any:
        rows = [record.fields or {} for record in records]
        arrays = [pa.array([_shaped(row.get(name), kind) for row in rows], kind) for name, kind in self._fields()]
        return pa.Table.from_arrays(arrays, schema=self._schema)

    def _fields(self) -> list[tuple[str, Any]]:
        return [(field.name, field.type) for field in self._schema]

    def _answer(self, record: Record, prediction: Prediction | None) -> dict[str, Any]:
        error = record.error or self.check(record)
        values: tuple[Any, ...] = (None, None, None)
        if prediction is not None:
            values = (prediction.label, prediction.score, list(prediction.labels))
        return dict(zip(self._added, (*values, error and f"{error.code}: {error.message}"), strict=True))

    def _write_group(self) -> None:
        if self._file is None:
            empty = _joined(self._schema.empty_table(), _added_schema(self._added).empty_table())
            self._file = pq.ParquetWriter(self._sink, empty.schema)
        if self._tables:
            self._file.write_table(pa.concat_tables(self._tables), row_group_size=_GROUP_ROWS * 2)
        self._tables.clear()


def _added_schema(names: Sequence[str]) -> Any:
    kinds = (pa.string(), pa.float64(), pa.list_(pa.string()), pa.string())
    return pa.schema(list(zip(names, kinds, strict=True)))


def _joined(left: Any, right: Any) -> Any:
    """Put two tables side by side; metadata of the left one stays."""
    schema = pa.schema([*left.schema, *right.schema], metadata=left.schema.metadata)
    return pa.Table.from_arrays([*left.columns, *right.columns], schema=schema)


# --- types of JSON values --------------------------------------------------------------------------------------------


def _schema_of(rows: Iterable[Mapping[str, Any]], added: Sequence[str]) -> Any:
    values: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    return pa.schema([(name, _type_of(column)) for name, column in values.items() if name not in added])


def _type_of(values: Iterable[Any]) -> Any:
    """Return the type that holds all values as they are; text, which holds anything, where there is none."""
    known = [value for value in values if value is not None]
    for kind in (pa.bool_(), pa.int64(), pa.float64()):
        if known and all(_fits(value, kind) for value in known):
            return kind
    kinds = {type(value) for value in known}
    if kinds == {list}:
        return pa.list_(_type_of(itertools.chain(*known)))
    if kinds == {dict} and any(known):
        return pa.struct(_schema_of(known, ()))
    return pa.string()


def _fits(value: Any, kind: Any) -> bool:
    """Tell whether a type holds a value as it is."""
    if value is None or pa.types.is_string(kind):
        return True
    if pa.types.is_struct(kind):
        places = {name: kind.get_field_index(name) for name in value} if isinstance(value, dict) else {"": -1}
        return all(place >= 0 and _fits(value[name], kind.field(place).type) for name, place in places.items())
    if pa.types.is_list(kind):
        return isinstance(value, list) and all(_fits(item, kind.value_type) for item in value)
    if pa.types.is_int64(kind):
        return type(value) is int and -(2**63) <= value < 2**63
    if pa.types.is_boolean(kind):
        return isinstance(value, bool)
    return type(value) is float or (type(value) is int and abs(value) <= 2**53)


def _shaped(value: Any, kind: Any) -> Any:
    """Return a value as a column of that type takes it; None where it does not fit."""
    if value is None or not _fits(value, kind):
        return None
    if pa.types.is_struct(kind):
        return {name: _shaped(item, kind.field(name).type) for name, item in value.items()}
    if pa.types.is_list(kind):
        return [_shaped(item, kind.value_type) for item in value]
    if pa.types.is_string(kind) and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return value
