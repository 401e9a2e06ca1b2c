"""The state of a run on the disk: whole or not there, never pickle, enough to go on exactly."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gliclass_cli.errors import ModelUnusable, OutputFailed

_NAME = "checkpoint-"
_BEST = "best"


@dataclass(slots=True)
class Progress:
    """How far a run is: steps done, the best measure so far and the step it was measured after, and time spent."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    since_best: int = 0  # evaluations
    seconds: float = 0.0
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of a run in its output folder; the last one is kept."""

    folder: Path

    def save(self, progress: Progress, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Save weights and the optimizer's state; the checkpoint before goes when this one is whole."""
        name = f"{_NAME}{progress.step:08d}"
        self._write(name, {"weights": weights, "optimizer": state}, asdict(progress))
        for old in self._saved():
            if old.name != name:
                shutil.rmtree(old, ignore_errors=True)

    def load(self) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor]] | None:
        """Return the last checkpoint, or None where there is none. Raises ModelUnusable."""
        saved = self._saved()
        if not saved:
            return None
        folder = saved[-1]
        try:
            progress = Progress(**json.loads((folder / "progress.json").read_text("utf-8")))
            return progress, load_file(folder / "weights.safetensors"), load_file(folder / "optimizer.safetensors")
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise ModelUnusable(f"{folder}: the checkpoint cannot be read: {error}") from error

    def save_best(self, weights: Mapping[str, Tensor]) -> None:
        """Save the weights that were measured best."""
        self._write(_BEST, {"weights": weights}, {})

    def load_best(self) -> dict[str, Tensor]:
        """Return the weights that were measured best. Raises ModelUnusable."""
        path = self.folder / _BEST / "weights.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise ModelUnusable(f"{path}: cannot be read: {error}") from error

    def remove(self) -> None:
        """Remove all checkpoints: the run is done."""
        for folder in (*self._saved(), self.folder / _BEST, *self.folder.glob("*.part")):
            shutil.rmtree(folder, ignore_errors=True)

    def _saved(self) -> list[Path]:
        return sorted(path for path in self.folder.glob(f"{_NAME}*") if path.suffix != ".part")

    def _write(self, name: str, files: Mapping[str, Mapping[str, Tensor]], progress: Mapping[str, Any]) -> None:
        part, target = self.folder / f"{name}.part", self.folder / name
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            for file, tensors in files.items():
                held = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
                save_file(held, part / f"{file}.safetensors")
            (part / "progress.json").write_text(json.dumps(progress) + "\n", "utf-8")
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
        except (OSError, SafetensorError) as error:
            raise OutputFailed(f"{part}: the checkpoint cannot be saved: {error}") from error
