"""The ONNX graphs of a GLiClass checkpoint, built from its weights: dynamic in batch, length and number of labels.

    architecture          graph   inputs                                                       output
    uni-encoder           text    input_ids, attention_mask (B, L)                             logits (B, C)
    bi-encoder            text    input_ids, attention_mask (B, L)                             embedding (B, D)
                          label   input_ids, attention_mask (C, L)                             embedding (C, D)
                          scorer  text (B, D), labels (B, C, D), label_mask (B, C)             logits (B, C)
      shared_encoder      text    input_ids, attention_mask (B, L), of texts and of labels     embedding (B, D)
    bi-encoder-fused      label   input_ids, attention_mask (C, L)                             embedding (C, D)
                          text    input_ids, attention_mask (B, L), labels (B, C, D)           logits (B, C)
    encoder-decoder(-cls) text    input_ids, attention_mask (B, L), class_input_ids,
                                  class_attention_mask (B, M)                                  logits (B, C)

C is the most class tokens of any row; logits beyond a row's own labels mean nothing. Where labels, text and examples
begin is found in the graph by token id. A bi-encoder with the scorer ``simple`` needs no scorer graph: its logit is
``logit_scale`` times the dot product of the two vectors.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import onnx

from gliclass_cli.checkpoint import CheckpointConfig
from gliclass_cli.errors import ModelUnusable
from gliclass_cli.export import heads
from gliclass_cli.export.backbones import Inputs, Part, bert, deberta, modernbert, t5
from gliclass_cli.export.builder import Builder, Precision, Weights

_BACKBONES: Mapping[str, ModuleType] = {
    "bert": bert,
    "deberta-v2": deberta,
    "modernbert": modernbert,
    "t5": t5,
    "mt5": t5,
    "umt5": t5,
}
SUPPORTED_BACKBONES = tuple(_BACKBONES)
# Backbones whose last layer can compute chosen tokens only, and poolings that read one.
_SPARSE = (bert, deberta, modernbert)
_ONE_TOKEN = ("first", "last")


@dataclass(frozen=True, slots=True)
class ExportedGraphs:
    """The graphs of a checkpoint by role: ``text`` always, ``label`` and ``scorer`` where an architecture has them."""

    graphs: Mapping[str, onnx.ModelProto]


def build_graphs(
    config: CheckpointConfig,
    weights: Weights,
    encoder: Mapping[str, Any],
    label_encoder: Mapping[str, Any] | None,
    *,
    precision: Precision = "fp32",
    exact_layers: Collection[int] = (),
) -> ExportedGraphs:
    """Build the graphs of a checkpoint.

    ``weights`` are named as in checkpoints, less a leading ``model.``; ``encoder`` and ``label_encoder`` are the
    complete configurations of the backbones. int8 quantises the matrix products and word embeddings of the backbones,
    except the products of ``exact_layers``.

    Raises:
        ModelUnusable: this checkpoint cannot be exported; PyTorch runs it.
    """
    checkpoint = _Checkpoint(config, weights, encoder, label_encoder, precision, exact_layers)
    if config.architecture == "uni-encoder":
        return ExportedGraphs({"text": checkpoint.uni_encoder()})
    if config.shared_encoder:
        return ExportedGraphs({"text": checkpoint.shared_encoder()})
    if config.architecture == "bi-encoder":
        graphs = {"text": checkpoint.bi_encoder_text(), "label": checkpoint.label_encoder_graph()}
        return ExportedGraphs(graphs if config.scorer == "simple" else graphs | {"scorer": checkpoint.scorer()})
    if config.architecture == "bi-encoder-fused":
        return ExportedGraphs({"text": checkpoint.fused(), "label": checkpoint.label_encoder_graph()})
    if config.architecture in ("encoder-decoder", "encoder-decoder-cls"):
        return ExportedGraphs({"text": checkpoint.encoder_decoder()})
    raise ModelUnusable(f"a {config.architecture} model cannot be exported; --backend torch runs the checkpoint")


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """One checkpoint, and how its graphs are put together."""

    config: CheckpointConfig
    weights: Weights
    encoder: Mapping[str, Any]
    label_encoder: Mapping[str, Any] | None
    precision: Precision
    exact_layers: Collection[int]

    def uni_encoder(self) -> onnx.ModelProto:
        """Labels and text through one encoder."""
        config, builder = self.config, self._builder()
        head = self._head(builder, uni=True)
        ids, mask = self._inputs(builder)
        backbone, part = self._backbone(self.encoder, "encoder_model.")
        words = backbone.words(builder, part, ids)
        real = builder.cast(mask, "float")
        if config.use_segment_embeddings:
            segments = self._segments(builder, ids, real)
            table = builder.constant(self.weights["segment_embeddings.weight"])
            words = builder.add("Add", words, builder.add("Gather", table, segments))
        labels = heads.find_labels(builder, config, ids, real)
        section = real
        if config.extract_text_features:
            section = heads.section_mask(builder, config.text_token_index, ids, real)
        if self._reads_few_tokens():
            first = heads.pooled_position(builder, config.pooling, section)
            places, there = heads.label_positions(builder, config, real, labels)
            needed = builder.add("Concat", first, places, axis=1)  # (B, 1 + C)
            states = backbone.encode(builder, part, Inputs(words, mask, needed))[-1]
            pooled = builder.squeeze(builder.slice(states, 0, 1, 1), 1)
            found = builder.add("Mul", builder.slice(states, 1, builder.shape_of(needed, 1), 1), there)
        else:
            tokens = self._states(builder, backbone, part, Inputs(words, mask), real)
            found = heads.label_states(builder, config, tokens, ids, real, labels)
            if config.use_lstm:
                if config.extract_text_features:
                    tokens, section = heads.move_to_front(builder, tokens, section)
                tokens = head.lstm(tokens, section)
            pooled = heads.pool(builder, config.pooling, tokens, section)
        text = head.finish("text_projector", pooled)
        logits = head.score(text, head.finish("classes_projector", found), labels.taken, section)
        return self._logits(builder, head, logits, scaled=config.normalize_features)

    def shared_encoder(self) -> onnx.ModelProto:
        """A text or a label through the encoder that both share, to one vector."""
        builder = self._builder()
        ids, mask = self._inputs(builder)
        pooled = self._pooled(builder, self.encoder, "encoder_model.", ids, mask)
        return builder.model(self._head(builder).normalize(pooled), "embedding", ["batch", "hidden"])

    def bi_encoder_text(self) -> onnx.ModelProto:
        """A text through its encoder, to one vector."""
        builder = self._builder()
        ids, mask = self._inputs(builder)
        pooled = self._pooled(builder, self.encoder, "encoder_model.", ids, mask)
        vectors = self._head(builder).finish("text_projector", pooled)
        return builder.model(vectors, "embedding", ["batch", "hidden"])

    def label_encoder_graph(self) -> onnx.ModelProto:
        """A label through its encoder, to one vector in the space of the texts."""
        builder = self._builder()
        head = self._head(builder)
        ids, mask = self._inputs(builder)
        pooled = self._pooled(builder, self.label_encoder or {}, "label_encoder.", ids, mask)
        vectors = head.finish("classes_projector", head.project("biencoder_projector", pooled))
        return builder.model(vectors, "embedding", ["batch", "hidden"])

    def scorer(self) -> onnx.ModelProto:
        """Text vectors against label vectors."""
        builder = Builder()
        head = self._head(builder)
        text = builder.input("text", ["batch", "hidden"], floats=True)
        labels = builder.input("labels", ["batch", "labels", "hidden"], floats=True)
        taken = builder.cast(builder.input("label_mask", ["batch", "labels"]), "float")
        return self._logits(builder, head, head.score(text, labels, taken), scaled=True)

    def fused(self) -> onnx.ModelProto:
        """A text and label vectors, in the place of class tokens, through the text encoder."""
        config, builder = self.config, self._builder()
        head = self._head(builder)
        ids, mask = self._inputs(builder)
        given = builder.input("labels", ["batch", "labels", "hidden"], floats=True)
        backbone, part = self._backbone(self.encoder, "encoder_model.")
        real = builder.cast(mask, "float")
        labels = heads.find_labels(builder, config, ids, real)
        # Slots beyond the class tokens of all rows are cut off: select is (B, C, L) with C as many as there are.
        given = builder.slice(given, 0, builder.shape_of(labels.select, 1), 1)
        vectors = builder.add("MatMul", builder.transpose(labels.select, 0, 2, 1), given)  # (B, L, D)
        is_class = builder.cast(builder.unsqueeze(labels.found, 2), "bool")
        words = builder.add("Where", is_class, vectors, backbone.words(builder, part, ids))
        tokens = backbone.encode(builder, part, Inputs(words, mask))[-1]
        found = builder.add("MatMul", labels.select, tokens)
        text = head.finish("text_projector", heads.pool(builder, config.pooling, tokens, real))
        return self._logits(builder, head, head.score(text, found, labels.taken), scaled=True)

    def encoder_decoder(self) -> onnx.ModelProto:
        """One of text and labels through the encoder, the other through the decoder."""
        config, builder = self.config, self._builder()
        head = self._head(builder)
        ids, mask = self._inputs(builder)
        class_ids = builder.input("class_input_ids", ["batch", "class_length"])
        class_mask = builder.input("class_attention_mask", ["batch", "class_length"])
        part = Part(self.weights, "encoder_decoder_model.", self.encoder)
        if self._kind(self.encoder) is not t5:
            raise ModelUnusable(
                f"an encoder-decoder over {self.encoder.get('model_type')} cannot be exported; --backend torch runs it"
            )
        real, class_real = builder.cast(mask, "float"), builder.cast(class_mask, "float")
        text_words, class_words = t5.words(builder, part, ids), t5.words(builder, part, class_ids)
        if config.architecture == "encoder-decoder":
            tokens = t5.encode(builder, part, Inputs(text_words, mask))[-1]
            label_tokens = t5.decode(builder, part, class_words, class_mask, tokens, mask, causal=False)
            tokens = head.lstm(tokens, real) if config.use_lstm else tokens
            pooled = heads.pool(builder, config.pooling, tokens, real)
        else:
            label_tokens = t5.encode(builder, part, Inputs(class_words, class_mask))[-1]
            tokens = t5.decode(builder, part, text_words, mask, label_tokens, class_mask, causal=True)
            pooled = heads.pool(builder, "last", tokens, real)
        labels = heads.find_labels(builder, config, class_ids, class_real)
        found = heads.label_states(builder, config, label_tokens, class_ids, class_real, labels)
        text = head.finish("text_projector", pooled)
        logits = head.score(text, head.finish("classes_projector", found), labels.taken)
        return self._logits(builder, head, logits, scaled=config.normalize_features)

    # --- the steps -------------------------------------------------------------------------------------------------

    def _head(self, builder: Builder, *, uni: bool = False) -> heads.Head:
        return heads.Head(builder, self.config, self.weights, uni)

    def _builder(self) -> Builder:
        return Builder(self.precision, self.exact_layers)

    def _inputs(self, builder: Builder) -> tuple[str, str]:
        shape = ["batch", "length"]
        return builder.input("input_ids", shape), builder.input("attention_mask", shape)

    def _logits(self, builder: Builder, head: heads.Head, logits: str, *, scaled: bool) -> onnx.ModelProto:
        return builder.model(head.scale(logits) if scaled else logits, "logits", ["batch", "classes"])

    def _kind(self, encoder: Mapping[str, Any]) -> ModuleType:
        kind = str(encoder.get("model_type"))
        if kind not in _BACKBONES:
            raise ModelUnusable(
                f"a checkpoint over {kind} cannot be exported, only over {', '.join(SUPPORTED_BACKBONES)}; "
                "--backend torch runs it"
            )
        return _BACKBONES[kind]

    def _backbone(self, encoder: Mapping[str, Any], prefix: str) -> tuple[ModuleType, Part]:
        return self._kind(encoder), Part(self.weights, prefix, encoder)

    def _pooled(self, builder: Builder, encoder: Mapping[str, Any], prefix: str, ids: str, mask: str) -> str:
        """Return the pooled last states (B, D) of an encoder; of pooling that reads one token, only that one's."""
        backbone, part = self._backbone(encoder, prefix)
        words, real = backbone.words(builder, part, ids), builder.cast(mask, "float")
        if self.config.pooling in _ONE_TOKEN and backbone in _SPARSE:
            place = heads.pooled_position(builder, self.config.pooling, real)
            return builder.squeeze(backbone.encode(builder, part, Inputs(words, mask, place))[-1], 1)
        return heads.pool(builder, self.config.pooling, backbone.encode(builder, part, Inputs(words, mask))[-1], real)

    def _reads_few_tokens(self) -> bool:
        """Tell whether a uni-encoder's heads read but the labels' tokens and one of the text, after the last layer."""
        config = self.config
        return (
            self._kind(self.encoder) in _SPARSE
            and config.encoder_layer_id == -1
            and not (config.squeeze_layers or config.use_lstm)
            and config.pooling in _ONE_TOKEN
            and config.class_token_pooling != "average"
        )

    def _states(self, builder: Builder, backbone: ModuleType, part: Part, inputs: Inputs, real: str) -> str:
        """Return the states (B, L, D) that the heads read: of the last layer, of another one, or of all weighed."""
        layer = self.config.encoder_layer_id
        if layer == -1:
            states: list[str] = backbone.encode(builder, part, inputs)
            if self.config.squeeze_layers:
                return heads.weigh_layers(builder, self.weights, states[1:], real)
            return states[-1]
        total = int(self.encoder.get("num_hidden_layers") or self.encoder["num_layers"])
        number = layer if layer >= 0 else total + 1 + layer
        inner: list[str] = backbone.encode(builder, part, inputs, layers=number)
        return inner[number]

    def _segments(self, builder: Builder, ids: str, real: str) -> str:
        """Return segment ids (B, L): 0 labels, 1 from the text's token on, 2 from the first example on."""
        text = heads.section_mask(builder, self.config.text_token_index, ids, real)
        is_example = builder.add("Equal", ids, builder.constant(np.array(self.config.example_token_index)))
        begun = builder.add("CumSum", builder.cast(is_example, "float"), builder.constant(np.array(1)))
        examples = builder.add("Greater", begun, builder.constant(0.0))
        return builder.cast(builder.add("Where", examples, builder.constant(2.0), text), "int")
