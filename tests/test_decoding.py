"""Decoding: the same answers as a plain reading of the definitions, at any logits."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gliclass_cli.decoding import Decoder
from gliclass_cli.labels import LabelSet, make_labels, parse_labels
from gliclass_cli.predictions import Calibration, Choice, Coverage, Prediction, Truncation
from gliclass_cli.prompts import word_label

LOGITS = st.lists(st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, 1.0, -1.0, 1e4, -1e4]), min_size=1, max_size=8)
TEMPERATURES = st.floats(0.01, 100)


def labels_for(logits: Any) -> LabelSet:
    return make_labels(f"label {number}" for number in range(len(logits)))


def decode(
    logits: list[float], dtype: Any = np.float64, calibration: Calibration | None = None, **choice: Any
) -> Prediction:
    decoder = Decoder(Choice(**choice), calibration or Calibration())
    return decoder.decode(np.array(logits, dtype=dtype), labels_for(logits))


def softmax(logits: list[float], temperature: float) -> list[float]:
    most = max(logits)
    powers = [math.exp((logit - most) / temperature) for logit in logits]
    return [power / math.fsum(powers) for power in powers]


def sigmoid(logit: float, temperature: float, bias: float) -> float:
    z = logit / temperature + bias
    return 1 / (1 + math.exp(-z)) if z > -700 else 0.0


@given(logits=LOGITS, temperature=TEMPERATURES)
def test_single_label_scores_are_a_softmax(logits: list[float], temperature: float) -> None:
    scores = Decoder(calibration=Calibration(single_temperature=temperature)).scores(np.array(logits))
    assert scores.tolist() == pytest.approx(softmax(logits, temperature), abs=1e-12, rel=1e-9)
    assert scores.sum() == pytest.approx(1)


@given(logits=LOGITS, temperature=TEMPERATURES, bias=st.floats(-100, 100))
def test_multi_label_scores_are_sigmoids(logits: list[float], temperature: float, bias: float) -> None:
    calibration = Calibration(multi_temperature=temperature, multi_bias=bias)
    scores = Decoder(Choice(multi=True), calibration).scores(np.array(logits))
    assert scores.tolist() == pytest.approx(
        [sigmoid(logit, temperature, bias) for logit in logits], abs=1e-12, rel=1e-9
    )


@given(logits=LOGITS, multi=st.booleans())
def test_half_the_precision_gives_the_same_answer(logits: list[float], multi: bool) -> None:
    single = np.array(logits, dtype=np.float32).astype(np.float64).tolist()
    assert decode(single, np.float32, multi=multi) == decode(single, np.float64, multi=multi)


@given(logits=LOGITS, multi=st.booleans(), threshold=st.none() | st.floats(0, 1), digits=st.integers(1, 15))
def test_what_a_prediction_holds(logits: list[float], multi: bool, threshold: float | None, digits: int) -> None:
    prediction = decode(logits, multi=multi, threshold=threshold, digits=digits)
    exact = Decoder(Choice(multi=multi)).scores(np.array(logits)).tolist()
    names = labels_for(logits).names
    assert list(prediction.scores or ()) == list(names)  # all, in the order given
    assert prediction.scores == {name: round(score, digits) for name, score in zip(names, exact, strict=True)}
    assert prediction.label == (prediction.labels[0] if prediction.labels else None)
    assert prediction.score == (prediction.scores[prediction.label] if prediction.label else None)
    order = sorted(range(len(logits)), key=lambda j: -logits[j])
    least = 0.5 if multi and threshold is None else threshold or 0.0
    accepted = [names[j] for j in (order if multi else order[:1]) if exact[j] >= least]
    assert prediction.labels == tuple(accepted)
    assert all(type(score) is float for score in prediction.scores.values())
    json.dumps(prediction.to_dict(), allow_nan=False)


@given(logits=LOGITS, k=st.integers(1, 10), multi=st.booleans())
def test_top_k_reports_the_best_and_limits_no_label(logits: list[float], k: int, multi: bool) -> None:
    best, whole = decode(logits, top_k=k, multi=multi), decode(logits, multi=multi)
    assert best.labels == whole.labels
    order = sorted(range(len(logits)), key=lambda j: -logits[j])[:k]
    assert list(best.scores or ()) == [f"label {j}" for j in order]
    assert (best.scores or {}).items() <= (whole.scores or {}).items()


@given(logits=LOGITS, multi=st.booleans(), data=st.data())
def test_thresholds_are_inclusive(logits: list[float], multi: bool, data: st.DataObject) -> None:
    exact = Decoder(Choice(multi=multi)).scores(np.array(logits)).tolist()
    threshold = data.draw(st.sampled_from(exact)) if multi else max(exact)
    assert decode(logits, multi=multi, threshold=threshold).labels
    above = math.nextafter(threshold, 2)
    assume(above <= 1)
    assert len(decode(logits, multi=multi, threshold=above).labels) < len(
        decode(logits, multi=multi, threshold=threshold).labels
    )


@given(logits=LOGITS, seed=st.randoms(use_true_random=False), multi=st.booleans())
def test_the_order_of_labels_changes_no_score(logits: list[float], seed: Any, multi: bool) -> None:
    order = list(range(len(logits)))
    seed.shuffle(order)
    names = labels_for(logits).names
    labels = make_labels(names[j] for j in order)
    decoder = Decoder(Choice(multi=multi, digits=9))
    shuffled = decoder.decode(np.array([logits[j] for j in order]), labels).scores or {}
    assert shuffled == pytest.approx(dict(decoder.decode(np.array(logits), labels_for(logits)).scores or {}))


def test_multi_takes_a_logit_of_zero() -> None:
    assert decode([0.0, -1e-12], multi=True).labels == ("label 0",)


def test_ties_go_to_the_label_given_first() -> None:
    assert decode([0.5, 1.0, 1.0], multi=True, top_k=2).labels == ("label 1", "label 2", "label 0")
    assert decode([0.5, 1.0, 1.0]).label == "label 1"
    assert list(decode([1.0, 1.0, 1.0], top_k=2).scores or ()) == ["label 0", "label 1"]


@pytest.mark.parametrize("multi", [True, False])
def test_the_best_comes_first_also_where_scores_round_to_the_same(multi: bool) -> None:
    prediction = decode([50.0, 60.0, -1000.0, -900.0], multi=multi, top_k=4)
    assert prediction.label == "label 1"
    assert list(prediction.scores or ()) == ["label 1", "label 0", "label 3", "label 2"]


def test_one_label() -> None:
    assert decode([-1e4]).to_dict() == {
        "label": "label 0",
        "score": 1.0,
        "labels": ["label 0"],
        "scores": {"label 0": 1.0},
    }
    assert decode([-1e4], multi=True).to_dict() == {
        "label": None,
        "score": None,
        "labels": [],
        "scores": {"label 0": 0.0},
    }


def test_scores_can_be_nested_or_left_out() -> None:
    labels = parse_labels({"topic": {"billing": None, "shipping": None}, "other": None})
    logits = np.log([0.6, 0.3, 0.1])
    nested = Decoder(Choice(nested=True)).decode(logits, labels)
    assert nested.scores == {"topic": {"billing": 0.6, "shipping": 0.3}, "other": 0.1}
    assert nested.label == "topic.billing"
    best = Decoder(Choice(nested=True, top_k=1)).decode(logits, labels)
    assert best.scores == {"topic": {"billing": 0.6}}
    assert "scores" not in Decoder(Choice(with_scores=False)).decode(logits, labels).to_dict()


def test_a_cut_text_says_so() -> None:
    prediction = Decoder().decode(np.zeros(1), make_labels(["a"]), Coverage(Truncation(1893, 512), None, 3))
    assert prediction.to_dict()["truncated"] == {"tokens": 1893, "limit": 512}
    assert prediction.to_dict()["label_groups"] == 3
    assert "chunks" not in prediction.to_dict()
    assert Decoder().decode(np.zeros(1), make_labels(["a"]), Coverage(chunks=2)).to_dict()["chunks"] == 2


@pytest.mark.parametrize(
    ("template", "name", "description", "expected"),
    [
        ("About {label}.", "billing", None, "About billing."),
        ("About {label}.", "billing", "money", "About billing: money."),
        ("{label} {label}", "a", "", "a a"),
        ("{label} 100% {0}", "{label} %s {x}", None, "{label} %s {x} 100% {0}"),
    ],
)
def test_a_template_is_no_format_string(template: str, name: str, description: str | None, expected: str) -> None:
    assert word_label(template, name, description) == expected


def test_the_temperature_may_fall_with_the_number_of_labels() -> None:
    calibration = Calibration(single_temperature=0.8, label_exponent=0.25)
    assert calibration.temperature_of(1) == 0.8
    assert calibration.temperature_of(16) == pytest.approx(0.4)
    logits = np.array([1.0, *[0.0] * 15])
    scores = Decoder(calibration=calibration).scores(logits)
    assert scores[0] == pytest.approx(np.exp(2.5) / (np.exp(2.5) + 15))
    assert Decoder(calibration=Calibration(single_temperature=0.4)).scores(logits) == pytest.approx(scores)
