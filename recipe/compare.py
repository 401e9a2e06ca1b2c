"""Short trainings side by side: what each setting, source or encoder is worth. The log in README.md was made by it.

    python recipe/compare.py --data data --start start --dev TASKS [--steps 200] [--seed 0 ...] base \
        'lr 1e-4: encoder_lr=1e-4' 'no texts of our own: weights=own_*=0' 'MiniLM: start=start-minilm'

A variant is a name and, behind a colon, settings of `gliclass train` that differ from `train.toml`, separated by
spaces. `weights=PATTERN=X` replaces the weights of sources that fit, `start=FOLDER` is another model to start from.
`steps=N` there makes variants that cost different times train equally long.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean
from typing import Any, Final

import torch
from measure import measure, positive, tasks_of

from gliclass_cli.readers import ReadOptions
from gliclass_cli.training.loop import Listeners
from gliclass_cli.training.rows import Source, read_sources
from gliclass_cli.training.run import Job, train
from gliclass_cli.training.sampling import LabelInfo
from gliclass_cli.training.settings import make_settings, parse_setting, read_settings

SETTINGS: Final = Path(__file__).parent / "train.toml"


def main() -> None:
    """Print what each variant gets, one after the other."""
    options = parse_options()
    files = [str(path) for path in sorted(options.data.glob("*.jsonl.gz"))]
    sources = read_sources(files, ReadOptions(), allow_empty=True)
    wordings = json.loads((options.data / "wordings.json").read_text("utf-8"))
    info = LabelInfo(synonyms={label: value["synonyms"] for label, value in wordings.items()})
    for variant in options.variants:
        name, _, changes = variant.partition(":")
        for seed in options.seed or [0]:
            found = run(sources, info, changes.split(), seed, options)
            print(json.dumps({"variant": name.strip(), "seed": seed, **found}), flush=True)


def run(
    sources: Sequence[Source], info: LabelInfo, changes: Sequence[str], seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Train one variant, and return its measures."""
    values = read_settings(SETTINGS.read_text("utf-8"), str(SETTINGS)) | {"steps": options.steps, "seed": seed}
    start = str(options.start)
    for change in changes:
        key, _, value = change.partition("=")
        if key == "start":
            start = value
        elif key == "weights":
            pattern = value.partition("=")[0]
            others = [item for item in values["source_weights"] if not fnmatchcase(item.partition("=")[0], pattern)]
            values["source_weights"] = (value, *others)
        else:
            values |= [parse_setting(change)]
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "model"
        began = time.process_time()  # of all threads: other work on the machine does not count
        if values["steps"]:
            train(Job(start, sources, output, make_settings(values), info=info), Listeners(), threading.Event())
        seconds = time.process_time() - began
        settings = argparse.Namespace(
            dev=options.dev, limit=options.limit, max_length=options.max_length, template=None, backend="torch",
            threads=torch.get_num_threads(),
        )  # fmt: skip
        found = measure(str(output) if values["steps"] else start, tasks_of(options.dev, options.task), settings)
    kept = {name: round(value, 3) for name, value in found.items() if name.endswith("macro-F1") or "mean" in name}
    micro = [value for name, value in found.items() if name.endswith("micro-F1 tuned")]
    return {"CPU seconds": round(seconds), **({"micro-F1 tuned": round(mean(micro), 3)} if micro else {}), **kept}


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="+", metavar="VARIANT")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--start", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--dev", type=Path, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, action="append", help="repeatable; default: 0")
    parser.add_argument("--task", action="append", default=[], metavar="NAME", help="repeatable; default: all")
    parser.add_argument("--limit", type=positive, default=200, help="rows of each task")
    parser.add_argument("--max-length", type=positive, default=128)
    return parser.parse_args()


if __name__ == "__main__":
    main()
