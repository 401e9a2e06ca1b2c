"""Ours equals the reference: golden logits for every architecture, padding that changes nothing, files both can read.

Where ours differs from the reference on purpose, a test shows both values.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("gliclass")
import torch
from oracle import CASES, REQUESTS, Case, Oracle, Request, mend_ties, quiet, read_golden, write_checkpoint

from gliclass_cli.checkpoint import CheckpointConfig, read_checkpoint_config
from gliclass_cli.model import BiEncoder, BiEncoderFused, EncoderDecoder, GliclassModel, load_model, save_model

Row = dict[str, Any]  # the inputs of one request: tensors without a batch dimension and without padding
# Files have to survive a trip to the reference and back: one case for each architecture, backbone and kind of weight.
COMPANY = ("plain", "examples", "one", "seven", "unicode")
TRAVELLERS = [case for case in CASES if len(case.requests) > 2 or "lstm" in case.name]


@dataclass(frozen=True, eq=False)
class Subject:
    """A checkpoint of the reference's, loaded by both."""

    case: Case
    path: Path
    config: CheckpointConfig
    oracle: Oracle
    model: GliclassModel


def load(case: Case, path: Path) -> Subject:
    write_checkpoint(case, path)
    config = read_checkpoint_config(path / "config.json")
    return Subject(case, path, config, Oracle(path), load_model(path, config))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Several threads only get into each other's way in models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def golden() -> Mapping[str, Mapping[str, list[float]]]:
    return read_golden()


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """One case; pytest runs all tests of a case together, so that each checkpoint is written and loaded once."""
    return load(request.param, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[Case], Subject]]:
    def make_subject(case: Case) -> Subject:
        return load(case, tmp_path / case.name.replace("/", "-"))

    yield make_subject


every_case = pytest.mark.parametrize("subject", CASES, indirect=True, ids=lambda case: case.name)
travellers = pytest.mark.parametrize("subject", TRAVELLERS, indirect=True, ids=lambda case: case.name)


def our_row(subject: Subject, request: Request) -> Row:
    """Return a request's inputs as the reference's pipeline composes them."""
    inputs, labels = subject.oracle.inputs(request)
    row: Row = {name: inputs[name][0] for name in ("input_ids", "attention_mask")}
    if isinstance(subject.model, BiEncoder):
        lengths = inputs["class_attention_mask"][0].sum(dim=1).tolist()
        row["labels"] = [inputs["class_input_ids"][0, i, :length] for i, length in enumerate(lengths)]
        assert len(labels) == len(row["labels"])
    if isinstance(subject.model, EncoderDecoder):
        row |= {name: inputs[name][0] for name in ("class_input_ids", "class_attention_mask")}
    return row


def our_logits(subject: Subject, request: Request) -> list[float]:
    """Return our logits for a request, run by itself."""
    return run(subject.model, [our_row(subject, request)])[0]


def run(model: GliclassModel, rows: list[Row], pad: int = 0) -> list[list[float]]:
    """Run rows as one batch, padded with the token ``pad``; return the logits of each row's own labels."""

    def batch(name: str, value: int) -> torch.Tensor:
        return padded([row[name] for row in rows], value)

    with torch.inference_mode():
        inputs = {"input_ids": batch("input_ids", pad), "attention_mask": batch("attention_mask", 0)}
        if isinstance(model, EncoderDecoder):
            inputs["class_input_ids"] = batch("class_input_ids", pad)
            inputs["class_attention_mask"] = batch("class_attention_mask", 0)
        if isinstance(model, BiEncoder):
            labels, mask = encode_labels(model, rows, pad)
            if isinstance(model, BiEncoderFused):
                logits = model(**inputs, labels=labels, label_mask=mask)
            else:
                logits = model.score(model.encode_text(**inputs), labels, mask)
            counts = [len(row["labels"]) for row in rows]
        else:
            logits = model(**inputs)
            prompt = "class_input_ids" if isinstance(model, EncoderDecoder) else "input_ids"
            counts = [int((row[prompt] == model.config.class_token_index).sum()) for row in rows]
            assert logits.shape == (len(rows), max(counts))
    assert torch.isfinite(logits).all()
    return [row[:count].tolist() for row, count in zip(logits, counts, strict=True)]


def encode_labels(model: BiEncoder, rows: list[Row], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode the labels of all rows in one batch: vectors (B, C, D), and which are there (B, C)."""
    ids = [label for row in rows for label in row["labels"]]
    vectors = model.encode_labels(padded(ids, pad), padded([torch.ones_like(label) for label in ids], 0))
    split = vectors.split([len(row["labels"]) for row in rows])
    mask = padded([torch.ones(len(part), dtype=torch.long) for part in split], 0)
    return torch.nn.utils.rnn.pad_sequence(list(split), batch_first=True), mask


def padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def assert_close(found: list[float], expected: list[float], tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def difference(a: list[float], b: list[float]) -> float:
    return float(np.abs(np.array(a) - np.array(b)).max())


# --- the matrix -------------------------------------------------------------------------------------------------------


@every_case
def test_the_reference_still_gives_the_golden_logits(subject: Subject, golden: Mapping[str, Any]) -> None:
    assert golden[subject.case.name].keys() == set(subject.case.requests)
    for name, logits in golden[subject.case.name].items():
        assert_close(subject.oracle.logits(REQUESTS[name]), logits)


@every_case
def test_ours_gives_the_golden_logits(subject: Subject, golden: Mapping[str, Any]) -> None:
    for name, logits in golden[subject.case.name].items():
        assert_close(our_logits(subject, REQUESTS[name]), logits)


@every_case
def test_a_row_does_not_depend_on_padding_or_company(subject: Subject) -> None:
    rows = [our_row(subject, REQUESTS[name]) for name in COMPANY]
    # In float64 nothing hides behind errors of rounding.
    model = copy.deepcopy(subject.model).double()
    # The worst padding there can be: a control token, which only the mask tells from a real one.
    together = run(model, rows, pad=min(subject.config.class_token_index, label_vocabulary(subject) - 1))
    for row, logits in zip(rows, together, strict=True):
        assert_close(run(model, [row])[0], logits, 1e-9)


def label_vocabulary(subject: Subject) -> int:
    encoder = subject.config.label_encoder
    return int(encoder["vocab_size"]) if encoder is not None else subject.config.vocab_size


def test_the_golden_file_holds_the_matrix_and_nothing_else(golden: Mapping[str, Any]) -> None:
    assert golden.keys() == {case.name for case in CASES}
    assert len(golden) == len(CASES)
    logits = [logit for requests in golden.values() for row in requests.values() for logit in row]
    assert np.isfinite(logits).all()


def test_the_golden_logits_tell_labels_and_requests_apart(golden: Mapping[str, Any]) -> None:
    for case, requests in golden.items():
        spreads = [np.ptp(row) for row in requests.values() if len(row) > 1]
        assert min(spreads) > 2e-4, case
        assert max(spreads) > 0.01, case
        firsts = [row[0] for row in requests.values()]
        assert len({round(first, 4) for first in firsts}) == len(firsts), case


# --- files ------------------------------------------------------------------------------------------------------------


@travellers
def test_the_reference_reads_what_we_save(subject: Subject, tmp_path: Path) -> None:
    save_model(subject.model, tmp_path)
    theirs = Oracle(tmp_path, tokenizers=subject.path, mend=False)
    ours = load_model(tmp_path, read_checkpoint_config(tmp_path / "config.json"))
    for name in subject.case.requests:
        expected = our_logits(subject, REQUESTS[name])
        assert_close(theirs.logits(REQUESTS[name]), expected)
        assert_close(run(ours, [our_row(subject, REQUESTS[name])])[0], expected, 0)


@travellers
def test_we_read_what_the_reference_saves_again(subject: Subject, tmp_path: Path) -> None:
    with quiet():
        subject.oracle.model.save_pretrained(tmp_path)
    again = load_model(tmp_path, read_checkpoint_config(tmp_path / "config.json"))
    for name in subject.case.requests:
        row = our_row(subject, REQUESTS[name])
        assert_close(run(again, [row])[0], run(subject.model, [row])[0], 0)


# --- what ours does otherwise, on purpose -----------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["last", "avg", "max", "rms", "abs_avg"])
def test_text_features_are_pooled_over_the_text_alone(make: Callable[[Case], Subject], pooling: str) -> None:
    """The reference moves the text to the front of a row of the same length, and pools the zeros behind it too."""
    subject = make(Case("extract", pooling=pooling, extract=True))
    request = REQUESTS["plain"]
    theirs, ours = subject.oracle.logits(request), our_logits(subject, request)
    ids = subject.oracle.inputs(request)[0]["input_ids"][0].tolist()
    length = len(ids) - ids.index(subject.config.text_token_index)
    pooler = subject.oracle.model.model.pooler.forward
    subject.oracle.model.model.pooler.forward = lambda tokens: pooler(tokens[:, :length])
    assert_close(ours, subject.oracle.logits(request))
    assert difference(ours, theirs) > 0.01


def test_the_last_label_s_span_ends_before_the_text(make: Callable[[Case], Subject]) -> None:
    """The reference averages the last label together with the text, unless it extracts text features."""
    subject = make(Case("average", class_pooling="average"))
    request = REQUESTS["plain"]
    theirs, ours = subject.oracle.logits(request), our_logits(subject, request)
    assert_close(ours[:-1], theirs[:-1])
    assert abs(ours[-1] - theirs[-1]) > 0.01
    inner = subject.oracle.model.model
    average = inner._extract_class_features_averaged

    def bounded(*inputs: Any) -> Any:
        inner.config.extract_text_features = True
        found = average(*inputs)
        inner.config.extract_text_features = False
        return found

    inner._extract_class_features_averaged = bounded
    assert_close(ours, subject.oracle.logits(request))


def test_segments_tell_text_from_examples(make: Callable[[Case], Subject]) -> None:
    """The reference puts every token of a prompt with examples into segment 2."""
    subject = make(Case("segments", segments=True))
    request = REQUESTS["both"]
    theirs, ours = subject.oracle.logits(request), our_logits(subject, request)
    inner = subject.oracle.model.model

    def segments(input_ids: Any) -> Any:
        ids, config = input_ids[0].tolist(), subject.config
        text, example = ids.index(config.text_token_index), ids.index(config.example_token_index)
        return torch.tensor([[0] * text + [1] * (example - text) + [2] * (len(ids) - example)])

    assert set(
        inner._create_segment_ids(torch.tensor([our_row(subject, request)["input_ids"].tolist()]))[0].tolist()
    ) == {2}
    inner._create_segment_ids = segments
    assert_close(ours, subject.oracle.logits(request))
    assert difference(ours, theirs) > 0.01


@pytest.mark.parametrize("backbone", ["deberta-v2", "modernbert", "t5"])
def test_layers_are_squeezed_without_the_embeddings(make: Callable[[Case], Subject], backbone: str) -> None:
    """The reference weighs one layer more than it has weights for, and fails."""
    subject = make(Case(f"squeeze-{backbone}", backbone=backbone, squeeze=True, pooling="avg"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        subject.oracle.logits(REQUESTS["plain"])
    attention = subject.oracle.model.model.layer_wise_attention.forward
    subject.oracle.model.model.layer_wise_attention.forward = lambda layers: attention(list(layers)[1:])
    for name in COMPANY:
        assert_close(our_logits(subject, REQUESTS[name]), subject.oracle.logits(REQUESTS[name]))
    rows = [our_row(subject, REQUESTS[name]) for name in COMPANY]
    model = copy.deepcopy(subject.model).double()
    for row, logits in zip(rows, run(model, rows), strict=True):
        assert_close(run(model, [row])[0], logits, 1e-9)


def test_an_inner_layer_is_asked_for(make: Callable[[Case], Subject]) -> None:
    """The reference reads the states of an inner layer that nobody asked the encoder for; see the cases of the matrix."""
    subject = make(Case("layer", layer_id=1))
    inputs, labels = subject.oracle.inputs(REQUESTS["plain"])
    with pytest.raises(TypeError, match="not subscriptable"):
        subject.oracle.model(**inputs, max_num_classes=len(labels))
    assert len(our_logits(subject, REQUESTS["plain"])) == len(labels)


@pytest.mark.parametrize("alloc", ["fixed", 7])
def test_there_are_as_many_slots_as_labels(make: Callable[[Case], Subject], alloc: Any) -> None:
    """The reference may be told to compute more slots; their logits are of no label, and hopfield's softmax sees them."""
    slots = alloc if isinstance(alloc, int) else 25
    for scorer in ("simple", "hopfield"):
        subject = make(Case(f"alloc-{scorer}-{alloc}", scorer=scorer, options={"max_labels_alloc": alloc}))
        row = our_row(subject, REQUESTS["plain"])
        ours = run(subject.model, [row])[0]
        with torch.no_grad():
            inputs = {name: value[None] for name, value in row.items()}
            theirs = subject.oracle.model(**inputs, max_num_classes=slots).logits[0].tolist()
        assert (len(ours), len(theirs)) == (3, slots)
        if scorer == "simple":
            assert_close(ours, theirs[:3])
        else:
            assert difference(ours, theirs[:3]) > 1e-4
        assert_close(ours, subject.oracle.logits(REQUESTS["plain"]))


def test_hopfield_in_an_encoder_decoder_sees_the_labels_there_are(make: Callable[[Case], Subject]) -> None:
    """The reference always computes ``max_num_classes`` slots there, 25 if nothing is said."""
    subject = make(Case("slots", architecture="encoder-decoder", backbone="t5", scorer="hopfield"))
    inputs, labels = subject.oracle.inputs(REQUESTS["plain"])
    with torch.no_grad():
        theirs = subject.oracle.model(**inputs).logits[0].tolist()
    ours = our_logits(subject, REQUESTS["plain"])
    assert len(theirs) == 25
    assert difference(ours, theirs[: len(labels)]) > 1e-4
    assert_close(ours, subject.oracle.logits(REQUESTS["plain"]))


@pytest.mark.parametrize("scorer", ["mlp", "hopfield"])
def test_the_hidden_size_of_mlp_scorers_is_fixed(make: Callable[[Case], Subject], scorer: str) -> None:
    """As in the reference, which reads ``scorer_mlp_hidden_size`` for cross-attention and decoder-kv only."""
    subject = make(Case(f"fixed-{scorer}", scorer=scorer, options={"scorer_mlp_hidden_size": 48}))
    assert subject.model.scorer.mlp[0].weight.shape[0] == 256  # type: ignore[union-attr, index]
    assert_close(our_logits(subject, REQUESTS["plain"]), subject.oracle.logits(REQUESTS["plain"]))


@pytest.mark.parametrize("pooling", ["avg", "last", "rms", "abs_avg"])
def test_padding_does_not_change_scores(make: Callable[[Case], Subject], pooling: str) -> None:
    """The reference's poolers see no mask."""
    subject = make(Case(f"padding-{pooling}", pooling=pooling))
    row = our_row(subject, REQUESTS["plain"])
    alone = run(subject.model, [row])[0]
    ids = torch.nn.functional.pad(row["input_ids"][None], (0, 20))
    mask = torch.nn.functional.pad(row["attention_mask"][None], (0, 20))
    with torch.no_grad():
        theirs = subject.oracle.model(ids, attention_mask=mask, max_num_classes=3).logits[0].tolist()
        ours = subject.model(ids, mask)[0].tolist()
    assert_close(ours, alone)
    assert difference(theirs, alone) > 0.01


def test_a_decoder_s_embeddings_stay_tied(make: Callable[[Case], Subject], tmp_path: Path) -> None:
    """Under transformers 5 the reference draws a decoder's embeddings at random when it loads what it has saved."""
    subject = make(Case("tied", architecture="encoder-decoder", backbone="t5"))
    theirs = Oracle(subject.path, mend=False)
    backbone = theirs.model.model.encoder_decoder_model
    assert not torch.equal(backbone.decoder.embed_tokens.weight, backbone.shared.weight)
    ours = our_logits(subject, REQUESTS["plain"])
    assert difference(ours, theirs.logits(REQUESTS["plain"])) > 0.01
    mend_ties(theirs.model)
    assert_close(ours, theirs.logits(REQUESTS["plain"]))


# --- sizes and types --------------------------------------------------------------------------------------------------


def test_the_vocabulary_with_added_tokens_wins(make: Callable[[Case], Subject], tmp_path: Path) -> None:
    """A backbone's own configuration may still have the size from before the three tokens were added."""
    subject = make(Case("vocabulary"))
    encoder = {**subject.config.encoder, "vocab_size": subject.config.vocab_size - 3}
    older = replace(subject.config, encoder=encoder)
    rows = [our_row(subject, REQUESTS["plain"])]
    assert_close(run(load_model(subject.path, older), rows)[0], run(subject.model, rows)[0], 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_files_of_half_precision_are_read_into_single(
    make: Callable[[Case], Subject], tmp_path: Path, dtype: torch.dtype
) -> None:
    subject = make(Case("half", normalize=True))
    half = subject.oracle.model.to(dtype)
    half.save_pretrained(tmp_path)
    config = read_checkpoint_config(tmp_path / "config.json")
    model = load_model(tmp_path, config)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    row = our_row(subject, REQUESTS["plain"])
    assert_close(run(model, [row])[0], our_logits(subject, REQUESTS["plain"]), 0.05)
    save_model(model, tmp_path / "again")  # in single precision, whatever the configuration said
    assert_close(Oracle(tmp_path / "again", tokenizers=subject.path).logits(REQUESTS["plain"]), run(model, [row])[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", TRAVELLERS, ids=lambda case: case.name)
def test_a_gpu_gives_the_golden_logits(make: Callable[[Case], Subject], golden: Mapping[str, Any], case: Case) -> None:
    subject = make(case)
    model = load_model(subject.path, subject.config, device="cuda")
    for name in case.requests:
        row = our_row(subject, REQUESTS[name])
        on_gpu = {
            key: [part.cuda() for part in value] if key == "labels" else value.cuda() for key, value in row.items()
        }
        assert_close(run(model, [on_gpu])[0], golden[case.name][name], 1e-3)
