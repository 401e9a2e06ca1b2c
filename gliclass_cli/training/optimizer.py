"""AdamW with two learning rates, a warm-up, and a linear way down (paper, section 4)."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from gliclass_cli.errors import ModelUnusable, UsageProblem
from gliclass_cli.training.settings import Optimisation

_BACKBONES = ("encoder_model.", "label_encoder.", "encoder_decoder_model.", "decoder_model.")
_EMBEDDINGS = ("embeddings.", "embed_tokens.", "shared.")
_BESIDE_EMBEDDINGS = (".encoder.LayerNorm.",)  # DeBERTa: of its relative positions
_LAYER = re.compile(r"\.(?:layers?|blocks?|h)\.(\d+)\.")
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
                if backbone := _backbone(name):
                    rate = settings.encoder_lr * settings.layer_decay ** (layers[backbone] - _height(name, layers))
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


def count_layers(names: Iterable[str]) -> dict[str, int]:
    """Return how many layers each backbone has, of parameters by name; 0 where they cannot be told."""
    layers: dict[str, int] = {}
    for name in names:
        if backbone := _backbone(name):
            found = _LAYER.search(name)
            layers[backbone] = max(layers.get(backbone, 0), int(found[1]) + 1 if found else 0)
    return layers


def freeze(model: nn.Module, settings: Optimisation) -> None:
    """Exclude embeddings, lower layers or whole backbones from training, and what has no part in the scores.

    Raises:
        UsageProblem: layers are to be told apart, and cannot be.
    """
    layers = count_layers(name for name, _ in model.named_parameters())
    if (settings.freeze_layers or settings.layer_decay != 1) and not all(layers.values()):
        raise UsageProblem("freeze_layers and layer_decay: the layers of this model cannot be told apart")
    for name, parameter in model.named_parameters():
        if ".pooler." in name or (_backbone(name) and _is_frozen(name, layers, settings)):
            parameter.requires_grad_(False)


def _is_frozen(name: str, layers: Mapping[str, int], settings: Optimisation) -> bool:
    """Tell whether a parameter of a backbone stays as it is."""
    height = _height(name, layers)
    if height == 0:
        return bool(settings.freeze) or settings.freeze_layers > 0
    return "encoder" in settings.freeze or height <= settings.freeze_layers


def _backbone(name: str) -> str | None:
    """Return the backbone that a parameter belongs to, if it belongs to one."""
    return next((part for part in _BACKBONES if part in f"{name}."), None)


def _height(name: str, layers: Mapping[str, int]) -> int:
    """Return how high a parameter stands in its backbone: 0 for embeddings, the number of layers above all of them."""
    if found := _LAYER.search(name):
        return int(found[1]) + 1
    if any(part in name for part in (*_EMBEDDINGS, *_BESIDE_EMBEDDINGS)):
        return 0
    return max(layers.get(_backbone(name) or "", 0), 1)
