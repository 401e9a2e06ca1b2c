"""The small layers between backbone and scorer; names and shapes of their weights are the reference's."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from gliclass_cli.errors import ModelUnusable
from gliclass_cli.model.poolings import count, take


class FeaturesProjector(nn.Module):
    """Project pooled features: ``W2 act(W1 x + b1) + b2``, back to the size they came in (paper, section 3.1)."""

    def __init__(self, size: int, hidden: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(size, hidden)
        self.act = find_activation(activation)
        self.dropout = nn.Dropout(dropout)
        self.linear_2 = nn.Linear(hidden, size)

    def forward(self, features: Tensor) -> Tensor:
        """Project features (..., D)."""
        projected: Tensor = self.linear_2(self.dropout(self.act(self.linear_1(features))))
        return projected


class BiEncoderProjector(nn.Module):
    """Project label vectors from the size of the label encoder to that of the text encoder."""

    def __init__(self, label_size: int, hidden: int, text_size: int, activation: str) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(label_size, hidden)
        self.act = find_activation(activation)
        self.linear_2 = nn.Linear(hidden, text_size)

    def forward(self, features: Tensor) -> Tensor:
        """Project label vectors (..., D of the label encoder)."""
        projected: Tensor = self.linear_2(self.act(self.linear_1(features)))
        return projected


class Lstm(nn.Module):
    """A bidirectional LSTM over the real tokens of each row.

    It packs no sequences, so that it runs without knowing lengths on the CPU: padding at the end of a row cannot
    reach the pass from left to right, and the pass from right to left reads the row reversed, its padding still last.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(size, size // 2, bidirectional=True, batch_first=True)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Read tokens (B, L, D) in both directions; return (B, L, D), anything at all on padding."""
        lengths = count(mask)[:, None]  # (B, 1)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        # Its own inverse, and padding stays where it is.
        reverse = torch.where(positions < lengths, lengths - 1 - positions, positions)
        forward = self._read(tokens, "")
        backward = take(self._read(take(tokens, reverse), "_reverse"), reverse)
        return torch.cat((forward, backward), dim=-1)

    def _read(self, tokens: Tensor, direction: str) -> Tensor:
        """Read tokens from left to right with the weights of one direction."""
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        weights = [getattr(self.lstm, name + direction) for name in names]
        start = tokens.new_zeros(1, tokens.shape[0], self.lstm.hidden_size)
        learns = (
            torch.is_grad_enabled()
        )  # cuDNN gives gradients in training mode only; without dropout both are the same
        # has_biases, num_layers, dropout, train, bidirectional, batch_first
        states, _, _ = torch.lstm(tokens, (start, start), weights, True, 1, 0.0, learns, False, True)
        return states


class LayerwiseAttention(nn.Module):
    """Weigh the layers of an encoder and add them up: squeeze and excitation over layers (``squeeze_layers``)."""

    def __init__(self, layers: int, size: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(size, 1)
        self.W1 = nn.Linear(layers, layers // 2)
        self.W2 = nn.Linear(layers // 2, layers)
        self.output_projection = nn.Linear(size, size)

    def forward(self, layers: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Return one state for each token (B, L, D) from those of K layers.

        The mean over a layer's tokens takes real ones only. The reference passes K + 1 states, the embeddings' too,
        and fails on them; here they are the outputs of the K layers.
        """
        states = torch.stack(tuple(layers), dim=1)  # (B, K, L, D)
        squeezed = self.squeeze(states).squeeze(-1) * mask[:, None].to(states.dtype)  # (B, K, L)
        means = squeezed.sum(dim=-1) / count(mask).clamp(min=1)[:, None].to(states.dtype)  # (B, K)
        weights = self.W2(self.W1(means).relu()).sigmoid()
        projected: Tensor = self.output_projection((states * weights[..., None, None]).sum(dim=1))
        return projected


def find_activation(name: str) -> Callable[[Tensor], Tensor]:
    """Return an activation function by its name in transformers. Raises ModelUnusable."""
    try:
        activation: Callable[[Tensor], Tensor] = ACT2FN[name]
    except KeyError:
        raise ModelUnusable(f"projector_hidden_act {name!r} is no activation function that is known") from None
    return activation


def mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return linear layers of the given sizes, with activations between them."""
    layers: list[nn.Module] = []
    for size, following in pairwise(sizes):
        layers += [nn.Linear(size, following), activation()]
    return nn.Sequential(*layers[:-1])
