"""Losses over logits (B, C): pure functions of logits, targets 0..1 and a mask of the slots that are labels.

Empty slots count nowhere: not in a sum, not in a mean, not in a softmax.
"""

import torch
from torch import Tensor
from torch.nn import functional


def bce_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Return binary cross-entropy, the mean over all labels of the batch (paper, section 4.1)."""
    return masked_mean(functional.binary_cross_entropy_with_logits(logits, targets, reduction="none"), mask)


def focal_loss(logits: Tensor, targets: Tensor, mask: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Return the focal loss (arXiv 1708.02002): BCE * (1 - p_t)^gamma * alpha_t, the mean over all labels.

    ``p_t = p y + (1 - p)(1 - y)``; ``alpha_t = alpha y + (1 - alpha)(1 - y)``, or 1 where ``alpha`` is below 0.
    """
    loss = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p = logits.sigmoid()
    loss = loss * (1 - (p * targets + (1 - p) * (1 - targets))) ** gamma
    if alpha >= 0:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return masked_mean(loss, mask)


def softmax_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Return cross-entropy over each row's own labels, the mean over the rows that have a right one.

    Several right labels share the probability by their weights.
    """
    total = (targets * mask).sum(dim=-1)  # (B,)
    log_p = functional.log_softmax(logits.masked_fill(~mask, -torch.inf), dim=-1).masked_fill(~mask, 0.0)
    rows = -(targets * log_p).sum(dim=-1) / total.clamp(min=1e-9)
    return masked_mean(rows, total > 0)


def contrastive_loss(labels: Tensor, mask: Tensor) -> Tensor:
    """Return how alike the label vectors (B, C, D) of one input are (paper, section 4.1).

    Cross-entropy of each row's matrix of cosines against the identity: every label should be most like itself.
    """
    unit = functional.normalize(labels, dim=-1)
    cosines = torch.einsum("bcd,bed->bce", unit, unit).masked_fill(~mask[:, None, :], -torch.inf)
    log_p = functional.log_softmax(cosines, dim=-1)
    return masked_mean(-log_p.diagonal(dim1=1, dim2=2).masked_fill(~mask, 0.0), mask)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the values where ``mask`` is true, 0 where it is nowhere."""
    kept = mask.to(values.dtype)
    return (values.masked_fill(~mask, 0.0)).sum() / kept.sum().clamp(min=1)
