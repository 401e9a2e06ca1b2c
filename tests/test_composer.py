"""Prompts: token for token what the reference's pipeline gives its model; labels are never cut, texts say so."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gliclass_cli.checkpoint import BI_ENCODERS, ENCODER_DECODERS
from gliclass_cli.composer import LEAST_TEXT, Composer, combine
from gliclass_cli.errors import UsageProblem
from gliclass_cli.labels import LabelProblem, make_labels, parse_labels
from gliclass_cli.model_folder import read_model_folder
from gliclass_cli.prompts import Example, Reading, groups, joined, label_orders, parse_examples, windows
from gliclass_cli.tokens import Tokenizer

# One checkpoint for each way to compose a prompt, with each kind of tokenizer.
WAYS = {(case.architecture, case.backbone, case.prompt_first): case for case in reversed(oracle.CASES)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, bool], Path]:
    folders = {}
    for way, case in WAYS.items():
        folders[way] = tmp_path_factory.mktemp("composer")
        oracle.write_checkpoint(case, folders[way])
    return folders


def composer_of(folder: Path, **reading: Any) -> Composer:
    return Composer(read_model_folder(folder), Reading(**reading))


def examples_of(request: oracle.Request) -> tuple[Example, ...]:
    return tuple(Example(example["text"], tuple(example["labels"])) for example in request.examples)


def names(composer: Composer, ids: Any) -> list[str | None]:
    return [composer.tokenizer.token(int(number)) for number in ids]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way)))
def test_prompts_are_those_of_the_reference(checkpoints: dict[Any, Path], way: tuple[str, str, bool]) -> None:
    architecture, _, prompt_first = way
    reference = oracle.Oracle(checkpoints[way])
    requests = [(name, request, request.prompt) for name, request in oracle.REQUESTS.items()]
    if architecture in BI_ENCODERS:  # the reference puts a space after their task
        requests += [(name, request, request.prompt.rstrip()) for name, request in oracle.REQUESTS.items()]
    for name, request, prompt in requests:
        if (request.examples and architecture == "bi-encoder") or (
            prompt and architecture == "bi-encoder-fused" and not prompt_first
        ):
            continue  # see test_a_task_is_no_part_of_a_word
        wanted = oracle.Request(request.text, request.labels, prompt, request.examples)
        inputs, labels = reference.inputs(wanted)
        composer = composer_of(checkpoints[way], prompt=prompt, examples=examples_of(request))
        label_set = parse_labels(request.labels)
        assert list(label_set.names) == labels
        [composed] = composer.compose([request.text], composer.labels(label_set))
        [found] = composed.prompts
        assert found.ids.tolist() == inputs["input_ids"][0].tolist(), name
        assert found.group.columns.tolist() == list(range(len(labels)))
        if architecture in ENCODER_DECODERS:
            assert found.group.ids.tolist() == inputs["class_input_ids"][0].tolist()
        if architecture in BI_ENCODERS:
            masks = inputs["class_attention_mask"][0] == 1
            pairs = zip(inputs["class_input_ids"][0], masks, strict=True)
            assert [ids.tolist() for (ids,) in found.group.inputs] == [ids[mask].tolist() for ids, mask in pairs]


UNI = ("uni-encoder", "bert", True)


def test_a_task_is_no_part_of_a_word(checkpoints: dict[Any, Path]) -> None:
    """Deviation: the reference glues a task to the text (D18), so that a task without a space ends in its first word."""
    glued = names(*_prompt(checkpoints[UNI], "fast delivery", prompt="which topic"))
    assert glued[-5:] == ["which", "topic", "fast", "delivery", "[SEP]"]
    reference = oracle.Oracle(checkpoints[UNI])
    inputs, _ = reference.inputs(oracle.Request("fast delivery", ["sports"], "which topic"))
    assert "fast" not in reference.pipe.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    way = ("bi-encoder-fused", "bert", False)
    fused = names(*_prompt(checkpoints[way], "fast delivery", prompt="which topic"))
    assert fused[1:6] == ["fast", "delivery", "which", "topic", "<<LABEL>>"]


def _prompt(folder: Path, text: str, labels: tuple[str, ...] = ("sports",), **reading: Any) -> tuple[Composer, Any]:
    composer = composer_of(folder, **reading)
    [composed] = composer.compose([text], composer.labels(make_labels(labels)))
    return composer, composed.prompts[0].ids


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way)))
@pytest.mark.parametrize("control", ["<<LABEL>>", "<<SEP>>", "<<EXAMPLE>>", "[SEP]", "</s>", "<|endoftext|>"])
def test_nothing_typed_becomes_a_control_token(
    checkpoints: dict[Any, Path], way: tuple[str, str, bool], control: str
) -> None:
    found = []
    for words in (f"a {control}b {control}{control}", "a b"):
        examples = () if way[0] == "bi-encoder" else (Example(words, (words,)),)
        composer = composer_of(checkpoints[way], prompt=words, examples=examples)
        [composed] = composer.compose([words * 2], composer.labels(make_labels([words, f"{words} two"])))
        [prompt] = composed.prompts
        ids = [(composer.tokenizer, prompt.ids), *((composer._label_tokenizer, ids) for (ids,) in prompt.group.inputs)]
        found.append([number for tokenizer, part in ids for number in part.tolist() if number in marks(tokenizer)])
    assert found[0] == found[1]


def marks(tokenizer: Tokenizer) -> set[int]:
    own = {number for name in oracle.TOKENS if (number := tokenizer.number(name)) is not None}
    return own | {*tokenizer.prefix.tolist(), *tokenizer.suffix.tolist()}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way)))
@pytest.mark.parametrize("long", ["truncate", "chunk"])
@pytest.mark.parametrize("task", ["", "which topic?"])
def test_labels_are_whole_and_texts_fit(
    checkpoints: dict[Any, Path], way: tuple[str, str, bool], long: str, task: str
) -> None:
    architecture = way[0]
    composer = composer_of(checkpoints[way], max_length=96, long=long, prompt=task)
    label_set = make_labels(f"{word} {other}" for word in oracle._WORDS[:6] for other in oracle._WORDS[6:12])
    prepared = composer.labels(label_set)
    text = " ".join(oracle._WORDS[i % 40] for i in range(300))
    short, whole = composer.compose(["fast", text], prepared)
    assert prepared.split == (1 if architecture in BI_ENCODERS else len(prepared.groups))
    assert prepared.split > 1 or architecture in BI_ENCODERS
    covered = np.concatenate([group.columns for group in prepared.groups])
    assert sorted(covered.tolist()) == list(range(36))
    assert not short.too_long
    assert (short.windows, whole.too_long) == (1, True)
    assert whole.windows == 1 if long == "truncate" else whole.windows > 3
    assert len(whole.prompts) == whole.windows * len(prepared.groups)
    for prompt in (*short.prompts, *whole.prompts):
        assert len(prompt.ids) <= 96
        if architecture not in BI_ENCODERS:
            found = prompt.group.ids if architecture in ENCODER_DECODERS else prompt.ids
            assert np.count_nonzero(found == composer.folder.config.class_token_index) == len(prompt.group.columns)
    # The longest prompt of a text that is cut fills the input, and says how long it was.
    assert max(len(prompt.ids) for prompt in whole.prompts) == 96
    [alone] = composer.tokenizer.encode([text])
    assert whole.tokens - whole.limit >= len(alone) - 96
    if long == "chunk":  # every word of the text is read, in every group
        for group in prepared.groups:
            read = np.concatenate([prompt.ids for prompt in whole.prompts if prompt.group is group])
            assert set(alone.tolist()[8:]) <= set(read.tolist())


def test_a_label_beyond_the_model_is_no_label(checkpoints: dict[Any, Path]) -> None:
    composer = composer_of(checkpoints[UNI], max_length=64)
    assert composer.labels(make_labels(["sports " * 27])).split == 1
    with pytest.raises(LabelProblem, match=r"label 'sports .*…' has 30 tokens; labels are never cut"):
        composer.labels(make_labels(["politics", "sports " * 29]))


def test_500_labels_are_read_in_groups_that_leave_room_for_a_text(checkpoints: dict[Any, Path]) -> None:
    composer = composer_of(checkpoints[UNI])
    prepared = composer.labels(make_labels(f"{a} {b} {n}" for n, (a, b) in enumerate(pairwise(oracle._WORDS * 8))))
    assert prepared.split == len(prepared.groups) > 1
    assert prepared.room >= LEAST_TEXT


def test_orders_of_labels_are_averaged(checkpoints: dict[Any, Path]) -> None:
    composer = composer_of(checkpoints[UNI], permutations=3)
    prepared = composer.labels(make_labels(["sports", "politics", "food"]))
    assert (len(prepared.groups), prepared.split) == (3, 1)
    [composed] = composer.compose(["the team won"], prepared)
    logits = [np.float32([1, 2, 3])[prompt.group.columns] + n for n, prompt in enumerate(composed.prompts)]
    assert combine(composed, logits, multi=False).tolist() == [2, 3, 4]
    assert {tuple(prompt.group.columns.tolist()) for prompt in composed.prompts} == {(0, 1, 2), (0, 2, 1), (2, 0, 1)}


def test_windows_are_averaged_or_the_best_is_taken(checkpoints: dict[Any, Path]) -> None:
    composer = composer_of(checkpoints[UNI], max_length=40, long="chunk")
    prepared = composer.labels(make_labels(["sports", "politics"]))
    [composed] = composer.compose(["good " * 50], prepared)
    assert composed.windows == 2
    logits = [np.float32([1, 5]), np.float32([3, 1])]
    assert combine(composed, logits, multi=False).tolist() == [2, 3]
    assert combine(composed, logits, multi=True).tolist() == [3, 5]


def test_what_takes_all_room_is_refused(checkpoints: dict[Any, Path]) -> None:
    with pytest.raises(UsageProblem, match="the task and the examples take"):
        composer_of(checkpoints[UNI], max_length=64, prompt="good " * 60)
    with pytest.raises(UsageProblem, match="the task and the examples take"):
        composer_of(checkpoints[UNI], max_length=64, examples=(Example("good " * 60, ("sports",)),))


# --- the pure parts --------------------------------------------------------------------------------------------------


@given(st.integers(0, 500), st.integers(1, 60), st.integers(0, 20))
def test_windows_cover_everything(length: int, room: int, overlap: int) -> None:
    overlap = min(overlap, room - 1)
    found = windows(length, room, overlap)
    assert found[0][0] == 0
    assert found[-1][1] == length
    assert all(end - start == min(room, length) for start, end in found)
    assert all(a_end - b_start >= overlap for (_, a_end), (b_start, _) in pairwise(found))
    assert all(b_start > a_start for (a_start, _), (b_start, _) in pairwise(found))


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 60), st.none() | st.integers(1, 5))
def test_groups_fit_and_keep_the_order(sizes: list[int], room: int, most: int | None) -> None:
    found = groups(sizes, room, most)
    assert [i for group in found for i in group] == list(range(len(sizes)))
    for group in found:
        assert len(group) == 1 or sum(sizes[i] for i in group) <= room
        assert most is None or len(group) <= most


@given(st.integers(1, 12), st.integers(1, 20))
def test_label_orders_are_distinct_orders(labels: int, permutations: int) -> None:
    found = label_orders(labels, permutations)
    assert found[0] == list(range(labels))
    assert all(sorted(order) == list(range(labels)) for order in found)
    assert len({tuple(order) for order in found}) == len(found) <= permutations
    if permutations <= labels:
        assert len(found) == permutations


def test_joined() -> None:
    assert joined("Task:", "text") == "Task: text"
    assert joined("Task:\n", "text") == "Task:\ntext"
    assert joined("", "text") == "text"
    assert joined("Task:", "") == "Task:"


def lines_of(*lines: str) -> str:
    return "\n".join(lines)


def test_examples_are_read() -> None:
    text = lines_of(
        '{"text": "a", "labels": ["x", "y"]}', "", '{"text": "b", "true_labels": ["x"]}', '{"text": "", "label": "z"}'
    )
    assert parse_examples(text, "f") == (Example("a", ("x", "y")), Example("b", ("x",)), Example("", ("z",)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "f: no examples; each line is one"),
        ("{", "f:1: "),
        ('{"text": "a", "labels": ["x"]}\n[]', "f:2: an object with a text belongs here"),
        ('{"text": 1, "labels": ["x"]}', "f:1: an object with a text"),
        ('{"text": "a"}', "f:1: the example has no labels"),
        ('{"text": "a", "labels": []}', "f:1: the example has no labels"),
        ('{"text": "a", "labels": [1]}', "f:1: the example has no labels"),
    ],
)
def test_wrong_examples_are_named(text: str, message: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        parse_examples(text, "f")
    assert str(caught.value).startswith(message)
