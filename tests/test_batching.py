"""Batching: each prompt once, within the budget, with little padding."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gliclass_cli.batching import plan_batches

LENGTHS = st.lists(st.integers(0, 600), max_size=60)


@given(lengths=LENGTHS, budget=st.integers(1, 4096))
def test_each_index_once_within_the_budget_the_longest_first(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget
    flat = [lengths[index] for batch in batches for index in batch]
    assert flat == sorted(flat, reverse=True)


@given(lengths=LENGTHS, budget=st.integers(1, 4096))
def test_equal_lengths_keep_their_order_so_that_runs_repeat(lengths: list[int], budget: int) -> None:
    flat = [index for batch in plan_batches(lengths, budget) for index in batch]
    assert flat == sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))


@pytest.mark.parametrize("longest", [20, 64, 512])
def test_hardly_a_padding_token_is_computed(longest: int) -> None:
    chance = random.Random(0)
    lengths = [chance.randint(3, longest) for _ in range(1024)]
    batches = plan_batches(lengths, 1024)
    computed = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert computed <= 1.15 * sum(lengths)
    assert len(batches) <= 2 * sum(lengths) / 1024 + 16  # and batches stay few


@pytest.mark.parametrize(
    ("lengths", "budget", "expected"),
    [
        ([], 100, []),
        ([5], 1, [[0]]),
        ([0, 0, 0], 2, [[0, 1], [2]]),
        ([10, 10, 10], 30, [[0, 1, 2]]),
        ([10, 10, 10], 29, [[0, 1], [2]]),
        ([3, 500, 500], 1000, [[1, 2], [0]]),
    ],
)
def test_examples(lengths: list[int], budget: int, expected: list[list[int]]) -> None:
    assert plan_batches(lengths, budget) == expected
