"""``Classifier``: text in, predictions out, lazily, in order."""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Generic, TypeVar

from gliclass_cli.backends import Backend, PreparedLabels, Prompt
from gliclass_cli.backends.onnx import OnnxBackend
from gliclass_cli.batching import plan_batches
from gliclass_cli.cores import available_cores
from gliclass_cli.decoding import Decoder, Floats
from gliclass_cli.labels import LabelSet, make_labels
from gliclass_cli.model_folder import DEFAULT_MODEL, ModelFolder, find_model, read_model_folder
from gliclass_cli.predictions import Choice, Prediction, Truncation
from gliclass_cli.streaming import Ahead, windows

T = TypeVar("T")

# Tokens of one run: more do not compute faster, and leave the processor's cache.
BATCH_TOKENS = 256
_WINDOW_ROWS = 1024
_WINDOW_CHARACTERS = 4_000_000
_ROWS_AHEAD = 64
_TICK = 0.1
# Labels of all prepared sets, and logits of all remembered texts: some 30 and 16 MB.
_PREPARED_LABELS = 20_000
_CACHED_LOGITS = 4_000_000


@dataclass(frozen=True, slots=True)
class Query(Generic[T]):
    """One row to classify. ``item`` is the caller's own; a row without text or labels passes through in its place.

    ``weight``: characters or bytes that the item holds beside the text; memory is bounded by what rows weigh.
    """

    item: T
    text: str | None
    labels: LabelSet | None = None
    weight: int = 0


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How a stream is computed; none of it changes a score.

    ``batch_tokens``: tokens of one run, padding included. ``linger``: seconds that a row waits for company (None:
    until a window is full). ``cached_texts``: how many distinct texts are remembered, to compute each once.
    """

    batch_tokens: int = BATCH_TOKENS
    linger: float | None = None
    cached_texts: int = 16_384


class _Slot:
    """The logits of one distinct text, filled when its batch has run; rows with the same text share it."""

    __slots__ = ("logits", "truncated")

    def __init__(self) -> None:
        self.logits: Floats | None = None
        self.truncated: Truncation | None = None


@dataclass(frozen=True, slots=True)
class _Group:
    """New texts of a window that share their labels, and their slots."""

    labels: PreparedLabels
    texts: list[str]
    slots: list[_Slot]


@dataclass(frozen=True, slots=True)
class _Window(Generic[T]):
    rows: list[tuple[Query[T], _Slot | None]]
    runs: list[Future[None]]


class Classifier:
    """A loaded model. ``Classifier.load().predict(texts, labels)`` is what the command line itself uses."""

    def __init__(self, backend: Backend, folder: ModelFolder, threads: int) -> None:
        """Use ``load``."""
        self.folder = folder
        self.threads = threads
        self._backend = backend
        # Prepared label sets, each with a number of its own, the one used last at the end.
        self._prepared: OrderedDict[LabelSet, tuple[int, PreparedLabels]] = OrderedDict()
        self._prepared_labels = 0
        self._numbers = itertools.count()
        self._preparing = threading.Lock()

    @classmethod
    def load(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        threads: int | None = None,
        max_length: int | None = None,
        template: str | None = None,
    ) -> "Classifier":
        """Load the bundled model, or a model folder.

        ``threads`` compute side by side (default: the cores that this process may use); texts are cut to
        ``max_length`` tokens (default and most: what the model reads); ``template`` words a label, ``{label}``
        in it.

        Raises:
            ModelUnusable: there is no such model, or it cannot be run.
        """
        folder = read_model_folder(find_model(str(model)))
        backend = OnnxBackend(folder, max_length=max_length, template=template)
        return cls(backend, folder, threads or available_cores())

    def self_check(self) -> float:
        """Return by how much the logits of the model's own example differ, at most, from those it was shipped with."""
        check = self.folder.self_check
        _, prepared = self._prepare(make_labels(check.labels))
        logits = self._backend.score(self._backend.compose([check.text], prepared))[0]
        return max(abs(float(a) - b) for a, b in zip(logits, check.logits, strict=True))

    def predict(
        self, texts: Iterable[str], labels: LabelSet | Sequence[str], choice: Choice | None = None
    ) -> list[Prediction]:
        """Classify texts against labels and return a prediction for each, in order.

        Raises:
            LabelProblem: no labels, or one twice.
            TypeError: one text instead of several.
        """
        if isinstance(texts, str):
            raise TypeError("predict takes several texts: [text]")
        label_set = labels if isinstance(labels, LabelSet) else make_labels(labels)
        queries = (Query(None, text, label_set) for text in texts)
        return [
            prediction for window in self.stream(queries, choice) for _, prediction in window if prediction is not None
        ]

    def stream(
        self,
        queries: Iterable[Query[T]],
        choice: Choice | None = None,
        options: StreamOptions | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[list[tuple[Query[T], Prediction | None]]]:
        """Classify a stream lazily and in order, window after window; memory does not grow with its length.

        Reading ahead, tokenising and computing run in threads of their own; similar lengths are computed together
        and the order is restored. When ``stop`` is set, the batches in hand are finished and the rows up to the
        first unfinished one are yielded.
        """
        options = options or StreamOptions()
        decoder = Decoder(choice or Choice(), self.folder.calibration)
        stop = stop or threading.Event()
        rows = Ahead(queries, _ROWS_AHEAD, "read")
        gathered = windows(
            rows,
            lambda query: len(query.text or "") + query.weight,
            most_rows=_WINDOW_ROWS,
            most_weight=_WINDOW_CHARACTERS,
            linger=options.linger,
        )
        with ThreadPoolExecutor(self.threads, "compute") as pool:
            # One window is computed while the next one is tokenised and the one before is written.
            ahead = Ahead(self._submit(gathered, pool, options), 1, "tokenise")
            try:
                while (window := _next_window(ahead, stop)) is not None:
                    finished = _finish(window, stop)
                    yield list(_decoded(window, decoder))
                    if not finished:
                        return
            finally:
                ahead.close()
                rows.close()
                pool.shutdown(wait=False, cancel_futures=True)

    def _submit(
        self, gathered: Iterator[list[Query[T]]], pool: ThreadPoolExecutor, options: StreamOptions
    ) -> Iterator[_Window[T]]:
        """Tokenise the new texts of each window and hand them to the pool, in batches of similar length."""
        cache = _SlotCache(options.cached_texts)
        for queries in gathered:
            rows: list[tuple[Query[T], _Slot | None]] = []
            new: dict[int, _Group] = {}
            for query in queries:
                slot = None
                if query.text is not None and query.labels is not None:
                    number, labels = self._prepare(query.labels)
                    slot, known = cache.slot(query.text, number, len(query.labels))
                    if not known:
                        group = new.setdefault(number, _Group(labels, [], []))
                        group.texts.append(query.text)
                        group.slots.append(slot)
                rows.append((query, slot))
            yield _Window(rows, self._start(list(new.values()), pool, options.batch_tokens))

    def _start(self, new: list[_Group], pool: ThreadPoolExecutor, batch_tokens: int) -> list[Future[None]]:
        """Compose texts, grouped by their labels, and start their runs; texts of all groups share batches."""
        slots = [slot for group in new for slot in group.slots]
        prompts = [prompt for group in new for prompt in self._backend.compose(group.texts, group.labels)]
        limit = self._backend.max_length
        for slot, prompt in zip(slots, prompts, strict=True):
            if prompt.tokens.full_length > limit:
                slot.truncated = Truncation(prompt.tokens.full_length, limit)
        batches = plan_batches([len(prompt.tokens.ids) for prompt in prompts], batch_tokens)
        return [pool.submit(self._run, [prompts[i] for i in batch], [slots[i] for i in batch]) for batch in batches]

    def _run(self, prompts: Sequence[Prompt], slots: Sequence[_Slot]) -> None:
        for slot, logits in zip(slots, self._backend.score(prompts), strict=True):
            slot.logits = logits

    def _prepare(self, labels: LabelSet) -> tuple[int, PreparedLabels]:
        """Return a label set's number and what the backend made of it; several streams may ask at once."""
        with self._preparing:
            known = self._prepared.get(labels)
            if known is None:
                known = self._prepared[labels] = next(self._numbers), self._backend.prepare(labels)
                self._prepared_labels += len(labels)
                while self._prepared_labels > _PREPARED_LABELS and len(self._prepared) > 1:
                    self._prepared_labels -= len(self._prepared.popitem(last=False)[0])
            self._prepared.move_to_end(labels)
            return known


class _SlotCache:
    """The slots of the texts seen last: identical texts with the same labels are computed once."""

    def __init__(self, texts: int) -> None:
        self._texts = texts
        self._slots: OrderedDict[tuple[bytes, int], tuple[_Slot, int]] = OrderedDict()
        self._logits = 0

    def slot(self, text: str, labels_number: int, labels: int) -> tuple[_Slot, bool]:
        """Return the slot of a text with its label set (by number) of so many labels, and whether it was there."""
        if not self._texts:
            return _Slot(), False
        # A digest, so that long texts are not kept.
        key = (blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest(), labels_number)
        if key in self._slots:
            self._slots.move_to_end(key)
            return self._slots[key][0], True
        slot = _Slot()
        self._slots[key] = slot, labels
        self._logits += labels
        while len(self._slots) > self._texts or (self._logits > _CACHED_LOGITS and len(self._slots) > 1):
            self._logits -= self._slots.popitem(last=False)[1][1]
        return slot, False


def _decoded(window: _Window[T], decoder: Decoder) -> Iterator[tuple[Query[T], Prediction | None]]:
    """Yield the rows of a window with their predictions, up to the first that was not computed."""
    known: dict[int, Prediction] = {}
    for query, slot in window.rows:
        if slot is None or query.labels is None:
            yield query, None
            continue
        if slot.logits is None:
            return
        prediction = known.get(id(slot))
        if prediction is None:
            prediction = known[id(slot)] = decoder.decode(slot.logits, query.labels, slot.truncated)
        yield query, prediction


def _next_window(ahead: Ahead[_Window[T]], stop: threading.Event) -> _Window[T] | None:
    """Return the next window, or None at the end or when asked to stop."""
    while not stop.is_set():
        try:
            return ahead.take(_TICK)
        except TimeoutError:
            continue
        except StopIteration:
            return None
    return None


def _finish(window: _Window[T], stop: threading.Event) -> bool:
    """Wait for the runs of a window; on ``stop`` only for those that have begun, and return False."""
    for run in window.runs:
        while not run.done() and not (stop.is_set() and run.cancel()):
            wait([run], _TICK)
        if not run.cancelled():
            run.result()  # raises what the run raised
    return not stop.is_set()
