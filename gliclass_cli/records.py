"""Rows on their way from a reader to a writer, and the text inside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# A row that is longer is not kept in memory, unless the user wants it.
MAX_ROW_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row has no prediction: a fixed code for programs, a message for people, and the line it starts on."""

    code: str
    message: str
    line: int


@dataclass(frozen=True, slots=True)
class Record:
    """One row of the input.

    ``raw`` holds the bytes as they came (with their line end), ``body`` the row as one line of JSON exactly as
    it came, for JSON inputs only: it is written back untouched. ``fields`` is None when nothing could be read.
    ``position`` counts the bytes of the input file read so far, for progress. ``stored``: for Parquet inputs, the row
    as it is stored; their ``raw`` and ``body`` are the row as JSON.
    """

    source: str
    line: int
    raw: bytes
    fields: Mapping[str, Any] | None
    body: bytes | None = None
    position: int = 0
    error: RowError | None = None
    stored: Any = None

    @property
    def where(self) -> str:
        """``FILE:LINE``, as compilers and grep write it."""
        return f"{self.source}:{self.line}"


class Spelled(str):
    """A value that is no text (a date, a decimal, binary data), as JSON spells it: it is never classified."""


class FieldProblem(ValueError):
    """A row without a usable field; ``code`` goes into the row's error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


_MISSING = object()


def look_up(fields: Mapping[str, Any], path: str) -> Any:
    """Follow a dotted path (``user.notes.0``) through objects and lists; a key spelt exactly so comes first.

    Raises:
        FieldProblem: nothing is there.
    """
    value: Any = fields.get(path, _MISSING)
    if value is not _MISSING:
        return value
    value = fields
    for part in path.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and len(part) < 10 and int(part) < len(value):
            value = value[int(part)]
        else:
            raise FieldProblem("no_text_field", f"no field {path!r}; fields here: {_names(fields)}")
    return value


def text_of(fields: Mapping[str, Any], paths: Sequence[str] = ()) -> str:
    """Return the text to classify.

    Without ``paths``: the field ``text``, else the only field that holds a string. With one path: that field.
    With several: those that are there and not null, joined by a line end.

    Raises:
        FieldProblem: no such field, or it does not hold a string.
    """
    if len(paths) > 1:
        return _joined(fields, paths)
    if paths:
        return _string(look_up(fields, paths[0]), paths[0])
    if "text" in fields:
        return _string(fields["text"], "text")
    candidates = string_fields(fields)
    if len(candidates) == 1:
        return str(fields[candidates[0]])
    raise FieldProblem("no_text_field", f"no field 'text'; name one with --text-field: {_names(fields)}")


def string_fields(fields: Mapping[str, Any]) -> list[str]:
    """Return the names of the fields that hold a string."""
    return [name for name, value in fields.items() if _is_text(value)]


def _joined(fields: Mapping[str, Any], paths: Sequence[str]) -> str:
    parts = []
    for path in paths:
        try:
            value = look_up(fields, path)
        except FieldProblem:
            continue
        if value is not None:
            parts.append(_string(value, path))
    if not parts:
        wanted = ", ".join(repr(path) for path in paths)
        raise FieldProblem("no_text_field", f"none of the fields {wanted}; fields here: {_names(fields)}")
    return "\n".join(parts)


def _string(value: Any, path: str) -> str:
    if _is_text(value):
        return str(value)
    kinds = {
        dict: "an object",
        list: "a list",
        bool: "true or false",
        type(None): "null",
        Spelled: "a date or the like",
    }
    kind = kinds.get(type(value), "a number")
    raise FieldProblem("not_text", f"field {path!r} is {kind}, not text")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, Spelled)


def _names(fields: Mapping[str, Any], limit: int = 12) -> str:
    names = [repr(name) for name in list(fields)[:limit]]
    return ", ".join(names) + (", ..." if len(fields) > limit else "") or "none"
