"""The loop: batches, steps, measuring on a dev file, early stopping, checkpoints; it can be cut off anywhere."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from gliclass_cli.errors import Interrupted, ModelUnusable
from gliclass_cli.labels import LabelProblem
from gliclass_cli.model import GliclassModel
from gliclass_cli.training.batches import Batch, Batcher, Scored, score
from gliclass_cli.training.checkpoints import Checkpoints, Progress
from gliclass_cli.training.optimizer import Optimizer
from gliclass_cli.training.sampling import Sampler
from gliclass_cli.training.settings import TrainSettings

# Where nothing else is said, a run is measured so many times, and saved so often.
_TIMES = 10
_SAVE_SECONDS = 300.0
Forward = Callable[[GliclassModel, Batch], Scored]


class Method(Protocol):
    """What a step does with its batches: ``supervised``, ``ppo``."""

    def update(self, step: "Step") -> dict[str, float]:
        """Move the weights, and return what there is to report, ``loss`` among it."""

    def state(self) -> dict[str, Tensor]:
        """Return what the method remembers from step to step."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take what ``state`` returned."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its number from 0, its batches, and what moves the weights."""

    number: int
    batches: Sequence[Batch]
    model: GliclassModel
    forward: Forward
    optimizer: Optimizer


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who hears of a run: of each step and each evaluation (values by name), and of what else is to be told."""

    step: Callable[[Mapping[str, Any]], None] = lambda values: None
    message: Callable[[str], None] = lambda text: None


@dataclass(slots=True)
class Loop:
    """A run in progress. ``measure`` returns measures on the dev file and names the one that decides first."""

    model: GliclassModel
    method: Method
    optimizer: Optimizer
    sampler: Sampler
    batcher: Batcher
    settings: TrainSettings
    checkpoints: Checkpoints
    total: int
    device: torch.device
    precision: torch.dtype
    measure: Callable[[], dict[str, float]] | None = None
    listeners: Listeners = field(default_factory=Listeners)
    progress: Progress = field(default_factory=Progress)
    _epoch: tuple[int, list[tuple[int, tuple[int, ...]]]] = (-1, [])

    def resume(self) -> bool:
        """Go on from the last checkpoint, if there is one. Raises ModelUnusable where it is of another run."""
        found = self.checkpoints.load()
        if found is None:
            return False
        progress, weights, state = found
        if progress.fingerprint != self.progress.fingerprint:
            raise ModelUnusable(
                f"{self.checkpoints.folder}: its checkpoint belongs to other data, another model or other settings; "
                "give the same ones, or another --output"
            )
        self._load(weights)
        self.optimizer.restore(state)
        self.method.restore(state)
        self.progress = progress
        return True

    def run(self, stop: threading.Event) -> None:
        """Take all steps that are left; the model holds the best weights, or the last ones, at the end.

        Raises:
            Interrupted: ``stop`` was set; a checkpoint is saved.
            ModelUnusable: a step failed; nothing is skipped.
        """
        watching = self.settings.watching
        eval_every = watching.eval_every or max(1, self.total // _TIMES)
        started = time.monotonic() - self.progress.seconds
        saved = time.monotonic()
        while self.progress.step < self.total and not self._stopped_early:
            self._step(started)
            last = self.progress.step == self.total
            if self.measure is not None and (self.progress.step % eval_every == 0 or last):
                self._evaluate(self.measure)
            self.progress.seconds = time.monotonic() - started
            due = time.monotonic() - saved > _SAVE_SECONDS
            if watching.save_every:
                due = self.progress.step % watching.save_every == 0
            if (due and not last) or stop.is_set():
                self.save()
                saved = time.monotonic()
            if stop.is_set() and not last:
                raise Interrupted(
                    f"interrupted after step {self.progress.step} of {self.total}, which is saved; "
                    "the same command with --resume goes on"
                )
        if self.progress.best is not None:
            self._load(self.checkpoints.load_best())

    def save(self) -> None:
        """Save a checkpoint."""
        self.checkpoints.save(self.progress, self.optimizer.parameters, self.optimizer.state() | self.method.state())

    def _step(self, started: float) -> None:
        number = self.progress.step
        begun = time.monotonic()
        # Dropout and sampled actions depend on the step alone.
        torch.manual_seed(self.settings.task.seed * 1_000_003 + number)
        self.model.train(self.settings.optimisation.dropout)
        try:
            batches = self._batches(number)
            values = self.method.update(Step(number, batches, self.model, self.forward, self.optimizer))
        except (RuntimeError, IndexError, LabelProblem) as error:
            raise ModelUnusable(f"step {number + 1} failed: {str(error).strip() or type(error).__name__}") from error
        if not all(abs(value) < float("inf") for value in values.values()):
            raise ModelUnusable(f"step {number + 1}: the loss is no number; lower the learning rates (--lr)")
        self.progress.step = number + 1
        seconds = time.monotonic() - begun
        self.listeners.step(
            {
                "step": number + 1,
                "total": self.total,
                "epoch": round((number + 1) * self.settings.optimisation.accumulation / self.sampler.epoch_batches, 4),
                **values,
                "rate": self.optimizer.rate(number),
                "rows_per_second": sum(len(batch.mask) for batch in batches) / max(seconds, 1e-9),
                "tokens": sum(batch.tokens for batch in batches),
                "seconds": round(time.monotonic() - started, 3),
            }
        )

    def _batches(self, number: int) -> list[Batch]:
        """Return the batches of a step."""
        per_step, per_epoch = self.settings.optimisation.accumulation, self.sampler.epoch_batches
        batches = []
        for count in range(number * per_step, (number + 1) * per_step):
            epoch, place = divmod(count, per_epoch)
            if self._epoch[0] != epoch:
                self._epoch = epoch, self.sampler.epoch(epoch)
            source, rows = self._epoch[1][place]
            batches.append(self.batcher.batch(self.sampler.batch(count, source, rows)))
        return batches

    def forward(self, model: GliclassModel, batch: Batch) -> Scored:
        """Score a batch in the precision of the run."""
        context: Any = contextlib.nullcontext()
        if self.precision != torch.float32:
            context = torch.autocast(self.device.type, dtype=self.precision)
        with context:
            return score(model, batch)

    @property
    def _stopped_early(self) -> bool:
        patience = self.settings.watching.patience
        return bool(patience) and self.progress.since_best >= patience

    def _evaluate(self, measure: Callable[[], dict[str, float]]) -> None:
        """Measure on the dev file, and keep the best weights."""
        self.model.eval()
        try:
            measures = measure()
        except ModelUnusable as error:
            raise ModelUnusable(f"after step {self.progress.step}: {error}; lower the learning rates (--lr)") from error
        progress, decides = self.progress, next(iter(measures.values()))
        self.listeners.step({"step": progress.step, "dev": measures})
        if progress.best is None or decides > progress.best:
            progress.best, progress.best_step, progress.since_best = decides, progress.step, 0
            self.checkpoints.save_best(self.optimizer.parameters)
            return
        progress.since_best += 1
        if self._stopped_early:
            self.listeners.message(
                f"stopped early after step {progress.step}: no gain in {progress.since_best} evaluations; "
                f"best after step {progress.best_step}"
            )

    @torch.no_grad()
    def _load(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.optimizer.parameters.items():
            parameter.copy_(weights[name])
