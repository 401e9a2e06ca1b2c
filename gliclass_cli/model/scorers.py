"""Scorers: from a text vector (B, D) and label vectors (B, C, D) one logit for each label (B, C).

All take the same four tensors; ``label_mask`` (B, C) says which label slots of a row are taken, ``text_mask`` (B, L)
which tokens are real where the text comes as tokens (B, L, D). The logits of empty slots mean nothing.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DebertaV2Config
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Encoder

from gliclass_cli.checkpoint import CheckpointConfig
from gliclass_cli.model.layers import mlp
from gliclass_cli.model.poolings import class_positions, last_position, take

# The reference builds these scorers with it, whatever scorer_mlp_hidden_size says.
_MLP_HIDDEN = 256
_HOPFIELD_BETA = 4
_EPSILON = 1e-8


class DotScorer(nn.Module):
    """Score by the dot product of text and label (paper, section 3.1)."""

    def forward(self, text: Tensor, labels: Tensor, label_mask: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Return (B, C)."""
        return torch.einsum("bd,bcd->bc", text, labels)


class WeightedDotScorer(nn.Module):
    """Score two projections of text and label, and the product of two more, with an MLP."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.proj_text = nn.Linear(size, 2 * size)
        self.proj_label = nn.Linear(size, 2 * size)
        self.out_mlp = nn.Sequential(nn.Linear(3 * size, 4 * size), nn.Dropout(0.1), nn.ReLU(), nn.Linear(4 * size, 1))

    def forward(self, text: Tensor, labels: Tensor, label_mask: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Return (B, C)."""
        text_1, text_2 = self.proj_text(text)[:, None].expand(-1, labels.shape[1], -1).chunk(2, dim=-1)  # (B, C, D)
        label_1, label_2 = self.proj_label(labels).chunk(2, dim=-1)
        logits: Tensor = self.out_mlp(torch.cat((text_1, label_1, text_2 * label_2), dim=-1))
        return logits.squeeze(-1)


class MlpScorer(nn.Module):
    """Score text and label side by side with an MLP (paper, section 3.1)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mlp = mlp(2 * size, _MLP_HIDDEN, _MLP_HIDDEN // 2, 1)

    def forward(self, text: Tensor, labels: Tensor, label_mask: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Return (B, C)."""
        logits: Tensor = self.mlp(torch.cat((text[:, None].expand_as(labels), labels), dim=-1))
        return logits.squeeze(-1)


class HopfieldScorer(nn.Module):
    """Score labels after one step of retrieval: each takes up a share of the text, and the shares add up to 1.

    The softmax over labels runs over the row's own ones. The reference's runs over all slots, so that with labels of
    different numbers in a batch (and always in its encoder-decoder, of ``max_num_classes`` slots) scores differ.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.mlp = mlp(size, _MLP_HIDDEN, _MLP_HIDDEN // 2, 1)

    def forward(self, text: Tensor, labels: Tensor, label_mask: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Return (B, C)."""
        query, key, value = self.q_proj(labels), self.k_proj(text)[:, None], self.v_proj(text)[:, None]
        energies = _HOPFIELD_BETA * (query @ key.transpose(1, 2))  # (B, C, 1)
        energies = energies.masked_fill(~label_mask.bool()[..., None], torch.finfo(energies.dtype).min)
        logits: Tensor = self.mlp(labels + energies.softmax(dim=1) * value)
        return logits.squeeze(-1)


class CrossAttentionScorer(nn.Module):
    """Score labels after each has attended to the tokens of the text (``pooling_strategy`` pass)."""

    def __init__(self, size: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q_norm = nn.LayerNorm(size)
        self.kv_norm = nn.LayerNorm(size)
        self.q = nn.Linear(size, size)
        self.k = nn.Linear(size, size)
        self.v = nn.Linear(size, size)
        self.out = nn.Linear(size, size)
        self.norm = nn.LayerNorm(size)
        self.score_mlp = mlp(2 * size, hidden, hidden // 2, 1, activation=nn.GELU)

    def forward(self, text: Tensor, labels: Tensor, label_mask: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Return (B, C); the text comes as tokens (B, L, D)."""
        query = self._split(self.q(self.q_norm(labels)))
        key = self._split(self.k(self.kv_norm(text)))
        value = self._split(self.v(text))
        context = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if text_mask is None else text_mask.bool()[:, None, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        context = self.norm(self.out(context.transpose(1, 2).flatten(2)))
        logits: Tensor = self.score_mlp(torch.cat((context, labels), dim=-1))
        return logits.squeeze(-1)

    def _split(self, states: Tensor) -> Tensor:
        """Split (B, N, D) into heads: (B, H, N, D/H)."""
        return states.reshape(*states.shape[:2], self.heads, -1).transpose(1, 2)


class DecoderScorer(nn.Module):
    """Score the label section of a decoder's states: a small DeBERTa reads it in both directions, then an MLP scores.

    The section is ``l1<<LABEL>>l2<<LABEL>>...<<SEP>>``: labels are read at their class tokens, the text at the last
    ``<<SEP>>``, which has seen everything. The reference has a switch ``scorer_full_sequence``; it never reads it.
    """

    def __init__(self, config: CheckpointConfig, separator: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.class_token, self.separator, self.normalize = (
            config.class_token_index,
            separator,
            config.normalize_features,
        )
        encoder_config = DebertaV2Config(
            hidden_size=size,
            num_hidden_layers=config.scorer_encoder_num_layers,
            num_attention_heads=max(1, size // 64),
            intermediate_size=4 * size,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            max_relative_positions=512,
        )
        self.scorer_encoder: nn.Module = DebertaV2Encoder(encoder_config)  # type: ignore[no-untyped-call]
        self.text_projector = nn.Linear(size, size)
        self.label_projector = nn.Linear(size, size)
        self.dropout = nn.Dropout(config.dropout)
        hidden = config.scorer_mlp_hidden_size
        self.mlp = mlp(2 * size, hidden, hidden // 2, 1)

    def forward(self, states: Tensor, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the logits (B, C) of label sections: states (B, S, D), ids and mask (B, S)."""
        read = self.scorer_encoder(states, mask, output_hidden_states=False).last_hidden_state
        real = mask.bool()
        last = last_position((input_ids == self.separator) & real)
        text = take(read, last.clamp(min=0)[:, None]).squeeze(1) * (last >= 0)[:, None].to(read.dtype)
        positions, taken = class_positions((input_ids == self.class_token) & real)
        labels = take(read, positions) * taken[..., None].to(read.dtype)
        text, labels = self.dropout(self.text_projector(text)), self.label_projector(labels)
        if self.normalize:
            text, labels = scale_to_one(text), scale_to_one(labels)
        logits: Tensor = self.mlp(torch.cat((text[:, None].expand_as(labels), labels), dim=-1))
        return logits.squeeze(-1)


def build_scorer(config: CheckpointConfig) -> nn.Module:
    """Build the scorer of an architecture that pools (all but decoder-kv)."""
    size = config.hidden_size
    if config.scorer == "cross-attn":
        return CrossAttentionScorer(
            size, config.scorer_num_heads, config.scorer_mlp_hidden_size, config.scorer_attn_dropout
        )
    if config.scorer == "simple":
        return DotScorer()
    return {"weighted-dot": WeightedDotScorer, "mlp": MlpScorer, "hopfield": HopfieldScorer}[config.scorer](size)


def scale_to_one(vectors: Tensor) -> Tensor:
    """Divide vectors (..., D) by their length, the way the reference's uni-encoder and decoder-kv do."""
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / (length + _EPSILON)
