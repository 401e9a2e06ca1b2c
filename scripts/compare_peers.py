"""Rows per second on the same weights, texts and labels: this tool against its peers, side by side in one run.

    python scripts/compare_peers.py --texts examples/tickets.jsonl --labels examples/tickets.labels.txt
    python scripts/compare_peers.py --texts FILE --labels FILE --shape bundled

Peers: the pipeline of the reference package, at the best of several batch sizes; fast-gliner, if it can be imported,
with a graph that torch exported (one text a call is all it takes); an NLI cross-encoder of the same backbone in the
zero-shot pipeline of transformers (one pass a label); for `bundled` the reference's bi-encoder with the bundled
weights in both encoders (its projectors, which the bundled model lacks, are random), and, as "embedding cosine", the
same encoder in PyTorch with labels encoded once and sorted batches, as sentence embedders do it.

The other weights are random ones of a real model's shape (speed does not depend on values), with the tokenizer of the
bundled model. Everyone computes the same texts, in turn, several times; medians are told. Ratios are of processor time,
because fast-gliner takes two cores where the others are told to take one; the last column is by how much scores differ
from those of the reference, where both compute the same function. `--texts` may hold many rows: the first `--rows` are
taken, the cross-encoder reads `--cross-rows` of them, short and long ones.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from gliclass_cli.backends.pytorch import open_model
from gliclass_cli.checkpoint import parse_checkpoint_config
from gliclass_cli.classifier import Classifier, Query, StreamOptions
from gliclass_cli.export.convert import builtin_sample, export_model
from gliclass_cli.files import open_source
from gliclass_cli.labels import LabelSet, make_labels
from gliclass_cli.loading import open_folder
from gliclass_cli.model import build_model, save_model
from gliclass_cli.model_folder import find_model, read_model_folder
from gliclass_cli.predictions import Choice
from gliclass_cli.runtime import Runtime

TOKENS: Final = ("<<LABEL>>", "<<SEP>>", "<<EXAMPLE>>")
_DEBERTA: Final[dict[str, Any]] = {
    "model_type": "deberta-v2",
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
    "max_relative_positions": -1,
}
_ETTIN: Final[dict[str, Any]] = {
    "model_type": "modernbert",
    "hidden_size": 384,
    "num_hidden_layers": 10,
    "num_attention_heads": 6,
    "intermediate_size": 576,
    "pad_token_id": 0,
    "cls_token_id": 101,
    "sep_token_id": 102,
}
_MINILM: Final[dict[str, Any]] = {
    "model_type": "bert",
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
SHAPES: Final = {
    "small": {**_DEBERTA, "num_hidden_layers": 6},
    "base": {**_DEBERTA, "num_hidden_layers": 12},
    "ettin": _ETTIN,
    "minilm": _MINILM,
}
_BATCHES: Final = (1, 8, 32)


@dataclass(frozen=True)
class Peer:
    """Who takes part: what it does with all texts, how many it reads, and, where it is told, scores (N, C)."""

    run: Callable[[], Any]
    rows: int
    scores: Callable[[Any], Any] | None = None


def main() -> None:
    """Measure, and print a table."""
    options = _parse_options()
    with open_source(str(options.texts)) as source:
        texts = [json.loads(line)["text"] for line in islice(source.stream, options.rows)]
    labels = make_labels(options.labels.read_text("utf-8").splitlines()[: options.most_labels])
    if options.device == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        peers = dict(_peers(Path(folder), options, texts, labels))
        seconds: dict[str, list[float]] = {name: [] for name in peers}
        cpu: dict[str, list[float]] = {name: [] for name in peers}
        outputs: dict[str, Any] = {}
        for _ in range(options.repeats):
            for name, peer in peers.items():
                began, began_cpu = time.perf_counter(), time.process_time()
                outputs[name] = peer.run()
                seconds[name].append(time.perf_counter() - began)
                cpu[name].append(time.process_time() - began_cpu)
    print(f"{options.shape}, {len(texts)} texts, {len(labels)} labels, {options.device}")
    rates = {name: peer.rows / statistics.median(cpu[name]) for name, peer in peers.items()}
    best = max(rate for name, rate in rates.items() if name.startswith("reference"))
    scored = (peer.scores(outputs[name]) for name, peer in peers.items() if peer.scores is not None)
    expected = next(scored, None)  # the reference's
    print(f"{'':26} {'rows/s':>8} {'rows/CPU-s':>10} {'x reference':>11}  largest difference of a score")
    for name, rate in rates.items():
        peer = peers[name]
        per_second = peer.rows / statistics.median(seconds[name])
        off = "" if peer.scores is None else f"{np.abs(peer.scores(outputs[name]) - expected).max():.1g}"
        print(f"{name:26} {per_second:8.1f} {rate:10.1f} {rate / best:11.2f}  {off}")


def _peers(folder: Path, options: argparse.Namespace, texts: list[str], labels: LabelSet) -> Iterator[tuple[str, Peer]]:
    """Yield the names of who takes part, and what each does."""
    checkpoint, names = folder / "checkpoint", list(labels.names)
    bundled = options.shape == "bundled"
    if bundled:
        write_bundled(checkpoint)
    else:
        write_checkpoint(SHAPES[options.shape], checkpoint)
    reference = _reference(checkpoint, options.device)
    for size in _BATCHES:
        yield (
            f"reference, batch {size}",
            Peer(
                lambda size=size: reference(texts, names, batch_size=size, threshold=0.0),
                len(texts),
                (lambda found: _by_label(found, names)) if size == 1 and not bundled else None,
            ),
        )
    if bundled:
        yield "embedding cosine, PyTorch", Peer(_cosine(texts, names), len(texts))
        for name in ("onnx", "torch"):
            classifier = Classifier.load("default", runtime=Runtime(backend=name, device=options.device, threads=1))
            yield (
                f"this, {'ONNX int8' if name == 'onnx' else 'PyTorch'}",
                Peer(_ours(classifier, texts, labels), len(texts)),
            )
        return
    if options.device == "cpu":
        if (fast := _fast_gliner(checkpoint, reference)) is not None:
            yield "fast-gliner, fp32", Peer(lambda: [fast(text, names) for text in texts], len(texts))
        cross = _cross_encoder(SHAPES[options.shape], checkpoint)
        step = max(1, len(texts) // options.cross_rows)
        few = sorted(texts, key=len)[step // 2 :: step]  # as long and as short as all of them
        yield "cross-encoder, batch 8", Peer(lambda: cross(few, names, batch_size=8), len(few))
    folders = {"this, PyTorch": checkpoint}
    if options.device == "cpu":
        for precision in ("fp32", "int8"):
            folders[f"this, ONNX {precision}"] = folder / precision
            source = read_model_folder(checkpoint)
            export_model(source, folder / precision, builtin_sample()[:4], precision=precision)
    for name, path in folders.items():
        classifier = Classifier.load(path, runtime=Runtime(device=options.device, threads=1))
        yield name, Peer(_ours(classifier, texts, labels), len(texts), _scores)


# --- the models --------------------------------------------------------------------------------------------------


def write_checkpoint(encoder: dict[str, Any], folder: Path) -> None:
    """Write a uni-encoder with random weights, and the bundled model's tokenizer with three more tokens."""
    tokenizer = _tokenizer()
    tokenizer.add_tokens(list(TOKENS), special_tokens=True)
    numbers = [tokenizer.convert_tokens_to_ids(token) for token in TOKENS]
    config = {
        "model_type": "GLiClass",
        "architecture_type": "uni-encoder",
        "encoder_config": {"vocab_size": len(tokenizer), **encoder},
        "encoder_model_name": "random",
        "vocab_size": len(tokenizer),
        "hidden_size": encoder["hidden_size"],
        "class_token_index": numbers[0],
        "text_token_index": numbers[1],
        "example_token_index": numbers[2],
        "prompt_first": True,
        "scorer_type": "mlp",
        "problem_type": "multi_label_classification",
    }
    torch.manual_seed(0)
    save_model(build_model(parse_checkpoint_config(config, "config.json")), folder)
    tokenizer.save_pretrained(folder)


def write_bundled(folder: Path) -> None:
    """Write a bi-encoder of the reference whose two encoders have the bundled model's weights."""
    from gliclass import GLiClassModel, GLiClassModelConfig

    model = open_model(open_folder("default", Runtime(backend="torch")).as_checkpoint(), "cpu")
    encoder = model.config.raw["encoder_config"]
    with _quiet():
        torch.manual_seed(0)
        reference = GLiClassModel(
            GLiClassModelConfig(
                encoder_config=dict(encoder), label_model_config=dict(encoder), encoder_model_name="bundled",
                label_model_name="bundled", architecture_type="bi-encoder", pooling_strategy="first",
                scorer_type="simple", normalize_features=True, vocab_size=encoder["vocab_size"],
                hidden_size=encoder["hidden_size"], problem_type="single_label_classification",
            ),
            from_pretrained=False,
        )  # fmt: skip
        weights = {
            k.removeprefix("encoder_model."): v for k, v in model.state_dict().items() if k.startswith("encoder_model.")
        }
        for name, value in reference.state_dict().items():
            part = name.partition("encoder_model.")[2] or name.partition("label_encoder.")[2]
            if part in weights:
                value.copy_(weights[part])
        reference.config.label_model_name = str(folder / "label_tokenizer")  # its pipeline looks for a tokenizer there
        reference.save_pretrained(folder)
        _tokenizer().save_pretrained(folder)
        _tokenizer().save_pretrained(folder / "label_tokenizer")


def _tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_file=str(Path(str(find_model("default"))) / "tokenizer.json"), **names)


# --- the peers -----------------------------------------------------------------------------------------------------


def _reference(checkpoint: Path, device: str) -> Any:
    with _quiet():
        from gliclass import GLiClassModel, ZeroShotClassificationPipeline
        from transformers import AutoTokenizer

        model = GLiClassModel.from_pretrained(checkpoint)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        pipeline = ZeroShotClassificationPipeline(
            model, tokenizer, classification_type="multi-label", device=device, progress_bar=False
        )
        if model.config.encoder_config.model_type == "bert":  # it has no more positions
            getattr(pipeline, "pipe", pipeline).max_length = 512
        return pipeline


def _fast_gliner(checkpoint: Path, reference: Any) -> Callable[[str, list[str]], Any] | None:
    """Return fast-gliner's ``classify`` over the reference's model as torch exports it; None where it is not there."""
    try:
        from fast_gliner import FastGLiClass
    except ImportError:
        return None

    class Exported(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    folder = checkpoint.parent / "fast"
    (folder / "onnx").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())
    inner = reference.pipe.model
    ids = torch.tensor(
        [[101, *[inner.config.class_token_index, 3000] * 3, inner.config.text_token_index, *range(2000, 2020), 102]]
    )
    axes = {0: "batch", 1: "length"}
    with _quiet():
        torch.onnx.export(
            Exported(inner).eval(), (ids, torch.ones_like(ids)), str(folder / "onnx" / "model.onnx"),
            input_names=["input_ids", "attention_mask"], output_names=["logits"], opset_version=17, dynamo=False,
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "logits": {0: "batch", 1: "classes"}},
        )  # fmt: skip
    classify: Callable[[str, list[str]], Any] = FastGLiClass(str(folder), "onnx/model.onnx", "cpu").classify
    return classify


def _cross_encoder(encoder: dict[str, Any], checkpoint: Path) -> Any:
    """Return the zero-shot pipeline of transformers over an NLI model of this shape."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, ZeroShotClassificationPipeline

    tokenizer = _tokenizer()
    numbers = {"entailment": 0, "neutral": 1, "contradiction": 2}
    sizes = {key: value for key, value in encoder.items() if key != "model_type"}
    sizes |= {"vocab_size": len(tokenizer), "pad_token_id": 0, "num_labels": 3, "label2id": numbers}
    config = AutoConfig.for_model(encoder["model_type"], **sizes)
    with _quiet():
        model = AutoModelForSequenceClassification.from_config(config).eval()
        return ZeroShotClassificationPipeline(model=model, tokenizer=tokenizer, device="cpu")


def _cosine(texts: list[str], names: list[str]) -> Callable[[], Any]:
    """Return a run of the bundled encoder in PyTorch as sentence embedders do it: labels once, sorted batches of 32."""
    model = open_model(open_folder("default", Runtime(backend="torch")).as_checkpoint(), "cpu").encoder_model.eval()
    tokenizer = _tokenizer()

    @torch.inference_mode()
    def embed(items: list[str]) -> torch.Tensor:
        order = sorted(range(len(items)), key=lambda place: -len(items[place]))
        vectors = [torch.empty(0)] * len(items)
        for start in range(0, len(order), 32):
            batch = order[start : start + 32]
            encoded = tokenizer(
                [items[i] for i in batch], padding=True, truncation=True, max_length=512, return_tensors="pt"
            )
            states = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).last_hidden_state
            for place, vector in zip(batch, torch.nn.functional.normalize(states[:, 0], dim=1), strict=True):
                vectors[place] = vector
        return torch.stack(vectors)

    labels = embed([f"This text is about {name}." for name in names])
    return lambda: embed(texts) @ labels.T


def _ours(classifier: Classifier, texts: list[str], labels: LabelSet) -> Callable[[], Any]:
    # Nothing is remembered from one repeat to the next.
    return lambda: [
        prediction
        for window in classifier.stream(
            (Query(None, text, labels) for text in texts), Choice(multi=True, digits=15), StreamOptions(cached_texts=0)
        )
        for _, prediction in window
    ]


def _scores(predictions: Any) -> Any:
    return np.array([list(prediction.scores.values()) for prediction in predictions])


def _by_label(found: Any, names: list[str]) -> Any:
    return np.array([[{item["label"]: item["score"] for item in row}[name] for name in names] for row in found])


@contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, help="JSON Lines with the field text, compressed or not")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--cross-rows", type=int, default=10)
    parser.add_argument("--labels", type=Path, required=True, help="a label a line")
    parser.add_argument("--most-labels", type=int, help="the first so many of them")
    parser.add_argument("--shape", choices=(*SHAPES, "bundled"), default="small")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
