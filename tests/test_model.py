"""Poolings computed by hand, broken and hostile model folders, and what a model does however it was built."""

import json
import os
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import LABEL_HIDDEN, backbone_config
from safetensors.torch import load_file, save_file

from gliclass_cli.checkpoint import CheckpointConfig, parse_checkpoint_config, read_checkpoint_config
from gliclass_cli.errors import ModelUnusable, OutputFailed
from gliclass_cli.model import GliclassModel, build_model, load_model, save_model
from gliclass_cli.model.layers import Lstm
from gliclass_cli.model.poolings import (
    POOLINGS,
    average_class_spans,
    class_positions,
    last_position,
    move_to_front,
    pool,
    take_class_tokens,
)
from gliclass_cli.model.weights import _parameters_without_values

VOCABULARY = 40
LABEL, SEPARATOR, EXAMPLE = 37, 38, 39
Change = Callable[[dict[str, Any]], None]


def raw_config(architecture: str = "uni-encoder", backbone: str = "bert", **values: Any) -> dict[str, Any]:
    """Return a ``config.json`` of a tiny model."""
    decoder = architecture == "decoder-kv"
    raw = {
        "model_type": "GLiClass",
        "architecture_type": architecture,
        "encoder_config": backbone_config(backbone, VOCABULARY, 64 if decoder else 32),
        "encoder_model_name": "tiny",
        "vocab_size": VOCABULARY,
        "class_token_index": LABEL,
        "text_token_index": SEPARATOR,
        "example_token_index": EXAMPLE,
        "prompt_first": True,
        "problem_type": "multi_label_classification",
    }
    if architecture.startswith("bi-encoder"):
        raw |= {"label_model_config": backbone_config("bert", VOCABULARY, LABEL_HIDDEN), "label_model_name": "tiny"}
    if decoder:
        raw |= {"scorer_type": "decoder-kv", "sep_token_index": SEPARATOR}
    return raw | values


def build(*names: str, **values: Any) -> GliclassModel:
    torch.manual_seed(0)
    return build_model(parse_checkpoint_config(raw_config(*names, **values), "config.json")).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a sound model."""
    save_model(build(), tmp_path)
    return tmp_path


def load(folder: Path, **options: Any) -> GliclassModel:
    return load_model(folder, read_checkpoint_config(folder / "config.json"), **options)


def prompt(*rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    return ids, mask


ROWS = ([2, LABEL, 5, LABEL, 6, 7, SEPARATOR, 8, 9, 10, 3], [2, LABEL, 4, SEPARATOR, 11, 3])


# --- poolings ---------------------------------------------------------------------------------------------------------

TOKENS = [[1.0, -4.0], [-3.0, 2.0], [2.0, -1.0]]
POOLED = {
    "first": [1.0, -4.0],
    "last": [2.0, -1.0],
    "avg": [0.0, -1.0],
    "max": [2.0, 2.0],
    "sum": [0.0, -3.0],
    "rms": [(14 / 3) ** 0.5, 7**0.5],
    "abs_max": [3.0, 4.0],
    "abs_avg": [2.0, 7 / 3],
}


@pytest.mark.parametrize("how", POOLED)
def test_pooling_by_hand(how: str) -> None:
    tokens = torch.tensor([[*TOKENS, [99.0, -99.0]], [*TOKENS[:1], *[[float("nan")] * 2] * 3]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    pooled = pool(tokens, mask, how)
    one = [abs(value) for value in TOKENS[0]] if how in ("rms", "abs_max", "abs_avg") else TOKENS[0]
    torch.testing.assert_close(pooled, torch.tensor([POOLED[how], one]))


def test_every_pooling_is_tested() -> None:
    assert POOLINGS.keys() == {*POOLED, "pass"}


@pytest.mark.parametrize("how", POOLED)
@given(data=st.data())
def test_a_padded_row_pools_as_it_does_alone(how: str, data: st.DataObject) -> None:
    length, padding = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    values = st.floats(-100, 100, width=32)
    alone = torch.tensor(
        data.draw(st.lists(st.lists(values, min_size=3, max_size=3), min_size=length, max_size=length))
    )
    filler = data.draw(st.sampled_from([0.0, 1e30, -1e30, float("inf"), float("nan")]))
    padded = torch.cat((alone, torch.full((padding, 3), filler)))
    mask = torch.tensor([1] * length + [0] * padding)
    torch.testing.assert_close(pool(padded[None], mask[None], how), pool(alone[None], mask[None, :length], how))


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=12), min_size=1, max_size=4))
def test_label_vectors_are_those_of_a_plain_loop(rows: list[list[int]]) -> None:
    """Token 5 is the class token, token 4 the text token; a token's state is its row and position."""
    ids, mask = prompt(*rows)
    states = torch.tensor([[[float(r), float(p)] for p in range(ids.shape[1])] for r in range(len(rows))])
    is_class, is_text = (ids == 5) & mask.bool(), ids == 4
    positions, taken = class_positions(is_class)
    first = take_class_tokens(states, mask, positions, after=False)
    after = take_class_tokens(states, mask, positions, after=True)
    spans = average_class_spans(states, mask, is_class, is_text, positions.shape[1], with_class_token=True)
    for number, row in enumerate(rows):
        starts = [i for i, token in enumerate(row) if token == 5]
        assert taken[number].tolist() == [slot < len(starts) for slot in range(positions.shape[1])]
        for slot, start in enumerate(starts):
            assert first[number, slot].tolist() == [number, start]
            assert after[number, slot].tolist() == ([number, start + 1] if start + 1 < len(row) else [0, 0])
            end = next((i for i in range(start + 1, len(row)) if row[i] in (4, 5)), len(row))
            if 4 not in row[:start]:
                assert spans[number, slot].tolist() == pytest.approx([number, (start + end - 1) / 2])


def test_what_stands_before_is_dropped() -> None:
    values = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    moved, moved_mask = move_to_front(values, mask, torch.tensor([2, 0]))
    assert moved_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert moved[0, :2].tolist() == [3, 4]
    assert moved[1, :3].tolist() == [5, 6, 7]
    assert last_position(torch.tensor([[False, True, True, False], [False] * 4])).tolist() == [2, -1]


def test_the_lstm_is_pytorch_s_on_packed_rows() -> None:
    torch.manual_seed(0)
    lstm, tokens = Lstm(8), torch.randn(3, 7, 8)
    lengths = torch.tensor([7, 1, 4])
    mask = (torch.arange(7) < lengths[:, None]).long()
    packed = torch.nn.utils.rnn.pack_padded_sequence(tokens, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(lstm.lstm(packed)[0], batch_first=True)
    torch.testing.assert_close(lstm(tokens, mask) * mask[..., None], expected)


# --- building ---------------------------------------------------------------------------------------------------------

ALL = [
    ("uni-encoder", "bert"),
    ("uni-encoder", "deberta-v2"),
    ("uni-encoder", "modernbert"),
    ("uni-encoder", "t5"),
    ("uni-encoder", "mt5"),
    ("uni-encoder", "umt5"),
    ("uni-encoder", "roberta"),
    ("uni-encoder", "electra"),
    ("bi-encoder", "deberta-v2"),
    ("bi-encoder-fused", "modernbert"),
    ("encoder-decoder", "t5"),
    ("encoder-decoder-cls", "umt5"),
    ("decoder-kv", "qwen3"),
]


def forward(model: GliclassModel) -> torch.Tensor:
    ids, mask = prompt(*ROWS)
    architecture = model.config.architecture
    any_model: Any = model
    if architecture == "decoder-kv":
        ids, mask = prompt([8, 9, SEPARATOR, 5, LABEL, 6, LABEL, SEPARATOR], [8, SEPARATOR, 5, LABEL, SEPARATOR])
    if not architecture.startswith(("bi-encoder", "encoder-decoder")):
        return any_model(ids, mask)  # type: ignore[no-any-return]
    if architecture.startswith("encoder-decoder"):
        return any_model(*prompt([8, 9, 1], [8, 1]), ids, mask)  # type: ignore[no-any-return]
    labels = any_model.encode_labels(*prompt([2, 5, 3], [2, 6, 7, 3]))[None].expand(2, -1, -1)
    label_mask = torch.tensor([[1, 1], [1, 0]])
    if architecture == "bi-encoder":
        return any_model.score(any_model.encode_text(ids, mask), labels, label_mask)  # type: ignore[no-any-return]
    return any_model(ids, mask, labels, label_mask)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("architecture", "backbone"), ALL)
def test_a_saved_model_is_the_same_and_says_nothing(
    architecture: str, backbone: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = build(architecture, backbone)
    save_model(model, tmp_path)
    loaded = load(tmp_path)
    with torch.inference_mode():
        expected = forward(model)
        assert expected.shape == (2, 2)
        assert torch.equal(forward(loaded), expected)
    assert not loaded.training
    assert not [name for name, tensor in [*loaded.named_parameters(), *loaded.named_buffers()] if tensor.is_meta]
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(("architecture", "backbone"), ALL)
def test_every_parameter_learns(architecture: str, backbone: str, tmp_path: Path) -> None:
    save_model(
        build(architecture, backbone, scorer_type="mlp")
        if architecture != "decoder-kv"
        else build(*("decoder-kv", "qwen3")),
        tmp_path,
    )
    model = load(tmp_path)
    forward(model)[0].square().sum().backward()
    silent = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    # Only what the model does not use: poolers of BERT, and a scale that is for normalised features.
    assert all("pooler" in name or name == "logit_scale" for name in silent), silent


def test_tied_weights_stay_one_parameter(tmp_path: Path) -> None:
    save_model(build("encoder-decoder", "t5"), tmp_path)
    backbone: Any = load(tmp_path).encoder_decoder_model
    assert backbone.shared.weight is backbone.encoder.embed_tokens.weight is backbone.decoder.embed_tokens.weight


@pytest.mark.parametrize(
    "values",
    [
        {"use_lstm": True},
        {"squeeze_layers": True},
        {"use_segment_embeddings": True},
        {"scorer_type": "cross-attn", "pooling_strategy": "pass"},
        {"scorer_type": "weighted-dot"},
    ],
    ids=str,
)
def test_random_weights_have_the_deviation_asked_for(values: dict[str, Any]) -> None:
    model = build(initializer_range=0.5, **values)
    for name, parameter in model.named_parameters():
        if name.startswith("encoder_model") or "norm" in name or name == "logit_scale":
            continue
        if "bias" in name:
            assert not parameter.any(), name
        elif parameter.numel() > 1000:
            assert 0.45 < float(parameter.detach().std()) < 0.55, name


def test_building_without_values_leaves_other_threads_alone() -> None:
    made: list[torch.nn.Module] = []
    with _parameters_without_values():
        thread = threading.Thread(target=lambda: made.append(torch.nn.Linear(2, 2)))
        thread.start()
        thread.join()
        made.append(torch.nn.Linear(2, 2))
    made.append(torch.nn.Linear(2, 2))
    assert [layer.weight.is_meta for layer in made] == [False, True, False]  # type: ignore[union-attr]


def test_what_was_loaded_does_not_change_with_its_file(folder: Path) -> None:
    model = load(folder)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").write_bytes(bytes(size))
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_are_converted(folder: Path, stored: torch.dtype, dtype: torch.dtype) -> None:
    rewrite(folder, lambda tensors: tensors.update({name: value.to(stored) for name, value in tensors.items()}))
    model = load(folder, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    with torch.inference_mode():
        assert torch.isfinite(forward(model)).all()


def test_positions_stay_in_single_precision(tmp_path: Path) -> None:
    save_model(build("decoder-kv", "qwen3"), tmp_path)
    model = load(tmp_path, dtype=torch.bfloat16)
    kinds = {name.rsplit(".", 1)[-1]: buffer.dtype for name, buffer in model.named_buffers()}
    assert kinds["inv_freq"] == torch.float32


def test_unused_values_of_the_configuration_are_kept(tmp_path: Path) -> None:
    save_model(build(something_of_mine=[1, "é"], dtype="bfloat16"), tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert saved["something_of_mine"] == [1, "é"]
    assert (saved["dtype"], saved["architectures"]) == ("float32", ["GLiClassModel"])


def test_a_model_that_cannot_be_saved(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here already")
    with pytest.raises(OutputFailed, match="cannot be saved"):
        save_model(build(), tmp_path / "file")
    (tmp_path / "folder" / "model.safetensors").mkdir(parents=True)
    with pytest.raises(OutputFailed, match="cannot be saved"):
        save_model(build(), tmp_path / "folder")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["model.safetensors"]


# --- broken and hostile folders ---------------------------------------------------------------------------------------


def rewrite(folder: Path, change: Change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def shard(folder: Path, names: tuple[str, str] = ("a.safetensors", "b.safetensors")) -> dict[str, Any]:
    """Split the weights into two files; return the index, which is written too."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    half = len(tensors) // 2
    parts = dict(list(tensors.items())[:half]), dict(list(tensors.items())[half:])
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name)
    index = {"metadata": {}, "weight_map": {key: name for name, part in zip(names, parts, strict=True) for key in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def refused(folder: Path) -> str:
    with pytest.raises(ModelUnusable) as caught:
        load(folder)
    message = str(caught.value)
    assert str(folder) in message
    return message


def test_weights_in_several_files(folder: Path) -> None:
    whole = load(folder)
    shard(folder)
    with torch.inference_mode():
        assert torch.equal(forward(load(folder)), forward(whole))


def test_weights_in_the_cache_of_the_hub(folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(blobs / name[:5])
        (snapshot / name).symlink_to(Path("..") / ".." / "blobs" / name[:5])
    assert load(snapshot)


def test_missing_tensors(folder: Path) -> None:
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if "classes_projector" in name])  # type: ignore[arg-type, return-value]
    message = refused(folder)
    assert "lack 4 tensors" in message
    assert "model.classes_projector.linear_1.weight" in message
    assert message.endswith("...")


def test_unexpected_tensors(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.lstm.lstm.weight_ih_l0": torch.zeros(1)}))
    assert "hold 1 tensors that config.json knows nothing of: model.lstm.lstm.weight_ih_l0" in refused(folder)


def test_tensors_that_lack_the_prefix(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"logit_scale": torch.zeros(())}))
    assert "knows nothing of: logit_scale" in refused(folder)


@pytest.mark.parametrize(
    "name", ["embeddings.position_ids", "embeddings.position_embeddings.weight", "rotary_emb.inv_freq"]
)
def test_harmless_leftovers_of_older_versions(tmp_path: Path, name: str) -> None:
    save_model(build("uni-encoder", "deberta-v2"), tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.update({f"model.encoder_model.{name}": torch.zeros(3)}))
    assert load(tmp_path)


def test_wrong_shapes(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.text_projector.linear_1.weight": torch.zeros(32, 31)}))
    assert "text_projector.linear_1.weight has the shape [32, 31]; config.json asks for [32, 32]" in refused(folder)


def test_wrong_types(folder: Path) -> None:
    rewrite(
        folder,
        lambda tensors: tensors.update({"model.text_projector.linear_1.weight": torch.zeros(32, 32).to(torch.int8)}),
    )
    assert "has the type I8" in refused(folder)


def test_tied_tensors_that_differ(tmp_path: Path) -> None:
    save_model(build("encoder-decoder", "t5"), tmp_path)
    name = "model.encoder_decoder_model.decoder.embed_tokens.weight"
    rewrite(tmp_path, lambda tensors: tensors.update({name: tensors[name] + 1}))
    assert f"{name} is tied to another tensor, but holds other values" in refused(tmp_path)


@pytest.mark.parametrize("name", ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"])
def test_one_of_the_tied_names_is_enough(tmp_path: Path, name: str) -> None:
    save_model(build("encoder-decoder", "t5"), tmp_path)
    with torch.inference_mode():
        expected = forward(load(tmp_path))
    prefix = "model.encoder_decoder_model."

    def keep_one(tensors: dict[str, Any]) -> None:
        table = tensors.pop(f"{prefix}shared.weight")
        tensors.pop(f"{prefix}decoder.embed_tokens.weight")
        tensors[prefix + name] = table

    rewrite(tmp_path, keep_one)
    with torch.inference_mode():
        assert torch.equal(forward(load(tmp_path)), expected)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1, -1000])
def test_truncated_files(folder: Path, keep: int) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:keep])
    assert "not a safetensors file, or a damaged one" in refused(folder)


@pytest.mark.parametrize(
    "data",
    [
        b"not at all a file of that kind",
        b"\x80\x04\x95" + bytes(100),  # a pickle
        (2**60).to_bytes(8, "little") + b"{}",
        (99_000_000).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}",
        b'\x4d\0\0\0\0\0\0\0{"model.logit_scale":{"dtype":"F32","shape":[999999999999],"data_offsets":[0,4]}}'
        + bytes(4),
        b'\x45\0\0\0\0\0\0\0{"model.logit_scale":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}',
    ],
)
def test_garbage_for_weights(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    tracemalloc.start()
    refused(folder)
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose weights are in a file of another name."""
    path = tmp_path_factory.mktemp("sound")
    save_model(build(), path)
    return (path / "model.safetensors").rename(path / "sound.safetensors").parent


@given(position=st.integers(0, 4000), value=st.integers(0, 255))
def test_flipped_bytes_of_the_header(sound: Path, position: int, value: int) -> None:
    data = bytearray((sound / "sound.safetensors").read_bytes())
    data[position] = value
    (sound / "model.safetensors").write_bytes(data)
    with suppress(ModelUnusable):
        load(sound)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickle_is_never_read(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    assert "a pickle, which can run any code: it is never loaded" in refused(folder)


def test_a_pickle_beside_the_weights_is_left_alone(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    assert load(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no model.safetensors" in refused(folder)


@pytest.mark.parametrize("name", ["../b.safetensors", "sub/b.safetensors", ".", "", "b\0", "missing.safetensors"])
def test_shards_outside_the_folder(folder: Path, name: str) -> None:
    index = shard(folder)
    (folder / "sub").mkdir()
    for place in (folder.parent, folder / "sub"):
        (place / "b.safetensors").write_bytes((folder / "b.safetensors").read_bytes())
    index["weight_map"] = {key: name if file[0] == "b" else file for key, file in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "is not in the folder" in refused(folder)


@pytest.mark.parametrize("absolute", [True, False])
def test_shards_that_lead_out_of_the_folder(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, absolute: bool
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "b.safetensors"
    index = shard(folder)
    (folder / "b.safetensors").rename(outside)
    if absolute:
        index["weight_map"] = {
            key: str(outside) if file[0] == "b" else file for key, file in index["weight_map"].items()
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        (folder / "b.safetensors").symlink_to(outside)
    assert "is not in the folder" in refused(folder)


def test_weights_that_are_no_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    assert "is not in the folder" in refused(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "model.safetensors")
    assert "is not in the folder" in refused(folder)


@pytest.mark.parametrize(
    "index", [[], {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 1}}, {"weight_map": None}]
)
def test_an_index_of_another_form(folder: Path, index: Any) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder)


def test_an_index_that_promises_too_much(folder: Path) -> None:
    index = shard(folder)
    index["weight_map"]["model.more"] = "a.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "promises tensors that are not in it: model.more" in refused(folder)


def test_a_tensor_in_two_shards(folder: Path) -> None:
    shard(folder)
    both = load_file(folder / "a.safetensors") | load_file(folder / "b.safetensors")
    save_file(both, folder / "b.safetensors")
    assert "is in a.safetensors too" in refused(folder)


# --- configurations ---------------------------------------------------------------------------------------------------


def configured(**values: Any) -> CheckpointConfig:
    return parse_checkpoint_config(raw_config(**values), "config.json")


def encoder(backbone: str = "bert", **values: Any) -> dict[str, Any]:
    return backbone_config(backbone, VOCABULARY) | values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"projector_hidden_act": "no such thing"}, "projector_hidden_act 'no such thing'"),
        ({"encoder_config": encoder("no-such-model")}, "backbone no-such-model"),
        ({"encoder_config": encoder("llama")}, "LLM2Vec checkpoints are not supported"),
        ({"encoder_config": encoder("qwen2")}, "LLM2Vec checkpoints are not supported"),
        ({"encoder_config": encoder("gemma")}, "LLM2Vec checkpoints are not supported"),
        ({"encoder_config": encoder("mistral")}, "LLM2Vec checkpoints are not supported"),
        ({"encoder_config": {"model_type": "bart"}, "hidden_size": 8}, "bart is an encoder-decoder"),
        ({"encoder_config": encoder("vit")}, "vit does not read text"),
        ({"encoder_config": encoder(hidden_act="no such thing")}, "backbone bert cannot be built"),
        ({"encoder_config": encoder(num_attention_heads=0)}, "backbone bert cannot be built"),
        ({"encoder_config": encoder(num_attention_heads=5)}, "backbone bert cannot be built"),
        ({"encoder_config": encoder(num_hidden_layers="many")}, "backbone bert cannot be built"),
        ({"encoder_config": encoder(hidden_size=-1), "hidden_size": 32}, "backbone bert cannot be built"),
        ({"encoder_config": encoder(hidden_size=10**9), "hidden_size": 10**9}, "backbone bert cannot be built"),
        ({"architecture": "encoder-decoder"}, "bert is no encoder-decoder"),
        ({"architecture": "encoder-decoder-cls"}, "bert is no encoder-decoder"),
        ({"architecture": "bi-encoder", "encoder_config": encoder("t5")}, "a bi-encoder over t5"),
        ({"architecture": "decoder-kv"}, "bert of a decoder-kv is not supported"),
        ({"architecture": "decoder-kv", "backbone": "qwen3", "hidden_size": 32}, "hidden_size 32"),
        ({"architecture": "decoder-kv", "backbone": "qwen3", "sep_token_index": "no"}, "sep_token_index 'no'"),
        ({"architecture": "decoder-kv", "backbone": "qwen3", "sep_token_index": 99}, "sep_token_index 99"),
        ({"hidden_size": 20, "scorer_type": "mlp"}, "hidden_size 20"),
        ({"hidden_size": 20, "use_lstm": True}, "and the LSTM"),
        ({"hidden_size": 2**30}, "cannot be built"),
        ({"dropout": 5.0}, "dropout is 5.0; it must be from 0 to 1"),
    ],
    ids=str,
)
def test_what_cannot_be_built(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelUnusable, match=message):
        build_model(configured(**values))


def test_saved_files_are_as_readable_as_others(tmp_path: Path) -> None:
    save_model(build_model(configured()), tmp_path)
    (tmp_path / "other").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_code_of_a_checkpoint_is_never_run() -> None:
    with pytest.raises(ModelUnusable, match="never run"):
        configured(encoder_config=encoder(auto_map={"AutoModel": "evil--code.Model"}))


# What transformers 4 wrote into every configuration.
OLD_KEYS: dict[str, Any] = json.loads("""{
    "add_cross_attention": false, "bad_words_ids": null, "begin_suppress_tokens": null, "bos_token_id": null,
    "chunk_size_feed_forward": 0, "cross_attention_hidden_size": null, "decoder_start_token_id": null,
    "diversity_penalty": 0.0, "do_sample": false, "early_stopping": false, "encoder_no_repeat_ngram_size": 0,
    "eos_token_id": null, "exponential_decay_length_penalty": null, "finetuning_task": null,
    "forced_bos_token_id": null, "forced_eos_token_id": null, "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_decoder": false, "is_encoder_decoder": false, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "legacy": true,
    "length_penalty": 1.0, "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1,
    "num_beams": 1, "num_return_sequences": 1, "output_scores": false, "pooler_dropout": 0, "prefix": null,
    "problem_type": null, "pruned_heads": {}, "remove_invalid_values": false, "repetition_penalty": 1.0,
    "return_dict_in_generate": false, "sep_token_id": null, "suppress_tokens": null, "task_specific_params": null,
    "temperature": 1.0, "tf_legacy_loss": false, "tie_encoder_decoder": false, "tie_word_embeddings": true,
    "tokenizer_class": null, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "use_bfloat16": false
}""")


@pytest.mark.parametrize(
    "values",
    [
        {"_attn_implementation": "evil/kernel"},
        {"attn_implementation": "evil/kernel"},
        {"_name_or_path": "evil/model", "name_or_path": "evil/model"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"dtype": "bfloat16", "torch_dtype": "float16"},
        {"architectures": ["Evil"], "transformers_version": "99"},
        {"return_dict": False, "output_attentions": True, "output_hidden_states": True, "torchscript": True},
        OLD_KEYS,
    ],
    ids=str,
)
def test_how_a_model_is_run_is_not_the_checkpoint_s_business(values: dict[str, Any]) -> None:
    model: Any = build_model(configured(encoder_config=encoder(**values)))
    assert model.encoder_model.config._attn_implementation == "sdpa"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert forward(model.eval()).shape == (2, 2)


@pytest.mark.parametrize(("backbone", "expected"), [("bert", "sdpa"), ("modernbert", "sdpa"), ("deberta-v2", "eager")])
def test_attention_is_pytorch_s_where_it_can_be(backbone: str, expected: str) -> None:
    model: Any = build_model(configured(backbone=backbone))
    assert model.encoder_model.config._attn_implementation == expected


@pytest.mark.parametrize("name", ["num_hidden_layers", "max_position_embeddings", "scorer_encoder_num_layers"])
def test_absurd_sizes_are_refused_before_anything_is_built(tmp_path: Path, name: str) -> None:
    save_model(build("decoder-kv", "qwen3"), tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (raw if name.startswith("scorer") else raw["encoder_config"])[name] = 2**30
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert "1073741824" in refused(tmp_path)


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_prompts_without_labels_have_no_logits() -> None:
    ids, mask = prompt([2, SEPARATOR, 5, 3])
    for scorer in ("simple", "mlp", "weighted-dot", "hopfield"):
        assert build(scorer_type=scorer)(ids, mask).shape == (1, 0)


def test_a_row_without_labels_does_not_disturb_the_others() -> None:
    for scorer in ("simple", "mlp", "weighted-dot", "hopfield"):
        model = build(scorer_type=scorer)
        with torch.inference_mode():
            both = model(*prompt(ROWS[0], [2, SEPARATOR, 5, 3]))
            torch.testing.assert_close(both[:1], model(*prompt(ROWS[0])))
            assert torch.isfinite(both).all()


def test_a_row_without_a_text_token_is_all_text() -> None:
    model = build(extract_text_features=True, use_segment_embeddings=True)
    row = [2, LABEL, 5, 6, 3]
    with torch.inference_mode():
        assert torch.isfinite(model(*prompt(row))).all()
    assert model.segments(torch.tensor([row])).tolist() == [[1] * 5]  # type: ignore[operator]


def test_decoders_without_a_label_section_read_everything() -> None:
    model: Any = build("decoder-kv", "qwen3")
    ids, mask = prompt([5, LABEL, SEPARATOR], [SEPARATOR, 5, SEPARATOR, 6, LABEL, 7, LABEL, SEPARATOR], [5, SEPARATOR])
    assert model.label_section(ids, mask).tolist() == [0, 3, 0]
    with torch.inference_mode():
        assert model(ids, mask).shape == (3, 2)


def test_the_separator_of_a_decoder_is_the_text_token_unless_said_otherwise() -> None:
    raw = raw_config("decoder-kv", "qwen3")
    raw.pop("sep_token_index")
    model: Any = build_model(parse_checkpoint_config(raw, "config.json"))
    assert model.separator == SEPARATOR


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("architecture", "backbone"), ALL)
def test_models_load_onto_a_gpu(architecture: str, backbone: str, tmp_path: Path) -> None:
    save_model(build(architecture, backbone), tmp_path)
    model = load(tmp_path, device="cuda")
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"cuda"}
    save_model(model, tmp_path / "again")
    with torch.inference_mode():
        assert torch.equal(forward(load(tmp_path / "again")), forward(load(tmp_path)))
