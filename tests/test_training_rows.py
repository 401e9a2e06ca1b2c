"""Training rows: every bad one is told by file and line before anything starts; sampling keeps rows right."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gliclass_cli.errors import InputUnusable, UsageProblem
from gliclass_cli.labels import make_labels
from gliclass_cli.readers import ReadOptions
from gliclass_cli.training.rows import (
    RowFields,
    Source,
    TrainingRow,
    check_dev,
    check_multi,
    check_pools,
    draw_shots,
    read_sources,
)
from gliclass_cli.training.sampling import LabelInfo, Sampler, Shown
from gliclass_cli.training.settings import (
    Augmentation,
    Sampling,
    make_settings,
    parse_setting,
    parse_weights,
    read_settings,
    to_tables,
)


def read(tmp_path: Path, *rows: Any, name: str = "train.jsonl", **options: Any) -> Source:
    path = tmp_path / name
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), "utf-8")
    [source] = read_sources([str(path)], ReadOptions(), **options)
    return source


def problem(tmp_path: Path, *rows: Any, **options: Any) -> str:
    with pytest.raises(InputUnusable) as caught:
        read(tmp_path, *rows, **options)
    return str(caught.value).replace(str(tmp_path) + "/", "")


# --- formats --------------------------------------------------------------------------------------------------------


def test_the_references_format(tmp_path: Path) -> None:
    row = {"text": "a", "all_labels": ["x", "y", "z"], "true_labels": {"x": 0.8, "y": 0}, "prompt": "Task: ",
           "examples": [{"text": "b", "true_labels": ["y"]}], "avoid": ["w"]}  # fmt: skip
    [read_row] = read(tmp_path, row).rows
    assert read_row.true == {"x": 0.8}
    assert read_row.candidates == ("x", "y", "z")
    assert read_row.avoid == {"w"}
    assert read_row.prompt == "Task: "
    assert read_row.examples[0].labels == ("y",)


def test_a_json_list_a_csv_and_rows_of_classify(tmp_path: Path) -> None:
    source = read(tmp_path, json.dumps([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]), name="a.json")
    assert [row.true for row in source.rows] == [{"x": 1.0}, {"y": 1.0}]
    assert source.pool == ("x", "y")
    source = read(tmp_path, "text,label\na,x\nb,x|y\n", name="a.csv")
    assert [tuple(row.true) for row in source.rows] == [("x",), ("x", "y")]
    assert source.is_multi
    source = read(tmp_path, {"text": "a", "topic": {"gold": "x"}}, labels=make_labels(["x", "y"]),
                  fields=RowFields(gold="topic.gold"))  # fmt: skip
    assert source.pool == ("x", "y")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "label": "z"}, "train.jsonl:2: the right label 'z' is not among the candidates"),
        ({"text": "a", "label": []}, "train.jsonl:2: no right label; --allow-empty takes rows"),
        ({"text": "a", "label": None}, "train.jsonl:2: no right label"),
        ({"text": "a"}, "train.jsonl:2: no right labels: none of the fields true_labels, gold, label, labels"),
        ({"text": "a", "label": ["x", "x"]}, "train.jsonl:2: field 'label': label 'x' is given twice"),
        ({"text": "a", "label": "x", "all_labels": ["x", "y", "x"]}, "train.jsonl:2: label 'x' is given twice"),
        ({"text": "a", "label": 7}, "train.jsonl:2: field 'label': a label, a list of labels, or"),
        ({"text": "a", "label": [7]}, "train.jsonl:2: field 'label': a label, a list of labels, or"),
        ({"text": "a", "label": {"x": 2}}, "train.jsonl:2: field 'label': the confidence of 'x' must be a number"),
        ({"text": "a", "label": {"x": "yes"}}, "train.jsonl:2: field 'label': the confidence of 'x' must be"),
        ({"text": 5, "label": "x"}, "train.jsonl:2: field 'text' is a number, not text"),
        ({"label": "x"}, "train.jsonl:2: no field 'text'"),
        ({"text": "a", "label": "x", "avoid": "y"}, "train.jsonl:2: avoid: a list of labels belongs here"),
        ({"text": "a", "label": "x", "prompt": 1}, "train.jsonl:2: prompt: a text belongs here"),
        ({"text": "a", "label": "x", "examples": [{"text": "b"}]}, "train.jsonl:2: examples: each is"),
        ({"text": "a", "label": "x", "examples": [{"text": "b", "labels": 3}]}, "train.jsonl:2: field 'examples': a"),
        ("{not json}\n", "train.jsonl:2: "),
    ],
)
def test_a_bad_row_is_told_by_file_and_line(tmp_path: Path, row: Any, message: str) -> None:
    good = {"text": "good", "label": "x"}
    assert message in problem(tmp_path, good, row, good, labels=make_labels(["x", "y"]))


def test_the_first_problems_are_told_and_the_rest_counted(tmp_path: Path) -> None:
    told = problem(tmp_path, *[{"text": "a"}] * 25).splitlines()
    assert len(told) == 11
    assert told[-1] == "... and 15 more rows"


def test_an_empty_file_and_one_label_only(tmp_path: Path) -> None:
    assert problem(tmp_path) == "train.jsonl: holds no rows"
    with pytest.raises(InputUnusable, match="all rows have the one label 'x'"):
        check_pools([read(tmp_path, {"text": "a", "label": "x"})])
    check_pools([read(tmp_path, {"text": "a", "label": "x"}, {"text": "b", "label": []}, allow_empty=True)])
    assert "no row has a label" in problem(tmp_path, {"text": "b", "label": []}, allow_empty=True)


def test_a_dev_file_must_measure_what_is_trained(tmp_path: Path) -> None:
    check_dev(read(tmp_path, {"text": "a", "label": "x"}), multi=False)
    with pytest.raises(InputUnusable, match="nothing can be measured"):
        check_dev(read(tmp_path, {"text": "a", "label": [], "all_labels": ["x"]}, allow_empty=True), multi=True)
    with pytest.raises(InputUnusable, match="the training rows have one each"):
        check_dev(read(tmp_path, {"text": "a", "label": ["x", "y"]}), multi=False)


def test_an_unsure_label_makes_rows_multi(tmp_path: Path) -> None:
    assert read(tmp_path, {"text": "a", "label": {"x": 0.4}}).is_multi
    assert not read(tmp_path, {"text": "a", "label": {"x": 1}}).is_multi


def test_descriptions_of_a_rows_own_labels_are_shown(tmp_path: Path) -> None:
    source = read(tmp_path, {"text": "a", "label": "x", "all_labels": {"x": "things", "y": None}})
    [shown] = sampler(source).batch(0, 0, [0])
    assert shown.descriptions == {"x": "things"}


def test_single_is_refused_where_rows_have_several(tmp_path: Path) -> None:
    source = read(tmp_path, {"text": "a", "label": ["x", "y"]})
    assert check_multi([source], None)
    with pytest.raises(UsageProblem):
        check_multi([source], False)


# --- shots ----------------------------------------------------------------------------------------------------------


def test_each_label_gets_its_shots_and_the_same_ones_for_a_seed(tmp_path: Path) -> None:
    rows = [{"text": f"{label} {number}", "label": label} for label in "abc" for number in range(20)]
    source = read(tmp_path, *rows, {"text": "rare", "label": "d"})
    drawn, few = draw_shots(source, 8, 0)
    assert Counter(next(iter(row.true)) for row in drawn.rows) == {"a": 8, "b": 8, "c": 8, "d": 1}
    assert few == {"d": 1}
    assert drawn.pool == source.pool
    assert draw_shots(source, 8, 0)[0].rows == drawn.rows
    assert draw_shots(source, 8, 1)[0].rows != drawn.rows
    empty = read(tmp_path, *rows, *[{"text": f"none {n}", "label": []} for n in range(20)], allow_empty=True)
    assert sum(not row.true for row in draw_shots(empty, 8, 0)[0].rows) == 8


# --- sampling -------------------------------------------------------------------------------------------------------

_LABELS = [f"label {number}" for number in range(30)]


def source_of(rows: Sequence[TrainingRow], pool: Sequence[str] = _LABELS) -> Source:
    return Source("train", tuple(rows), tuple(pool))


def sampler(
    source: Source, *, seed: int = 0, info: LabelInfo | None = None, chances: Any = None, **options: Any
) -> Sampler:
    return Sampler([source], 4, Sampling(**options), chances or Augmentation(), info or LabelInfo(), seed)


def all_shown(chosen: Sampler, epochs: int = 3) -> list[Shown]:
    shown = []
    for epoch in range(epochs):
        for number, (place, rows) in enumerate(chosen.epoch(epoch)):
            shown += chosen.batch(epoch * chosen.epoch_batches + number, place, rows)
    return shown


ROWS = [TrainingRow(f"text {n}", {_LABELS[n % 5]: 1.0, _LABELS[5 + n % 3]: 0.5},
                    avoid=frozenset(_LABELS[10 + n % 4 : 14])) for n in range(10)]  # fmt: skip
EVERYTHING = Augmentation(label_removal=1, label_addition=1, text_addition=1, description=1, synonym=1, examples=1)


@pytest.mark.parametrize("chances", [Augmentation(), EVERYTHING], ids=["plain", "augmented"])
@pytest.mark.parametrize("negatives", [(), ("pool",), ("batch",), ("candidates", "batch", "pool")])
def test_shown_labels_are_distinct_right_and_never_avoided(chances: Augmentation, negatives: Any) -> None:
    by_text = {row.text: row for row in ROWS}
    synonyms = {label: [f"other {label}", _LABELS[0]] for label in _LABELS}
    info = LabelInfo(descriptions={label: ["said so"] for label in _LABELS}, synonyms=synonyms)
    chosen = sampler(source_of(ROWS), info=info, chances=chances, negatives=negatives, max_labels=12)
    for shown in all_shown(chosen):
        rows = [row for text, row in by_text.items() if shown.text.startswith(text) or shown.text.endswith(text)]
        true = {label: share for row in rows for label, share in row.true.items()}
        assert len(set(shown.labels)) == len(shown.labels)
        assert any(shown.targets)  # T13: a right label is always left
        for label, target in zip(shown.labels, shown.targets, strict=True):
            assert target == 0 or true[label] in (1.0, 0.5)
            assert target > 0 or label not in true  # a right label is never shown as a wrong one
        avoided = frozenset.union(*(row.avoid for row in rows)) - true.keys()
        assert avoided.isdisjoint(shown.labels)
        worded = [shown.wording.get(label, label) for label in shown.labels]
        assert len(set(worded)) == len(worded)  # T12: no two read the same
        assert all(example.text not in shown.text for example in shown.examples)  # T11: never the row itself
    if chances is EVERYTHING:
        assert any(shown.wording for shown in all_shown(chosen))
        assert any(shown.examples for shown in all_shown(chosen))


def test_negatives_come_from_where_they_should(tmp_path: Path) -> None:
    row = TrainingRow("t", {"a": 1.0}, candidates=("a", "b", "c"))
    [shown] = sampler(source_of([row], ["a", "b", "c", "d", "e"])).batch(0, 0, [0])
    assert sorted(shown.labels) == ["a", "b", "c"]
    [shown] = sampler(source_of([row], ["a", "b", "c", "d", "e"]), negatives=("candidates", "pool")).batch(0, 0, [0])
    assert sorted(shown.labels) == ["a", "b", "c", "d", "e"]
    rows = [TrainingRow("t", {"a": 1.0}), TrainingRow("u", {"d": 1.0})]
    first, second = sampler(source_of(rows, list("abcdefgh")), negatives=("batch",)).batch(0, 0, [0, 1])
    assert sorted(first.labels) == sorted(second.labels) == ["a", "d"]
    [shown] = sampler(source_of(rows, list("abcdefgh")), max_labels=4).batch(0, 0, [0])
    assert len(shown.labels) == 4
    assert "a" in shown.labels


def test_labels_are_shuffled_or_in_their_order() -> None:
    rows = [TrainingRow("t", {"d": 1.0}, candidates=tuple("abcdef"))]
    orders = {sampler(source_of(rows, "abcdef")).batch(n, 0, [0])[0].labels for n in range(20)}
    assert len(orders) > 10
    [shown] = sampler(source_of(rows, "abcdef"), shuffle_labels=False).batch(0, 0, [0])
    assert shown.labels == tuple("abcdef")
    assert shown.targets == (0, 0, 0, 1, 0, 0)


@given(st.integers(1, 40), st.integers(0, 5))
def test_an_epoch_holds_each_row_once_in_batches_of_one_source(rows: int, epoch: int) -> None:
    sources = [source_of([TrainingRow("x" * n, {"a": 1.0}) for n in range(rows)]), source_of(ROWS)]
    chosen = Sampler(sources, 4, Sampling(), Augmentation(), LabelInfo(), 0)
    batches = chosen.epoch(epoch)
    assert len(batches) == chosen.epoch_batches
    found = Counter((place, row) for place, indices in batches for row in indices)
    assert found == Counter([(0, n) for n in range(rows)] + [(1, n) for n in range(len(ROWS))])
    assert batches == chosen.epoch(epoch)


@pytest.mark.parametrize("weight", [0, 0.3, 1, 2.5])
def test_an_epoch_holds_as_many_rows_of_a_source_as_its_weight_says(weight: float) -> None:
    sources = [source_of([TrainingRow("x" * n, {"a": 1.0}) for n in range(20)]), source_of(ROWS)]
    chosen = Sampler(sources, 4, Sampling(), Augmentation(), LabelInfo(), 0, [weight, 1])
    batches = chosen.epoch(0)
    assert len(batches) == chosen.epoch_batches
    found = Counter(row for place, indices in batches if place == 0 for row in indices)
    assert found.total() == round(20 * weight)
    assert all(math.floor(weight) <= found[row] <= math.ceil(weight) for row in range(20))
    assert Counter(place for place, _ in batches)[1] == 3


def test_a_small_source_with_a_small_weight_comes_once() -> None:
    sources = [source_of(ROWS[:3]), source_of(ROWS)]
    chosen = Sampler(sources, 4, Sampling(), Augmentation(), LabelInfo(), 0, [0.01, 0])
    assert chosen.epoch_batches == len(chosen.epoch(0)) == 1


def test_a_batch_says_a_label_in_one_way() -> None:
    info = LabelInfo(synonyms={label: [f"other {label}", f"new {label}"] for label in _LABELS})
    chosen = sampler(source_of(ROWS), info=info, chances=Augmentation(synonym=0.5))
    ways: dict[str, set[str]] = {}
    for number in range(40):
        shown = chosen.batch(number, 0, range(len(ROWS)))
        for label in _LABELS:
            found = {row.wording.get(label, label) for row in shown if label in row.labels}
            assert len(found) <= 1
            ways.setdefault(label, set()).update(found)
    assert {len(found) for found in ways.values()} <= {0, 3}  # 0: avoided by all rows


def test_batches_hold_texts_of_similar_length_in_random_order() -> None:
    chosen = sampler(source_of([TrainingRow("x" * (n * 7 % 100), {"a": 1.0}) for n in range(100)]))
    spans = [max(rows) - min(rows) for rows in ([r * 7 % 100 for r in rows] for _, rows in chosen.epoch(0))]
    assert max(spans) <= 8
    assert chosen.epoch(0) != chosen.epoch(1)


# --- settings -------------------------------------------------------------------------------------------------------


def test_settings_go_through_toml_and_back() -> None:
    import tomli_w

    settings = make_settings({"shots": 8, "loss": ["bce=4", "softmax=0.25"], "multi": True, "focal_alpha": -1})
    assert settings.optimisation.encoder_lr > make_settings({}).optimisation.encoder_lr
    text = tomli_w.dumps({"run": {"model": "x"}, **to_tables(settings)})
    assert make_settings(read_settings(text, "train.toml")) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 0", "settings.toml: setting epochs is 0"),
        ("epochs = 'many'", "settings.toml: setting epochs is 'many'; it must be a number"),
        ("warmup = 2", "settings.toml: setting warmup is 2; it must be from 0 to 1"),
        ("epoch = 3", "settings.toml: setting 'epoch' is not known; known are method, "),
        ("method = 'dpo'", "settings.toml: setting method is 'dpo'; it must be supervised, ppo"),
        ("negatives = ['web']", "settings.toml: setting negatives is ['web']; it must be candidates, batch, pool"),
        ("lora = 1", "settings.toml: setting lora is 1; it must be true or false"),
        ("batch_size = 1.5", "settings.toml: setting batch_size is 1.5; it must be a whole number"),
        ("epochs = nan", "settings.toml: setting epochs is nan"),
        ("= 3", "settings.toml: not TOML"),
    ],
)
def test_a_wrong_setting_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        read_settings(text, "settings.toml")
    assert str(caught.value).startswith(message)


def test_one_setting_of_the_command_line() -> None:
    assert parse_setting("warmup=0.1") == ("warmup", 0.1)
    assert parse_setting("lora-alpha = 8") == ("lora_alpha", 8.0)
    assert parse_setting("freeze=embeddings") == ("freeze", ("embeddings",))
    assert parse_setting('loss=["bce=4", "contrastive"]') == ("loss", ("bce=4", "contrastive"))
    for wrong in ("warmup", "warmup=x", "nonsense=1"):
        with pytest.raises(UsageProblem):
            parse_setting(wrong)


def test_weights() -> None:
    assert parse_weights(("f1=2", "jaccard"), ("f1", "jaccard"), "reward") == {"f1": 2.0, "jaccard": 1.0}
    assert parse_weights(("f1=0",), ("f1",), "reward", zero=True) == {"f1": 0.0}
    for wrong in (("f2",), ("f1=x",), ("f1=-1",), ("f1=0",), ("f1", "f1=2")):
        with pytest.raises(UsageProblem, match="reward"):
            parse_weights(wrong, ("f1",), "reward")


def test_few_shots_are_capped_unless_epochs_are_given() -> None:
    assert make_settings({"shots": 8}).optimisation.most_steps == 150
    assert make_settings({"shots": 8, "epochs": 50}).optimisation.most_steps == 0
