"""Examples move the labels of a bi-encoder: the arithmetic by hand, then what a user meets."""

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from typer.testing import CliRunner

from gliclass_cli.backends import Arrays, Part
from gliclass_cli.classifier import Classifier, Query, StreamOptions
from gliclass_cli.cli.app import app
from gliclass_cli.composer import Composer
from gliclass_cli.decoding import Floats
from gliclass_cli.errors import UsageProblem
from gliclass_cli.labels import make_labels
from gliclass_cli.model_folder import read_model_folder
from gliclass_cli.predictions import Calibration, Choice
from gliclass_cli.prompts import Example, Reading
from gliclass_cli.prototypes import (
    WEIGHTS,
    Product,
    blend,
    choose_weight,
    compare,
    left_out_logits,
    make_prototypes,
    teachable,
)
from gliclass_cli.runtime import Runtime
from gliclass_cli.scoring import Scorer

PRODUCT = Product(10.0, -3.0)
HOT = ("the unit overheats after an hour", "device gets hot and shuts down", "it burns my fingers")
BILL = ("the invoice lists a wrong amount", "I was charged twice this month", "please refund the double payment")
EXAMPLES = tuple(Example(text, (label,)) for label, texts in (("A1", HOT), ("B2", BILL)) for text in texts)
TEXTS = ("it became extremely warm", "you billed me too much", "fan noise and heat", "the price was deducted two times")
NAMES = ("A1", "B2", "C3")
FULL = Choice(digits=15)


def some(rows: int, labels: int = 4, size: int = 6, seed: int = 1) -> tuple[Floats, Floats, Any]:
    """Vectors of labels and texts that lie around them, and who carries what."""
    draw = np.random.default_rng(seed)
    names = draw.normal(size=(labels, size))
    of = np.arange(rows) % labels
    texts = names[of] + draw.normal(size=(rows, size))
    return names, texts, np.eye(labels, dtype=np.bool_)[of]


# --- the arithmetic --------------------------------------------------------------------------------------------------


def test_a_label_turns_towards_its_examples_and_keeps_its_length() -> None:
    labels = np.array([[3.0, 0.0], [0.0, 5.0], [2.0, 0.0]])
    texts = np.array([[0.0, 7.0], [0.0, 1.0], [-1.0, 0.0]])
    carried = np.array([[True, False, False], [True, False, False], [False, True, False]])
    moved = blend(labels, texts, carried, 0.5)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(moved, [[3 * half, 3 * half], [-5 * half, 5 * half], [2.0, 0.0]])
    np.testing.assert_allclose(blend(labels, texts, carried, 0.0), labels)
    # (1 - w) (1, 0) + w (0, 1) at w = 0.2 has the direction (4, 1).
    np.testing.assert_allclose(blend(labels, texts, carried, 0.2)[0], np.array([4.0, 1.0]) * 3 / np.sqrt(17))
    assert blend(labels.astype(np.float32), texts, carried, 0.5).dtype == np.float32


@pytest.mark.parametrize("weight", [0.0, 0.35, 0.95])
def test_an_example_is_scored_without_its_own_text(weight: float) -> None:
    labels, texts, carried = some(11)
    carried[3, :2] = True
    found = left_out_logits(compare(labels, texts, carried), PRODUCT, weight)
    foreign = [(i, j) for i, j in np.argwhere(~carried)]
    whole = blend(labels, texts, carried, weight)
    fallen = [texts[i] @ (labels[j] - whole[j]) for i, j in foreign]
    for i, j in np.ndindex(found.shape):
        others = carried[:, j].copy()
        others[i] = False
        alone = blend(labels[j : j + 1], texts[others], np.ones((others.sum(), 1), dtype=np.bool_), weight)[0]
        assert found[i, j] == pytest.approx(10 * (texts[i] @ alone + np.mean(fallen)) - 3)


def test_an_only_example_leaves_the_plain_label_behind() -> None:
    labels, texts, carried = some(4)
    found = left_out_logits(compare(labels, texts, carried), PRODUCT, 0.7)
    np.testing.assert_allclose(found[carried], (10 * (texts @ labels.T) - 3)[carried])
    # Nobody judges: what a name is worth decides, 1 / (1 + 4).
    assert choose_weight(compare(labels, texts, carried), PRODUCT) == 0.2


def test_the_mean_logit_of_foreign_examples_stays() -> None:
    labels, texts, carried = some(12)
    carried[:, 3] = False
    made = make_prototypes(labels, texts, carried, PRODUCT)
    before, after = 10 * texts @ labels.T, 10 * texts @ made.vectors.T + made.shifts
    foreign = ~carried & carried.any(axis=0)
    assert after[foreign].mean() == pytest.approx(before[foreign].mean())
    assert made.weight > 0
    assert made.shifts[0] == made.shifts[1] != 0
    # The label that has no examples is as it was.
    assert made.shifts[3] == 0
    assert made.vectors[3].tolist() == labels[3].tolist()


def test_noise_moves_nothing() -> None:
    labels, of = np.eye(4, 64), np.arange(200) % 4
    noise = np.random.default_rng(0).normal(size=(200, 64)) * 30
    noise[:, :4] = 0  # all that tells of a label stands in the label's own direction
    carried = np.eye(4, dtype=np.bool_)[of]
    assert choose_weight(compare(labels, labels[of] + noise, carried), Product(20.0, 0.0)) == 0.0


def test_examples_that_tell_are_believed() -> None:
    draw = np.random.default_rng(0)
    labels, centres = np.eye(4, 32), np.eye(4, 32, 8)
    of = np.arange(80) % 4
    texts = centres[of] + 0.05 * draw.normal(size=(80, 32))
    made = make_prototypes(labels, texts, np.eye(4, dtype=np.bool_)[of], PRODUCT)
    assert made.weight > 0.6
    assert ((texts @ made.vectors.T + made.shifts).argmax(axis=1) == of).all()


def test_several_labels_of_an_example_are_judged_by_sigmoids() -> None:
    labels, texts, carried = some(40)
    carried[:8, 1] = True
    similar = compare(labels, texts, carried)
    product = Product(10.0, -3.0, Calibration(1.0, 2.0, 0.5))

    def cost(weight: float) -> float:
        scores = 1 / (1 + np.exp(-(left_out_logits(similar, product, weight) / 2 + 0.5)))
        counts = carried.sum()
        loss = -np.where(carried, np.log(scores), np.log(1 - scores)).sum()
        return float(loss + 20 * (weight - counts / (counts + 16)) ** 2)

    assert choose_weight(similar, product) == min(WEIGHTS, key=cost)


def test_examples_that_tell_nothing_apart_change_nothing() -> None:
    labels, texts, _ = some(3)
    one = np.zeros((3, 4), dtype=np.bool_)
    one[:, 1] = True
    for carried in (one, np.zeros((0, 4), dtype=np.bool_), np.ones((3, 4), dtype=np.bool_)):
        assert not teachable(carried)
        made = make_prototypes(labels, texts[: len(carried)], carried, PRODUCT)
        assert (made.vectors.tolist(), made.shifts.tolist(), made.weight) == (labels.tolist(), [0.0] * 4, 0.0)


def test_null_and_opposite_vectors_give_numbers() -> None:
    labels = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    texts = np.array([[-1.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    carried = np.eye(3, dtype=np.bool_)[[0, 0, 1, 1, 2]]
    made = make_prototypes(labels, texts, carried, PRODUCT)
    assert np.isfinite(made.vectors).all()
    assert np.isfinite(made.shifts).all()
    assert np.isfinite(blend(labels, texts, carried, 0.5)).all()


# --- with models -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught() -> Classifier:
    return Classifier.load(reading=Reading(examples=EXAMPLES), runtime=Runtime(threads=2))


def predict(classifier: Classifier, texts: Sequence[str], options: StreamOptions | None = None) -> dict[str, Any]:
    queries = [Query(None, text, make_labels(NAMES)) for text in texts]
    answers = itertools.chain(*classifier.stream(queries, FULL, options))
    return {query.text or "": getattr(answer, "scores", None) for query, answer in answers}


def test_company_order_and_threads_change_no_score(taught: Classifier) -> None:
    texts = [*TEXTS, *HOT, "word " * 200]
    expected = {text: scores for text in texts for scores in predict(taught, [text]).values()}
    shuffled = random.Random(0).sample(texts, len(texts))
    again = Classifier.load(reading=Reading(examples=EXAMPLES), runtime=Runtime(threads=1))
    for found in (predict(taught, shuffled), predict(again, texts, StreamOptions(batch_tokens=8))):
        for text, scores in found.items():
            assert scores == pytest.approx(expected[text], abs=1e-3)


def test_an_example_is_read_like_a_text() -> None:
    folder = Classifier.load().folder
    for prompt, length in (("", None), ("Which complaint?", None), ("", 12), ("Which complaint?", 16)):
        text = "device gets hot " * 8
        reading = Reading(prompt=prompt, max_length=length, examples=(Example(text, (" A1",)), Example("bill", ("x",))))
        composer = Composer(folder, reading)
        labels = composer.labels(make_labels(NAMES))
        [composed] = composer.compose([text], labels)
        assert labels.shown is not None
        assert labels.shown.inputs[0].tolist() == composed.prompts[0].ids.tolist()
        assert labels.shown.chosen.tolist() == [0]
        assert labels.shown.carried.tolist() == [[True, False, False]]


class Counting:
    """A backend that counts the texts it is given."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.texts = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def run(self, part: Part, inputs: Arrays) -> Floats:
        self.texts += len(inputs["input_ids"]) * (part == "text")
        found: Floats = self._backend.run(part, inputs)
        return found


def test_examples_are_encoded_once_for_rows_with_labels_of_their_own() -> None:
    loaded = Classifier.load()
    backend = Counting(loaded._scorer.backend)
    reading = Reading(examples=(*EXAMPLES, Example("a song that I love", ("music",))))
    classifier = Classifier(loaded.folder, Composer(loaded.folder, reading), Scorer(loaded.folder, backend))
    sets = [("A1", "B2"), ("B2", "A1"), ("A1", "music"), ("x", "y"), ("A1", "x")]
    queries = [Query(number, "it is too hot", make_labels(names)) for number, names in enumerate(sets)]
    scores = [getattr(answer, "scores", {}) for _, answer in itertools.chain(*classifier.stream(queries, FULL))]
    assert backend.texts == len(reading.examples) + len(sets)
    assert scores[0]["A1"] == pytest.approx(scores[1]["A1"])
    plain = [answer.scores for names in sets[3:] for answer in loaded.predict(["it is too hot"], names, FULL)]
    for found, expected in zip(scores[3:], plain, strict=True):  # no example, or those of one label only
        assert found == pytest.approx(expected, abs=1e-6)
    # Examples of other labels are not seen: the first row scores as if there were no music.
    few = Classifier.load(reading=Reading(examples=EXAMPLES)).predict(["it is too hot"], sets[0], FULL)
    assert scores[0] == pytest.approx(few[0].scores, abs=1e-3)


def test_examples_of_no_label_are_refused(taught: Classifier) -> None:
    with pytest.raises(UsageProblem, match=r"match none of the labels \(a, b, c, \.\.\.\): write them the same"):
        taught.predict(["text"], ["a", "b", "c", "d"])
    with pytest.raises(UsageProblem, match="give examples of at least two of them"):
        taught.predict(["text"], ["A1", "b"])


@pytest.mark.parametrize("name", ["bi-encoder/bert/first/mlp", "bi-encoder/bert/last/weighted-dot"])
def test_a_model_without_a_dot_product_is_refused(tmp_path: Path, name: str) -> None:
    oracle.write_checkpoint(next(case for case in oracle.CASES if case.name == name), tmp_path)
    with pytest.raises(UsageProblem, match=r"scorer of its own .*leave --examples out"):
        Composer(read_model_folder(tmp_path), Reading(examples=EXAMPLES))


def test_checkpoints_on_pytorch_learn_too(tmp_path: Path) -> None:
    oracle.write_checkpoint(next(case for case in oracle.CASES if case.name == "bi-encoder/bert/avg/simple"), tmp_path)
    examples = tuple(
        Example(text, (label,)) for text, label in (("good team", "sports"), ("fast delivery", "shipping"))
    )
    labels, text = ["sports", "shipping", "politics"], ["good delivery"]
    taught = Classifier.load(tmp_path, Reading(examples=examples)).predict(text, labels, FULL)[0]
    assert taught.scores != Classifier.load(tmp_path).predict(text, labels, FULL)[0].scores
    assert sum((taught.scores or {}).values()) == pytest.approx(1)


# --- at the command line ---------------------------------------------------------------------------------------------


def run(tmp_path: Path, *arguments: str, examples: Sequence[Example] = ()) -> Any:
    file = tmp_path / "examples.jsonl"
    file.write_text("".join(json.dumps({"text": e.text, "labels": e.labels}) + "\n" for e in examples))
    given = ("--examples", str(file)) if examples else ()
    rows = "".join(json.dumps({"text": text, "own": NAMES[:2]}) + "\n" for text in TEXTS)
    return CliRunner().invoke(app, ["classify", "-q", *arguments, *given], input=rows)


@pytest.mark.parametrize("labels", [("-l", "A1", "-l", "B2"), ("--labels-field", "own")])
def test_examples_teach_labels_that_say_nothing(tmp_path: Path, labels: tuple[str, ...]) -> None:
    def found(examples: Sequence[Example] = ()) -> list[str]:
        result = run(tmp_path, *labels, examples=examples)
        assert result.exit_code == 0, result.stderr
        return [json.loads(line)["prediction"]["label"] for line in result.stdout.splitlines()]

    right = ["A1", "B2", "A1", "B2"]
    assert found() != right
    assert found(EXAMPLES) == right


def test_examples_of_other_labels_are_a_wrong_command(tmp_path: Path) -> None:
    result = run(tmp_path, "-l", "x", "-l", "y", examples=EXAMPLES)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "gliclass: the examples' labels match none of the labels (x, y): write them the same, or leave --examples out\n"
    )
