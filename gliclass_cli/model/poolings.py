"""Masked pooling, the vectors of labels, and sections of a row; B rows, L tokens, D dimensions, C labels.

A mask is 1 (or True) on real tokens, which stand at the front of a row. The reference's poolers see no mask, so that
its scores depend on padding; here a row pools as if it were alone.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def pool(tokens: Tensor, mask: Tensor, how: str) -> Tensor:
    """Pool the real tokens (B, L, D) of each row into one vector (B, D); ``pass`` leaves them as they are."""
    return POOLINGS[how](tokens, mask)


def pool_first(tokens: Tensor, mask: Tensor) -> Tensor:
    """Take the first token."""
    return tokens[:, 0]


def pool_last(tokens: Tensor, mask: Tensor) -> Tensor:
    """Take the last real token."""
    last = (count(mask) - 1).clamp(min=0)  # (B,)
    return tokens.gather(1, last[:, None, None].expand(-1, 1, tokens.shape[-1])).squeeze(1)


def pool_avg(tokens: Tensor, mask: Tensor) -> Tensor:
    """Average over the real tokens."""
    return pool_sum(tokens, mask) / _size(tokens, mask)


def pool_max(tokens: Tensor, mask: Tensor) -> Tensor:
    """Take the largest value of each dimension."""
    return tokens.masked_fill(~mask.bool()[..., None], torch.finfo(tokens.dtype).min).amax(dim=1)


def pool_sum(tokens: Tensor, mask: Tensor) -> Tensor:
    """Add the real tokens up."""
    return _without_padding(tokens, mask).sum(dim=1)


def pool_rms(tokens: Tensor, mask: Tensor) -> Tensor:
    """Take the root of the mean square of each dimension."""
    return pool_avg(tokens.pow(2), mask).sqrt()


def pool_abs_max(tokens: Tensor, mask: Tensor) -> Tensor:
    """Take the largest magnitude of each dimension."""
    return _without_padding(tokens, mask).abs().amax(dim=1)


def pool_abs_avg(tokens: Tensor, mask: Tensor) -> Tensor:
    """Average the magnitudes."""
    return pool_avg(tokens.abs(), mask)


def pool_pass(tokens: Tensor, mask: Tensor) -> Tensor:
    """Leave the tokens as they are, for a scorer that attends to them."""
    return tokens


POOLINGS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "first": pool_first,
    "last": pool_last,
    "avg": pool_avg,
    "max": pool_max,
    "sum": pool_sum,
    "rms": pool_rms,
    "abs_max": pool_abs_max,
    "abs_avg": pool_abs_avg,
    "pass": pool_pass,
}


def count(mask: Tensor) -> Tensor:
    """Return how many real tokens each row has (B,)."""
    return mask.long().sum(dim=1)


def class_positions(is_class: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the class tokens of each row stand (B, C), in order, and which of the slots are taken (B, C)."""
    counts = count(is_class)
    slots = int(counts.max())
    # A stable sort brings the class tokens of a row to its front and keeps their order.
    positions = is_class.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :slots]
    return positions, torch.arange(slots, device=is_class.device) < counts[:, None]


def take_class_tokens(tokens: Tensor, mask: Tensor, positions: Tensor, *, after: bool) -> Tensor:
    """Return the states (B, C, D) of the class tokens, or of the token ``after`` each (paper, section 3.1)."""
    if not after:
        return take(tokens, positions)
    following = (positions + 1).clamp(max=tokens.shape[1] - 1)
    inside = mask.gather(1, following).bool() & (following > positions)
    return take(tokens, following) * inside[..., None].to(tokens.dtype)


def average_class_spans(
    tokens: Tensor, mask: Tensor, is_class: Tensor, is_text: Tensor, slots: int, *, with_class_token: bool
) -> Tensor:
    """Average each label's span: from its class token to the next one, or to the text token (B, C, D).

    Without ``extract_text_features`` the reference lets the last label's span run to the end of the row, over the
    text too; here it ends at the text token in any case.
    """
    label = is_class.long().cumsum(dim=1)  # (B, L), from 1
    inside = (is_text.long().cumsum(dim=1) == 0) & mask.bool()
    if not with_class_token:
        inside = inside & ~is_class
    numbers = torch.arange(1, slots + 1, device=tokens.device)
    spans = ((label[:, None] == numbers[:, None]) & inside[:, None]).to(tokens.dtype)  # (B, C, L)
    return spans @ tokens / spans.sum(dim=-1, keepdim=True).clamp(min=1)


def take(tokens: Tensor, positions: Tensor) -> Tensor:
    """Return the states at positions (B, C) of each row: (B, C, D)."""
    return tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1]))


def move_to_front(values: Tensor, mask: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Drop what stands before ``start`` (B,) in each row of values (B, L) or (B, L, D); return them and their mask."""
    length = mask.shape[1]
    index = torch.arange(length, device=mask.device) + start[:, None]  # (B, L)
    inside = index < length
    index = index.clamp(max=length - 1)
    moved = values.gather(1, index) if values.dim() == 2 else take(values, index)
    return moved, mask.gather(1, index) * inside


def first_position(found: Tensor) -> Tensor:
    """Return where the first True of each row (B, L) stands; 0 where there is none."""
    return found.to(torch.uint8).argmax(dim=1)


def last_position(found: Tensor) -> Tensor:
    """Return where the last True of each row (B, L) stands; -1 where there is none."""
    positions = torch.arange(found.shape[1], device=found.device)
    return torch.where(found, positions, -1).amax(dim=1)


def _without_padding(tokens: Tensor, mask: Tensor) -> Tensor:
    # Filled, not multiplied: a padding token may be anything, infinite too.
    return tokens.masked_fill(~mask.bool()[..., None], 0)


def _size(tokens: Tensor, mask: Tensor) -> Tensor:
    return count(mask).clamp(min=1)[:, None].to(tokens.dtype)
