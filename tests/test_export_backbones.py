"""The encoders and decoders of exported graphs against transformers' own: every state, length and variation."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from gliclass_cli.errors import ModelUnusable
from gliclass_cli.export.backbones import Inputs, Part, bert, deberta, modernbert, t5
from gliclass_cli.export.backbones.deberta import relative_index
from gliclass_cli.export.backbones.t5 import distance_buckets
from gliclass_cli.export.builder import Builder, Precision
from gliclass_cli.export.graphs import SUPPORTED_BACKBONES

VOCABULARY, HIDDEN, LAYERS = 60, 32, 3
LENGTHS = (1, 2, 3, 7, 33, 70)
PLAIN: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
DEBERTA = PLAIN | {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
    "max_relative_positions": -1,
}
T5: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": LAYERS,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 0,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
ENCODERS: dict[str, tuple[Any, Any]] = {
    "bert": (bert, transformers.BertConfig(**PLAIN)),
    "bert-relu": (bert, transformers.BertConfig(**PLAIN, hidden_act="relu")),
    "deberta-v3": (deberta, transformers.DebertaV2Config(**DEBERTA)),
    "deberta-own-keys": (deberta, transformers.DebertaV2Config(**DEBERTA | {"share_att_key": False})),
    "deberta-no-buckets": (deberta, transformers.DebertaV2Config(**DEBERTA | {"position_buckets": -1, "max_relative_positions": 16})),
    "deberta-positions": (deberta, transformers.DebertaV2Config(**DEBERTA | {"position_biased_input": True, "type_vocab_size": 2})),
    "deberta-c2p": (deberta, transformers.DebertaV2Config(**DEBERTA | {"pos_att_type": "c2p"})),
    "deberta-p2c": (deberta, transformers.DebertaV2Config(**DEBERTA | {"pos_att_type": ["p2c"], "norm_rel_ebd": "none"})),
    "deberta-absolute": (deberta, transformers.DebertaV2Config(**PLAIN, relative_attention=False)),
    "modernbert": (modernbert, transformers.ModernBertConfig(**PLAIN, **SPECIAL, local_attention=8, global_attn_every_n_layers=2)),
    "modernbert-bias": (modernbert, transformers.ModernBertConfig(**PLAIN, **SPECIAL, norm_bias=True, mlp_bias=True, attention_bias=True)),
    "t5": (t5, transformers.T5Config(**T5)),
    "t5-gated": (t5, transformers.T5Config(**T5, feed_forward_proj="gated-gelu")),
    "mt5": (t5, transformers.MT5Config(**T5, feed_forward_proj="gated-silu")),
    "umt5": (t5, transformers.UMT5Config(**T5)),
}  # fmt: skip
ENCODER_DECODERS = {"t5": transformers.T5Model, "mt5": transformers.MT5Model, "umt5": transformers.UMT5Model}


def seeded(model: Any) -> Any:
    generator = np.random.default_rng(7)
    size = 0.2 if "t5" in model.config.model_type else 0.4  # T5 does not scale its attention
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            drawn = generator.normal(0, size, tuple(parameter.shape)).astype(np.float32)
            parameter.copy_(torch.from_numpy(drawn + (1 if "norm" in name.lower() and "weight" in name else 0)))
    return model.eval()


def part_of(model: Any) -> Part:
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    return Part(weights, "", model.config.to_dict())


def session(builder: Builder, output: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = builder.model(output, "output", ["states", "batch", "length", HIDDEN])
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def encoder_graph(kind: Any, part: Part, precision: Precision = "fp32", layers: int | None = None) -> Any:
    """A graph from ids and mask to all states (S, B, L, D)."""
    builder = Builder(precision)
    ids, mask = (builder.input(name, ["batch", "length"]) for name in ("input_ids", "attention_mask"))
    states = kind.encode(builder, part, Inputs(kind.words(builder, part, ids), mask), layers=layers)
    return session(builder, builder.add("Concat", *(builder.unsqueeze(state, 0) for state in states), axis=0))


def batch(*lengths: int) -> tuple[Any, Any]:
    """Ids and mask of rows of these lengths, padded with any tokens."""
    generator = np.random.default_rng(sum(lengths))
    ids = generator.integers(3, VOCABULARY, (len(lengths), max(lengths)))
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return ids, mask


def run(graph: Any, ids: Any, mask: Any) -> Any:
    return graph.run(None, {"input_ids": ids, "attention_mask": mask})[0]


@pytest.mark.parametrize("name", ENCODERS)
def test_every_state_is_that_of_transformers(name: str) -> None:
    kind, config = ENCODERS[name]
    if kind is t5:
        model = seeded({"t5": transformers.T5EncoderModel, "mt5": transformers.MT5EncoderModel, "umt5": transformers.UMT5EncoderModel}[config.model_type](config))  # fmt: skip
    else:
        model = seeded(transformers.AutoModel.from_config(config))
    part = part_of(model)
    graph = encoder_graph(kind, part)
    together = run(graph, *batch(*LENGTHS))
    for row, length in enumerate(LENGTHS):
        ids = batch(*LENGTHS)[0][row : row + 1, :length]
        with torch.no_grad():
            expected = model(input_ids=torch.from_numpy(ids), output_hidden_states=True).hidden_states
        found = run(graph, ids, np.ones_like(ids))
        assert len(found) == len(expected) == LAYERS + 1
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other.numpy(), abs=2e-5 * max(1.0, float(other.abs().max())))
        size = max(1.0, float(np.abs(found).max()))
        assert together[:, row, :length] == pytest.approx(found[:, 0], abs=2e-5 * size)
    inner = run(encoder_graph(kind, part, layers=1), *batch(7))
    assert inner == pytest.approx(run(graph, *batch(7))[:2], abs=1e-6)


@pytest.mark.parametrize("name", [name for name, (kind, _) in ENCODERS.items() if kind is deberta])
def test_blocks_of_long_texts_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, config = ENCODERS[name]
    part = part_of(seeded(transformers.AutoModel.from_config(config)))
    inputs = batch(*LENGTHS)
    plain = encoder_graph(kind, part)
    monkeypatch.setattr(deberta, "_LONG", 5)
    monkeypatch.setattr(deberta, "_BLOCK", 16)
    graph = encoder_graph(kind, part)
    whole = run(plain, *inputs)
    size = max(1.0, float(np.abs(whole).max()))
    assert run(graph, *inputs) == pytest.approx(whole, abs=2e-5 * size)
    for length in (5, 6, 16, 17, 64):
        assert run(graph, *batch(length)) == pytest.approx(run(plain, *batch(length)), abs=2e-5 * size)


@pytest.mark.parametrize("name", [name for name, (kind, _) in ENCODERS.items() if kind is not t5])
def test_the_last_layer_of_needed_tokens_is_that_of_all(name: str) -> None:
    kind, config = ENCODERS[name]
    part = part_of(seeded(transformers.AutoModel.from_config(config)))
    builder = Builder()
    ids, mask, needed = (builder.input(name, ["batch", name]) for name in ("input_ids", "attention_mask", "needed"))
    few = session(builder, kind.encode(builder, part, Inputs(kind.words(builder, part, ids), mask, needed))[-1])
    texts, real = batch(3, 70, 33)
    places = np.array([[2, 0, 2, 1], [69, 3, 40, 0], [1, 32, 31, 7]])
    found = few.run(None, {"input_ids": texts, "attention_mask": real, "needed": places})[0]
    everything = run(encoder_graph(kind, part), texts, real)[-1]
    assert found == pytest.approx(np.take_along_axis(everything, places[:, :, None], axis=1), abs=1e-4)


@pytest.mark.parametrize("name", ["bert", "deberta-v3", "modernbert", "t5-gated"])
def test_int8_is_near_and_does_not_depend_on_company(name: str) -> None:
    kind, config = ENCODERS[name]
    model = seeded(transformers.T5EncoderModel(config) if kind is t5 else transformers.AutoModel.from_config(config))
    exact, graph = encoder_graph(kind, part_of(model)), encoder_graph(kind, part_of(model), "int8")
    together = run(graph, *batch(*LENGTHS))
    for row, length in enumerate(LENGTHS):
        ids = batch(*LENGTHS)[0][row : row + 1, :length]
        alone = run(graph, ids, np.ones_like(ids))[:, 0]
        assert together[:, row, :length] == pytest.approx(alone, abs=1e-5 * max(1.0, float(np.abs(alone).max())))
        expected = run(exact, ids, np.ones_like(ids))[:, 0]
        assert np.corrcoef(alone.ravel(), expected.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("name", ENCODER_DECODERS)
@pytest.mark.parametrize("causal", [True, False])
def test_decoders_are_those_of_transformers(name: str, causal: bool) -> None:
    config = ENCODERS[name][1]
    model = seeded(ENCODER_DECODERS[name](config))
    builder = Builder()
    names = ("input_ids", "attention_mask", "class_input_ids", "class_attention_mask")
    ids, mask, class_ids, class_mask = (builder.input(name, ["batch", f"{name}.length"]) for name in names)
    part = part_of(model)
    states = t5.encode(builder, part, Inputs(t5.words(builder, part, ids), mask))[-1]
    graph = session(
        builder,
        t5.decode(builder, part, t5.words(builder, part, class_ids), class_mask, states, mask, causal=causal),
    )
    (texts, text_mask), (labels, label_mask) = batch(5, 1, 30), batch(2, 40, 9)
    together = graph.run(None, dict(zip(names, (texts, text_mask, labels, label_mask), strict=True)))[0]
    for row in range(3):
        length, size = int(text_mask[row].sum()), int(label_mask[row].sum())
        text, label = texts[row : row + 1, :length], labels[row : row + 1, :size]
        seen = torch.ones(1, size, dtype=torch.long) if causal else torch.zeros(1, 1, size, size)
        with torch.no_grad():
            expected = model(
                input_ids=torch.from_numpy(text),
                decoder_input_ids=torch.from_numpy(label),
                decoder_attention_mask=seen,
                use_cache=False,
            ).last_hidden_state[0].numpy()  # fmt: skip
        scale = max(1.0, float(np.abs(expected).max()))
        assert together[row, :size] == pytest.approx(expected, abs=3e-5 * scale)


@pytest.mark.parametrize(("buckets", "most"), [(256, 512), (32, 512), (8, 128), (-1, 16), (-1, 512)])
def test_relative_positions_are_those_of_transformers(buckets: int, most: int) -> None:
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    span = buckets if buckets > 0 else most
    table = relative_index(span, buckets, most)
    reach = len(table) // 2
    distance = torch.arange(-reach, reach + 1)
    bucket = make_log_bucket_position(distance, buckets, most) if buckets > 0 else distance
    expected = torch.clamp(bucket.long() + span, 0, 2 * span - 1).numpy()
    assert table.tolist() == expected.tolist()
    assert (table[0], table[-1]) == (0, 2 * span - 1)  # beyond the table nothing changes any more


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (8, 16)])
def test_distances_are_those_of_t5(buckets: int, reach: int, bidirectional: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-3 * reach, 3 * reach + 1)
    expected = T5Attention._relative_position_bucket(distance, bidirectional, buckets, reach).numpy()
    found = distance_buckets({"relative_attention_num_buckets": buckets}, reach, bidirectional=bidirectional)
    clipped = np.clip(distance.numpy(), -reach, reach) + reach
    assert found[clipped].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("deberta-v3", {"conv_kernel_size": 3}, "with a convolution"),
        ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "positions of type 'yarn'"),
        ("bert", {"position_embedding_type": "relative_key"}, "relative positions"),
        ("bert", {"hidden_act": "snake"}, "activation 'snake'"),
    ],
)
def test_what_cannot_be_exported_is_named(kind: str, changes: dict[str, Any], message: str) -> None:
    module, config = ENCODERS[kind]
    part = part_of(seeded(transformers.AutoModel.from_config(config)))
    with pytest.raises(ModelUnusable, match=message):
        encoder_graph(module, Part(part.weights, "", {**part.config, **changes}))


def test_all_supported_backbones_are_tested() -> None:
    assert {config.model_type for _, config in ENCODERS.values()} == set(SUPPORTED_BACKBONES)
