"""Records: where the text of a row is found."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gliclass_cli.records import FieldProblem, Record, look_up, string_fields, text_of

ROW: dict[str, Any] = {
    "id": 7,
    "title": "Late",
    "user": {"name": "Ada", "notes": ["first", {"body": "second"}], "0": "zero"},
    "user.name": "spelt so",
    "empty": "",
    "none": None,
    "flag": True,
    "tags": [],
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab"),
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "0", ""]), below, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("title", "Late"),
        ("user.name", "spelt so"),
        ("user.notes.0", "first"),
        ("user.notes.1.body", "second"),
        ("user.0", "zero"),
        ("empty", ""),
        ("none", None),
        ("tags", []),
    ],
)
def test_look_up(path: str, value: Any) -> None:
    assert look_up(ROW, path) == value


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "nope",
        "user.nope",
        "user.notes.2",
        "user.notes.-1",
        "user.notes." + "9" * 5000,
        "id.x",
        "title.0",
        "user.notes.²",
    ],
)
def test_nothing_there(path: str) -> None:
    with pytest.raises(FieldProblem, match=r"no field .*; fields here: 'id', 'title'") as caught:
        look_up(ROW, path)
    assert caught.value.code == "no_text_field"


@pytest.mark.parametrize(
    ("fields", "paths", "text"),
    [
        ({"text": "a", "title": "b"}, (), "a"),
        ({"id": 1, "body": "a"}, (), "a"),
        ({"id": 1, "body": ""}, (), ""),
        (ROW, ("title",), "Late"),
        (ROW, ("title", "user.notes.0"), "Late\nfirst"),
        (ROW, ("nope", "title", "none"), "Late"),
        (ROW, ("empty", "title"), "\nLate"),
    ],
)
def test_text_of(fields: dict[str, Any], paths: tuple[str, ...], text: str) -> None:
    assert text_of(fields, paths) == text


@pytest.mark.parametrize(
    ("fields", "paths", "code", "message"),
    [
        ({}, (), "no_text_field", "name one with --text-field: none"),
        ({"a": "x", "b": "y"}, (), "no_text_field", "name one with --text-field: 'a', 'b'"),
        ({"a": 1}, (), "no_text_field", "'a'"),
        ({str(n): n for n in range(20)}, (), "no_text_field", r"'11', \.\.\.$"),
        ({"text": None}, (), "not_text", "field 'text' is null, not text"),
        ({"text": 1.5}, (), "not_text", "is a number"),
        ({"text": ["a"]}, (), "not_text", "is a list"),
        (ROW, ("flag",), "not_text", "is true or false"),
        (ROW, ("user",), "not_text", "is an object"),
        (ROW, ("nope",), "no_text_field", "no field 'nope'"),
        (ROW, ("nope", "none"), "no_text_field", "none of the fields 'nope', 'none'"),
        (ROW, ("title", "id"), "not_text", "field 'id' is a number"),
    ],
)
def test_rows_without_a_usable_text(fields: dict[str, Any], paths: tuple[str, ...], code: str, message: str) -> None:
    with pytest.raises(FieldProblem, match=message) as caught:
        text_of(fields, paths)
    assert caught.value.code == code


@given(
    fields=st.dictionaries(st.sampled_from(["text", "a", "b", "a.0", ""]), VALUES),
    paths=st.lists(st.text("ab.0", max_size=5), max_size=3),
)
def test_any_row_has_a_text_or_a_problem(fields: dict[str, Any], paths: list[str]) -> None:
    try:
        assert isinstance(text_of(fields, paths), str)
    except FieldProblem as problem:
        assert problem.code in ("no_text_field", "not_text")


def test_string_fields_and_where() -> None:
    assert string_fields(ROW) == ["title", "user.name", "empty"]
    assert Record("in.jsonl", 42, b"", None).where == "in.jsonl:42"
