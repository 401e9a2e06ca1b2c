"""Calibration error and ranks: the same as a plain reading of their definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gliclass_cli.metrics import BINS, Bin, calibration_error, hit_rate, ranks, reliability

ANSWERS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60)


def ece(answers: list[tuple[float, bool]], bins: int = BINS) -> float:
    scores = np.array([score for score, _ in answers], dtype=np.float64)
    return calibration_error(reliability(scores, np.array([right for _, right in answers], dtype=np.bool_), bins))


def plain_ece(answers: list[tuple[float, bool]], bins: int) -> float:
    total = 0.0
    for number in range(bins):
        inside = [each for each in answers if min(int(each[0] * bins), bins - 1) == number]
        if inside:
            score = math.fsum(score for score, _ in inside) / len(inside)
            accuracy = sum(right for _, right in inside) / len(inside)
            total += len(inside) / len(answers) * abs(score - accuracy)
    return total


@given(answers=ANSWERS, bins=st.integers(1, 20))
def test_ece_follows_its_definition(answers: list[tuple[float, bool]], bins: int) -> None:
    assert ece(answers, bins) == pytest.approx(plain_ece(answers, bins), abs=1e-12)


@given(answers=ANSWERS, bins=st.integers(1, 20), seed=st.randoms(use_true_random=False))
def test_ece_is_a_share_and_knows_no_order(answers: list[tuple[float, bool]], bins: int, seed: "object") -> None:
    shuffled = list(answers)
    seed.shuffle(shuffled)  # type: ignore[attr-defined]
    assert 0 <= ece(answers, bins) <= 1
    assert ece(shuffled, bins) == pytest.approx(ece(answers, bins))
    assert ece(answers * 3, bins) == pytest.approx(ece(answers, bins))


@given(rights=st.lists(st.booleans(), min_size=1, max_size=30))
def test_ece_of_the_base_rate_is_zero_and_of_certainty_the_error(rights: list[bool]) -> None:
    rate = sum(rights) / len(rights)
    assert ece([(rate, right) for right in rights]) == pytest.approx(0, abs=1e-12)
    assert ece([(1.0, right) for right in rights]) == pytest.approx(1 - rate)


def test_ece_by_hand() -> None:
    answers = [(0.95, True), (0.95, False), (0.55, True), (0.25, False)]
    # Bins of a fifth: |0.95 - 0.5| of two answers, |0.55 - 1|, |0.25 - 0| of one each.
    assert ece(answers, 5) == pytest.approx((2 * 0.45 + 0.45 + 0.25) / 4)


@given(answers=ANSWERS)
def test_bins_hold_every_answer_once(answers: list[tuple[float, bool]]) -> None:
    bins = reliability(
        np.array([s for s, _ in answers], dtype=np.float64), np.array([r for _, r in answers], dtype=bool)
    )
    assert sum(each.count for each in bins) == len(answers)
    assert all(each.low - 1e-9 <= each.score <= each.high + 1e-9 for each in bins)
    assert all(type(value) in (int, float) for each in bins for value in (each.count, each.score, each.accuracy))


def test_edges_belong_to_the_bin_above() -> None:
    assert reliability(np.array([0.5, 1.0]), np.array([True, True]), 2) == (Bin(0.5, 1.0, 2, 0.75, 1.0),)


@given(
    rows=st.lists(
        st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.9]), st.booleans()), min_size=4, max_size=4), min_size=1
    )
)
def test_ranks_follow_a_stable_sort(rows: list[list[tuple[float, bool]]]) -> None:
    values = np.array([[value for value, _ in row] for row in rows])
    right = np.array([[flag for _, flag in row] for row in rows])
    expected = []
    for row in rows:
        order = sorted(range(4), key=lambda j: -row[j][0])
        expected.append(next((place for place, j in enumerate(order) if row[j][1]), 4))
    assert ranks(values, right).tolist() == expected


def test_unknown_values_stand_last() -> None:
    values = np.array([[np.nan, 0.2, 0.8], [np.nan, 0.2, 0.8]])
    assert ranks(values, np.array([[True, False, False], [False, True, False]])).tolist() == [2, 1]
    assert hit_rate(np.array([2, 1]), 2) == 0.5
    assert hit_rate(np.array([], dtype=np.intp), 1) == 0.0
