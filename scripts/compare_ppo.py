"""Compare PPO with as many further supervised steps, from one supervised checkpoint, on rows with several labels.

    python scripts/compare_ppo.py TRAIN.jsonl.gz DEV.jsonl.gz --labels LABELS.txt [--first 300] [--steps 100] [--seed 0]

Prints reward (mean F1 of a text's labels at 0.5), micro-F1 and macro-F1 on the dev rows after each stage.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from sklearn.metrics import f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from gliclass_cli import Classifier
from gliclass_cli.labels import make_labels, parse_label_file
from gliclass_cli.predictions import Choice
from gliclass_cli.readers import ReadOptions
from gliclass_cli.training.loop import Listeners
from gliclass_cli.training.rows import Source, read_sources
from gliclass_cli.training.run import Job, train
from gliclass_cli.training.settings import make_settings, parse_setting


def main() -> None:
    """Train the three stages, and print a line for each."""
    options = parse_options()
    labels = parse_label_file(Path(options.labels).read_text("utf-8"), options.labels)
    [source] = read_sources([options.train], ReadOptions(), labels=labels)
    [dev] = read_sources([options.dev], ReadOptions(), labels=labels)
    dev = replace(dev, rows=dev.rows[: options.rows])
    print(f"{'stage':34} reward  micro-F1 macro-F1  labels/row  seconds")
    show("untrained", Classifier.load(options.model), dev, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(options.keep or folder)
        base = work / "supervised"
        if not base.exists():
            seconds = run(source, options.model, base, {"steps": options.first, "encoder_lr": 3e-5}, options)
            show(f"supervised, {options.first} steps", Classifier.load(base), dev, seconds)
        for name, values in (("ppo", {"method": "ppo"}), ("more-supervised", {})):
            common = {"steps": options.steps, "encoder_lr": options.lr, "others_lr": 3 * options.lr}
            seconds = run(source, str(base), work / name, common | values, options)
            show(f"+ {options.steps} steps of {name}", Classifier.load(work / name), dev, seconds)


def run(source: Source, model: str, output: Path, values: dict[str, Any], options: argparse.Namespace) -> float:
    """Train, and return the seconds it took."""
    given = {"batch_size": 32, "seed": options.seed, "freeze": ["embeddings"], "max_length": 64} | values
    if values.get("method") == "ppo":
        given |= dict(map(parse_setting, options.set))
    began = time.perf_counter()
    train(Job(model, [source], output, make_settings(given)), Listeners(), threading.Event())
    return time.perf_counter() - began


def show(stage: str, classifier: Classifier, dev: Source, seconds: float) -> None:
    """Print what a stage's model reaches on the dev rows."""
    predictions = classifier.predict([row.text for row in dev.rows], make_labels(dev.pool), Choice(multi=True))
    binarizer = MultiLabelBinarizer(classes=dev.pool)
    true = binarizer.fit_transform([list(row.true) for row in dev.rows])
    found = binarizer.transform([prediction.labels for prediction in predictions])
    scores = [f1_score(true, found, average=kind, zero_division=0) for kind in ("samples", "micro", "macro")]
    numbers = "   ".join(f"{score:.4f}" for score in scores)
    print(f"{stage:34} {numbers}    {found.sum() / len(found):6.2f}   {seconds:8.1f}", flush=True)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("dev")
    parser.add_argument("--labels", required=True)
    parser.add_argument("--model", default="default")
    parser.add_argument("--first", type=int, default=300, help="supervised steps of the common checkpoint")
    parser.add_argument("--steps", type=int, default=100, help="steps of each of the two that are compared")
    parser.add_argument("--lr", type=float, default=1e-5, help="learning rate of the encoder in both")
    parser.add_argument("--rows", type=int, default=1500, help="dev rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="folder for the checkpoints; the first stage in it is used again")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other settings of PPO")
    return parser.parse_args()


if __name__ == "__main__":
    main()
