"""Proximal policy optimisation for texts with several right labels (paper, section 4.2; arXiv 1707.06347).

A text is a state, and an action says yes or no to each of its labels: a_ij ~ Bernoulli(p_ij). What a text's actions
are worth together is its reward R_i, what was expected of it is the value V_i, and the advantage is A_i = R_i - V_i.
Actions are drawn once a step and stay the same over its inner steps. Dropout is off: the first ratio is exactly 1.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gliclass_cli.errors import UsageProblem
from gliclass_cli.model import GliclassModel
from gliclass_cli.predictions import Calibration
from gliclass_cli.training.batches import Batch, Scored
from gliclass_cli.training.loop import Step
from gliclass_cli.training.losses import masked_mean
from gliclass_cli.training.settings import PpoSettings, TrainSettings, parse_weights

REWARDS = ("f1", "jaccard", "accuracy")
_VALUE_HIDDEN = 64
_PREFIX = "ppo."


def ppo_loss(
    logits: Tensor,
    old_logits: Tensor,
    actions: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the clipped surrogate -mean(w min(r A, clip(r, 1 - clip, 1 + clip) A)) over all labels of the batch.

    ``logits``, ``old_logits``, ``actions`` (0 or 1), ``mask`` and ``weights`` are (B, C), ``advantages`` (B,);
    r = pi(a) / pi_old(a), for each label by itself.
    """
    ratio = (log_probability(logits, actions) - log_probability(old_logits, actions)).exp()
    advantage = advantages[:, None]
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return -masked_mean(gain if weights is None else gain * weights, mask)


def log_probability(logits: Tensor, actions: Tensor) -> Tensor:
    """Return the logarithm of the probability of each action under Bernoulli(sigmoid(logits))."""
    return -functional.binary_cross_entropy_with_logits(logits, actions, reduction="none")


def kl_divergence(reference: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
    """Return KL(reference || policy) of the Bernoulli distributions of two sets of logits, the mean over labels."""
    p = reference.sigmoid()
    cross = functional.binary_cross_entropy_with_logits(logits, p, reduction="none")
    return masked_mean(cross - functional.binary_cross_entropy_with_logits(reference, p, reduction="none"), mask)


def entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the entropy of the policy in nats, the mean over labels; ln 2 where it knows nothing."""
    return masked_mean(functional.binary_cross_entropy_with_logits(logits, logits.sigmoid(), reduction="none"), mask)


def rewards(actions: Tensor, targets: Tensor, mask: Tensor, parts: Mapping[str, float]) -> Tensor:
    """Return the reward (B,) of each text's actions: F1, Jaccard index and accuracy, weighed and averaged, 0..1.

    Nothing chosen where nothing is right is perfect: 1.
    """
    true, said = ((value >= 0.5) & mask for value in (targets, actions))
    both = (true & said).sum(dim=1).float()
    either = (true | said).sum(dim=1).float()
    count = (true.sum(dim=1) + said.sum(dim=1)).float()
    found = {
        "f1": torch.where(count > 0, 2 * both / count.clamp(min=1), 1.0),
        "jaccard": torch.where(either > 0, both / either.clamp(min=1), 1.0),
        "accuracy": ((true == said) & mask).sum(dim=1).float() / mask.sum(dim=1).clamp(min=1),
    }
    total = torch.stack([weight * found[name] for name, weight in parts.items()]).sum(dim=0)
    return total / sum(parts.values())


def normalized(advantages: Tensor) -> Tensor:
    """Return advantages (B,) with mean 0 and standard deviation 1; equal ones become 0."""
    centred = advantages - advantages.mean()
    return centred / (centred.square().mean().sqrt() + 1e-8)


def focal_weights(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Return (1 - p_t)^gamma: labels that are hard to get right count more."""
    p = logits.sigmoid()
    weights: Tensor = (1 - (p * targets + (1 - p) * (1 - targets))) ** gamma
    return weights


class ValueHead(nn.Module):
    """Expects a reward from what the model sees: the text's vector, and how its probabilities lie."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(size + 4), nn.Linear(size + 4, _VALUE_HIDDEN), nn.Tanh(), nn.Linear(_VALUE_HIDDEN, 1)
        )

    def forward(self, scored: Scored, logits: Tensor, mask: Tensor) -> Tensor:
        """Return V (B,); no gradient goes from it into the model."""
        p, real = logits.detach().sigmoid(), mask.float()
        count = real.sum(dim=1).clamp(min=1)
        mean = (p * real).sum(dim=1) / count
        spread = (((p - mean[:, None]) ** 2 * real).sum(dim=1) / count).sqrt()
        likeliest = p.masked_fill(~mask, 0.0).amax(dim=1)
        unsure = (p * (1 - p) * real).sum(dim=1) / count
        parts = [torch.stack((mean, spread, likeliest, unsure), dim=1)]
        if scored.text is not None:
            parts.append(scored.text.detach().float())
        value: Tensor = self.layers(torch.cat(parts, dim=1)).squeeze(-1)
        return value


@dataclass(frozen=True, slots=True)
class _Rollout:
    """What is fixed over the inner steps of a batch."""

    batch: Batch
    old_logits: Tensor
    actions: Tensor
    rewards: Tensor
    advantages: Tensor
    reference: Tensor | None


@dataclass(slots=True)
class Ppo:
    """The method ``ppo``."""

    settings: PpoSettings
    calibration: Calibration
    parts: Mapping[str, float]
    value: ValueHead
    value_optimizer: torch.optim.Adam
    reference: GliclassModel | None

    @classmethod
    def of(
        cls,
        settings: TrainSettings,
        calibration: Calibration,
        model: GliclassModel,
        device: torch.device,
        *,
        multi: bool,
    ) -> "Ppo":
        """Build the value head, and freeze a copy of the model where divergence from it costs something."""
        ppo = settings.ppo
        parts = parse_weights(ppo.reward, REWARDS, "reward")
        if not parts:
            raise UsageProblem(f"no reward: known are {', '.join(REWARDS)}")
        if not multi:
            raise UsageProblem("ppo is for rows with several right labels, and each row here has one; use supervised")
        torch.manual_seed(settings.task.seed)
        value = ValueHead(_text_size(model)).to(device)
        reference = copy.deepcopy(model).eval().requires_grad_(False) if ppo.kl else None
        return cls(ppo, calibration, parts, value, torch.optim.Adam(value.parameters(), lr=ppo.value_lr), reference)

    def update(self, step: Step) -> dict[str, float]:
        """Draw actions, then move policy and value ``inner_steps`` times on them."""
        step.model.eval()
        rollouts = [self._roll_out(step, batch) for batch in step.batches]
        advantages = torch.cat([rollout.advantages for rollout in rollouts])
        if self.settings.normalize_advantages and len(advantages) > 1:
            parts = torch.split(normalized(advantages), [len(rollout.advantages) for rollout in rollouts])
            pairs = zip(rollouts, parts, strict=True)
            rollouts = [replace(rollout, advantages=part) for rollout, part in pairs]
        values: dict[str, float] = {}
        for _ in range(self.settings.inner_steps):
            step.optimizer.clear()
            self.value_optimizer.zero_grad(set_to_none=True)
            values = self._inner_step(step, rollouts)
            values["grad_norm"] = step.optimizer.step(step.number)
            self.value_optimizer.step()
        return values

    @torch.no_grad()
    def _roll_out(self, step: Step, batch: Batch) -> _Rollout:
        scored = step.forward(step.model, batch)
        logits = self._policy(scored)
        actions = torch.bernoulli(logits.sigmoid())
        found = rewards(actions, batch.targets, batch.mask, self.parts)
        advantages = found - self.value(scored, logits, batch.mask)
        reference = None if self.reference is None else self._policy(step.forward(self.reference, batch))
        return _Rollout(batch, logits, actions, found, advantages, reference)

    def _inner_step(self, step: Step, rollouts: Sequence[_Rollout]) -> dict[str, float]:
        """Add up the gradients of policy and value, and return what there is to report."""
        values: dict[str, float] = {}
        for rollout in rollouts:
            terms, reported = self._terms(step, rollout)
            loss = torch.stack(list(terms.values())).sum()
            (loss / len(rollouts)).backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss, **terms, **reported}.items():
                values[name] = values.get(name, 0.0) + float(value.detach()) / len(rollouts)
        return values

    def _terms(self, step: Step, rollout: _Rollout) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the terms of the loss with their weights, those that are off left out, and other measures."""
        settings, batch = self.settings, rollout.batch
        scored = step.forward(step.model, batch)
        logits, mask = self._policy(scored), batch.mask
        weights = None
        if settings.ppo_focal_gamma:
            weights = focal_weights(rollout.old_logits, batch.targets, settings.ppo_focal_gamma)
        policy = ppo_loss(
            logits, rollout.old_logits, rollout.actions, rollout.advantages, mask, clip=settings.clip, weights=weights
        )
        expected = self.value(scored, logits, mask)
        terms = {"policy": policy, "value": settings.value_weight * functional.mse_loss(expected, rollout.rewards)}
        if rollout.reference is not None:
            terms["kl"] = settings.kl * kl_divergence(rollout.reference, logits, mask)
        if settings.entropy:
            terms["entropy_bonus"] = -settings.entropy * entropy(logits, mask)
        with torch.no_grad():
            greedy = rewards((logits > 0).float(), batch.targets, mask, self.parts).mean()
            return terms, {"reward": rollout.rewards.mean(), "greedy_reward": greedy, "entropy": entropy(logits, mask)}

    def _policy(self, scored: Scored) -> Tensor:
        """Return the logits whose sigmoid is the score that users see."""
        return scored.logits.float() / self.calibration.multi_temperature + self.calibration.multi_bias

    def state(self) -> dict[str, Tensor]:
        """Return the value head, and what its optimizer remembers."""
        held = {f"{_PREFIX}value.{name}": value for name, value in self.value.state_dict().items()}
        for place, moments in self.value_optimizer.state_dict()["state"].items():
            held |= {f"{_PREFIX}adam.{place}.{name}": value for name, value in moments.items()}
        return held

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take what ``state`` returned."""
        value = {
            name.removeprefix(f"{_PREFIX}value."): tensor
            for name, tensor in state.items()
            if name.startswith(f"{_PREFIX}value.")
        }
        self.value.load_state_dict(value)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            if name.startswith(f"{_PREFIX}adam."):
                place, moment = name.removeprefix(f"{_PREFIX}adam.").split(".", 1)
                moments.setdefault(int(place), {})[moment] = tensor
        held = self.value_optimizer.state_dict()
        self.value_optimizer.load_state_dict({**held, "state": moments})


def _text_size(model: Any) -> int:
    """Return the size of the text vectors of a model, 0 where it has none."""
    for name in ("encoder_model", "encoder_decoder_model"):
        if hasattr(model, name):
            return int(getattr(model, name).config.hidden_size)
    return 0
