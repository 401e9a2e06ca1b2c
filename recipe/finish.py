"""Make the folder that ships of a trained checkpoint: weights averaged with the start, int8, calibrated, checked.

    python recipe/finish.py --start START --trained TRAINED --held DIR/held --output FOLDER [--share 1.0]

`--share` is the weight of the trained checkpoint: what is left comes from START, which keeps more of what the encoder
knew (WiSE-FT, arXiv 2109.01903). Ranges and roundings of int8, and the temperatures and the bias of scores, come from
the rows that were held back from training (`prepare.py`); no other task has a part in them.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from scipy.optimize import minimize

from gliclass_cli import Classifier
from gliclass_cli.backends.pytorch import open_model
from gliclass_cli.evaluation.tuning import fit
from gliclass_cli.export.convert import Sample, export_model, report_lines
from gliclass_cli.labels import make_labels
from gliclass_cli.loading import open_folder
from gliclass_cli.model import GliclassModel, save_model
from gliclass_cli.predictions import Choice
from gliclass_cli.readers import ReadOptions
from gliclass_cli.runtime import Runtime
from gliclass_cli.training.rows import Source, TrainingRow, read_sources

NAME: Final = "gliclass-bge-small-en"
VERSION: Final = "2"
LICENSE: Final = "MIT"
# What int8 rounding does to a label's vector shifts the scores of all texts; the mean of both has less of it.
WORDINGS: Final = ("This text is about {label}.", "This text is about {label}!")
_SAMPLES: Final = 300
_SAMPLE_LABELS: Final = 8
_NOWHERE: Final = -1e9  # the logit of a slot without a label


def main() -> None:
    """Average, export, calibrate."""
    options = parse_options()
    if options.output.exists():
        raise SystemExit(f"{options.output}: exists; name a new folder")
    sources = read_sources(
        [str(path) for path in sorted(options.held.glob("*.jsonl.gz"))], ReadOptions(), allow_empty=True
    )
    if not sources:
        raise SystemExit(f"{options.held}: holds no *.jsonl.gz; prepare.py writes them")
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "averaged"
        average(options.start, options.trained, options.share, checkpoint)
        folder = open_folder(str(checkpoint), Runtime(backend="torch"))
        report = export_model(folder, options.output, samples_of(sources), precision=options.precision)
    for line in report_lines(report):
        print(line)
    complete(options.output, sources)


def complete(output: Path, sources: Sequence[Source]) -> None:
    """Give an exported folder its name, its wordings of a label, and scores that held-back rows bear out."""
    path = output / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["onnx"] |= {
        "name": NAME, "version": VERSION, "license": LICENSE, "language": ["en"], "label_template": list(WORDINGS),
    }  # fmt: skip
    path.write_text(json.dumps(config), "utf-8")
    classifier = Classifier.load(output)
    calibration = {"single": single_scores(classifier, sources)}
    temperature, bias = multi_scores(classifier, sources)
    calibration["multi"] = {"temperature": temperature, "bias": bias}
    print(f"calibration: {calibration}")
    check = config["onnx"]["self_check"]
    logits = classifier.logits(check["text"], make_labels(check["labels"]))
    check["logits"] = [round(float(logit), 4) for logit in logits]
    config["onnx"]["calibration"] = calibration
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def average(start: str, trained: str, share: float, output: Path) -> None:
    """Write the mean of two checkpoints of one architecture, `share` of it the second one's."""
    first, second = load(start), load(trained)
    values = first.state_dict()
    mixed = {
        name: torch.lerp(values[name], value, share) if value.is_floating_point() else value
        for name, value in second.state_dict().items()
    }
    second.load_state_dict(mixed)
    save_model(second, output)
    source = open_folder(trained, Runtime(backend="torch"))
    (output / "tokenizer.json").write_bytes(source.tokenizer.read_bytes())


def load(name: str) -> GliclassModel:
    """Load a checkpoint, or the bundled kind of folder."""
    return open_model(open_folder(name, Runtime(backend="torch")).as_checkpoint(), "cpu")


def samples_of(sources: Sequence[Source]) -> list[Sample]:
    """Return up to 300 texts with some of their labels, drawn from all sources."""
    draw = random.Random(0)
    rows = [row for source in sources for row in draw.sample(source.rows, min(6, len(source.rows)))]
    samples = {}
    for row in draw.sample(rows, len(rows)):
        labels = list(row.candidates or row.true)
        samples.setdefault(row.text, draw.sample(labels, min(_SAMPLE_LABELS, len(labels))))
    return [Sample(text, make_labels(labels)) for text, labels in list(samples.items())[:_SAMPLES]]


def single_scores(classifier: Classifier, sources: Sequence[Source]) -> dict[str, float]:
    """Fit temperature and exponent of softmax, by likelihood, on rows with one right label of a set."""
    rows = [row for source in sources for row in source.rows if len(row.true) == 1 and "_open." not in source.name]
    logits, gold = scored(classifier, rows)
    counts, right = (logits > _NOWHERE).sum(axis=1, keepdims=True), gold.argmax(axis=1)

    def loss(values: Any) -> float:
        z = logits * counts ** values[1] / np.exp(values[0])
        return float((np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), right]).mean())

    bounds = ((-3.0, 3.0), (0.0, 1.0))
    log_temperature, exponent = minimize(loss, (0.0, 0.0), method="Nelder-Mead", bounds=bounds).x
    return {"temperature": round(float(np.exp(log_temperature)), 3), "label_exponent": round(float(exponent), 3)}


def multi_scores(classifier: Classifier, sources: Sequence[Source]) -> tuple[float, float]:
    """Fit temperature and bias of the sigmoid on texts with all their labels, each label weighing the same."""
    rows = [row for source in sources if "_all." in source.name for row in source.rows]
    logits, gold = scored(classifier, rows)
    known = logits > _NOWHERE
    found = fit(logits[known][:, None], gold[known][:, None], ("label",), multi=True)
    return round(found.multi_temperature, 3), round(found.multi_bias, 3)


def scored(classifier: Classifier, rows: Sequence[TrainingRow]) -> tuple[Any, Any]:
    """Return logits (N, L) of rows with up to L labels of their own, and which of them are right."""
    logits = np.full((len(rows), max(len(row.candidates or ()) for row in rows)), _NOWHERE)
    gold = np.zeros(logits.shape, dtype=np.bool_)
    choice = Choice(multi=True, with_scores=False, with_logits=True)
    by_labels: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(rows):
        by_labels.setdefault(row.candidates or (), []).append(place)
    for labels, places in by_labels.items():
        predictions = classifier.predict([rows[place].text for place in places], labels, choice)
        for place, prediction in zip(places, predictions, strict=True):
            logits[place, : len(labels)] = prediction.logits
            gold[place, : len(labels)] = [label in rows[place].true for label in labels]
    return logits, gold


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", required=True, metavar="FOLDER")
    parser.add_argument("--trained", required=True, metavar="FOLDER")
    parser.add_argument("--share", type=float, default=1.0, help="weight of the trained checkpoint, 0 to 1")
    parser.add_argument("--held", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--precision", choices=("int8", "fp32"), default="int8")
    return parser.parse_args()


if __name__ == "__main__":
    main()
