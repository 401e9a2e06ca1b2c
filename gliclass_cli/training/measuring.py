"""Measures a model in training, on rows with right labels, the way it will classify."""

from itertools import chain

import torch
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from gliclass_cli.backends.pytorch import TorchBackend
from gliclass_cli.classifier import Classifier, Query
from gliclass_cli.composer import Composer
from gliclass_cli.gold import RIGHT
from gliclass_cli.labels import LabelSet
from gliclass_cli.model import GliclassModel
from gliclass_cli.model_folder import ModelFolder
from gliclass_cli.predictions import Choice, Prediction
from gliclass_cli.prompts import Example
from gliclass_cli.scoring import Scorer
from gliclass_cli.training.rows import Source, TrainingRow, label_set


def _labels(row: TrainingRow, dev: Source) -> LabelSet:
    """Return the candidates of a dev row."""
    names = [name for name in row.candidates or dev.pool if name not in row.avoid]
    return label_set(names, {**dev.descriptions, **row.descriptions})


def measure(
    model: GliclassModel, folder: ModelFolder, composer: Composer, device: torch.device, dev: Source, *, multi: bool
) -> dict[str, float]:
    """Return macro-F1 and accuracy, or with several right labels micro-F1 and macro-F1; the first one decides."""
    backend = TorchBackend(folder, device=str(device), precision="fp32", threads=torch.get_num_threads(), model=model)
    by_task: dict[tuple[str, tuple[Example, ...]], list[TrainingRow]] = {}
    for row in dev.rows:
        by_task.setdefault((row.prompt, row.examples if composer.reads_examples else ()), []).append(row)
    true: list[list[str]] = []
    predicted: list[list[str]] = []
    for task, rows in by_task.items():
        classifier = Classifier(folder, composer.with_task(*task), Scorer(folder, backend))
        queries = (Query(row, row.text, _labels(row, dev)) for row in rows)
        for query, prediction in chain.from_iterable(
            classifier.stream(queries, Choice(multi=multi, with_scores=False))
        ):
            true.append([label for label, share in query.item.true.items() if share >= RIGHT])
            predicted.append(list(prediction.labels) if isinstance(prediction, Prediction) else [])
    if not multi:
        gold, found = [row[0] if row else "" for row in true], [row[0] if row else "" for row in predicted]
        return {
            "macro_f1": float(f1_score(gold, found, average="macro", zero_division=0)),
            "accuracy": float(accuracy_score(gold, found)),
        }
    matrix = MultiLabelBinarizer().fit([dev.pool, *true, *predicted])
    gold_matrix, found_matrix = matrix.transform(true), matrix.transform(predicted)
    return {
        f"{kind}_f1": float(f1_score(gold_matrix, found_matrix, average=kind, zero_division=0))
        for kind in ("micro", "macro")
    }
