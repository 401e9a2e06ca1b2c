"""A supervised step: losses on the right labels, added up over the batches of the step."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gliclass_cli.errors import UsageProblem
from gliclass_cli.predictions import Calibration
from gliclass_cli.training.batches import Batch, Scored
from gliclass_cli.training.loop import Step
from gliclass_cli.training.losses import bce_loss, contrastive_loss, focal_loss, softmax_loss
from gliclass_cli.training.settings import Loss, parse_weights

LOSSES = ("auto", "bce", "focal", "softmax", "contrastive")


@dataclass(frozen=True, slots=True)
class Supervised:
    """The losses of a run. What is compared are the calibrated logits: those behind the scores that users see."""

    weights: Mapping[str, float]
    loss: Loss
    calibration: Calibration

    @classmethod
    def of(cls, loss: Loss, calibration: Calibration, *, multi: bool) -> "Supervised":
        """Read the terms of the loss. Raises UsageProblem."""
        weights = parse_weights(loss.loss, LOSSES, "loss")
        if not weights:
            raise UsageProblem(f"no loss: known are {', '.join(LOSSES)}")
        if "auto" in weights:
            weights["bce" if multi else "softmax"] = weights.pop("auto")
        return cls(weights, loss, calibration)

    def update(self, step: Step) -> dict[str, float]:
        """Add up the gradients of the batches, move the weights, and return the mean of each term."""
        step.optimizer.clear()
        values: dict[str, float] = {}
        for batch in step.batches:
            found = self.terms(step.forward(step.model, batch), batch)
            loss = torch.stack([self.weights[name] * value for name, value in found.items()]).sum()
            (loss / len(step.batches)).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss, **(found if len(found) > 1 else {})}.items():
                values[name] = values.get(name, 0.0) + float(value.detach()) / len(step.batches)
        return values | {"grad_norm": step.optimizer.step(step.number)}

    def state(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take nothing."""

    def terms(self, scored: Scored, batch: Batch) -> dict[str, Tensor]:
        """Return each term of the loss of a batch, unweighted."""
        logits = scored.logits.float()
        alone = logits / self.calibration.multi_temperature + self.calibration.multi_bias
        counts = batch.mask.sum(dim=1, keepdim=True).clamp(min=1)
        compared = logits * counts**self.calibration.label_exponent / self.calibration.single_temperature
        terms: dict[str, Tensor] = {}
        for name in self.weights:
            if name == "bce":
                terms[name] = bce_loss(alone, batch.targets, batch.mask)
            elif name == "focal":
                focal = {"alpha": self.loss.focal_alpha, "gamma": self.loss.focal_gamma}
                terms[name] = focal_loss(alone, batch.targets, batch.mask, **focal)
            elif name == "softmax":
                terms[name] = softmax_loss(compared, batch.targets, batch.mask)
            elif scored.labels is None:
                raise UsageProblem("the loss contrastive needs label vectors, which a decoder-kv does not have")
            else:
                terms[name] = contrastive_loss(scored.labels.float(), batch.mask)
        return terms
