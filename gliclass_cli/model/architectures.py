"""The six architectures of GLiClass: who encodes what, and how texts and labels meet (paper, section 3).

Parameters are named as in the reference's checkpoints, less the leading ``model.``, which ``weights`` adds.
B rows, L tokens of an input, C labels (the most of any row), D the size of the backbone's states.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gliclass_cli.checkpoint import CheckpointConfig
from gliclass_cli.errors import ModelUnusable
from gliclass_cli.model.backbones import T5_FAMILY, build_decoder, build_encoder, build_encoder_decoder
from gliclass_cli.model.layers import BiEncoderProjector, FeaturesProjector, LayerwiseAttention, Lstm
from gliclass_cli.model.poolings import (
    average_class_spans,
    class_positions,
    count,
    first_position,
    last_position,
    move_to_front,
    pool,
    pool_last,
    take,
    take_class_tokens,
)
from gliclass_cli.model.scorers import DecoderScorer, build_scorer, scale_to_one

_EPSILON = 1e-8
_DEVIATION = 0.03  # of random weights
_BACKBONES = ("encoder_model", "label_encoder", "encoder_decoder_model", "decoder_model")


class Features(NamedTuple):
    """What a scorer is given: projected vectors, before they are compared.

    ``text`` is (B, D), or (B, L, D) for a scorer that attends to tokens, whose ``text_mask`` is (B, L). ``labels`` is
    (B, C, D); ``label_mask`` (B, C) says which slots of a row are taken.
    """

    text: Tensor
    text_mask: Tensor
    labels: Tensor
    label_mask: Tensor


class GliclassModel(nn.Module):
    """What all architectures share: their configuration."""

    def __init__(self, config: CheckpointConfig) -> None:
        super().__init__()
        self.config = config


class _Pooled(GliclassModel):
    """What the architectures share that compare pooled text vectors with label vectors."""

    def __init__(self, config: CheckpointConfig, backbone: Any) -> None:
        super().__init__(config)
        size, hidden = int(backbone.hidden_size), config.hidden_size
        if size != hidden and (config.scorer != "simple" or config.use_lstm):
            raise ModelUnusable(
                f"hidden_size {hidden} of config.json must be that of the backbone, {size}, for the scorer "
                f"{config.scorer}{' and the LSTM' if config.use_lstm else ''}"
            )
        activation, dropout = config.projector_hidden_act, config.dropout
        self.text_projector = FeaturesProjector(size, hidden, activation, dropout)
        self.classes_projector = FeaturesProjector(size, hidden, activation, dropout)
        self.dropout = nn.Dropout(dropout)
        self.scorer = build_scorer(config)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        if config.use_lstm:  # in checkpoints of all architectures, though only two of them use it
            self.lstm = Lstm(hidden)
        if config.squeeze_layers:
            self.layer_wise_attention = LayerwiseAttention(int(backbone.num_hidden_layers), size)

    def pool_text(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Pool and project the states of a text (B, L, D)."""
        return self.project_text(pool(tokens, mask, self.config.pooling))

    def project_text(self, pooled: Tensor) -> Tensor:
        """Project pooled text features; make them of length 1 if the model compares directions."""
        projected = self.dropout(self.text_projector(pooled))
        return self.normalize(projected) if self.config.normalize_features else projected

    def project_labels(self, labels: Tensor) -> Tensor:
        """Project label features; make them of length 1 if the model compares directions."""
        projected = self.classes_projector(labels)
        return self.normalize(projected) if self.config.normalize_features else projected

    def normalize(self, vectors: Tensor) -> Tensor:
        """Make vectors of length 1."""
        return functional.normalize(vectors, dim=-1, eps=_EPSILON)

    def class_features(self, tokens: Tensor, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return a state for each label (B, C, D) and which slots are taken (B, C).

        There are as many slots as labels: the reference's fixed numbers of slots (``max_labels_alloc``) only pad.
        """
        config = self.config
        is_class = (input_ids == config.class_token_index) & mask.bool()
        positions, taken = class_positions(is_class)
        if config.class_token_pooling == "average":
            is_text = input_ids == config.text_token_index
            labels = average_class_spans(
                tokens, mask, is_class, is_text, positions.shape[1], with_class_token=config.embed_class_token
            )
        else:
            labels = take_class_tokens(tokens, mask, positions, after=not config.embed_class_token)
        return labels * taken[..., None].to(labels.dtype), taken

    def compare(self, features: Features, *, scaled: bool) -> Tensor:
        """Score features (B, C); ``scaled``: times ``logit_scale``, which is used as it is, without exp()."""
        logits: Tensor = self.scorer(features.text, features.labels, features.label_mask, features.text_mask)
        return logits * self.logit_scale if scaled else logits


class UniEncoder(_Pooled):
    """One encoder reads labels and text together; labels are read at their class tokens."""

    def __init__(self, config: CheckpointConfig) -> None:
        encoder = build_encoder(config.encoder, config.vocab_size)
        super().__init__(config, encoder.config)
        self.encoder_model = encoder
        if config.use_segment_embeddings:
            self.segment_embeddings = nn.Embedding(3, int(encoder.config.hidden_size))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits (B, C) of prompts (B, L)."""
        return self.score(self.features(input_ids, attention_mask))

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        """Return the vectors of texts and labels of prompts (B, L)."""
        tokens = self.encode(input_ids, attention_mask)
        labels, taken = self.class_features(tokens, input_ids, attention_mask)
        tokens, mask = self.text_tokens(tokens, input_ids, attention_mask)
        if self.config.use_lstm:
            tokens = self.lstm(tokens, mask)
        return Features(self.pool_text(tokens, mask), mask, self.project_labels(labels), taken)

    def score(self, features: Features) -> Tensor:
        """Score features (B, C)."""
        return self.compare(features, scaled=self.config.normalize_features)

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return a state for each token (B, L, D): of the last layer, of another one, or of all of them weighed.

        The reference reads other layers' states without asking the encoder for them, and fails on that.
        """
        inner = self.config.encoder_layer_id != -1
        squeezed = self.config.squeeze_layers and not inner
        inputs: dict[str, Tensor] = {"input_ids": input_ids}
        if self.config.use_segment_embeddings:
            embeddings = self.encoder_model.get_input_embeddings()(input_ids)
            inputs = {"inputs_embeds": embeddings + self.segment_embeddings(self.segments(input_ids))}
        states = self.encoder_model(**inputs, attention_mask=attention_mask, output_hidden_states=inner or squeezed)
        if inner:
            return _states(states.hidden_states[self.config.encoder_layer_id])
        if squeezed:
            return _states(self.layer_wise_attention(states.hidden_states[1:], attention_mask))
        return _states(states.last_hidden_state)

    def segments(self, input_ids: Tensor) -> Tensor:
        """Return segment ids (B, L): 0 labels, 1 from the text token on, 2 from the first example on.

        A row without a text token is all text. The reference takes argmin for argmax, so that with any example
        every token gets segment 2.
        """
        is_text = input_ids == self.config.text_token_index
        in_text = (is_text.long().cumsum(dim=1) > 0) | ~is_text.any(dim=1, keepdim=True)
        in_examples = (input_ids == self.config.example_token_index).long().cumsum(dim=1) > 0
        return torch.where(in_examples, 2, in_text.long())

    def text_tokens(self, tokens: Tensor, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens that are pooled, at the front, and their mask: the text's, or all of them.

        With ``extract_text_features`` they begin at the text token. The reference then pools over the whole length
        of the batch, its mean divided by that and its maximum not below 0; here only real tokens count.
        """
        if not self.config.extract_text_features:
            return tokens, mask
        start = first_position((input_ids == self.config.text_token_index) & mask.bool())
        return move_to_front(tokens, mask, start)

    def normalize(self, vectors: Tensor) -> Tensor:
        """Make vectors of length 1, the way the reference's uni-encoder does."""
        return scale_to_one(vectors)


class BiEncoder(_Pooled):
    """Text and labels go through encoders of their own: labels can be encoded once for all texts."""

    def __init__(self, config: CheckpointConfig) -> None:
        if config.label_encoder is None:
            raise ModelUnusable("config.json has no label_model_config, which a bi-encoder needs")
        for values in (config.encoder, config.label_encoder):
            if values["model_type"] in T5_FAMILY:
                raise ModelUnusable(f"a bi-encoder over {values['model_type']} is not supported: it has a decoder")
        encoder, label_encoder = build_encoder(config.encoder), build_encoder(config.label_encoder)
        super().__init__(config, encoder.config)
        self.encoder_model = encoder
        self.label_encoder = label_encoder
        self.biencoder_projector = BiEncoderProjector(
            int(label_encoder.config.hidden_size),
            config.hidden_size,
            int(encoder.config.hidden_size),
            config.projector_hidden_act,
        )

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the vectors (B, D) of texts (B, L)."""
        states = self.encoder_model(input_ids=input_ids, attention_mask=attention_mask)
        return self.pool_text(_states(states.last_hidden_state), attention_mask)

    def encode_labels(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the vectors (C, D) of labels (C, L).

        The reference pools a label's padding with it, so that its vector depends on the labels beside it.
        """
        states = self.label_encoder(input_ids=input_ids, attention_mask=attention_mask)
        pooled = pool(_states(states.last_hidden_state), attention_mask, self.config.pooling)
        return self.project_labels(self.biencoder_projector(pooled))

    def score(self, text: Tensor, labels: Tensor, label_mask: Tensor) -> Tensor:
        """Score texts (B, D) against labels (B, C, D): (B, C)."""
        return self.compare(Features(text, label_mask, labels, label_mask), scaled=True)


class SharedBiEncoder(GliclassModel):
    """One encoder for texts and labels, and nothing but pooling behind it: what sentence encoders are made into.

    logit = ``logit_scale`` * (text . label) + ``logit_bias``; no checkpoint of the reference is like that.
    """

    def __init__(self, config: CheckpointConfig) -> None:
        super().__init__(config)
        self.encoder_model = build_encoder(config.encoder)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.logit_bias = nn.Parameter(torch.tensor(0.0))

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the vectors (B, D) of texts (B, L)."""
        states = self.encoder_model(input_ids=input_ids, attention_mask=attention_mask)
        pooled = pool(_states(states.last_hidden_state), attention_mask, self.config.pooling)
        return functional.normalize(pooled, dim=-1, eps=_EPSILON) if self.config.normalize_features else pooled

    def encode_labels(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the vectors (C, D) of labels (C, L)."""
        return self.encode_text(input_ids, attention_mask)

    def score(self, text: Tensor, labels: Tensor, label_mask: Tensor) -> Tensor:
        """Score texts (B, D) against labels (B, C, D): (B, C)."""
        return torch.einsum("bd,bcd->bc", text, labels) * self.logit_scale + self.logit_bias


class BiEncoderFused(BiEncoder):
    """A bi-encoder whose text encoder reads the label vectors too, in the place of class tokens."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, label_mask: Tensor) -> Tensor:
        """Return the logits (B, C) of prompts (B, L) with a bare class token for each of the labels (B, C, D)."""
        features = self.features(input_ids, attention_mask, labels, label_mask)
        return self.score(features.text, features.labels, features.label_mask)

    def features(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, label_mask: Tensor) -> Features:
        """Return the vectors of texts and labels, after the text encoder has read both."""
        embeddings = self.encoder_model.get_input_embeddings()(input_ids)  # (B, L, D)
        is_class = (input_ids == self.config.class_token_index) & attention_mask.bool()
        # The j-th class token of a row stands for its j-th label.
        number = (is_class.long().cumsum(dim=1) - 1).clamp(min=0, max=labels.shape[1] - 1)  # (B, L)
        embeddings = torch.where(is_class[..., None], take(labels, number).to(embeddings.dtype), embeddings)
        states = self.encoder_model(inputs_embeds=embeddings, attention_mask=attention_mask)
        tokens = _states(states.last_hidden_state)
        # There is a slot for each label, even if class tokens were cut off: its logit means nothing.
        positions, taken = _exactly(*class_positions(is_class), labels.shape[1])
        text = self.pool_text(tokens, attention_mask)
        return Features(text, attention_mask, take(tokens, positions), taken & label_mask.bool())


class EncoderDecoder(_Pooled):
    """The encoder reads the text; the decoder reads the labels in both directions, and the text with them."""

    def __init__(self, config: CheckpointConfig) -> None:
        model = build_encoder_decoder(config.encoder)
        super().__init__(config, model.config)
        self.encoder_decoder_model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, class_input_ids: Tensor, class_attention_mask: Tensor
    ) -> Tensor:
        """Return the logits (B, C) of texts (B, L) and label prompts (B, M)."""
        return self.score(self.features(input_ids, attention_mask, class_input_ids, class_attention_mask))

    def features(
        self, input_ids: Tensor, attention_mask: Tensor, class_input_ids: Tensor, class_attention_mask: Tensor
    ) -> Features:
        """Return the vectors of texts (B, L) and of the labels of label prompts (B, M)."""
        states = self.encoder_decoder_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=class_input_ids,
            decoder_attention_mask=_all_to_all(class_attention_mask, self.logit_scale.dtype),
            use_cache=False,
        )
        tokens = _states(states.encoder_last_hidden_state)
        if self.config.use_lstm:
            tokens = self.lstm(tokens, attention_mask)
        decoded = _states(states.last_hidden_state)
        labels, taken = self.class_features(decoded, class_input_ids, class_attention_mask)
        return Features(self.pool_text(tokens, attention_mask), attention_mask, self.project_labels(labels), taken)

    def score(self, features: Features) -> Tensor:
        """Score features (B, C)."""
        return self.compare(features, scaled=self.config.normalize_features)


class EncoderDecoderCls(EncoderDecoder):
    """The other way round: the encoder reads the labels, the causal decoder the text, pooled at its last token."""

    def features(
        self, input_ids: Tensor, attention_mask: Tensor, class_input_ids: Tensor, class_attention_mask: Tensor
    ) -> Features:
        """Return the vectors of texts (B, L) and of the labels of label prompts (B, M)."""
        states = self.encoder_decoder_model(
            input_ids=class_input_ids,
            attention_mask=class_attention_mask,
            decoder_input_ids=input_ids,
            decoder_attention_mask=attention_mask,
            use_cache=False,
        )
        encoded = _states(states.encoder_last_hidden_state)
        labels, taken = self.class_features(encoded, class_input_ids, class_attention_mask)
        text = self.project_text(pool_last(_states(states.last_hidden_state), attention_mask))
        return Features(text, attention_mask, self.project_labels(labels), taken)


class DecoderKv(GliclassModel):
    """A causal decoder reads the text, then the labels; a small encoder scores its states over the labels."""

    def __init__(self, config: CheckpointConfig) -> None:
        super().__init__(config)
        self.separator = separator_index(config)
        self.decoder_model = build_decoder(config.encoder, config.vocab_size)
        size = int(self.decoder_model.config.hidden_size)
        if size != config.hidden_size:
            raise ModelUnusable(f"hidden_size {config.hidden_size} of config.json must be that of the backbone, {size}")
        self.scorer = DecoderScorer(config, self.separator)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits (B, C) of prompts ``...text<<SEP>>l1<<LABEL>>l2<<LABEL>>...<<SEP>>`` (B, L)."""
        states = self.decoder_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        tokens = _states(states.last_hidden_state)
        start = self.label_section(input_ids, attention_mask)
        longest = int((count(attention_mask) - start).max())
        labels, mask = move_to_front(tokens, attention_mask, start)
        ids, _ = move_to_front(input_ids, attention_mask, start)
        logits: Tensor = self.scorer(labels[:, :longest], ids[:, :longest], mask[:, :longest])
        return logits

    def label_section(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return where the labels of each row begin (B,): after the last separator before the first class token."""
        real = attention_mask.bool()
        is_class = (input_ids == self.config.class_token_index) & real
        before = (is_class.long().cumsum(dim=1) == 0) & is_class.any(dim=1, keepdim=True)
        return last_position((input_ids == self.separator) & before) + 1


def build_model(config: CheckpointConfig) -> GliclassModel:
    """Build a model with random weights: backbones as transformers draws them, the rest as the reference does.

    Raises:
        ModelUnusable: the configuration asks for a backbone or activation that is not known, or for absurd sizes.
    """
    architectures: dict[str, type[GliclassModel]] = {
        "uni-encoder": UniEncoder,
        "bi-encoder": BiEncoder,
        "bi-encoder-fused": BiEncoderFused,
        "encoder-decoder": EncoderDecoder,
        "encoder-decoder-cls": EncoderDecoderCls,
        "decoder-kv": DecoderKv,
    }
    kind = SharedBiEncoder if config.shared_encoder else architectures[config.architecture]
    try:
        model = kind(config)
    except (MemoryError, RuntimeError, ValueError) as error:  # sizes and shares that cannot be
        raise ModelUnusable(f"the model that config.json describes cannot be built: {error}") from error
    deviation = config.raw.get("initializer_range")
    deviation = deviation if isinstance(deviation, float) and 0 < deviation < 1 else _DEVIATION
    for name, module in model.named_children():
        if name not in _BACKBONES:
            module.apply(lambda layer: _draw(layer, deviation))
    return model


def separator_index(config: CheckpointConfig) -> int:
    """Return the id of the ``<<SEP>>`` of a decoder-kv. Raises ModelUnusable."""
    index = config.raw.get("sep_token_index", config.text_token_index)
    if not isinstance(index, int) or not 0 <= index < config.vocab_size:
        raise ModelUnusable(f"sep_token_index {index!r} of config.json is no id of the vocabulary")
    return index


@torch.no_grad()
def _draw(layer: nn.Module, deviation: float) -> None:
    """Draw the weights of a linear layer, an embedding or an LSTM; biases are 0."""
    if isinstance(layer, nn.Linear | nn.Embedding | nn.LSTM):
        for name, parameter in layer.named_parameters(recurse=False):
            if "bias" in name:
                parameter.zero_()
            else:
                parameter.normal_(std=deviation)


def _all_to_all(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an additive mask (B, 1, L, L) under which every token sees every real one: no causal attention."""
    hidden = (1 - mask.to(dtype))[:, None, None] * torch.finfo(dtype).min
    return hidden.expand(-1, 1, mask.shape[1], -1)


def _exactly(positions: Tensor, taken: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Pad or cut label slots (B, C) to a number of slots."""
    missing = slots - positions.shape[1]
    return functional.pad(positions, (0, missing)), functional.pad(taken, (0, missing))


def _states(states: Any) -> Tensor:
    """Say that what transformers returned is a tensor."""
    tensor: Tensor = states
    return tensor
