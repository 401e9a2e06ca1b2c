"""What a user says about the computing: backend, device, precision, threads, network."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Runtime:
    """What computes a model: nothing here changes a score by more than rounding.

    ``backend``: auto, onnx or torch. ``device``: auto, cpu, cuda, cuda:N. ``precision``: auto, fp32, fp16, bf16 or
    int8. ``threads``: None for the cores that this process may use. ``offline``: no network, whatever the name.
    ``adapter``: the folder of low-rank adapters that are added to the model's weights.
    ``announce`` is told before something is downloaded, and then a progress bar is shown.
    """

    backend: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    offline: bool = False
    adapter: str | None = None
    announce: Callable[[str], None] | None = None

    @property
    def wants_torch(self) -> bool:
        """Whether only PyTorch will do."""
        wanted = self.backend == "torch" or self.adapter is not None or self.device.startswith("cuda")
        return wanted or self.precision in ("fp16", "bf16")
