"""A whole training: rows and a model in, a folder with the trained model out."""

import fnmatch
import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gliclass_cli import __version__
from gliclass_cli.backends.pytorch import choose_device, open_model
from gliclass_cli.composer import Composer
from gliclass_cli.cores import available_cores
from gliclass_cli.errors import OutputFailed, UsageProblem
from gliclass_cli.labels import LabelProblem
from gliclass_cli.loading import open_folder
from gliclass_cli.model import GliclassModel, add_lora, save_lora, save_model
from gliclass_cli.model_folder import ModelFolder, file_digest
from gliclass_cli.plots import plot_training
from gliclass_cli.prompts import Reading
from gliclass_cli.runtime import Runtime
from gliclass_cli.training.batches import Batcher
from gliclass_cli.training.checkpoints import Checkpoints
from gliclass_cli.training.loop import Listeners, Loop, Method
from gliclass_cli.training.measuring import measure
from gliclass_cli.training.optimizer import Optimizer, freeze
from gliclass_cli.training.rows import Source, check_dev, check_multi, check_pools, label_set
from gliclass_cli.training.sampling import LabelInfo, Sampler
from gliclass_cli.training.settings import TrainSettings, parse_weights, to_tables
from gliclass_cli.training.supervised import Supervised

METRICS = "metrics.jsonl"
CURVE = "loss.png"
SETTINGS = "train.toml"
_SHOWN = 8  # files in one message
# Tokens of one input where nothing is said: a text alone, one of a few, and a text with its labels.
_TEXT_LENGTH, _FEW_SHOT_LENGTH, _LENGTH = 256, 128, 512


@dataclass(frozen=True, slots=True)
class Job:
    """What is trained on what, and where the result goes."""

    model: str
    sources: Sequence[Source]
    output: Path
    settings: TrainSettings
    dev: Source | None = None
    info: LabelInfo = field(default_factory=LabelInfo)
    runtime: Runtime = field(default_factory=Runtime)
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did; ``best``: the measure on the dev file that the saved weights have."""

    steps: int
    total: int
    seconds: float
    loss: float | None
    best: float | None
    best_step: int


def train(job: Job, listeners: Listeners, stop: threading.Event) -> Report:
    """Train, and save the model to ``job.output``.

    Raises:
        UsageProblem: the output is there already, or settings do not suit the model.
        ModelUnusable: the model cannot be loaded or trained, or a step failed.
        OutputFailed: the folder cannot be written.
        Interrupted: ``stop`` was set; ``resume`` goes on.
    """
    check_output(job.output, resume=job.resume)
    multi = _check_job(job)
    device = choose_device(job.runtime.device)
    if device.type == "cpu":
        torch.set_num_threads(job.runtime.threads or available_cores())
    torch.manual_seed(job.settings.task.seed)
    folder = open_folder(job.model, replace(job.runtime, backend="torch")).as_checkpoint()
    model = open_model(folder, str(device), adapter=job.runtime.adapter)
    folder = replace(folder, config=model.config)
    composer = _composer(folder, job)
    _check_rows(composer, job)
    loop, adapted = _prepare(job, folder, model, composer, device, multi=multi)
    loop.progress.fingerprint = _fingerprint(job, folder)
    try:
        job.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputFailed(f"{job.output}: the folder cannot be made: {error.strerror}") from error
    resumed = job.resume and loop.resume()
    if not resumed:
        loop.checkpoints.remove()
    if job.resume and not resumed:
        listeners.message(f"{job.output}: holds no checkpoint; starting from the beginning")
    elif resumed:
        listeners.message(f"going on after step {loop.progress.step} of {loop.total}")
    log = _Log(job.output / METRICS, loop.progress.step)

    def on_step(values: Mapping[str, Any]) -> None:
        log.write(values)
        listeners.step(values)

    loop.listeners = Listeners(on_step, listeners.message)
    _write_settings(job, loop)
    try:
        loop.run(stop)
    finally:
        log.close()
    try:
        _save(job, folder, model, adapted)
    except OutputFailed:
        with suppress(OutputFailed):
            loop.save()
        raise
    _write_settings(job, loop)
    _write(job.output / CURVE, plot_training(log.lines()))
    loop.checkpoints.remove()
    progress = loop.progress
    return Report(progress.step, loop.total, progress.seconds, log.loss, progress.best, progress.best_step)


def _check_job(job: Job) -> bool:
    """Refuse what cannot be trained; return whether rows have several right labels. Raises UsageProblem."""
    settings = job.settings
    if job.runtime.precision not in ("auto", "fp32", "bf16"):
        raise UsageProblem(f"--precision {job.runtime.precision}: training takes fp32, or bf16 on CUDA")
    if job.runtime.adapter is not None and settings.lora.lora:
        raise UsageProblem("--lora makes new adapters: leave --adapter out, or export the model with it first")
    if settings.watching.patience and job.dev is None:
        raise UsageProblem("--patience needs --dev FILE to measure on")
    source_weights(job)
    check_pools(job.sources)
    multi = check_multi(job.sources, settings.task.multi)
    if job.dev is not None:
        check_dev(job.dev, multi=multi)
    return multi


def check_output(output: Path, *, resume: bool) -> None:
    """Refuse an output folder that holds something else than a run to go on with. Raises UsageProblem, OutputFailed."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UsageProblem(f"{output}: is a file; name a new folder")
    if any(output.glob("*.safetensors")):
        raise UsageProblem(f"{output}: holds a finished model; name a new folder, or remove it first")
    started = (output / SETTINGS).exists()
    if started and not resume:
        raise UsageProblem(f"{output}: holds a run that did not finish; go on with --resume, or remove it first")
    if not started and any(output.iterdir()):
        raise UsageProblem(f"{output}: is not empty; name a new folder")


def _composer(folder: ModelFolder, job: Job) -> Composer:
    task = job.settings.task
    alone = _FEW_SHOT_LENGTH if task.shots else _TEXT_LENGTH
    wanted = task.max_length or (alone if folder.config.architecture == "bi-encoder" else _LENGTH)
    if task.max_length > folder.positions:
        raise UsageProblem(f"max_length {wanted}: the model has {folder.positions} positions")
    reading = Reading(template=folder.label_templates[0], max_length=min(wanted, folder.positions))
    return Composer(folder, reading)


def _check_rows(composer: Composer, job: Job) -> None:
    """Find out before the first step what the model cannot read. Raises UsageProblem."""
    _check_wordings(composer, job.info)
    for source in (*job.sources, *([job.dev] if job.dev else [])):
        try:
            composer.labels(label_set(source.pool, source.descriptions))
            for row in source.rows:
                if row.descriptions:
                    composer.labels(label_set(tuple(row.descriptions), row.descriptions))
            for prompt, examples in {(row.prompt, row.examples) for row in source.rows}:
                composer.with_task(prompt, examples if composer.reads_examples else ())
        except (LabelProblem, UsageProblem) as problem:
            raise UsageProblem(f"{source.name}: {problem}") from problem
        for row in source.rows:
            if not row.true and not set(row.candidates or source.pool) - row.avoid:
                raise UsageProblem(f"{source.name}: a row has no label to be shown: {row.text[:40]!r}")
    if job.settings.sampling.negatives == ("candidates",):
        for source in job.sources:
            if any(row.candidates is None for row in source.rows):
                raise UsageProblem(f"{source.name}: --negatives candidates: some rows bring none (all_labels)")
    shown = any(row.examples for source in job.sources for row in source.rows)
    if (shown or job.settings.augmentation.examples) and not composer.reads_examples:
        raise UsageProblem("the model was made without examples (no token <<EXAMPLE>>): leave examples out")


def _check_wordings(composer: Composer, info: LabelInfo) -> None:
    """Find out whether the model can read the other ways to say a label. Raises UsageProblem."""
    for name, texts in (*info.synonyms.items(), *info.descriptions.items()):
        for text in texts:
            try:
                composer.labels(label_set((name,), {name: text}))
            except LabelProblem as problem:
                raise UsageProblem(f"--label-info: {problem}") from problem


def source_weights(job: Job) -> list[float]:
    """Return how often the rows of each source come in a pass. Raises UsageProblem."""
    names = [Path(source.name).name.partition(".")[0] for source in job.sources]
    items = job.settings.sampling.source_weights
    patterns = [item.partition("=")[0].strip() for item in items]
    for item, pattern in zip(items, patterns, strict=True):
        if pattern not in names and not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            raise UsageProblem(f"source_weights {item!r}: fits none of the files: {shown}")
    given = parse_weights(items, tuple(patterns), "source_weights", zero=True)

    def weight(name: str) -> float:
        fitting = (given[pattern] for pattern in given if fnmatch.fnmatchcase(name, pattern))
        return given.get(name, next(fitting, 1.0))

    weights = [weight(name) for name in names]
    if not any(weights):
        raise UsageProblem("source_weights: all of them are 0: no row is left to train on")
    return weights


def _prepare(
    job: Job, folder: ModelFolder, model: GliclassModel, composer: Composer, device: torch.device, *, multi: bool
) -> tuple[Loop, Any]:
    settings = job.settings
    sampler = Sampler(
        job.sources, settings.optimisation.batch_size, settings.sampling, settings.augmentation, job.info,
        settings.task.seed, source_weights(job),
    )  # fmt: skip
    optimisation = settings.optimisation
    adapted = None
    if settings.lora.lora:
        lora = settings.lora
        adapted = add_lora(
            model, job.model, rank=lora.lora_rank, alpha=lora.lora_alpha, dropout=lora.lora_dropout,
            targets=lora.lora_targets,
        )  # fmt: skip
    freeze(model, optimisation)
    passes = max(1, round(optimisation.epochs * sampler.epoch_batches / optimisation.accumulation))
    total = optimisation.steps or min(passes, optimisation.most_steps or passes)
    method = _method(job, folder, model, device, multi=multi)
    half = job.runtime.precision == "bf16" or (job.runtime.precision == "auto" and device.type == "cuda")
    dev = job.dev
    watch: Callable[[], dict[str, float]] | None = None
    if dev is not None:
        watch = partial(measure, model, folder, composer, device, dev, multi=multi)
    loop = Loop(
        model=model,
        method=method,
        optimizer=Optimizer(model, optimisation, total),
        sampler=sampler,
        batcher=Batcher(composer, device),
        settings=settings,
        checkpoints=Checkpoints(job.output),
        total=total,
        device=device,
        precision=torch.bfloat16 if half else torch.float32,
        measure=watch,
    )
    return loop, adapted


def _method(job: Job, folder: ModelFolder, model: GliclassModel, device: torch.device, *, multi: bool) -> Method:
    settings = job.settings
    if settings.task.method == "ppo":
        from gliclass_cli.training.ppo import Ppo

        return Ppo.of(settings, folder.calibration, model, device, multi=multi)
    supervised = Supervised.of(settings.loss, folder.calibration, multi=multi)
    if "contrastive" in supervised.weights and folder.config.architecture == "decoder-kv":
        raise UsageProblem("the loss contrastive needs label vectors, which a decoder-kv does not have")
    return supervised


def _fingerprint(job: Job, folder: ModelFolder) -> str:
    """Return a digest of all that decides what a run computes, but for the machine."""
    weights = (
        [file.path for file in folder.onnx.files]
        if folder.onnx and not folder.has_weights
        else folder.path.glob("*.safetensors")
    )
    held = {
        "settings": to_tables(job.settings),
        "weights": [file_digest(path) for path in sorted(weights)],
        "adapter": job.runtime.adapter and file_digest(Path(job.runtime.adapter) / "adapter_model.safetensors"),
        "precision": job.runtime.precision,
        "config": folder.config.raw,
        "source_weights": source_weights(job),
        "info": [job.info.descriptions, job.info.synonyms],
    }
    digest = hashlib.sha256(json.dumps(held, sort_keys=True, default=str).encode())
    for source in (*job.sources, job.dev):
        head = (source.pool, source.descriptions) if source else None
        digest.update(repr(head).encode("utf-8", "surrogatepass"))
        for row in source.rows if source else ():
            parts = (row.text, row.true, row.candidates, row.descriptions, sorted(row.avoid), row.prompt, row.examples)
            digest.update(repr(parts).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _write_settings(job: Job, loop: Loop) -> None:
    """Write the settings as they were resolved, and what was run, as TOML that ``--config`` reads again."""
    import tomli_w

    progress = loop.progress
    run: dict[str, Any] = {
        "model": job.model,
        "data": [source.name for source in job.sources],
        **({"dev": job.dev.name} if job.dev else {}),
        "rows": sum(len(source.rows) for source in job.sources),
        "steps_done": progress.step,
        "steps_of": loop.total,
        **({"best": progress.best, "best_step": progress.best_step} if progress.best is not None else {}),
        "seconds": round(progress.seconds, 1),
        "gliclass_cli": __version__,
        "torch": torch.__version__,
    }
    _write(job.output / SETTINGS, tomli_w.dumps({"run": run, **to_tables(job.settings)}))


def _save(job: Job, folder: ModelFolder, model: GliclassModel, adapted: Any) -> None:
    """Save the trained model, or its adapters, with all that it needs to classify."""
    if adapted is not None:
        save_lora(adapted, job.output)
        return
    try:
        shutil.copyfile(folder.tokenizer, job.output / "tokenizer.json")
        if folder.label_tokenizer != folder.tokenizer:
            shutil.copyfile(folder.label_tokenizer, job.output / "label_tokenizer.json")
        for name in ("tokenizer_config.json", "special_tokens_map.json"):  # the reference reads them
            if (folder.path / name).is_file():
                shutil.copyfile(folder.path / name, job.output / name)
    except OSError as error:
        raise OutputFailed(f"{job.output}: cannot be written: {error.strerror}") from error
    save_model(model, job.output)


class _Log:
    """The measures of a run, a JSON object a line; lines after the step that is gone on from are dropped."""

    def __init__(self, path: Path, step: int) -> None:
        kept = []
        if path.exists() and step:
            kept = [line for line in path.read_text("utf-8").splitlines() if _is_before(line, step)]
        self.loss: float | None = None
        _write(path, "".join(f"{line}\n" for line in kept))
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: Mapping[str, Any]) -> None:
        """Add a line."""
        self.loss = values.get("loss", self.loss)
        try:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        except OSError as error:
            raise OutputFailed(f"{self._path}: cannot be written: {error.strerror}") from error

    def lines(self) -> list[dict[str, Any]]:
        """Return all lines."""
        return [json.loads(line) for line in self._path.read_text("utf-8").splitlines()]

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self._file.close()


def _is_before(line: str, step: int) -> bool:
    """Tell whether a line is of a step up to ``step``; one that was cut off is not."""
    try:
        return bool(json.loads(line)["step"] <= step)
    except ValueError:
        return False


def _write(path: Path, content: str | bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    except OSError as error:
        raise OutputFailed(f"{path}: cannot be written: {error.strerror}") from error
