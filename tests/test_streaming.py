"""Streaming: order, errors in their place, threads that end, and no row that waits without need."""

import queue
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gliclass_cli.streaming import Ahead, windows

# A busy machine may be late by this much.
TOLERANCE = 1.0


class Boom(Exception):
    """An error of the items."""


def failing(items: list[int], error: BaseException) -> Iterator[int]:
    yield from items
    raise error


def taken(ahead: Ahead[int]) -> tuple[list[int], BaseException]:
    """All items, and what ended them."""
    items = []
    while True:
        try:
            items.append(ahead.take(5))
        except BaseException as error:  # noqa: BLE001 - looked at by the tests
            return items, error


def gather(
    items: Iterator[int], linger: float | None = None, rows: int = 1024, weight: int = 1 << 30
) -> list[list[int]]:
    return list(
        windows(Ahead(items, 256, "read"), lambda item: item, most_rows=rows, most_weight=weight, linger=linger)
    )


class Feed:
    """Items that come when a test puts them; None ends them."""

    def __init__(self) -> None:
        self.queue: queue.Queue[int | None] = queue.Queue()
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[int]:
        while (item := self.queue.get(timeout=10)) is not None:
            yield item

    def close(self) -> None:
        self.closed.set()


# --- Ahead -----------------------------------------------------------------------------------------------------------


@given(items=st.lists(st.integers(), max_size=50), capacity=st.integers(1, 8))
def test_items_come_in_order_then_the_end(items: list[int], capacity: int) -> None:
    ahead = Ahead(items, capacity, "read")
    seen, end = taken(ahead)
    assert seen == items
    assert isinstance(end, StopIteration)
    with pytest.raises(StopIteration):
        ahead.take()


@pytest.mark.parametrize("error", [Boom("x"), KeyboardInterrupt(), MemoryError(), SystemExit(3)])
def test_an_error_comes_after_all_items_before_it(error: BaseException) -> None:
    ahead = Ahead(failing([1, 2, 3], error), 1, "read")
    assert taken(ahead) == ([1, 2, 3], error)
    with pytest.raises(StopIteration):
        ahead.take()


def test_a_timeout_of_the_items_is_not_taken_for_patience() -> None:
    ahead = Ahead(failing([1], TimeoutError("the network")), 1, "read")
    assert ahead.take() == 1
    with pytest.raises(RuntimeError, match=r"reading ahead failed: .*the network"):
        ahead.take(5)
    with pytest.raises(RuntimeError):
        gather(failing([1], TimeoutError("the network")), linger=0.01)


def test_it_works_ahead_but_not_far() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    ahead = Ahead(items(), 3, "read")
    assert ahead.take() == 0
    wait_until(lambda: len(made) >= 5)
    time.sleep(0.05)
    assert len(made) == 5  # one taken, three waiting, one in hand
    ahead.close()


def test_take_waits_as_long_as_it_is_told() -> None:
    feed = Feed()
    ahead = Ahead(feed, 1, "read")
    for timeout in (0.0, 0.02, 0.25):
        before = time.monotonic()
        with pytest.raises(TimeoutError):
            ahead.take(timeout)
        assert timeout <= time.monotonic() - before < timeout + TOLERANCE
    feed.queue.put(7)
    assert ahead.take(5) == 7
    feed.queue.put(8)
    wait_until(lambda: not ahead._queue.empty())
    assert ahead.take(0) == 8
    feed.queue.put(None)
    assert taken(ahead)[0] == []


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 5
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_close_ends_a_thread_that_waits_for_room_and_closes_its_items() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    ahead = Ahead(endless(), 2, "endless-items")
    ahead.close()
    assert closed.wait(5)
    wait_until(lambda: "endless-items" not in [thread.name for thread in threading.enumerate()])


def test_close_frees_who_waits_for_an_item() -> None:
    feed = Feed()
    ahead = Ahead(feed, 1, "read")
    threading.Timer(0.05, ahead.close).start()
    with pytest.raises(StopIteration):
        ahead.take()
    feed.queue.put(1)  # the thread, which waits for input, sees that nobody wants it
    assert feed.closed.wait(5)


def test_the_end_closes_the_items_too() -> None:
    feed = Feed()
    feed.queue.put(None)
    assert taken(Ahead(feed, 1, "read"))[0] == []
    assert feed.closed.wait(5)


# --- windows ---------------------------------------------------------------------------------------------------------


@given(
    items=st.lists(st.integers(0, 5), max_size=200),
    linger=st.sampled_from([None, 0.0, 0.001]),
    rows=st.integers(1, 64),
    weight=st.integers(1, 40),
)
def test_windows_hold_every_row_in_order(items: list[int], linger: float | None, rows: int, weight: int) -> None:
    found = gather(iter(items), linger, rows, weight)
    assert [item for window in found for item in window] == items
    for window in found:
        assert 0 < len(window) <= rows
        assert sum(window[:-1]) < weight


def test_windows_grow() -> None:
    assert [len(window) for window in gather(iter([0] * 1000), rows=300)] == [32, 64, 128, 256, 300, 220]
    assert [len(window) for window in gather(iter([0] * 20), rows=8)] == [8, 8, 4]


def test_heavy_rows_make_small_windows() -> None:
    assert gather(iter([9, 9, 9, 30, 1, 1]), weight=10) == [[9, 9], [9, 30], [1, 1]]


@pytest.mark.parametrize("error", [Boom("x"), KeyboardInterrupt()])
def test_an_error_comes_after_the_rows_before_it(error: BaseException) -> None:
    found = windows(
        Ahead(failing([1, 2, 3], error), 9, "read"), lambda item: 1, most_rows=9, most_weight=99, linger=None
    )
    assert next(found) == [1, 2, 3]
    with pytest.raises(type(error)):
        next(found)


@pytest.mark.parametrize("linger", [0.0, 0.05])
def test_a_lone_row_is_not_held_longer_than_linger(linger: float) -> None:
    feed = Feed()
    found = windows(Ahead(feed, 9, "read"), lambda item: 1, most_rows=9, most_weight=99, linger=linger)
    for row in range(3):
        feed.queue.put(row)
        before = time.monotonic()
        assert next(found) == [row]
        assert linger <= time.monotonic() - before < linger + TOLERANCE
    feed.queue.put(None)
    assert list(found) == []


def test_the_wait_counts_from_the_first_row_however_many_follow() -> None:
    feed = Feed()
    found = windows(Ahead(feed, 9, "read"), lambda item: 1, most_rows=1000, most_weight=9999, linger=0.2)
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.02):
            feed.queue.put(1)
        feed.queue.put(None)

    dripping = threading.Thread(target=drip)
    dripping.start()
    before = time.monotonic()
    assert 1 < len(next(found)) < 32
    assert time.monotonic() - before < 0.2 + TOLERANCE
    stop.set()
    dripping.join()
    list(found)


def test_without_linger_rows_wait_for_a_full_window() -> None:
    feed = Feed()
    found = windows(Ahead(feed, 9, "read"), lambda item: 1, most_rows=2, most_weight=99, linger=None)
    feed.queue.put(1)
    threading.Timer(0.1, feed.queue.put, [2]).start()
    assert next(found) == [1, 2]
    feed.queue.put(None)
    assert list(found) == []


@pytest.mark.parametrize(
    ("weights", "taken_early"), [([1] * 20, 10), ([100, 1, 1], 1), ([9, 9, 9], 1), ([3, 3, 3, 3], 3)]
)
def test_what_waits_is_bounded_by_its_weight_too(weights: list[int], taken_early: int) -> None:
    started: list[int] = []

    def items() -> Iterator[int]:
        for weight in weights:
            started.append(weight)
            yield weight

    ahead = Ahead(items(), 256, "read", weigh=lambda item: item, most=10)
    expected = min(len(weights), taken_early + 1)  # one more is in hand
    deadline = time.monotonic() + 30
    while len(started) < expected and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(started) == expected
    found, end = taken(ahead)
    assert (found, type(end)) == (weights, StopIteration)
