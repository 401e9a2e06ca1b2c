"""Rows per second of a uni-encoder: the reference package against this one, in PyTorch and exported, side by side.

    python scripts/compare_reference.py --texts examples/tickets.jsonl --labels examples/tickets.labels.txt
    python scripts/compare_reference.py --texts FILE --labels FILE --shape base --device cuda

The weights are random ones of a real model's shape (speed does not depend on their values) with the tokenizer of the
bundled model. Everyone computes the same texts, in turn, several times; the medians are told. The reference runs at the
best of several batch sizes. On a CPU everyone has one thread.
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
from pathlib import Path
from typing import Any, Final

import torch

from gliclass_cli.checkpoint import parse_checkpoint_config
from gliclass_cli.classifier import Classifier, Query, StreamOptions
from gliclass_cli.export.convert import builtin_sample, export_model
from gliclass_cli.labels import LabelSet, make_labels
from gliclass_cli.model import build_model, save_model
from gliclass_cli.model_folder import find_model, read_model_folder
from gliclass_cli.predictions import Choice
from gliclass_cli.runtime import Runtime

TOKENS: Final = ("<<LABEL>>", "<<SEP>>", "<<EXAMPLE>>")
SHAPES: Final[dict[str, dict[str, Any]]] = {
    "small": {"model_type": "deberta-v2", "hidden_size": 768, "num_hidden_layers": 6, "num_attention_heads": 12},
    "base": {"model_type": "deberta-v2", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "edge": {"model_type": "modernbert", "hidden_size": 384, "num_hidden_layers": 10, "num_attention_heads": 6},
}
_DEBERTA: Final[dict[str, Any]] = {
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
_EDGE: Final[dict[str, Any]] = {"intermediate_size": 576, "pad_token_id": 0, "cls_token_id": 101, "sep_token_id": 102}


def main() -> None:
    """Measure, and print a table."""
    options = _parse_options()
    texts = [json.loads(line)["text"] for line in options.texts.read_text("utf-8").splitlines() if line.strip()]
    labels = make_labels(options.labels.read_text("utf-8").splitlines())
    if options.device == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        write_checkpoint(options.shape, checkpoint)
        runs = dict(_contestants(checkpoint, options.device, texts, labels))
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.repeats):
            for name, run in runs.items():
                times[name].append(_seconds(run))
    rates = {name: len(texts) / statistics.median(seconds) for name, seconds in times.items()}
    best = max(rate for name, rate in rates.items() if name.startswith("reference"))
    for name, rate in rates.items():
        print(f"{name:<24} {rate:8.1f} rows/s  {rate / best:5.2f} x the reference at its best")


def write_checkpoint(shape: str, folder: Path) -> None:
    """Write a checkpoint with random weights of a shape, and the bundled model's tokenizer with three more tokens."""
    from transformers import PreTrainedTokenizerFast

    bundled = find_model("default")
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(str(bundled)) / "tokenizer.json"), **names)
    tokenizer.add_tokens(list(TOKENS), special_tokens=True)
    numbers = [tokenizer.convert_tokens_to_ids(token) for token in TOKENS]
    size = SHAPES[shape]
    encoder = {"vocab_size": len(tokenizer), **(_EDGE if size["model_type"] == "modernbert" else _DEBERTA), **size}
    config = {
        "model_type": "GLiClass",
        "architecture_type": "uni-encoder",
        "encoder_config": encoder,
        "encoder_model_name": "random",
        "vocab_size": len(tokenizer),
        "hidden_size": size["hidden_size"],
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


def _contestants(
    checkpoint: Path, device: str, texts: list[str], labels: LabelSet
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the names of who takes part, and what each does."""
    reference = _reference(checkpoint, device)
    for size in (1, 8, 32):
        yield f"reference, batch {size}", lambda size=size: reference(texts, list(labels.names), batch_size=size)
    folders = {"this, PyTorch": checkpoint}
    if device == "cpu":
        samples = builtin_sample()[:4]
        for precision in ("fp32", "int8"):
            folders[f"this, ONNX {precision}"] = checkpoint.parent / precision
            export_model(read_model_folder(checkpoint), checkpoint.parent / precision, samples, precision=precision)
    for name, folder in folders.items():
        yield name, _ours(Classifier.load(folder, runtime=Runtime(device=device, threads=1)), texts, labels)


def _ours(classifier: Classifier, texts: list[str], labels: LabelSet) -> Callable[[], object]:
    # Nothing is remembered from one repeat to the next.
    return lambda: [
        list(window)
        for window in classifier.stream(
            (Query(None, text, labels) for text in texts), Choice(multi=True), StreamOptions(cached_texts=0)
        )
    ]


def _reference(checkpoint: Path, device: str) -> Any:
    with _quiet():
        from gliclass import GLiClassModel, ZeroShotClassificationPipeline
        from transformers import AutoTokenizer

        model = GLiClassModel.from_pretrained(checkpoint)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        return ZeroShotClassificationPipeline(model, tokenizer, device=device, progress_bar=False)


@contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, help="JSON Lines with the field text")
    parser.add_argument("--labels", type=Path, required=True, help="a label a line")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
