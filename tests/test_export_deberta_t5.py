"""Exported DeBERTa and T5 where test_export_backbones.py does not look: other variations, long texts, int8 decoders."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from test_export_backbones import DEBERTA, T5, batch, encoder_graph, part_of, run, seeded, session

from gliclass_cli.errors import ModelUnusable
from gliclass_cli.export.backbones import Inputs, Part, deberta, t5
from gliclass_cli.export.backbones.deberta import relative_index
from gliclass_cli.export.builder import Builder, Precision

LENGTHS = (1, 2, 7, 33, 40)
NAMES = ("input_ids", "attention_mask", "class_input_ids", "class_attention_mask")
VARIATIONS: dict[str, dict[str, Any]] = {
    "odd-buckets": {"position_buckets": 7},
    "farthest": {"max_relative_positions": 40},
    "few-positions": {"position_buckets": -1, "max_relative_positions": 4},
    "no-kinds": {"pos_att_type": None},
    "kinds-unused": {"relative_attention": False, "norm_rel_ebd": "none"},
    "text-of-kinds": {"pos_att_type": "P2C | c2p"},
    "own-p2c": {"share_att_key": False, "pos_att_type": ["p2c"]},
    "types-only": {"type_vocab_size": 2},
    "positions-only": {"position_biased_input": True},
}
ENCODERS = {
    "t5": (transformers.T5Config, transformers.T5EncoderModel),
    "mt5": (transformers.MT5Config, transformers.MT5EncoderModel),
    "umt5": (transformers.UMT5Config, transformers.UMT5EncoderModel),
}
DECODERS = {"t5": transformers.T5Model, "mt5": transformers.MT5Model, "umt5": transformers.UMT5Model}


def debertas(**changes: Any) -> Any:
    return seeded(transformers.DebertaV2Model(transformers.DebertaV2Config(**DEBERTA | changes)))


def distance(found: Any, expected: Any) -> float:
    """The largest difference, relative to the largest value; far faster than pytest.approx."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def compare(kind: Any, model: Any, part: Part, lengths: tuple[int, ...]) -> None:
    """Every state of every length is that of transformers, alone and among others, padded or not."""
    graph, (ids, mask) = encoder_graph(kind, part), batch(*lengths)
    together = run(graph, ids, mask)
    with torch.no_grad():
        padded = model(torch.from_numpy(ids), torch.from_numpy(mask), output_hidden_states=True).hidden_states
        for row, length in enumerate(lengths):
            text = ids[row : row + 1, :length]
            states = model(torch.from_numpy(text), output_hidden_states=True).hidden_states
            alone = run(graph, text, np.ones_like(text))
            for number, state in enumerate(states):
                assert distance(alone[number], state.numpy()) < 1e-5
                assert distance(together[number, row, :length], alone[number, 0]) < 1e-5
                assert distance(together[number, row, :length], padded[number][row, :length].numpy()) < 1e-5


@pytest.mark.parametrize("name", VARIATIONS)
def test_variations_of_deberta(name: str) -> None:
    model = debertas(**VARIATIONS[name])
    compare(deberta, model, part_of(model), LENGTHS)


def test_texts_far_beyond_the_buckets() -> None:
    model = debertas(position_buckets=32)
    compare(deberta, model, part_of(model), (3, 400))


def test_weights_under_a_prefix() -> None:
    model = debertas()
    part = part_of(model)
    compare(deberta, model, Part({f"a.b.{name}": value for name, value in part.weights.items()}, "a.b.", part.config), (7,))  # fmt: skip


@pytest.mark.parametrize("kind", ["deberta", "t5"])
def test_two_models_in_one_graph(kind: str) -> None:
    module, parts = (deberta, []) if kind == "deberta" else (t5, [])
    for number, buckets in enumerate((8, 16)):
        if kind == "deberta":
            model = debertas(position_buckets=buckets, position_biased_input=True, type_vocab_size=number)
        else:
            model = seeded(transformers.T5EncoderModel(transformers.T5Config(**T5 | {"relative_attention_num_buckets": buckets})))  # fmt: skip
        part = part_of(model)
        other = {f"{number}.{name}": value * (1 - 0.1 * number) for name, value in part.weights.items()}
        parts.append(Part(other, f"{number}.", part.config))
    builder = Builder()
    ids, mask = (builder.input(name, ["batch", "length"]) for name in NAMES[:2])
    states = [module.encode(builder, part, Inputs(module.words(builder, part, ids), mask))[-1] for part in parts]
    found = run(session(builder, builder.add("Concat", *states, axis=0)), *batch(20))
    for number, part in enumerate(parts):
        assert distance(found[number], run(encoder_graph(module, part), *batch(20))[-1, 0]) < 1e-5


@pytest.mark.parametrize("buckets", [2, 5, 7, 9, 15, 64, 255, 256])
@pytest.mark.parametrize("most", [256, 512])
def test_buckets_of_every_distance(buckets: int, most: int) -> None:
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distances = torch.arange(-65_535, 65_536)
    expected = torch.clamp(make_log_bucket_position(distances, buckets, most).long() + buckets, 0, 2 * buckets - 1)
    table = relative_index(buckets, buckets, most)
    reach = len(table) // 2
    assert (table[np.clip(distances.numpy(), -reach, reach) + reach] == expected.numpy()).all()


def test_tables_end_where_nothing_changes() -> None:
    assert len(relative_index(256, 256, 512)) == 2 * 512 + 1
    assert relative_index(3, -1, 3).tolist() == [0, 1, 2, 3, 4, 5, 5]


@pytest.mark.parametrize("changes", [{"conv_kernel_size": 3}, {"embedding_size": 16}])
def test_debertas_that_cannot_be_exported(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelUnusable, match="cannot be exported; --backend torch runs the checkpoint"):
        encoder_graph(deberta, part_of(debertas(**changes)))


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("changes", [{"feed_forward_proj": "gated-gelu", "d_kv": 12}, {"feed_forward_proj": "gelu"}])
def test_variations_of_t5(name: str, changes: dict[str, Any]) -> None:
    config, kind = ENCODERS[name]
    model = seeded(kind(config(**T5 | changes)))
    compare(t5, model, part_of(model), LENGTHS)


def test_words_without_a_shared_table() -> None:
    config, kind = ENCODERS["t5"]
    model = seeded(kind(config(**T5)))
    part = part_of(model)
    own = {name: value for name, value in part.weights.items() if name != "shared.weight"}
    compare(t5, model, Part(own, "", part.config), (7,))


@pytest.mark.parametrize("name", ["own-p2c", "few-positions", "positions-only", "kinds-unused"])
def test_int8_of_deberta(name: str) -> None:
    part = part_of(debertas(**VARIATIONS[name]))
    near(encoder_graph(deberta, part), encoder_graph(deberta, part, "int8"))


@pytest.mark.parametrize("name", ENCODERS)
def test_int8_of_t5(name: str) -> None:
    config, kind = ENCODERS[name]
    part = part_of(seeded(kind(config(**T5))))
    near(encoder_graph(t5, part), encoder_graph(t5, part, "int8"))


def near(exact: Any, graph: Any) -> None:
    """An int8 graph gives nearly what the exact one gives, whatever else is in the batch."""
    ids, mask = batch(*LENGTHS)
    together = run(graph, ids, mask)
    for row, length in enumerate(LENGTHS):
        text = ids[row : row + 1, :length]
        alone, expected = (run(each, text, np.ones_like(text))[:, 0] for each in (graph, exact))
        assert distance(together[:, row, :length], alone) < 1e-5
        assert np.corrcoef(alone.ravel(), expected.ravel())[0, 1] > 0.98


def decoder_graph(part: Part, precision: Precision, *, causal: bool) -> Any:
    builder = Builder(precision)
    ids, mask, labels, label_mask = (builder.input(name, ["batch", f"{name}.length"]) for name in NAMES)
    states = t5.encode(builder, part, Inputs(t5.words(builder, part, ids), mask))[-1]
    found = t5.decode(builder, part, t5.words(builder, part, labels), label_mask, states, mask, causal=causal)
    return session(builder, found)


def decoded(graph: Any, *inputs: Any) -> Any:
    return graph.run(None, dict(zip(NAMES, inputs, strict=True)))[0]


@pytest.mark.parametrize("name", DECODERS)
def test_padded_decoders_with_the_mask_of_the_reference(name: str) -> None:
    from gliclass.model import GLiClassEncoderDecoder

    model = seeded(DECODERS[name](ENCODERS[name][0](**T5)))
    (texts, mask), (labels, label_mask) = batch(5, 1, 30), batch(2, 40, 9)
    seen = GLiClassEncoderDecoder._make_bidirectional_4d_mask(torch.from_numpy(label_mask), torch.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(texts), torch.from_numpy(mask), torch.from_numpy(labels), seen, use_cache=False)  # fmt: skip
    found = decoded(decoder_graph(part_of(model), "fp32", causal=False), texts, mask, labels, label_mask)
    for row, size in enumerate(label_mask.sum(axis=1)):
        wanted = expected.last_hidden_state[row, :size].numpy()
        assert distance(found[row, :size], wanted) < 1e-5


@pytest.mark.parametrize("causal", [True, False])
def test_int8_of_decoders(causal: bool) -> None:
    part = part_of(seeded(transformers.T5Model(transformers.T5Config(**T5))))
    exact, graph = (decoder_graph(part, precision, causal=causal) for precision in ("fp32", "int8"))
    (texts, mask), (labels, label_mask) = batch(5, 1, 30), batch(2, 40, 9)
    together = decoded(graph, texts, mask, labels, label_mask)
    for row, (length, size) in enumerate(zip(mask.sum(axis=1), label_mask.sum(axis=1), strict=True)):
        text, label = texts[row : row + 1, :length], labels[row : row + 1, :size]
        inputs = (text, np.ones_like(text), label, np.ones_like(label))
        alone, expected = decoded(graph, *inputs)[0], decoded(exact, *inputs)[0]
        assert distance(together[row, :size], alone) < 1e-5
        assert np.corrcoef(alone.ravel(), expected.ravel())[0, 1] > 0.98
