"""Labels: whatever way they are given, none is lost, doubled or changed; what is wrong is said."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gliclass_cli.errors import UsageProblem
from gliclass_cli.labels import (
    LabelProblem,
    LabelSet,
    combine,
    labels_from_cell,
    make_labels,
    parse_label_file,
    parse_labels,
)

NAMES = st.text(st.characters(exclude_categories=["Cs", "Zs", "Cc", "Zl", "Zp"]), min_size=1, max_size=6)
FLAT_NAMES = st.lists(NAMES, min_size=1, max_size=6, unique=True)
# A hierarchy: null, a description or a list at the leaves. No dots, so that no two paths have one name.
TREES = st.recursive(
    st.none()
    | st.text("ab ", max_size=3)
    | st.lists(st.text("xyz", min_size=1, max_size=2), min_size=1, max_size=3, unique=True),
    lambda below: st.dictionaries(st.text("cde", min_size=1, max_size=2), below, min_size=1, max_size=3),
    max_leaves=6,
).filter(lambda tree: isinstance(tree, dict | list))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text('ab .|[{"\ud800', max_size=4),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text("ab .", max_size=3), below, max_size=3),
    max_leaves=8,
)


def leaves(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str | None]:
    """The paths of a tree's labels and their descriptions, told independently of the code."""
    if isinstance(tree, list):
        return {(*path, name): None for name in tree}
    if isinstance(tree, dict):
        return {key: value for name, below in tree.items() for key, value in leaves(below, (*path, name)).items()}
    return {path: (tree or "").strip() or None}


def in_shape(tree: Any, values: dict[tuple[str, ...], float], path: tuple[str, ...] = ()) -> Any:
    """The tree with a value in the place of each label."""
    if isinstance(tree, list):
        return {name: values[(*path, name)] for name in tree}
    if isinstance(tree, dict):
        return {name: in_shape(below, values, (*path, name)) for name, below in tree.items()}
    return values[path]


# --- what can be given -----------------------------------------------------------------------------------------------


@given(
    names=FLAT_NAMES, space=st.sampled_from(["", " ", "\t "]), blank=st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"])
)
def test_all_ways_to_give_a_list_agree(names: list[str], space: str, blank: str) -> None:
    expected = make_labels(names)
    assert expected == LabelSet(tuple(names), (None,) * len(names), tuple((name,) for name in names))
    assert make_labels([f" {name}{space}" for name in names] + [" ", ""]) == expected
    assert (
        parse_labels(names) == parse_labels(dict.fromkeys(names)) == parse_labels(dict.fromkeys(names, " ")) == expected
    )
    assert labels_from_cell(names) == labels_from_cell(json.dumps(names)) == expected
    assert parse_label_file(json.dumps(names), "labels.json") == expected
    assert combine([make_labels(names[:1]), make_labels(names[1:])] if names[1:] else [expected]) == expected
    if not names[0].startswith(("[", "{")):
        assert parse_label_file(blank.join(f"{name}{space}" for name in names) + "\n", "labels.txt") == expected
        if not any("|" in name for name in names):
            assert labels_from_cell("|".join(f" {name} " for name in names)) == expected


@given(names=FLAT_NAMES, data=st.data())
def test_descriptions(names: list[str], data: st.DataObject) -> None:
    descriptions = data.draw(st.lists(st.none() | NAMES, min_size=len(names), max_size=len(names)))
    expected = LabelSet(tuple(names), tuple(descriptions), tuple((name,) for name in names))
    pairs = dict(zip(names, descriptions, strict=True))
    assert parse_labels(pairs) == expected
    if not names[0].startswith(("[", "{")):
        lines = "".join(f"{name}\t{description or ''} \r\n" for name, description in pairs.items())
        assert parse_label_file(lines, "labels.txt") == expected


@given(tree=TREES)
def test_a_hierarchy_keeps_order_descriptions_and_shape(tree: Any) -> None:
    labels = parse_labels(tree)
    expected = leaves(tree)
    assert dict(zip(labels.paths, labels.descriptions, strict=True)) == expected
    assert labels.paths == tuple(expected)
    assert labels.names == tuple(".".join(path) for path in expected)
    values = {path: number / 10 for number, path in enumerate(expected)}
    nested = labels.nest(dict(zip(labels.names, values.values(), strict=True)))
    assert nested == in_shape(tree, values)
    assert json.dumps(nested) == json.dumps(in_shape(tree, values))  # in the order given


def test_nest_gives_back_only_what_there_is() -> None:
    labels = parse_labels({"topic": {"shipping": None, "billing": None}, "tone": ["angry", "calm"], "other": None})
    assert labels.nest({"tone.calm": 1, "topic.billing": 2}) == {"topic": {"billing": 2}, "tone": {"calm": 1}}
    assert labels.nest({}) == {}


@pytest.mark.parametrize("parent_first", [True, False])
def test_a_label_that_has_labels_below_it_keeps_its_own_value(parent_first: bool) -> None:
    parent, below = make_labels(["topic"]), parse_labels({"topic": {"billing": {"refund": None}, "shipping": None}})
    labels = combine([parent, below] if parent_first else [below, parent])
    values = dict(zip(labels.names, range(3), strict=True))
    own, refund, shipping = (values[name] for name in ("topic", "topic.billing.refund", "topic.shipping"))
    assert labels.nest(values) == {"topic": {"": own, "billing": {"refund": refund}, "shipping": shipping}}
    assert labels.nest({"topic": 1}) == {"topic": {"": 1}}  # the same place whatever else is reported


def test_dots_in_names_do_not_mix_with_a_hierarchy() -> None:
    labels = parse_labels({"a.b": None, "a": {"b": {"c": None}, "d.e": None}})
    assert labels.names == ("a.b", "a.b.c", "a.d.e")
    assert labels.nest(dict.fromkeys(labels.names, 1)) == {"a.b": 1, "a": {"b": {"c": 1}, "d.e": 1}}


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "no labels"),
        ({}, "no labels"),
        (["", " "], "no labels"),
        (["a", "b", "a"], "label 'a' is given twice"),
        (["a", " a "], "label 'a' is given twice"),
        ({"a": None, "a ": None}, "label 'a' is given twice"),
        ({"a": {"b": None}, "a.b": None}, r"label 'a\.b' is given twice"),
        ({"a": {"b.c": None}, "a.b": {"c": None}}, r"label 'a\.b\.c' is given twice"),
        ({"": None}, "must not be empty"),
        ({"a": {" ": None}}, "must not be empty"),
        ({"a": [], "b": None}, "label 'a' holds no labels"),
        ({"a": {"b": {}}}, "label 'b' holds no labels"),
        (["a", 1], "must be a string, not a number"),
        (["a", None], "must be a string, not null"),
        (["a", ["b"]], "must be a string, not a list"),
        ([{"label": "a", "description": "b"}], "must be a string, not an object"),
        ({"a": True}, "found true or false"),
        ({"a": {"b": 0.5}}, "found a number"),
        ("a", 'found "a"'),
        (None, "found null"),
        (["\ud800"], "is not text"),
        ({"a": "\udfff"}, "is not text"),
    ],
)
def test_values_that_are_no_labels(value: Any, message: str) -> None:
    with pytest.raises(LabelProblem, match=message):
        parse_labels(value)
    with pytest.raises(UsageProblem, match=f"^labels.json: .*{message}"):
        parse_label_file(json.dumps(value), "labels.json")


def test_labels_nested_without_end() -> None:
    value: Any = None
    for _ in range(1000):
        value = {"a": value}
    for deep in (value, '{"a":' * 100_000, "[" * 100_000, '{"a":' * 200 + "null" + "}" * 200):
        with pytest.raises(LabelProblem, match="more than 100 levels deep"):
            labels_from_cell(deep)
    with pytest.raises(LabelProblem, match="not a list"):
        parse_labels([[value] * 2])


@given(value=JSON_VALUES)
def test_any_value_is_labels_or_a_problem(value: Any) -> None:
    for candidate in (value, json.dumps(value), str(value)):
        try:
            labels = labels_from_cell(candidate)
        except LabelProblem as problem:
            assert str(problem).encode()
            continue
        assert len(labels) == len(set(labels.names)) == len(labels.paths) == len(labels.descriptions) > 0
        assert all(name == name.strip() != "" for path in labels.paths for name in path)
        assert " ".join(labels.names).encode()
        labels.nest(dict.fromkeys(labels.names, 0))


@given(
    text=st.text('ab\t\r\n []{}",:|9\ufeff\x0c\u2028') | st.text(),
    source=st.sampled_from(["labels.txt", "labels.JSON"]),
)
def test_any_label_file_is_labels_or_a_usage_problem(text: str, source: str) -> None:
    try:
        assert len(parse_label_file(text, source)) > 0
    except UsageProblem as problem:
        assert str(problem).startswith(source)


@pytest.mark.parametrize(
    ("text", "source", "message"),
    [
        ("", "labels.txt", "labels.txt: no labels"),
        ("\n \t\n", "labels.txt", "labels.txt: no labels"),
        ("a\n\nb\r\n a\tagain\n", "labels.txt", r"labels.txt: label 'a' is given twice \(lines 1 and 4\); remove one"),
        ("a\x0cb\na\x0cb\n", "labels.txt", r"\(lines 1 and 2\)"),
        ("a\n\tb\n", "labels.txt", "labels.txt: line 2 begins with a tab"),
        ('{"a": null, "a": null}', "labels.txt", "label 'a' is given twice"),
        ('{"x": {"a": "1", "a": "2"}}', "labels.json", "label 'a' is given twice"),
        ('["a", "b",]', "labels.txt", "not valid JSON: .*line 1"),
        ('{"a": null', "labels.txt", "not valid JSON"),
        ("a\nb\n", "labels.json", "not valid JSON"),
        ("[urgent]\n", "labels.JSON", "not valid JSON"),
        ("[" + "9" * 5000 + "]", "labels.txt", "must be a string, not a number"),
    ],
)
def test_label_files_that_are_wrong(text: str, source: str, message: str) -> None:
    with pytest.raises(UsageProblem, match=message):
        parse_label_file(text, source)


def test_a_label_may_begin_with_a_bracket() -> None:
    assert parse_label_file("[urgent]\n[low]\n", "labels.txt").names == ("[urgent]", "[low]")
    assert parse_label_file("[1] one\n[2] two\n", "labels.txt").names == ("[1] one", "[2] two")
    assert labels_from_cell("[urgent]|[low]").names == ("[urgent]", "[low]")
    assert labels_from_cell("{x}| y ||").names == ("{x}", "y")


def test_lines_end_where_editors_say() -> None:
    assert parse_label_file("a\x0cb\u2028c\r\nd\re", "labels.txt").names == ("a\x0cb\u2028c", "d", "e")


@pytest.mark.parametrize("value", ["", " | ", "[]", None, 3, {"a": 1}])
def test_a_row_without_usable_labels(value: Any) -> None:
    with pytest.raises(LabelProblem):
        labels_from_cell(value)


def test_combining_finds_duplicates_and_nothing() -> None:
    with pytest.raises(LabelProblem, match=r"label 'a\.b' is given twice"):
        combine([make_labels(["a.b"]), parse_labels({"a": ["b"]})])
    with pytest.raises(LabelProblem, match="no labels"):
        combine([])


def test_many_labels_are_read_at_once() -> None:
    names = [f"label {number}" for number in range(20_000)]
    before = time.process_time()
    assert len(parse_label_file(json.dumps(dict.fromkeys(names)), "labels.json")) == 20_000
    assert len(parse_label_file("\n".join(names), "labels.txt")) == 20_000
    assert time.process_time() - before < 5
