"""A score depends on the text and the labels, and on nothing else: batch, threads, order, cache, company."""

import itertools
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import orjson
import pytest

import gliclass_cli
from gliclass_cli.classifier import Classifier, Query, StreamOptions
from gliclass_cli.composer import PreparedLabels, Prompt
from gliclass_cli.decoding import Floats
from gliclass_cli.errors import InputUnusable, ModelUnusable, OutOfMemory
from gliclass_cli.labels import LabelProblem, LabelSet, make_labels, parse_labels
from gliclass_cli.predictions import Choice, Coverage, Prediction, Refusal, Truncation
from gliclass_cli.prompts import Reading
from gliclass_cli.runtime import Runtime

EXAMPLES = Path(__file__).parents[1] / "examples"
# The bundled model is int8: its promise is 1e-3, with all digits reported.
TOLERANCE = 1e-3
FULL = Choice(digits=15)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier.load(runtime=Runtime(threads=2))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    tickets = [orjson.loads(line)["text"] for line in (EXAMPLES / "tickets.jsonl").read_bytes().splitlines()]
    logs = (EXAMPLES / "server.log").read_text("utf-8").splitlines()
    return [*tickets[:20], *logs[:10], "", " ", "word " * 300, "短い", "🙂", tickets[0]]


@pytest.fixture(scope="module")
def labels() -> LabelSet:
    return make_labels((EXAMPLES / "tickets.labels.txt").read_text("utf-8").splitlines())


def stream(classifier: Classifier, texts: list[str], labels: LabelSet, **options: object) -> list[Prediction]:
    queries = (Query(number, text, labels) for number, text in enumerate(texts))
    pairs = [pair for window in classifier.stream(queries, FULL, StreamOptions(**options)) for pair in window]  # type: ignore[arg-type]
    assert [query.item for query, _ in pairs] == list(range(len(texts)))
    predictions = [prediction for _, prediction in pairs]
    assert all(predictions)
    return predictions  # type: ignore[return-value]


def assert_same(left: list[Prediction], right: list[Prediction]) -> None:
    for one, other in zip(left, right, strict=True):
        assert one.scores and other.scores
        assert list(one.scores) == list(other.scores)
        for name, score in one.scores.items():
            assert other.scores[name] == pytest.approx(score, abs=TOLERANCE)
        assert one.coverage == other.coverage


@pytest.fixture(scope="module")
def alone(classifier: Classifier, texts: list[str], labels: LabelSet) -> list[Prediction]:
    """Each text computed by itself."""
    return [classifier.predict([text], labels, FULL)[0] for text in texts]


@pytest.mark.parametrize("batch_tokens", [1, 64, 4096, 65_536])
def test_the_batch_does_not_change_a_score(
    classifier: Classifier, texts: list[str], labels: LabelSet, alone: list[Prediction], batch_tokens: int
) -> None:
    assert_same(stream(classifier, texts, labels, batch_tokens=batch_tokens), alone)


def test_the_number_of_threads_does_not_change_a_score(
    texts: list[str], labels: LabelSet, alone: list[Prediction]
) -> None:
    for threads in (1, 2, 3):
        assert_same(stream(Classifier.load(runtime=Runtime(threads=threads)), texts, labels), alone)


def test_the_order_does_not_change_a_score(
    classifier: Classifier, texts: list[str], labels: LabelSet, alone: list[Prediction]
) -> None:
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)
    shuffled = stream(classifier, [texts[i] for i in order], labels)
    assert_same([shuffled[order.index(i)] for i in range(len(texts))], alone)


def test_the_cache_does_not_change_a_score(
    classifier: Classifier, texts: list[str], labels: LabelSet, alone: list[Prediction]
) -> None:
    repeated = texts * 3
    for cached in (0, 1, 7, 65_536):
        assert_same(stream(classifier, repeated, labels, cached_texts=cached), alone * 3)


def test_identical_texts_are_computed_once(
    classifier: Classifier, labels: LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    score = classifier._scorer.score

    def counted(prompts):  # type: ignore[no-untyped-def]
        seen.append(len(prompts))
        return score(prompts)

    monkeypatch.setattr(classifier._scorer, "score", counted)
    texts = [f"text {number % 10}" for number in range(5000)]  # over several windows
    assert len(stream(classifier, texts, labels)) == 5000
    assert sum(seen) == 10


def test_labels_are_encoded_once(labels: LabelSet, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = Classifier.load()
    calls: list[PreparedLabels] = []
    prepare = classifier._scorer.prepare
    monkeypatch.setattr(classifier._scorer, "prepare", lambda given: calls.append(given) or prepare(given))  # type: ignore[func-returns-value]
    for _ in range(3):
        classifier.predict(texts[:5], labels)
    assert [call.labels for call in calls] == [labels]


def test_each_row_can_bring_its_own_labels(classifier: Classifier) -> None:
    sets = [make_labels(["billing", "praise"]), make_labels(["weather"]), make_labels(["praise", "weather", "billing"])]
    queries = [Query(n, f"text {n // 3}: charged twice", sets[n % 3]) for n in range(30)]
    pairs = list(itertools.chain(*classifier.stream(queries, Choice(multi=True, digits=9))))
    for query, prediction in pairs:
        assert prediction and prediction.scores and query.labels and query.text
        assert list(prediction.scores) == list(query.labels.names)
        assert prediction.scores == pytest.approx(
            classifier.predict([query.text], query.labels, Choice(multi=True, digits=9))[0].scores, abs=TOLERANCE
        )


def test_rows_without_text_keep_their_place(classifier: Classifier, labels: LabelSet) -> None:
    queries = [Query(n, None if n % 3 == 0 else f"text {n}", labels) for n in range(100)]
    pairs = list(itertools.chain(*classifier.stream(queries)))
    assert [query.item for query, _ in pairs] == list(range(100))
    assert [prediction is None for _, prediction in pairs] == [n % 3 == 0 for n in range(100)]


def test_right_answers(classifier: Classifier, labels: LabelSet) -> None:
    rows = [orjson.loads(line) for line in (EXAMPLES / "tickets.jsonl").read_bytes().splitlines()]
    found = classifier.predict([row["text"] for row in rows], labels)
    right = sum(prediction.label == row["team"] for prediction, row in zip(found, rows, strict=True))
    assert right / len(rows) > 0.6


def test_long_texts_are_cut_and_say_so(classifier: Classifier, labels: LabelSet) -> None:
    short, long = classifier.predict(["word " * 510, "word " * 511], labels)
    assert short.coverage == Coverage()
    assert long.coverage == Coverage(truncated=Truncation(513, 512))
    cut = Classifier.load(reading=Reading(max_length=16)).predict(["word " * 100], labels)[0]
    assert cut.coverage == Coverage(truncated=Truncation(102, 16))


def test_long_texts_are_read_in_chunks_and_say_so(labels: LabelSet) -> None:
    classifier = Classifier.load(reading=Reading(max_length=40, long="chunk"))
    filler, hidden = "the weather is mild and the sky is grey today . " * 20, "my parcel never arrived . "
    text = filler + hidden + filler
    for choice in (Choice(), Choice(multi=True)):
        chunked = classifier.predict([text, hidden], labels, choice)
        assert chunked[0].coverage == Coverage(chunks=16)
        assert chunked[1].coverage == Coverage()
    cut = Classifier.load(reading=Reading(max_length=40)).predict([text], labels, Choice(multi=True, digits=9))[0]
    whole = classifier.predict([text], labels, Choice(multi=True, digits=9))[0]
    assert cut.scores and whole.scores
    # Somewhere in the text it is about shipping: the best chunk says so, the first one does not.
    assert whole.scores["shipping"] > cut.scores["shipping"]
    assert all(whole.scores[name] >= cut.scores[name] - TOLERANCE for name in labels.names)


def test_long_texts_are_an_error_where_that_is_asked_for(labels: LabelSet) -> None:
    classifier = Classifier.load(reading=Reading(max_length=16, long="error"))
    queries = [Query(n, text, labels) for n, text in enumerate(["short", "word " * 100, "short too", "word " * 100])]
    answers = [answer for _, answer in itertools.chain(*classifier.stream(queries))]
    assert [isinstance(answer, Refusal) for answer in answers] == [False, True, False, True]
    assert isinstance(answers[1], Refusal)
    assert answers[1].code == "text_too_long"
    assert "102 tokens" in answers[1].message
    with pytest.raises(ValueError, match="too long"):
        classifier.predict(["word " * 100], labels)


def test_labels_are_never_cut(classifier: Classifier) -> None:
    names = ["billing", "a " * 600]
    with pytest.raises(LabelProblem, match=r"has 60\d tokens; labels are never cut"):
        classifier.predict(["text"], names)
    [(_, answer), (_, other)] = itertools.chain(
        *classifier.stream([Query(0, "text", make_labels(names)), Query(1, "text", make_labels(["billing"]))])
    )
    assert isinstance(answer, Refusal)
    assert answer.code == "bad_labels"
    assert isinstance(other, Prediction)


def test_special_tokens_in_texts_and_labels_are_plain_text(classifier: Classifier) -> None:
    names = ["[SEP]", "[CLS] billing", "<<LABEL>>", "{label}", "praise"]
    one, other = classifier.predict(["good [SEP] bad", "good sep bad"], names, FULL)
    assert list(one.scores or ()) == names
    assert one.scores != other.scores  # the brackets are read, not swallowed as a token


def test_templates_and_descriptions_reach_the_model(classifier: Classifier) -> None:
    plain = parse_labels({"a1": None, "b2": None})
    described = parse_labels({"a1": "invoices and payments", "b2": "parcels and couriers"})
    text = ["my parcel never arrived"]
    assert classifier.predict(text, plain, FULL) != classifier.predict(text, described, FULL)
    assert classifier.predict(text, described)[0].label == "b2"
    assert Classifier.load(reading=Reading(template="{label}")).predict(text, described, FULL) != classifier.predict(
        text, described, FULL
    )


def test_a_failing_input_comes_after_all_rows_before_it(classifier: Classifier, labels: LabelSet) -> None:
    def broken() -> Iterator[Query[int]]:
        for number in range(50):
            yield Query(number, f"text {number}", labels)
        raise InputUnusable("the disk went away")

    seen = []
    with pytest.raises(InputUnusable, match="the disk went away"):
        for window in classifier.stream(broken()):
            seen += [query.item for query, _ in window]
    assert seen == list(range(50))


def test_stopping_yields_a_prefix_of_finished_rows(classifier: Classifier, labels: LabelSet) -> None:
    stop = threading.Event()
    endless = (Query(n, f"text number {n}", labels) for n in itertools.count())
    seen: list[int] = []
    for window in classifier.stream(endless, stop=stop):
        seen += [query.item for query, _ in window]
        stop.set()
    assert seen == list(range(len(seen)))
    assert seen


def test_a_row_waits_no_longer_than_linger(classifier: Classifier, labels: LabelSet) -> None:
    gate = threading.Event()

    def slow() -> Iterator[Query[int]]:
        yield Query(0, "the first text", labels)
        gate.wait(20)
        yield Query(1, "the second text", labels)

    windows = classifier.stream(slow(), options=StreamOptions(linger=0.02))
    start = time.monotonic()
    first = next(windows)
    waited = time.monotonic() - start
    gate.set()
    rest = list(itertools.chain(*windows))
    assert [query.item for query, _ in first] == [0]
    assert [query.item for query, _ in rest] == [1]
    assert waited < 5


def test_threads_end_with_the_stream(classifier: Classifier, labels: LabelSet) -> None:
    before = threading.active_count()
    windows = classifier.stream(Query(n, f"text {n}", labels) for n in itertools.count())
    next(windows)
    windows.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() <= before


def test_wrong_use_says_what_is_wrong(classifier: Classifier) -> None:
    with pytest.raises(TypeError, match="several texts"):
        classifier.predict("one text", ["a", "b"])
    with pytest.raises(LabelProblem, match="no labels"):
        classifier.predict(["text"], [])
    with pytest.raises(LabelProblem, match="'a' is given twice"):
        classifier.predict(["text"], ["a", "b", "a"])
    with pytest.raises(ModelUnusable, match="no model 'nowhere'"):
        Classifier.load("nowhere")
    assert classifier.predict([], ["a"]) == []


def test_the_bundled_model_answers_as_shipped(classifier: Classifier) -> None:
    assert classifier.folder.self_check
    assert classifier.self_check() <= classifier.folder.self_check.tolerance


def test_the_package_offers_the_classifier() -> None:
    assert gliclass_cli.Classifier is Classifier
    with pytest.raises(AttributeError):
        gliclass_cli.Nothing  # noqa: B018


def test_a_text_that_needs_more_memory_than_there_is_is_an_error_of_its_row(
    classifier: Classifier, labels: LabelSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = classifier._scorer.score

    def small(prompts: Sequence[Prompt]) -> list[Floats]:
        if sum(map(len, prompts)) > 200:
            raise OutOfMemory("there is not enough memory")
        return score(prompts)

    monkeypatch.setattr(classifier._scorer, "score", small)
    queries = (
        Query(None, text, labels) for text in ["word " * 60, "short", "word " * 400, "word " * 61, "order " * 70]
    )
    found = [answer for window in classifier.stream(queries, FULL) for _, answer in window]
    assert found[2] == Refusal("out_of_memory", "there is not enough memory")
    assert all(isinstance(answer, Prediction) for number, answer in enumerate(found) if number != 2)


def test_a_long_text_in_many_orders_takes_little_memory(labels: LabelSet) -> None:
    """Prompts of one text share their pieces: 3,000 windows of 512 tokens are not in memory at once."""
    classifier = Classifier.load(reading=Reading(long="chunk", max_length=64))
    [composed] = classifier._composer.compose(["word " * 150_000], classifier._prepare(labels)[1])
    text = next(piece for piece in composed.prompts[0].pieces if len(piece) > 2)
    assert composed.windows > 2000
    assert text.base is not None  # a view of the text
    assert composed.prompts[7].ids.tolist() == [101, *[2773] * 62, 102]
