"""Measure models on a folder of tasks: quality, calibration, and what they make of texts to which no label applies.

    python recipe/measure.py --dev DIR [--task NAME ...] [--limit N] [--max-length N] [--json FILE] MODEL ...

DIR holds `<task>.jsonl.gz` with `text` and `label` (one right label) or `labels` (several), and `<task>.labels.txt`.
A folder that training or `gliclass export` wrote is a MODEL, and `default` the bundled one. "none" is the share of
texts of other tasks that get no label at 0.5 with `--multi`; the pairs of texts and labels are FOREIGN.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any, Final

import numpy as np

from gliclass_cli import Classifier
from gliclass_cli.decoding import Decoder
from gliclass_cli.evaluation.report import evaluate
from gliclass_cli.evaluation.rows import NONE_TAKEN, Outcomes
from gliclass_cli.evaluation.tuning import tune
from gliclass_cli.labels import LabelSet, parse_label_file
from gliclass_cli.predictions import Choice
from gliclass_cli.prompts import Reading
from gliclass_cli.runtime import Runtime

# Texts of one task against the labels of another, where no label can be right.
FOREIGN: Final = (
    ("snips", "reuters_r8"),
    ("snips", "spam_email"),
    ("subjectivity", "reuters_r52"),
    ("tweet_irony", "reuters_r52"),
    ("reuters_r8", "snips"),
    ("subjectivity", "snips"),
    ("sentiment_tweet3", "snips"),
    ("reuters_r8", "goemotions_test_indomain"),
)


def main() -> None:
    """Print a table with a column for each model."""
    options = parse_options()
    tasks = tasks_of(options.dev, options.task)
    found = {model: measure(model, tasks, options) for model in options.models}
    print(f"{'':44}" + "".join(f"{Path(model).name[-9:]:>10}" for model in found))
    for key in dict.fromkeys(key for values in found.values() for key in values):
        print(f"{key:44}" + "".join(f"{values.get(key, float('nan')):>10.4f}" for values in found.values()))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def tasks_of(dev: Path, chosen: Sequence[str] = ()) -> list[str]:
    """Return the tasks of a folder by name, or the chosen ones of them."""
    names = sorted(path.name.removesuffix(".jsonl.gz") for path in dev.glob("*.jsonl.gz"))
    if not names or not set(chosen) <= set(names):
        raise SystemExit(f"{dev}: holds the tasks {', '.join(names) or 'none'}")
    return [name for name in names if not chosen or name in chosen]


def measure(model: str, tasks: Sequence[str], options: argparse.Namespace) -> dict[str, float]:
    """Return the measures of one model by name."""
    reading = Reading(template=options.template, max_length=options.max_length)
    classifier = Classifier.load(model, reading, Runtime(backend=options.backend, threads=options.threads))
    began = time.monotonic()
    values: dict[str, float] = {}
    single, errors = [], []
    for task in tasks:
        outcomes = run(classifier, options.dev, task, options.limit)
        metrics = evaluate(outcomes).metrics
        errors.append(metrics["ece"])
        if outcomes.multi:
            values[f"{task} micro-F1"] = metrics["micro_f1"]
            values[f"{task} micro-F1 tuned"] = tune(outcomes, Choice(multi=True)).after["micro_f1"]
        else:
            single.append(metrics["macro_f1"])
            values[f"{task} macro-F1"] = metrics["macro_f1"]
            values[f"{task} accuracy"] = metrics["accuracy"]
        values[f"{task} ECE"] = metrics["ece"]
    if single:
        values["mean macro-F1 of single-label tasks"] = mean(single)
    values["mean ECE"] = mean(errors)
    for texts, labels in FOREIGN:
        if texts in tasks and labels in tasks:
            values[f"none: {texts} x {labels}"] = empty_share(classifier, options.dev, texts, labels, options.limit)
    shares = [value for key, value in values.items() if key.startswith("none: ")]
    if shares:
        values["mean none"] = mean(shares)
    values["seconds"] = time.monotonic() - began
    return values


def run(classifier: Classifier, dev: Path, task: str, limit: int | None) -> Outcomes:
    """Return what the model says about a task, beside what is right."""
    rows = read_rows(dev, task, limit)
    labels = label_set(dev, task)
    multi = "labels" in rows[0]
    predictions = classifier.predict(
        [row["text"] for row in rows], labels, choice=Choice(multi=multi, with_scores=False, with_logits=True)
    )
    index = {name: place for place, name in enumerate(labels.names)}
    logits = np.array([prediction.logits for prediction in predictions], dtype=np.float32)
    scores = Decoder(Choice(multi=multi), classifier.folder.calibration).scores(logits)
    gold: Any
    predicted: Any
    if multi:
        gold, predicted = (np.zeros((len(rows), len(labels)), dtype=np.bool_) for _ in range(2))
        for place, (row, prediction) in enumerate(zip(rows, predictions, strict=True)):
            gold[place, [index[name] for name in row["labels"]]] = True
            predicted[place, [index[name] for name in prediction.labels]] = True
    else:
        gold = np.array([index[row["label"]] for row in rows])
        predicted = np.array([index[p.label] if p.label is not None else NONE_TAKEN for p in predictions])
    return Outcomes(labels.names, multi, gold, predicted, scores, logits, logits)


def empty_share(classifier: Classifier, dev: Path, texts: str, labels: str, limit: int | None) -> float:
    """Return the share of a task's texts that get none of another task's labels at 0.5."""
    rows = read_rows(dev, texts, limit)
    random.Random(0).shuffle(rows)
    predictions = classifier.predict(
        [row["text"] for row in rows[:150]], label_set(dev, labels), choice=Choice(multi=True, with_scores=False)
    )
    return mean(not prediction.labels for prediction in predictions)


def read_rows(dev: Path, task: str, limit: int | None) -> list[dict[str, Any]]:
    """Return the first rows of a task."""
    with gzip.open(dev / f"{task}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, limit)]
    if not rows:
        raise SystemExit(f"{dev / task}.jsonl.gz: holds no row")
    return rows


def label_set(dev: Path, task: str) -> LabelSet:
    """Return the labels of a task."""
    path = dev / f"{task}.labels.txt"
    return parse_label_file(path.read_text("utf-8"), str(path))


def positive(text: str) -> int:
    """Read a whole number above 0."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--dev", type=Path, required=True, metavar="DIR")
    parser.add_argument("--task", action="append", default=[], metavar="NAME", help="repeatable; default: all")
    parser.add_argument("--limit", type=positive, help="rows of each task; default: all")
    parser.add_argument("--max-length", type=positive, help="tokens of a text; default: the model's own")
    parser.add_argument("--template", help="words around a label, with {label}; default: the model's own")
    parser.add_argument("--backend", default="auto", choices=("auto", "onnx", "torch"))
    parser.add_argument("--threads", type=positive)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
