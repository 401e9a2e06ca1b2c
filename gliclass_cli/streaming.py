"""Threads that work ahead of their consumer, a bounded distance, in order."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
# How long a waiting thread sleeps before it looks whether it should stop.
_TICK = 0.1
_FIRST_WINDOW = 32


@dataclass(slots=True)
class _Failure:
    error: BaseException


class _End:
    """Marks the end of the items."""


class Ahead(Generic[T]):
    """Iterates ``items`` in a thread of its own, at most ``capacity`` items ahead of whoever takes them.

    ``weigh`` and ``most`` bound what waits by its weight too; one item may always wait.

    An exception of ``items`` is raised to the taker in its place, after all items before it. ``close`` lets the
    thread go; one that waits for input that never comes does not keep the process alive.
    """

    def __init__(
        self,
        items: Iterable[T],
        capacity: int,
        name: str,
        *,
        weigh: Callable[[T], int] = lambda item: 0,
        most: int = 0,
    ) -> None:
        """Start the thread."""
        self._weigh = weigh
        self._most = most
        self._waiting = 0  # weight of the items that nobody has taken
        self._taken = threading.Condition()
        self._queue: queue.Queue[T | _Failure | _End] = queue.Queue(capacity)
        self._closed = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._work, args=(items,), name=name, daemon=True)
        self._thread.start()

    def take(self, timeout: float | None = None) -> T:
        """Return the next item.

        Raises:
            StopIteration: there are no more.
            TimeoutError: none came within ``timeout`` seconds.
            RuntimeError: ``items`` raised a TimeoutError, which must not be taken for the one above.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._ended:
            wait = _TICK if deadline is None else min(_TICK, deadline - time.monotonic())
            try:
                item = self._queue.get(wait > 0, max(0.0, wait))
                break
            except queue.Empty:
                self._ended = self._closed.is_set()
                if wait <= 0:
                    raise TimeoutError from None
        else:
            raise StopIteration
        if isinstance(item, _End):
            self._ended = True
            raise StopIteration
        if isinstance(item, _Failure):
            self._ended = True
            if isinstance(item.error, TimeoutError):
                raise RuntimeError(f"reading ahead failed: {item.error!r}") from item.error
            raise item.error
        self._add(-self._weigh(item))
        return item

    def close(self) -> None:
        """Tell the thread to stop."""
        self._closed.set()

    def _work(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                if not (self._has_room(self._weigh(item)) and self._put(item)):
                    return
            self._put(_End())
        except BaseException as error:  # noqa: BLE001 - raised again where the items are taken
            self._put(_Failure(error))
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    def _add(self, weight: int) -> None:
        with self._taken:
            self._waiting += weight
            self._taken.notify()

    def _has_room(self, weight: int) -> bool:
        """Wait until there is room for an item, and take it; False where the thread should stop."""
        while not self._closed.is_set():
            with self._taken:
                if self._taken.wait_for(lambda: not self._waiting or self._waiting + weight <= self._most, _TICK):
                    self._waiting += weight
                    return True
        return False

    def _put(self, item: T | _Failure | _End) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_TICK)
            except queue.Full:
                continue
            return True
        return False


def windows(
    rows: Ahead[T], weigh: Callable[[T], int], *, most_rows: int, most_weight: int, linger: float | None
) -> Iterator[list[T]]:
    """Gather rows into windows of up to ``most_rows`` rows or ``most_weight``, whichever comes first.

    A row waits at most ``linger`` seconds for company (None: until the window is full). The first windows are
    small, so that the first results come soon.
    """
    size = min(_FIRST_WINDOW, most_rows)
    failure: BaseException | None = None
    while failure is None:
        window: list[T] = []
        weight = 0
        deadline = 0.0
        try:
            while len(window) < size and weight < most_weight:
                wait = None if linger is None or not window else max(0.0, deadline - time.monotonic())
                window.append(rows.take(wait))
                weight += weigh(window[-1])
                if len(window) == 1:
                    deadline = time.monotonic() + (linger or 0.0)
        except TimeoutError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again after the rows before it
            failure = error
        if window:
            yield window
        size = min(2 * size, most_rows)
    if not isinstance(failure, StopIteration):
        raise failure
