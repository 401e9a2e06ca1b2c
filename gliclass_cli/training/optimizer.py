"""AdamW with two learning rates, a warm-up, and a linear way down (paper, section 4)."""

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gliclass_cli.errors import ModelUnusable
from gliclass_cli.training.settings import Optimisation

_BACKBONES = ("encoder_model.", "label_encoder.", "encoder_decoder_model.", "decoder_model.")
_EMBEDDINGS = ("embeddings.", "embed_tokens.", "shared.")
_LAYER = re.compile(r"\.(?:layers?|blocks?)\.(\d+)\.")
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Optimizer:
    """The trainable parameters of a run, by name, and how they move.

    Backbones have a learning rate of their own; biases and norms do not decay.
    """

    def __init__(self, model: nn.Module, settings: Optimisation, total: int) -> None:
        self._settings = settings
        self._total = total
        self.parameters: dict[str, nn.Parameter] = {}
        known: set[int] = set()
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        layers = count_layers(name for name, _ in model.named_parameters())
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and id(parameter) not in known:
                known.add(id(parameter))
                self.parameters[name] = parameter
                rate = settings.others_lr
                if any(part in f"{name}." for part in _BACKBONES):
                    rate = settings.encoder_lr * settings.layer_decay ** (layers - _height(name, layers))
                groups.setdefault((rate, parameter.ndim > 1), []).append(parameter)
        if not self.parameters:
            raise ModelUnusable("nothing is left to train: every parameter is frozen")
        self._adamw = torch.optim.AdamW(
            [
                {
                    "params": members,
                    "base": rate,
                    "lr": rate,
                    "weight_decay": settings.weight_decay if decays else 0.0,
                }
                for (rate, decays), members in groups.items()
            ],
            fused=True,
        )

    def rate(self, step: int) -> float:
        """Return the share of the learning rates that holds at a step, counted from 0: up, then down in a line."""
        warm = round(self._total * self._settings.warmup)
        if step < warm:
            return (step + 1) / warm
        return max(0.0, (self._total - step) / max(1, self._total - warm))

    def clear(self) -> None:
        """Forget the gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def step(self, number: int) -> float:
        """Clip the gradients, move the weights, and return the length that the gradients had.

        Raises:
            ModelUnusable: the gradients are no numbers.
        """
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self._settings.max_grad_norm))
        if not norm < float("inf"):
            raise ModelUnusable(
                f"step {number + 1}: the gradients are no numbers ({norm}); lower the learning rates (--lr)"
            )
        for group in self._adamw.param_groups:
            group["lr"] = group["base"] * self.rate(number)
        self._adamw.step()
        return norm

    def state(self) -> dict[str, Tensor]:
        """Return what the optimizer remembers of each parameter."""
        return {
            f"{name}|{moment}": self._adamw.state[parameter][moment]
            for name, parameter in self.parameters.items()
            for moment in _MOMENTS
            if moment in self._adamw.state[parameter]
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take what ``state`` returned."""
        for name, parameter in self.parameters.items():
            found = {moment: state[f"{name}|{moment}"] for moment in _MOMENTS if f"{name}|{moment}" in state}
            if found:
                self._adamw.state[parameter] = {
                    moment: value.to(parameter.device, copy=True) for moment, value in found.items()
                }


def count_layers(names: Iterable[str]) -> int:
    """Return how many layers the backbones have, of parameters by name."""
    return 1 + max((int(found[1]) for name in names if (found := _LAYER.search(name))), default=-1)


def _height(name: str, layers: int) -> int:
    """Return how high a parameter of a backbone stands: 0 for embeddings, ``layers`` for what is above all layers."""
    found = _LAYER.search(name)
    if found:
        return int(found[1]) + 1
    return 0 if any(part in name for part in _EMBEDDINGS) else layers


def freeze(model: nn.Module, settings: Optimisation) -> None:
    """Exclude embeddings, lower layers or whole backbones from training, and what has no part in the scores."""
    layers = count_layers(name for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        backbone = name.startswith(_BACKBONES)
        height = _height(name, layers)
        embeddings = "embeddings" in settings.freeze or settings.freeze_layers
        frozen = backbone and (
            "encoder" in settings.freeze or (embeddings and height == 0) or 0 < height <= settings.freeze_layers
        )
        if frozen or ".pooler." in name:
            parameter.requires_grad_(False)
