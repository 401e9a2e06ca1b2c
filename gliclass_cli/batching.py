"""Grouping prompts by length, so that hardly a padding token is computed."""

from collections.abc import Sequence

# A shorter prompt joins a longer one if it is padded by at most this share of it, or by this many tokens:
# starting a run of its own costs about as much.
_PADDED_SHARE = 0.125
_PADDED_TOKENS = 4


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Split the indices of ``lengths`` into batches of similar length, the longest first.

    A batch of b prompts, the longest of L tokens, costs b * L tokens with its padding and stays within
    ``batch_tokens``; a prompt longer than that makes a batch of its own.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        padding = longest - lengths[index]
        fits = batches and (len(batches[-1]) + 1) * longest <= batch_tokens
        if fits and padding <= max(_PADDED_TOKENS, longest * _PADDED_SHARE):
            batches[-1].append(index)
        else:
            longest = max(1, lengths[index])
            batches.append([index])
    return batches
