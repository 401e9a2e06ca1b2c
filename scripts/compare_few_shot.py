"""Compare ways to use a few examples per label: zero-shot, prototypes, fine-tuning, LoRA; macro-F1 over several seeds.

    python scripts/compare_few_shot.py TASK.jsonl.gz[:LABELS.txt] ... [--shots 8] [--seeds 0 1 2] [--rows 750]

One half of the rows, at random, is drawn from, and rows of the other half are measured on; settings are those that
`gliclass train --shots` takes by itself. Further settings: `--set NAME=VALUE`.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from sklearn.metrics import f1_score

from gliclass_cli import Classifier
from gliclass_cli.labels import LabelSet, parse_label_file
from gliclass_cli.prompts import Example, Reading
from gliclass_cli.readers import ReadOptions
from gliclass_cli.runtime import Runtime
from gliclass_cli.training.loop import Listeners
from gliclass_cli.training.rows import Source, TrainingRow, draw_shots, read_sources
from gliclass_cli.training.run import Job, train
from gliclass_cli.training.settings import make_settings, parse_setting

WAYS = ("zero-shot", "prototypes", "fine-tuned", "LoRA")


def main() -> None:
    """Print a row for each task and way."""
    options = parse_options()
    gains = []
    print(f"{'task':24} {'way':12} macro-F1 by seed{'':14} mean   deviation  seconds")
    for task in options.tasks:
        name, _, label_file = task.partition(":")
        labels = parse_label_file(Path(label_file).read_text("utf-8"), label_file) if label_file else None
        [source] = read_sources([name], ReadOptions(), labels=labels)
        scores = compare(source, options)
        for way, found in scores.items():
            values, seconds = [score for score, _ in found], mean(seconds for _, seconds in found)
            shown = " ".join(f"{value:.4f}" for value in values)
            summary = f"{mean(values):.4f} {pstdev(values):.4f}     {seconds:6.1f}"
            print(f"{Path(name).name[:24]:24} {way:12} {shown:30} {summary}", flush=True)
        if "zero-shot" in scores and "fine-tuned" in scores:
            gains.append(mean(s for s, _ in scores["fine-tuned"]) / mean(s for s, _ in scores["zero-shot"]) - 1)
    if gains:
        print(f"mean relative gain of fine-tuning: {mean(gains):.1%}")


def compare(source: Source, options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Return macro-F1 and the seconds it took to get ready, for each way and seed."""
    rows = list(source.rows)
    random.Random(0).shuffle(rows)  # files are often sorted by label
    half = len(rows) // 2
    train_half = replace(source, rows=tuple(rows[:half]))
    test = rows[half : half + options.rows]
    pool = LabelSet(source.pool, (None,) * len(source.pool), tuple((label,) for label in source.pool))
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in options.ways}
    for seed in options.seeds:
        shots, _ = draw_shots(train_half, options.shots, seed)
        for way in options.ways:
            began = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                classifier = make(way, shots, seed, Path(folder), options)
                seconds = time.perf_counter() - began
                found[way].append((measure(classifier, test, pool), seconds))
    return found


def make(way: str, shots: Source, seed: int, folder: Path, options: argparse.Namespace) -> Classifier:
    """Return the classifier of a way to use the examples."""
    if way == "zero-shot":
        return Classifier.load(options.model)
    if way == "prototypes":
        examples = tuple(Example(row.text, tuple(row.true)) for row in shots.rows)
        return Classifier.load(options.model, Reading(examples=examples))
    values: dict[str, Any] = {"shots": options.shots, "seed": seed, "lora": way == "LoRA"}
    values |= dict(map(parse_setting, options.set))
    job = Job(options.model, [shots], folder / "model", make_settings(values))
    train(job, Listeners(), threading.Event())
    if way == "LoRA":
        return Classifier.load(options.model, None, Runtime(adapter=str(job.output)))
    return Classifier.load(job.output)


def measure(classifier: Classifier, rows: Sequence[TrainingRow], labels: LabelSet) -> float:
    """Return macro-F1 over the labels that are right or given."""
    predictions = classifier.predict([row.text for row in rows], labels)
    true = [next(iter(row.true)) for row in rows]
    return float(f1_score(true, [p.label or "" for p in predictions], average="macro", zero_division=0))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", metavar="TASK[:LABELS]", help="rows with text and label; a label file")
    parser.add_argument("--model", default="default")
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=750, help="rows to measure on")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other settings of the training")
    options = parser.parse_args()
    print(json.dumps({name: value for name, value in vars(options).items() if name != "tasks"}))
    return options


if __name__ == "__main__":
    main()
