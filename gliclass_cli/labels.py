"""Candidate labels: from flags, lines, JSON or a row; kept in the order given, as the user wrote them."""

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gliclass_cli.errors import UsageProblem

# Joins several labels in one CSV cell, and splits a cell of labels.
CELL_SEPARATOR = "|"
_MEANT_AS_JSON = re.compile(r'\s*(\{|\[\s*("|$))')
_SURROGATE = re.compile("[\ud800-\udfff]")
_MOST_LEVELS = 100
_TOO_DEEP = f"labels are nested more than {_MOST_LEVELS} levels deep"


class LabelProblem(ValueError):
    """Labels that cannot be used: none, duplicates, or not strings."""


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Distinct labels in the order given.

    ``names[j]`` is the dotted form of ``paths[j]``; ``descriptions[j]`` says more about it to the model, or is None.
    """

    names: tuple[str, ...]
    descriptions: tuple[str | None, ...]
    paths: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.names)

    def nest(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Give values of labels back in the shape of the hierarchy: ``{"topic": {"shipping": value}}``.

        A label that has labels below it keeps its own value under ``""``: ``{"topic": {"": value, "shipping": ...}}``.
        """
        parents = {path[:depth] for path in self.paths for depth in range(1, len(path))}
        nested: dict[str, Any] = {}
        for name, path in zip(self.names, self.paths, strict=True):
            if name not in values:
                continue
            *above, last = (*path, "") if path in parents else path
            level = nested
            for part in above:
                level = level.setdefault(part, {})
            level[last] = values[name]
        return nested


@dataclass(frozen=True, slots=True)
class _Entry:
    path: tuple[str, ...]
    description: str | None = None
    line: int | None = None


def make_labels(names: Iterable[str]) -> LabelSet:
    """Build a label set from plain names. Raises LabelProblem."""
    return _collect([_Entry((name.strip(),)) for name in names if name.strip()])


def parse_labels(value: Any) -> LabelSet:
    """Build a label set from a JSON value: a list, ``{label: description}``, or nested objects (a hierarchy).

    In an object a string value is a description, null or "" none; a list or an object holds the labels below.

    Raises:
        LabelProblem: none, duplicates, or a value of another type.
    """
    return _collect(list(_walk(value, ())))


def labels_from_cell(value: Any) -> LabelSet:
    """Build the label set that a row brings: a JSON list or object, or text: JSON, or labels joined by ``|``."""
    if not isinstance(value, str):
        return parse_labels(value)
    if value.lstrip().startswith(("[", "{")):
        try:
            return parse_labels(_load_json(value))
        except json.JSONDecodeError:
            pass  # labels may begin with a bracket too: "[urgent]|[routine]"
    return make_labels(value.split(CELL_SEPARATOR))


def parse_label_file(text: str, source: str) -> LabelSet:
    """Read a label file: JSON, or a label a line, each optionally followed by a tab and its description.

    Raises:
        UsageProblem: says file and line of what is wrong.
    """
    try:
        if source.lower().endswith(".json") or text.lstrip().startswith(("[", "{")):
            try:
                return parse_labels(_load_json(text))
            except json.JSONDecodeError as error:
                # A label a line may begin with a bracket too: "[urgent]".
                if source.lower().endswith(".json") or _MEANT_AS_JSON.match(text):
                    raise UsageProblem(f"{source}: not valid JSON: {error}") from error
        return _collect(list(_label_lines(text)))
    except LabelProblem as error:
        raise UsageProblem(f"{source}: {error}") from error


def combine(sets: Sequence[LabelSet]) -> LabelSet:
    """Join label sets, in order. Raises LabelProblem on duplicates across them and on an empty result."""
    entries = [
        _Entry(path, description)
        for labels in sets
        for path, description in zip(labels.paths, labels.descriptions, strict=True)
    ]
    return _collect(entries)


def without(labels: LabelSet, names: Iterable[str]) -> LabelSet | None:
    """Return a set without some of its labels, None where none are left. Raises LabelProblem for one it lacks."""
    dropped = set(names)
    for name in dropped - set(labels.names):
        raise LabelProblem(f"{name!r} is not one of the labels: {', '.join(labels.names)}")
    kept = [j for j, name in enumerate(labels.names) if name not in dropped]
    if not kept:
        return None
    return LabelSet(
        tuple(labels.names[j] for j in kept),
        tuple(labels.descriptions[j] for j in kept),
        tuple(labels.paths[j] for j in kept),
    )


def _load_json(text: str) -> Any:
    """Read JSON, but let no key given twice vanish. Raises LabelProblem, json.JSONDecodeError."""

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise LabelProblem(f"label {key!r} is given twice; remove one")
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=distinct, parse_int=float)  # no number is a label
    except RecursionError as error:
        raise LabelProblem(_TOO_DEEP) from error


def _label_lines(text: str) -> Iterable[_Entry]:
    # Line ends as editors count them; splitlines() knows more.
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        name, _, description = line.partition("\t")
        if name.strip():
            yield _Entry((name.strip(),), description.strip() or None, number)
        elif description.strip():
            raise LabelProblem(f"line {number} begins with a tab: there is no label before the description")


def _walk(value: Any, path: tuple[str, ...]) -> Iterable[_Entry]:
    if len(path) > _MOST_LEVELS:
        raise LabelProblem(_TOO_DEEP)
    if isinstance(value, list):
        for item in value:
            if not isinstance(item, str):
                raise LabelProblem(f"a label in a list must be a string, not {_shown(item)}")
            if item.strip():
                yield _Entry((*path, item.strip()))
    elif isinstance(value, dict):
        for key, below in value.items():
            name = key.strip()
            if not name:
                raise LabelProblem("a label must not be empty")
            if below is None or isinstance(below, str):
                yield _Entry((*path, name), (below or "").strip() or None)
            elif below in ([], {}):
                raise LabelProblem(f"label {name!r} holds no labels; write null if it is a label itself")
            else:
                yield from _walk(below, (*path, name))
    else:
        raise LabelProblem(
            "labels in JSON are a list of strings, an object {label: description}, or nested objects; "
            f"found {_shown(value)}"
        )


def _shown(value: Any) -> str:
    kind = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}.get(type(value), "a number")
    return json.dumps(value)[:40] if isinstance(value, str) else kind


def _collect(entries: list[_Entry]) -> LabelSet:
    if not entries:
        raise LabelProblem("no labels")
    first: dict[str, _Entry] = {}
    for entry in entries:
        name = ".".join(entry.path)
        if name in first:
            lines = f" (lines {first[name].line} and {entry.line})" if entry.line else ""
            raise LabelProblem(f"label {name!r} is given twice{lines}; remove one")
        if _SURROGATE.search(name + (entry.description or "")):
            raise LabelProblem(f"label {name!r} is not text: half of a character (a lone surrogate)")
        first[name] = entry
    return LabelSet(
        names=tuple(first),
        descriptions=tuple(entry.description for entry in entries),
        paths=tuple(entry.path for entry in entries),
    )
