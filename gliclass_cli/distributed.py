"""Many files on many machines: each is a part of its own that any worker of a Ray cluster classifies, or does again.

Rows are read, classified and written by what a run on one machine uses; Ray hands out parts and restarts workers. A
part appears under its name when it is complete, so that a part that is there is finished. Needs the extra ``ray``.
"""

import contextlib
import glob
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import fsspec
import ray
import ray.data

from gliclass_cli.classification import Inputs, Listeners, Settings, Summary, classify_rows
from gliclass_cli.classifier import Classifier
from gliclass_cli.errors import GliclassError, InputUnusable, OutputFailed, UsageProblem
from gliclass_cli.files import COMPRESSED_SUFFIXES, Output, is_url
from gliclass_cli.readers import ReadOptions
from gliclass_cli.writers import Writer

# What a folder of parts is a run of; names with _ are no data to the readers of such folders.
RUN_FILE = "_run.json"
# Messages about bad rows that a part hands back.
_TOLD_ROWS = 5
# Names and counts are all that goes through a local cluster's memory.
_OBJECT_STORE = 100 << 20


@dataclass(frozen=True, slots=True)
class Job:
    """What is done to each part; ``directory`` is where relative names begin, ``output`` a folder or its URL."""

    load: Callable[[], Classifier]
    make_writer: Callable[[Inputs], Writer]
    read: ReadOptions
    settings: Settings
    output: str
    directory: str


@dataclass(frozen=True, slots=True)
class Part:
    """One input, and the name of what becomes of it; in the order of the names the parts are the whole."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a part came to; ``told`` holds the first messages about its rows, ``problem`` why it is not there."""

    target: str
    summary: Summary
    told: tuple[str, ...] = ()
    problem: GliclassError | None = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where workers run: ``address`` None starts one on this machine. ``cores`` and ``gpus`` are those of a worker."""

    address: str | None = None
    workers: int | None = None
    cores: int = 1
    gpus: int = 0


# --- parts -----------------------------------------------------------------------------------------------------------


def find_inputs(names: Sequence[str]) -> list[str]:
    """Return the files and URLs that names and patterns mean. Raises InputUnusable: a pattern has no match."""
    found: list[str] = []
    for name in names:
        if not re.search(r"[*?\[]", name) or Path(name).exists():
            found.append(name)
            continue
        if is_url(name):
            with _storage(name, InputUnusable):
                system, path = fsspec.core.url_to_fs(name)
                matches = [system.unstrip_protocol(match) for match in system.glob(path)]
        else:
            matches = glob.glob(name, recursive=True)  # noqa: PTH207 - keeps names as the shell gives them
        if not matches:
            raise InputUnusable(f"{name}: no file has such a name")
        found += sorted(matches)
    return found


def plan_parts(sources: Sequence[str], ending: str) -> list[Part]:
    """Name the part of each input: its place, its name, and compression as it has; ``ending`` tells the format."""
    digits = max(5, len(str(len(sources) - 1)))
    parts = []
    for number, source in enumerate(sources):
        path = PurePath(source)
        packed = path.suffix.lower() if path.suffix.lower() in COMPRESSED_SUFFIXES and ending != ".parquet" else ""
        stem = PurePath(path.stem).stem if path.suffix.lower() in COMPRESSED_SUFFIXES else path.stem
        parts.append(Part(source, f"{number:0{digits}}-{stem}{ending}{packed}"))
    return parts


def missing_parts(output: str, parts: Sequence[Part], settings: str) -> list[Part]:
    """Return the parts that an earlier run of the same inputs and settings has not left in ``output``.

    Raises:
        UsageProblem: the folder holds something else, or a part whose input has changed since.
        InputUnusable: an input is missing.
        OutputFailed: the folder cannot be made.
    """
    inputs = [[part.source, _fingerprint(part.source)] for part in parts]
    run: dict[str, Any] = {"settings": settings, "inputs": inputs}
    with _storage(output, OutputFailed):
        system, folder = fsspec.core.url_to_fs(output)
        system.makedirs(folder, exist_ok=True)
        names = {PurePath(name).name for name in system.ls(folder, detail=False)}
        if RUN_FILE in names:
            _check_run(output, json.loads(system.cat_file(f"{folder}/{RUN_FILE}")), run, parts, names)
        elif names:
            raise UsageProblem(f"{output}: holds other files; name another folder")
        system.pipe_file(f"{folder}/{RUN_FILE}", json.dumps(run).encode())
    return [part for part in parts if part.target not in names]


def _check_run(output: str, known: dict[str, Any], run: dict[str, Any], parts: Sequence[Part], names: set[str]) -> None:
    """Raise UsageProblem where parts that are there would not be written again as they are."""
    what = "settings" if known["settings"] != run["settings"] else ""
    if [name for name, _ in known["inputs"]] != [name for name, _ in run["inputs"]]:
        what = "inputs"
    if what:
        raise UsageProblem(f"{output}: holds the parts of a run with other {what}; name another folder, or remove it")
    for part, before, now in zip(parts, known["inputs"], run["inputs"], strict=True):
        if before != now and part.target in names:
            raise UsageProblem(f"{output}: {part.source} has changed since {part.target} was written; remove that part")


def _fingerprint(source: str) -> str:
    """Return what changes when a file does. Raises InputUnusable."""
    with _storage(source, InputUnusable):
        system, path = fsspec.core.url_to_fs(source)
        return str(system.ukey(path))


@contextlib.contextmanager
def _storage(name: str, problem: type[GliclassError]) -> Iterator[None]:
    try:
        yield
    except (OSError, ImportError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
        raise problem(f"{name}: {reason}") from error


# --- workers ---------------------------------------------------------------------------------------------------------


class _Worker:
    """A process of the cluster, with a classifier of its own."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._classifier: Classifier | None = None
        with contextlib.suppress(OSError):  # on a machine that has no such folder only URLs and full names are found
            os.chdir(job.directory)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = Part(row["source"], row["target"])
        told: list[str] = []
        summary, problem, kind = Summary(), "", ""
        try:
            self._classifier = self._classifier or self._job.load()
            summary = _classify_part(self._job, part, self._classifier, told)
        except GliclassError as error:
            problem, kind = str(error), type(error).__name__
        return {
            "target": part.target,
            **asdict(summary),
            "told": "\n".join(told),
            "problem": problem,
            "kind": kind,
        }


def _classify_part(job: Job, part: Part, classifier: Classifier, told: list[str]) -> Summary:
    def tell(record: Any, error: Any) -> None:
        if len(told) < _TOLD_ROWS:
            told.append(f"{record.where}: {error.message}".replace("\n", " "))

    with _place(job.output, part.target) as place, Output(place) as output:
        inputs = Inputs([part.source], job.read)
        return classify_rows(
            inputs, classifier, job.make_writer, output, job.settings, listeners=Listeners(bad_row=tell)
        )


@contextlib.contextmanager
def _place(output: str, target: str) -> Iterator[str]:
    """Give a local name to write to; what belongs into a bucket is put there when it is complete."""
    if not is_url(output):
        yield str(Path(output) / target)
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield str(Path(scratch) / target)
        with _storage(f"{output}/{target}", OutputFailed):
            system, folder = fsspec.core.url_to_fs(output)
            system.put_file(str(Path(scratch) / target), f"{folder}/{target}.part")
            system.mv(f"{folder}/{target}.part", f"{folder}/{target}")


# --- the run ---------------------------------------------------------------------------------------------------------


def classify_parts(job: Job, parts: Sequence[Part], cluster: Cluster) -> Iterator[Outcome]:
    """Classify parts on a cluster, and yield what each came to, as it is finished.

    A part whose worker died is classified again, by this worker or another one, as often as it takes.

    Raises:
        UsageProblem, ModelUnusable: the cluster is not there, or no worker can do its work.
        OutputFailed: workers write to where this machine does not see it.
    """
    with _connected(cluster):
        system, folder = fsspec.core.url_to_fs(job.output)
        for row in _results(job, parts, cluster):
            outcome = _outcome(row)
            if outcome.problem is None and not system.exists(f"{folder}/{outcome.target}"):
                raise OutputFailed(
                    f"{job.output}: a worker wrote {outcome.target} and it is not here; name a folder that all "
                    "machines share, or a bucket"
                )
            yield outcome


@contextlib.contextmanager
def _connected(cluster: Cluster) -> Iterator[None]:
    # Nothing is sent unless the user says so; what goes wrong comes as an exception.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    try:
        ray.init(
            cluster.address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if cluster.address else local),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageProblem(f"--address {cluster.address}: no Ray cluster answers there: {reason}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _results(job: Job, parts: Sequence[Part], cluster: Cluster) -> Iterator[dict[str, Any]]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    there = ray.cluster_resources()
    room = there.get("GPU", 0) // cluster.gpus if cluster.gpus else there.get("CPU", 0) // cluster.cores
    workers = max(1, min(len(parts), cluster.workers or int(room)))
    rows = ray.data.from_items([asdict(part) for part in parts], override_num_blocks=len(parts)).map(
        _Worker,
        fn_constructor_args=(job,),
        # A part takes minutes: none waits at a worker while another one is idle.
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=workers, initial_size=workers, max_tasks_in_flight_per_actor=1
        ),
        num_cpus=cluster.cores,
        num_gpus=cluster.gpus or None,
    )
    yield from rows.iter_rows()


def _outcome(row: dict[str, Any]) -> Outcome:
    """Return what a worker answered. Raises what no other part would escape."""
    problem: GliclassError | None = None
    if row["problem"]:
        kinds: dict[str, type[GliclassError]] = {kind.__name__: kind for kind in (InputUnusable, OutputFailed)}
        if row["kind"] not in kinds:
            found = next(
                (kind for kind in GliclassError.__subclasses__() if kind.__name__ == row["kind"]), GliclassError
            )
            raise found(row["problem"])
        problem = kinds[row["kind"]](row["problem"])
    counts = {name: row[name] for name in ("rows", "written", "errors", "truncated", "chunked", "split")}
    return Outcome(row["target"], Summary(**counts), tuple(row["told"].splitlines()), problem)
