"""How fast a model is here: rows and tokens a second, padding and latency, by number of labels and other settings."""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from statistics import median
from threading import Lock
from typing import Any, Literal

import numpy as np

from gliclass_cli.backends import Arrays, Backend, Part
from gliclass_cli.classifier import Classifier, Query, StreamOptions
from gliclass_cli.composer import Composer
from gliclass_cli.decoding import Floats
from gliclass_cli.errors import ModelUnusable
from gliclass_cli.labels import LabelSet, make_labels
from gliclass_cli.loading import check_runtime, open_backend, open_folder
from gliclass_cli.predictions import Choice
from gliclass_cli.prompts import Reading
from gliclass_cli.runtime import Runtime
from gliclass_cli.scoring import Scorer

Name = Literal["backend", "precision", "threads", "batch_tokens", "labels"]
_PLAIN = Choice(with_scores=False)
_LABELS = """
    billing, shipping, refund request, login problem, bug report, feature request, praise, security, politics, sports,
    business, technology, science, health, travel, food, music, film, books, weather, education, law, crime, religion,
    fashion, gardening, cars, housing, jobs, finance, insurance, taxes, energy, climate, agriculture, animals, history,
    art, theatre, photography, games, toys, children, family, weddings, funerals, sleep, exercise, football, tennis,
    cycling, swimming, running, chess, space, physics, chemistry, biology, mathematics, medicine, dentistry, nursing,
    surgery, vaccines, nutrition, cooking, baking, wine, coffee, restaurants, hotels, flights, trains, buses, ships,
    roads, bridges, architecture, furniture, lighting, plumbing, electricity, heating, painting, cleaning, laundry,
    shopping, advertising, marketing, sales, customer service, contracts, patents, elections, parliament, police,
    military, courts, prisons, immigration, human rights, charity, volunteering, languages, translation, poetry,
    journalism, television, radio, podcasts, social media, search engines, databases, programming, networks, printers,
    telephones, batteries, robots, artificial intelligence, privacy, passwords, spam, fraud, complaint, question,
    invitation, apology
"""


@dataclass(slots=True)
class Work:
    """What a backend was asked to compute: ``runs`` of ``rows`` inputs, their ``tokens`` and those with ``padding``.

    ``seconds`` are those of all threads together.
    """

    runs: int = 0
    rows: int = 0
    tokens: int = 0
    computed: int = 0
    seconds: float = 0.0

    @property
    def padding(self) -> float:
        """Share of the computed tokens that are padding."""
        return 1 - self.tokens / self.computed if self.computed else 0.0


class CountingBackend:
    """A backend that counts what another one computes, by part."""

    def __init__(self, backend: Backend) -> None:
        """Wrap a loaded backend."""
        self._backend = backend
        self._lock = Lock()
        self.batch_tokens, self.workers, self.alone = backend.batch_tokens, backend.workers, backend.alone
        self.slots, self.length, self.product = backend.slots, backend.length, backend.product
        self.description = backend.description
        self.work: dict[Part, Work] = {}

    def run(self, part: Part, inputs: Arrays) -> Floats:
        """Run a part, as ``Backend`` does."""
        began = time.perf_counter()
        output = self._backend.run(part, inputs)
        seconds = time.perf_counter() - began
        masks = [inputs[name] for name in ("attention_mask", "class_attention_mask") if name in inputs]
        with self._lock:
            work = self.work.setdefault(part, Work())
            work.runs += 1
            work.rows += len(output)
            work.tokens += sum(int(mask.sum()) for mask in masks)
            work.computed += sum(mask.size for mask in masks)
            work.seconds += seconds
        return output

    def take(self) -> dict[Part, Work]:
        """Return what was counted since the last time."""
        with self._lock:
            found, self.work = self.work, {}
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is varied. None: as the run as a whole says."""

    backend: str | None = None
    precision: str | None = None
    threads: int | None = None
    batch_tokens: int | None = None
    labels: int | None = None

    def runtime(self, usual: Runtime) -> Runtime:
        """Return what computes the model."""
        return replace(
            usual,
            backend=self.backend or usual.backend,
            precision=self.precision or usual.precision,
            threads=self.threads or usual.threads,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What was measured of one setting; of several repeats the median.

    ``rows_per_second`` and ``tokens_per_second`` (padding not counted) of all texts together, ``padding`` the share of
    computed tokens that is padding, ``computing`` the share of the time of all threads that the backend computed.
    ``p50`` and ``p95``: milliseconds of one text alone.
    """

    setting: Setting
    model: str
    rows_per_second: float
    tokens_per_second: float
    padding: float
    computing: float
    runs: int
    p50: float
    p95: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON value: what was varied, and what was measured."""
        values = asdict(self)
        varied = {name: value for name, value in values.pop("setting").items() if value is not None}
        return {**varied, **values}


@dataclass(frozen=True, slots=True)
class Start:
    """A ``gliclass tag`` of one text in a process of its own: seconds of wall and of processor time, megabytes."""

    seconds: float
    cpu_seconds: float
    peak_megabytes: float


@dataclass(slots=True)
class _Timed:
    """A setting in progress."""

    setting: Setting
    classifier: Classifier
    counter: CountingBackend
    labels: LabelSet
    seconds: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    work: Work = field(default_factory=Work)


def settings_of(varied: Mapping[Name, Sequence[Any]]) -> list[Setting]:
    """Return all combinations of what is varied."""
    return [Setting(**dict(zip(varied, values, strict=True))) for values in itertools.product(*varied.values())]


def open_counting(model: str, reading: Reading, runtime: Runtime) -> tuple[Classifier, CountingBackend]:
    """Load a model whose work is counted. Raises ModelUnusable."""
    check_runtime(runtime)
    folder = open_folder(model, runtime)
    counter = CountingBackend(open_backend(folder, runtime))
    composer = Composer(folder, reading, slots=counter.slots, length=counter.length)
    return Classifier(folder, composer, Scorer(folder, counter)), counter


def bench(
    model: str,
    settings: Sequence[Setting],
    texts: Sequence[str],
    labels: Sequence[LabelSet],
    *,
    reading: Reading,
    runtime: Runtime,
    repeats: int,
    listener: Callable[[], object] = lambda: None,
) -> list[Point]:
    """Measure settings side by side: each repeat runs all of them, so that a busy minute harms all alike.

    ``labels`` has the label set of each setting. ``listener`` hears of each run that is done.

    Raises:
        ModelUnusable: there is no such model, or it cannot be run so.
    """
    loaded: dict[tuple[Any, ...], tuple[Classifier, CountingBackend]] = {}
    timed = []
    for setting, candidates in zip(settings, labels, strict=True):
        key = (setting.backend, setting.precision, setting.threads)
        if key not in loaded:
            loaded[key] = open_counting(model, reading, setting.runtime(runtime))
        timed.append(_Timed(setting, *loaded[key], candidates))
    for item in timed:  # labels are encoded and buffers allotted before the clock runs
        item.classifier.check_labels(item.labels)
        _run(item, texts[:32])
    for item in timed * repeats:
        _time(item, texts)
        listener()
    return [_point(item, len(texts)) for item in timed]


def _run(item: _Timed, texts: Sequence[str]) -> None:
    """Classify texts, each of them computed, and forget the answers."""
    queries = (Query(None, text, item.labels) for text in texts)
    options = StreamOptions(batch_tokens=item.setting.batch_tokens, cached_texts=0)
    for _ in item.classifier.stream(queries, _PLAIN, options):
        pass


def _time(item: _Timed, texts: Sequence[str]) -> None:
    item.counter.take()
    began = time.perf_counter()
    _run(item, texts)
    item.seconds.append(time.perf_counter() - began)
    item.work = item.counter.take().get("text", Work())
    # One text after the other; as many as take about as long as all together did.
    for text in texts[: max(20, len(texts) // 4)]:
        began = time.perf_counter()
        item.classifier.logits(text, item.labels)
        item.latencies.append(1000 * (time.perf_counter() - began))


def _point(item: _Timed, rows: int) -> Point:
    seconds, work = median(item.seconds), item.work
    p50, p95 = np.percentile(item.latencies, (50, 95))
    return Point(
        setting=item.setting,
        model=f"{item.classifier.folder.name}, {item.classifier.backend}",
        rows_per_second=rows / seconds,
        tokens_per_second=work.tokens / seconds,
        padding=work.padding,
        computing=work.seconds / (item.seconds[-1] * item.counter.workers),
        runs=work.runs,
        p50=float(p50),
        p95=float(p95),
    )


def measure_start(model: str, labels: LabelSet, runtime: Runtime, *, repeats: int = 3) -> Start:
    """Time ``gliclass tag`` in processes of its own, the median of some. Raises ModelUnusable where it fails."""
    flags = [flag for name in labels.names[:5] for flag in ("-l", name)]
    flags += ["--backend", runtime.backend, "--device", runtime.device, "--precision", runtime.precision]
    flags += ["--offline"] if runtime.offline else []
    flags += ["--adapter", runtime.adapter] if runtime.adapter else []
    command = [sys.executable, "-m", "gliclass_cli", "tag", "I was charged twice", *flags, "--model", model]
    found = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            errors = process.stderr.read() if process.stderr else b""
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise ModelUnusable(errors.decode("utf-8", "replace").strip().removeprefix("gliclass: "))
        unit = 1e6 if sys.platform == "darwin" else 1e3  # ru_maxrss: bytes there, kilobytes on Linux
        found.append(Start(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit))
    starts = found[1:]  # the first one fills the disk cache
    return Start(
        median(start.seconds for start in starts),
        median(start.cpu_seconds for start in starts),
        median(start.peak_megabytes for start in starts),
    )


def builtin_sample() -> tuple[list[str], LabelSet]:
    """Return texts of many kinds and lengths, and labels for them, that are part of the package."""
    lines = resources.files("gliclass_cli.export").joinpath("sample.jsonl").read_text("utf-8").splitlines()
    texts = dict.fromkeys(json.loads(line)["text"] for line in lines)
    return list(texts), make_labels([label.strip() for label in _LABELS.split(",")])
