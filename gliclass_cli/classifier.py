"""``Classifier``: text in, predictions out, lazily, in order."""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Generic, TypeVar

from gliclass_cli.composer import Composed, Composer, PreparedLabels, Prompt, combine
from gliclass_cli.decoding import Decoder, Floats
from gliclass_cli.errors import OutOfMemory
from gliclass_cli.labels import LabelProblem, LabelSet, make_labels
from gliclass_cli.loading import check_runtime, open_backend, open_folder
from gliclass_cli.model_folder import DEFAULT_MODEL, ModelFolder
from gliclass_cli.predictions import Calibration, Choice, Coverage, Prediction, Refusal, Truncation
from gliclass_cli.prompts import Reading
from gliclass_cli.runtime import Runtime
from gliclass_cli.scoring import Scorer
from gliclass_cli.streaming import Ahead, windows

T = TypeVar("T")

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

    ``batch_tokens``: tokens of one run, padding included (None: what suits the backend). ``linger``: seconds that a
    row waits for company (None: until a window is full). ``cached_texts``: how many distinct texts are remembered, to
    compute each once.
    """

    batch_tokens: int | None = None
    linger: float | None = None
    cached_texts: int = 16_384


class _Slot:
    """The logits of one distinct text, filled when its prompts have run; rows with the same text share it."""

    __slots__ = ("composed", "left", "lock", "logits", "parts", "refusal")

    def __init__(self) -> None:
        self.logits: Floats | None = None
        self.composed: Composed | None = None
        self.refusal: Refusal | None = None
        self.parts: list[Floats | None] = []
        self.left = 0
        self.lock = threading.Lock()

    def expect(self, composed: Composed) -> None:
        """Take the prompts whose logits will come."""
        self.composed = composed
        self.left = len(composed.prompts)
        self.parts = [None] * self.left

    def take(self, number: int, logits: Floats, *, multi: bool) -> None:
        """Take the logits of one prompt; the last one completes those of the text."""
        with self.lock:
            self.parts[number] = logits
            self.left -= 1
            if self.left or self.composed is None:
                return
        self.logits = combine(self.composed, [part for part in self.parts if part is not None], multi=multi)
        # Remembered without its prompts: they hold all of the text.
        self.composed = replace(self.composed, prompts=[])
        self.parts = []


@dataclass(frozen=True, slots=True)
class _Group:
    """New texts of a window that share their labels, and their slots."""

    labels: PreparedLabels
    texts: list[str]
    slots: list[_Slot]


@dataclass(frozen=True, slots=True)
class _Window(Generic[T]):
    rows: list[tuple[Query[T], _Slot | Refusal | None]]
    runs: list[Future[None]]


class Classifier:
    """A loaded model. ``Classifier.load().predict(texts, labels)`` is what the command line itself uses."""

    def __init__(self, folder: ModelFolder, composer: Composer, scorer: Scorer) -> None:
        """Use ``load``."""
        self.folder = folder
        self.max_length = composer.max_length
        self.reading = composer.reading
        self.backend = scorer.backend.description
        self._composer = composer
        self._scorer = scorer
        # Prepared label sets, each with a number of its own, the one used last at the end.
        self._prepared: OrderedDict[LabelSet, tuple[int, PreparedLabels]] = OrderedDict()
        self._prepared_labels = 0
        self._numbers = itertools.count()
        self._preparing = threading.Lock()

    @classmethod
    def load(
        cls,
        model: str | Path = DEFAULT_MODEL,
        reading: Reading | None = None,
        runtime: Runtime | None = None,
        *,
        calibration: Calibration | None = None,
    ) -> "Classifier":
        """Load the bundled model, a model folder, or a model of the Hugging Face hub (``org/name``).

        ``reading`` says how texts and labels are put before the model, ``runtime`` what computes it; ``calibration``
        replaces the model's own.

        Raises:
            ModelUnusable: there is no such model, or it cannot be run.
            UsageProblem: the model cannot read what ``reading`` asks for.
        """
        check_runtime(runtime or Runtime())
        folder = open_folder(str(model), runtime)
        if calibration is not None:
            folder = replace(folder, calibration=calibration)
        backend = open_backend(folder, runtime)
        composer = Composer(folder, reading, slots=backend.slots, length=backend.length)
        return cls(folder, composer, Scorer(folder, backend))

    def self_check(self) -> float:
        """Return by how much the logits of the model's own example differ, at most, from those it was shipped with.

        Raises:
            ModelUnusable: the model has no example.
        """
        check = self.folder.self_check
        if check is None:
            raise self.folder.unusable("has no self-check: only exported models have one")
        logits = self.logits(check.text, make_labels(check.labels))
        return max(abs(float(a) - b) for a, b in zip(logits, check.logits, strict=True))

    def logits(self, text: str, labels: LabelSet, *, multi: bool = False) -> Floats:
        """Return the logits (L,) of one text. Raises LabelProblem."""
        [composed] = self._composer.compose([text], self._prepare(labels)[1])
        return combine(composed, [self._scorer.score([prompt])[0] for prompt in composed.prompts], multi=multi)

    def predict(
        self, texts: Iterable[str], labels: LabelSet | Sequence[str], choice: Choice | None = None
    ) -> list[Prediction]:
        """Classify texts against labels and return a prediction for each, in order.

        Raises:
            LabelProblem: no labels, one twice, or one that is too long for the model.
            UsageProblem: the examples of ``Reading`` are of none of the labels.
            TypeError: one text instead of several.
            ValueError: a text is too long, and ``Reading(long="error")`` was asked for.
        """
        if isinstance(texts, str):
            raise TypeError("predict takes several texts: [text]")
        label_set = labels if isinstance(labels, LabelSet) else make_labels(labels)
        self.check_labels(label_set)
        queries = (Query(None, text, label_set) for text in texts)
        predictions = []
        for window in self.stream(queries, choice):
            for _, prediction in window:
                if isinstance(prediction, Refusal):
                    raise ValueError(prediction.message)
                if prediction is not None:
                    predictions.append(prediction)
        return predictions

    def check_labels(self, labels: LabelSet) -> int:
        """Return into how many groups the labels must be split to fit.

        Raises:
            LabelProblem: a label is too long for the model.
            UsageProblem: examples were given, and a model that reads them by themselves finds none for the labels.
        """
        prepared = self._prepare(labels)[1]
        self._composer.check_examples(prepared)
        return prepared.split

    def stream(
        self,
        queries: Iterable[Query[T]],
        choice: Choice | None = None,
        options: StreamOptions | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[list[tuple[Query[T], Prediction | Refusal | None]]]:
        """Classify a stream lazily and in order, window after window; memory does not grow with its length.

            A row whose labels or text the model cannot take gets a ``Refusal``, one without text or labels None.
        Reading ahead, tokenising and computing run in threads of their own; similar lengths are computed together and
        the order is restored. When ``stop`` is set, the batches in hand are finished and the rows up to the first
        unfinished one are yielded.
        """
        options = options or StreamOptions()
        decoder = Decoder(choice or Choice(), self.folder.calibration)
        stop = stop or threading.Event()
        rows = Ahead(queries, _ROWS_AHEAD, "read", weigh=_weight, most=_WINDOW_CHARACTERS)
        gathered = windows(
            rows,
            _weight,
            most_rows=_WINDOW_ROWS,
            most_weight=_WINDOW_CHARACTERS,
            linger=options.linger,
        )
        submitted = _Submission(
            self._scorer, options.batch_tokens or self._scorer.backend.batch_tokens, decoder.choice.multi
        )
        with ThreadPoolExecutor(self._scorer.backend.workers, "compute") as pool:
            # One window is computed while the next one is tokenised and the one before is written.
            ahead = Ahead(self._submit(gathered, pool, submitted, options.cached_texts), 1, "tokenise")
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
        self, gathered: Iterator[list[Query[T]]], pool: ThreadPoolExecutor, submission: "_Submission", cached: int
    ) -> Iterator[_Window[T]]:
        """Tokenise the new texts of each window and hand them to the pool, in batches of similar length."""
        cache = _SlotCache(cached)
        for queries in gathered:
            new: dict[int, _Group] = {}
            rows = [(query, self._slot(query, cache, new)) for query in queries]
            slots = [slot for group in new.values() for slot in self._compose(group)]
            yield _Window(rows, submission.start(slots, pool))

    def _slot(self, query: Query[T], cache: "_SlotCache", new: dict[int, _Group]) -> _Slot | Refusal | None:
        """Return where the logits of a row will be; a new text joins those that share its labels."""
        if query.text is None or query.labels is None:
            return None
        try:
            number, labels = self._prepare(query.labels)
        except LabelProblem as problem:
            return Refusal("bad_labels", str(problem))
        slot, known = cache.slot(query.text, number, len(query.labels))
        if not known:
            group = new.setdefault(number, _Group(labels, [], []))
            group.texts.append(query.text)
            group.slots.append(slot)
        return slot

    def _compose(self, group: _Group) -> Iterator[_Slot]:
        """Compose the prompts of texts, and yield the slots whose prompts are to be computed."""
        for slot, composed in zip(group.slots, self._composer.compose(group.texts, group.labels), strict=True):
            if composed.too_long and self._composer.reading.long == "error":
                message = f"the text is too long: {composed.tokens} tokens with its labels, the model reads "
                slot.refusal = Refusal("text_too_long", f"{message}{composed.limit}; --long chunk reads it in parts")
            else:
                slot.expect(composed)
                yield slot

    def _prepare(self, labels: LabelSet) -> tuple[int, PreparedLabels]:
        """Return a label set's number and what the backend made of it; several streams may ask at once."""
        with self._preparing:
            known = self._prepared.get(labels)
            if known is None:
                known = self._prepared[labels] = (
                    next(self._numbers),
                    self._scorer.prepare(self._composer.labels(labels)),
                )
                self._prepared_labels += len(labels)
                while self._prepared_labels > _PREPARED_LABELS and len(self._prepared) > 1:
                    self._prepared_labels -= len(self._prepared.popitem(last=False)[0])
            self._prepared.move_to_end(labels)
            return known


@dataclass(frozen=True, slots=True)
class _Submission:
    """How the prompts of new texts are computed; those of all texts share batches."""

    scorer: Scorer
    batch_tokens: int
    multi: bool

    def start(self, slots: Sequence[_Slot], pool: ThreadPoolExecutor) -> list[Future[None]]:
        """Start the runs."""
        parts = [
            (slot, number, prompt)
            for slot in slots
            if slot.composed is not None
            for number, prompt in enumerate(slot.composed.prompts)
        ]
        batches = self.scorer.batches([prompt for _, _, prompt in parts], self.batch_tokens)
        return [pool.submit(self._run, [parts[i] for i in batch]) for batch in batches]

    def _run(self, parts: Sequence[tuple[_Slot, int, Prompt]]) -> None:
        try:
            logits = self.scorer.score([prompt for _, _, prompt in parts])
        except (OutOfMemory, MemoryError) as error:
            if len(parts) == 1:
                message = str(error) or "there is not enough memory to compute the text; --max-length takes less"
                parts[0][0].refusal = Refusal("out_of_memory", message)
            else:
                for part in parts:
                    self._run([part])
            return
        for (slot, number, _), values in zip(parts, logits, strict=True):
            slot.take(number, values, multi=self.multi)


def _weight(query: Query[Any]) -> int:
    return len(query.text or "") + query.weight


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


def _decoded(window: _Window[T], decoder: Decoder) -> Iterator[tuple[Query[T], Prediction | Refusal | None]]:
    """Yield the rows of a window with their predictions, up to the first that was not computed."""
    known: dict[int, Prediction | Refusal] = {}
    for query, slot in window.rows:
        if not isinstance(slot, _Slot) or query.labels is None:
            yield query, slot if isinstance(slot, Refusal) else None
            continue
        prediction = known.get(id(slot))
        if prediction is None:
            prediction = _decode(slot, query.labels, decoder)
            if prediction is None:
                return
            known[id(slot)] = prediction
        yield query, prediction


def _decode(slot: _Slot, labels: LabelSet, decoder: Decoder) -> Prediction | Refusal | None:
    """Return the prediction of a text, or None where it was not computed."""
    composed = slot.composed
    if slot.logits is None or composed is None:
        return slot.refusal
    cut = composed.too_long and composed.windows == 1
    coverage = Coverage(
        truncated=Truncation(composed.tokens, composed.limit) if cut else None,
        chunks=composed.windows if composed.windows > 1 else None,
        label_groups=composed.labels.split if composed.labels.split > 1 else None,
    )
    return decoder.decode(slot.logits, labels, coverage)


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
