"""Make an ONNX model of a checkpoint: build its graphs, compare them with PyTorch on real text, only then keep it."""

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch

from gliclass_cli.backends import Backend
from gliclass_cli.backends.pytorch import TorchBackend, dot_product
from gliclass_cli.composer import Composer
from gliclass_cli.decoding import Decoder, Floats
from gliclass_cli.errors import ModelUnusable, OutputFailed, UsageProblem
from gliclass_cli.export.bert_graph import BertConfig, Pooling, build_bert_graph, known_pooling, measure_activations
from gliclass_cli.export.graphs import build_graphs
from gliclass_cli.export.label_graph import build_label_graph
from gliclass_cli.export.saving import save_graphs
from gliclass_cli.labels import LabelSet, make_labels
from gliclass_cli.loading import open_backend
from gliclass_cli.model_folder import FORMAT_VERSION, ModelFolder, read_model_folder
from gliclass_cli.scoring import Scorer

Precision = Literal["fp32", "int8"]

# The largest difference of a logit that float32 sums in another order may make, to a logit of size 1.
_FP32_TOLERANCE = 1e-3
# Share of the texts whose best label int8 must keep, and by how much a score may change it: a tie is no decision.
_INT8_AGREEMENT = 0.9
_TIE = 0.01
# Below these, with float32 as what is right, int8 leaves the layers in float32 that harm most, up to half of them.
_GOOD_AGREEMENT = 0.97
_GOOD_F1 = 0.97
_RANKED_TEXTS = 24  # texts on which layers are compared
# Other processors round float32 differently in the last bit, and int8 makes more of it.
_CHECK_TOLERANCE = {"fp32": 0.01, "int8": 0.3}
_CHECK_TEXT = "I was charged twice for my order"
_CHECK_LABELS = ("billing", "shipping", "praise")
_DECODER = Decoder()


@dataclass(frozen=True, slots=True)
class Sample:
    """A text and the labels that it is compared on."""

    text: str
    labels: LabelSet


@dataclass(frozen=True, slots=True)
class ParityReport:
    """How far an exported model is from its checkpoint, on ``texts`` texts.

    ``logit_difference``: the largest one between PyTorch and the graphs in float32. Of int8 against float32:
    ``agreement``: share of the texts with the same best label; ``multi_agreement``: share of the labels on the same
    side of 0.5; ``multi_f1``: micro-F1 of int8's labels at 0.5, float32's being right; ``score_difference``: mean
    change of a label's score; ``exact_layers``: those that stayed in float32. ``megabytes``: size of the folder.
    """

    texts: int
    logits: int
    precision: str
    logit_difference: float
    largest_logit: float
    agreement: float | None
    multi_agreement: float | None
    multi_f1: float | None
    score_difference: float | None
    megabytes: float
    exact_layers: tuple[int, ...] = ()


def builtin_sample() -> list[Sample]:
    """Return texts of different kinds and lengths that are part of the package."""
    return read_sample(resources.files("gliclass_cli.export").joinpath("sample.jsonl").read_text("utf-8"))


def read_sample(lines: str) -> list[Sample]:
    """Read samples from JSON Lines with ``text`` and ``labels``."""
    rows = [json.loads(line) for line in lines.splitlines() if line.strip()]
    return [Sample(row["text"], make_labels(row["labels"])) for row in rows]


def export_model(
    folder: ModelFolder, output: Path, samples: Sequence[Sample], *, precision: Precision, adapter: str | None = None
) -> ParityReport:
    """Export a checkpoint to the folder ``output``, which appears when it is whole and agrees with the checkpoint.

    ``adapter``: the folder of low-rank adapters that are merged into its weights.

    Raises:
        UsageProblem: ``output`` is there already.
        ModelUnusable: the checkpoint cannot be exported, or its graphs disagree with PyTorch.
        OutputFailed: the folder cannot be written.
    """
    if output.exists():
        raise UsageProblem(f"{output}: is there already; name a new folder, or remove it first")
    if not folder.has_weights and not folder.config.shared_encoder:
        raise folder.unusable("holds no model.safetensors: only checkpoints are exported")
    folder = folder.as_checkpoint()
    threads = max(1, torch.get_num_threads())
    backend = TorchBackend(folder, device="cpu", precision="fp32", threads=threads, adapter=adapter)
    expected = _all_logits(folder, backend, samples)
    part = output.with_name(f"{output.name}.part")
    if part.exists() or part.is_symlink():
        raise UsageProblem(f"{part}: is there already, perhaps from an export that was killed; remove it first")
    try:
        exported = _write(folder, backend.model, part, "fp32", samples)
        found = _all_logits(exported, open_backend(exported), samples)
        report = _compare_fp32(expected, found)
        if precision == "int8":
            exported, compared = _write_int8(folder, backend.model, part, samples, found)
            report |= compared
        _complete(exported, report)
        result = ParityReport(len(samples), sum(map(len, expected)), precision, **report, megabytes=exported.size / 1e6)
        part.rename(output)
    except OSError as error:
        raise OutputFailed(f"{error.filename or part}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return result


def _all_logits(folder: ModelFolder, backend: Backend, samples: Sequence[Sample]) -> list[Floats]:
    """Return the logits of each sample, computed by itself."""
    composer, scorer = Composer(folder), Scorer(folder, backend)
    logits = []
    for sample in samples:
        prepared = scorer.prepare(composer.labels(sample.labels))
        [composed] = composer.compose([sample.text], prepared)
        logits.append(np.concatenate([scorer.score([prompt])[0] for prompt in composed.prompts]))
    return logits


def _compare_fp32(expected: Sequence[Floats], found: Sequence[Floats]) -> dict[str, Any]:
    """Return the largest difference of a logit. Raises ModelUnusable where it is no rounding."""
    largest = max(1.0, *(float(np.abs(row).max()) for row in expected))
    difference = max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))
    if not difference <= _FP32_TOLERANCE * largest:
        raise ModelUnusable(
            f"the exported graph disagrees with PyTorch: a logit differs by {difference:.3g} (the largest is "
            f"{largest:.3g}); nothing was written"
        )
    none = dict.fromkeys(("agreement", "multi_agreement", "multi_f1", "score_difference"))
    return {"logit_difference": difference, "largest_logit": largest, **none}


def _write_int8(
    folder: ModelFolder, model: Any, part: Path, samples: Sequence[Sample], expected: Sequence[Floats]
) -> tuple[ModelFolder, dict[str, Any]]:
    """Write the int8 model in the place of the float32 one, with as few layers in float32 as good answers need.

    Raises:
        ModelUnusable: its answers are not good, however many.
    """

    def written(layers: Collection[int]) -> ModelFolder:
        shutil.rmtree(part)
        return _write(folder, model, part, "int8", samples, layers)

    def compared(exported: ModelFolder) -> dict[str, Any]:
        return _compare_int8(expected, _all_logits(exported, open_backend(exported), samples))

    exported = written(())
    report, ranked = compared(exported), None
    layers: tuple[int, ...] = ()
    while not _is_good(report):
        if ranked is None:
            ranked = _most_harmed(samples, expected, written, _layer_count(folder, model))
        more = max(1, 2 * len(layers))
        if more > len(ranked) // 2:
            break
        layers = tuple(sorted(ranked[:more]))
        exported = written(layers)
        report = compared(exported)
    kept = report.pop("kept")
    if kept < _INT8_AGREEMENT:
        raise ModelUnusable(
            f"int8 changes the best label of {1 - kept:.0%} of {len(samples)} texts by more than {_TIE} of its score; "
            f"at most {1 - _INT8_AGREEMENT:.0%} may: nothing was written; export this model without --int8"
        )
    return exported, {**report, "exact_layers": layers}


def _is_good(report: Mapping[str, Any]) -> bool:
    return bool(report["kept"] >= _GOOD_AGREEMENT and report["multi_f1"] >= _GOOD_F1)


def _most_harmed(
    samples: Sequence[Sample],
    expected: Sequence[Floats],
    written: Callable[[Collection[int]], ModelFolder],
    layers: int,
) -> list[int]:
    """Return the layers, those first whose float32 brings the logits of some texts nearest to what they should be."""
    chosen = slice(None, None, max(1, len(samples) // _RANKED_TEXTS))
    errors = []
    for layer in range(layers):
        exported = written((layer,))
        found = _all_logits(exported, open_backend(exported), samples[chosen])
        pairs = zip(expected[chosen], found, strict=True)
        errors.append(float(np.mean(np.concatenate([np.abs(a - b) for a, b in pairs]))))
    return sorted(range(layers), key=errors.__getitem__)


def _layer_count(folder: ModelFolder, model: Any) -> int:
    """Return the number of layers that can stay in float32; 0 where the graph has no such choice."""
    if _bert_pooling(folder) is not None:
        return 0
    encoder = _configuration(model, *_ENCODERS)
    return int(encoder.get("num_hidden_layers") or encoder.get("num_layers") or 0)


def _compare_int8(exact: Sequence[Floats], found: Sequence[Floats]) -> dict[str, Any]:
    """Return how often int8 decides as float32 does; ``kept``: how often, where a tie is no decision."""
    pairs = list(zip(exact, found, strict=True))
    agreement = float(np.mean([a.argmax() == b.argmax() for a, b in pairs]))
    right, given = (np.concatenate([pair[side] >= 0 for pair in pairs]) for side in (0, 1))
    marked = int(right.sum() + given.sum())
    scored = [(_DECODER.scores(a), _DECODER.scores(b)) for a, b in pairs]
    scores = float(np.mean(np.concatenate([np.abs(a - b) for a, b in scored])))
    return {
        "agreement": agreement,
        "multi_agreement": float(np.mean(right == given)),
        "multi_f1": 2 * int((right & given).sum()) / marked if marked else 1.0,
        "score_difference": scores,
        "kept": float(np.mean([a.max() - a[b.argmax()] <= _TIE for a, b in scored])),
    }


def _write(
    folder: ModelFolder,
    model: Any,
    part: Path,
    precision: Precision,
    samples: Sequence[Sample] = (),
    exact_layers: Collection[int] = (),
) -> ModelFolder:
    """Write graphs, tokenizers and configuration, and return the new folder."""
    part.mkdir(parents=True)
    graphs = _build(folder, model, precision, samples, exact_layers)
    if folder.config.shared_encoder and precision == "int8" and _bert_pooling(folder):
        graphs = {**graphs, "label": build_label_graph(graphs["text"])}
    sections = save_graphs(graphs, part)
    if folder.config.shared_encoder:
        sections.setdefault("label_graph", sections["text_graph"])
    shutil.copyfile(folder.tokenizer, part / "tokenizer.json")
    apart = folder.label_tokenizer != folder.tokenizer
    if apart:
        shutil.copyfile(folder.label_tokenizer, part / "label_tokenizer.json")
    product = None
    if folder.config.architecture == "bi-encoder" and "scorer" not in graphs:
        product = dict(zip(("scale", "bias"), dot_product(model), strict=True))
    section: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": folder.name,
        "version": folder.version,
        "language": list(folder.language),
        "license": folder.license,
        "precision": precision,
        **sections,
        "tokenizer": "tokenizer.json",
        **({"label_tokenizer": "label_tokenizer.json"} if apart else {}),
        "pad_token_id": folder.pad,
        **folder.usage.to_dict(),
        **({"scorer": product} if product else {}),
        "self_check": {"text": _CHECK_TEXT, "labels": list(_CHECK_LABELS), "logits": [0.0] * 3, "tolerance": 1.0},
    }
    raw = {name: value for name, value in folder.config.raw.items() if name != "inference"}
    _write_config(part, {**raw, "onnx": section})
    return read_model_folder(part)


def _bert_pooling(folder: ModelFolder) -> Pooling | None:
    """Return the pooling of a shared encoder that gets the graph that the bundled model has, or None."""
    config = folder.config
    known = config.shared_encoder and config.normalize_features and config.backbone == "bert"
    return known_pooling(config.pooling) if known else None


def _build(
    folder: ModelFolder, model: Any, precision: Precision, samples: Sequence[Sample], exact_layers: Collection[int]
) -> Mapping[str, onnx.ModelProto]:
    """Build the graphs by role. A shared encoder that is a BERT gets the graph that the bundled model has."""
    config = folder.config
    weights = {name: value.float().numpy() for name, value in model.state_dict().items()}
    encoder = _configuration(model, *_ENCODERS)
    if pooling := _bert_pooling(folder):
        prefix = "encoder_model."
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        sizes = BertConfig.from_dict(encoder)
        found = measure_activations(own, sizes, _batches(folder, samples)) if precision == "int8" else None
        graph = build_bert_graph(own, sizes, pooling=pooling, precision=precision, activations=found)
        return {"text": graph}
    label_encoder = _configuration(model, "label_encoder")
    return build_graphs(config, weights, encoder, label_encoder, precision=precision, exact_layers=exact_layers).graphs


def _batches(folder: ModelFolder, samples: Sequence[Sample]) -> Iterator[tuple[Any, Any]]:
    """Yield ids and masks of the texts and labels that activations are measured on."""
    composer = Composer(folder)
    for sample in samples:
        prepared = composer.labels(sample.labels)
        [composed] = composer.compose([sample.text], prepared)
        labels = (ids for worded in prepared.groups[0].inputs for ids in worded)
        for ids in (*(prompt.ids for prompt in composed.prompts), *labels):
            yield ids[None], np.ones_like(ids)[None]


_ENCODERS = ("encoder_model", "encoder_decoder_model", "decoder_model")


def _configuration(model: Any, *names: str) -> Mapping[str, Any]:
    """Return the complete configuration of a backbone, defaults included."""
    for name in names:
        if hasattr(model, name):
            values: Mapping[str, Any] = getattr(model, name).config.to_dict()
            return values
    return {}


def _complete(exported: ModelFolder, report: Mapping[str, Any]) -> None:
    """Add to the configuration what the finished model answers, and how it compares."""
    sample = Sample(_CHECK_TEXT, make_labels(_CHECK_LABELS))
    [logits] = _all_logits(exported, open_backend(exported), [sample])
    config = dict(exported.config.raw)
    onnx_section = dict(config["onnx"])
    onnx_section["self_check"] |= {
        "logits": [round(float(logit), 4) for logit in logits],
        "tolerance": _CHECK_TOLERANCE[onnx_section["precision"]] * max(1.0, float(np.abs(logits).max())),
    }
    onnx_section["parity"] = dict(report)
    _write_config(exported.path, {**config, "onnx": onnx_section})


def _write_config(part: Path, config: Mapping[str, Any]) -> None:
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def report_lines(report: ParityReport) -> list[str]:
    """Return a report for people."""
    lines = [
        f"compared on {report.texts} texts, {report.logits} logits",
        f"fp32 against PyTorch: largest difference of a logit {report.logit_difference:.2g} "
        f"(largest logit {report.largest_logit:.3g})",
    ]
    if report.agreement is not None:
        lines.append(
            f"int8 against fp32: same best label {report.agreement:.1%}, same side of 0.5 "
            f"{report.multi_agreement:.1%} (F1 {report.multi_f1:.3f}), mean change of a score "
            f"{report.score_difference:.4f}"
        )
    if report.exact_layers:
        lines.append(
            f"layers that stay in fp32, because int8 harms them most: {', '.join(map(str, report.exact_layers))}"
        )
    return [*lines, f"{report.megabytes:.1f} MB"]


def as_dict(report: ParityReport) -> dict[str, Any]:
    """Return a report as a JSON value."""
    return asdict(report)
