"""PyTorch: any checkpoint, on CUDA or on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from gliclass_cli.backends import Arrays, Part
from gliclass_cli.decoding import Floats
from gliclass_cli.errors import ModelUnusable, OutOfMemory
from gliclass_cli.model import GliclassModel, load_model, merge_lora, restore_model
from gliclass_cli.model_folder import ModelFolder, check_digests

_CPU_TOKENS = 1024
_CUDA_TOKENS = 32_768
_PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchBackend:
    """Runs a checkpoint's own weights. On CUDA, a batch that does not fit into the memory is halved, and goes on."""

    def __init__(
        self,
        folder: ModelFolder,
        *,
        device: str,
        precision: str,
        threads: int,
        adapter: str | None = None,
        model: GliclassModel | None = None,
    ) -> None:
        """Load the weights, or take a ``model`` that is on the device already. Raises ModelUnusable."""
        self._device = choose_device(device)
        dtype = _PRECISIONS["fp32" if precision == "auto" else precision]
        if self._device.type == "cpu":
            torch.set_num_threads(threads)
        self.model = model or open_model(folder, str(self._device), dtype, adapter)
        self._path = folder.path
        self._architecture = folder.config.architecture
        self.batch_tokens = _CPU_TOKENS if self._device.type == "cpu" else _CUDA_TOKENS
        self.workers = 1
        self.alone = False
        self.slots: int | None = None
        self.length: int | None = None
        simple = self._architecture == "bi-encoder" and folder.config.scorer == "simple"
        self.product = dot_product(self.model) if simple else None
        self.description = f"PyTorch {torch.__version__}, {_device_name(self._device)}, {_name(dtype)}"

    def run(self, part: Part, inputs: Arrays) -> Floats:
        """Run a part of the model. Raises ModelUnusable."""
        try:
            output: Floats = self._compute(part, inputs).float().cpu().numpy()
        except RuntimeError as error:
            if not (isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)):
                raise self._failed(inputs, error) from error
            rows = len(next(iter(inputs.values())))
            if rows == 1:
                tokens = max(value.shape[1] for value in inputs.values())
                raise OutOfMemory(
                    f"{_device_name(self._device)}: out of memory with a single text of {tokens} tokens; "
                    "try a smaller --max-length, --precision bf16, or --device cpu"
                ) from error
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            return self._by_halves(part, inputs, rows // 2)
        except IndexError as error:
            raise self._failed(inputs, error) from error
        return output

    def _failed(self, inputs: Arrays, error: Exception) -> ModelUnusable:
        shapes = ", ".join(f"{name} {' x '.join(map(str, value.shape))}" for name, value in inputs.items())
        problem = str(error).splitlines()[0]
        if isinstance(error, IndexError):
            problem = "a token beyond the model's vocabulary; is tokenizer.json that of this model?"
        return ModelUnusable(f"{self._path}: PyTorch cannot run it on {shapes}: {problem}")

    def _by_halves(self, part: Part, inputs: Arrays, first: int) -> Floats:
        halves = [
            self.run(part, {name: value[rows] for name, value in inputs.items()})
            for rows in (slice(first), slice(first, None))
        ]
        width = max(half.shape[1] for half in halves)  # a half may hold fewer labels a row
        return np.concatenate([np.pad(half, ((0, 0), (0, width - half.shape[1]))) for half in halves])

    @torch.inference_mode()
    def _compute(self, part: Part, inputs: Arrays) -> torch.Tensor:
        tensors = {name: self._on_device(value) for name, value in inputs.items()}
        model: Any = self.model
        compute = {"label": "encode_labels", "scorer": "score"}.get(part, "forward")
        if part == "text" and self._architecture == "bi-encoder":
            compute = "encode_text"
        output: torch.Tensor = getattr(model, compute)(**tensors)
        return output

    def _on_device(self, value: Any) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(value))
        if tensor.is_floating_point():
            tensor = tensor.to(next(self.model.parameters()).dtype)
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)


def open_model(
    folder: ModelFolder, device: str, dtype: torch.dtype = torch.float32, adapter: str | None = None
) -> GliclassModel:
    """Load the weights of a checkpoint, or those of the bundled model, adapters added. Raises ModelUnusable."""
    if folder.has_weights or folder.onnx is None:
        model = load_model(folder.path, folder.config, device=device, dtype=dtype)
    else:
        onnx = folder.onnx
        check_digests(onnx)
        model = restore_model(
            onnx.text.path, folder.config, scale=onnx.scale, bias=onnx.bias, device=device, dtype=dtype
        )
    return model if adapter is None else merge_lora(model, Path(adapter))


def dot_product(model: GliclassModel) -> tuple[float, float]:
    """Return scale and bias of a bi-encoder's logits = scale * (text . label) + bias."""
    bias = float(model.get_parameter("logit_bias").detach()) if model.config.shared_encoder else 0.0
    return float(model.get_parameter("logit_scale").detach()), bias


def cuda_devices() -> list[str]:
    """Return the CUDA devices that PyTorch finds, each with its name."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{number} ({torch.cuda.get_device_name(number)})" for number in range(count)]


def choose_device(name: str) -> torch.device:
    """Return the device that the user asked for, CUDA by itself where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelUnusable(f"--device {name}: PyTorch {torch.__version__} finds no CUDA device here; try --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelUnusable(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, from cuda:0 on")
    return device


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _name(dtype: torch.dtype) -> str:
    return next(name for name, known in _PRECISIONS.items() if known == dtype)
