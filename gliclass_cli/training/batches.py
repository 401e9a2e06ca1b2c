"""Texts and their labels as tensors, for each architecture, and the logits of a batch with their gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gliclass_cli.checkpoint import BI_ENCODERS, ENCODER_DECODERS
from gliclass_cli.composer import Composer, PreparedLabels, Prompt
from gliclass_cli.labels import LabelProblem, LabelSet
from gliclass_cli.model import GliclassModel
from gliclass_cli.scoring import pad_inputs
from gliclass_cli.tokens import Ids
from gliclass_cli.training.sampling import Shown

_REMEMBERED = 512  # label sets whose tokens are kept


@dataclass(frozen=True, slots=True)
class Batch:
    """B texts with up to C labels each.

    ``inputs`` are those of the model by name, (B, L). A bi-encoder reads each distinct label once: ``label_inputs``
    (U, M), and ``label_index`` (B, C) says which of them a slot holds. ``targets`` (B, C) are 0..1, ``mask`` (B, C)
    says which slots are labels.
    """

    inputs: Mapping[str, Tensor]
    label_inputs: Mapping[str, Tensor]
    label_index: Tensor | None
    targets: Tensor
    mask: Tensor

    @property
    def tokens(self) -> int:
        """Tokens of all inputs, padding not counted."""
        masks = [
            value for inputs in (self.inputs, self.label_inputs) for name, value in inputs.items() if "mask" in name
        ]
        return sum(int(mask.sum()) for mask in masks)


class Scored(NamedTuple):
    """What a model makes of a batch: logits (B, C), and where it has them vectors of texts and of labels (B, C, D)."""

    logits: Tensor
    text: Tensor | None
    labels: Tensor | None


class Batcher:
    """Composes batches for one model, as they are composed when it classifies."""

    def __init__(self, composer: Composer, device: torch.device) -> None:
        self._composer = composer
        self._device = device
        self._prepared: dict[LabelSet, PreparedLabels] = {}

    def batch(self, rows: Sequence[Shown]) -> Batch:
        """Return the batch of some rows. Raises LabelProblem where a label is too long for the model."""
        prompts, targets = zip(*(self._prompt(row) for row in rows), strict=True)
        widest = max(len(target) for target in targets)
        mask = np.arange(widest) < np.array([len(target) for target in targets])[:, None]
        padded = np.zeros(mask.shape, dtype=np.float32)
        for row, target in enumerate(targets):
            padded[row, : len(target)] = target
        label_inputs, index = self._labels(prompts, mask)
        return Batch(
            inputs=self._inputs(prompts),
            label_inputs=label_inputs,
            label_index=index,
            targets=torch.from_numpy(padded).to(self._device),
            mask=torch.from_numpy(mask).to(self._device),
        )

    def _prompt(self, row: Shown) -> tuple[Prompt, list[float]]:
        """Return the prompt of a row, and the targets of its label slots."""
        composer = self._composer
        if row.prompt or row.examples:
            composer = composer.with_task(row.prompt, row.examples if composer.reads_examples else ())
        labels = self._fitting(composer, row)
        [composed] = composer.compose([row.text], labels)
        prompt = composed.prompts[0]
        targets = dict(zip(row.labels, row.targets, strict=True))
        return prompt, [targets[labels.labels.paths[place][0]] for place in prompt.group.columns]

    def _fitting(self, composer: Composer, row: Shown) -> PreparedLabels:
        """Return as many of a row's labels as fit beside a text, the right ones first."""
        kept = list(range(len(row.labels)))
        while True:
            prepared = self._prepare(composer, row, kept)
            if prepared.split == 1:
                return prepared
            room = len(prepared.groups[0].columns)
            if room < 2:
                raise LabelProblem("not even two labels fit beside a text: raise --max-length, or shorten them")
            kept = sorted(sorted(kept, key=lambda place: row.targets[place] == 0)[:room])

    def _prepare(self, composer: Composer, row: Shown, kept: Sequence[int]) -> PreparedLabels:
        names = tuple(row.labels[place] for place in kept)
        worded = tuple(row.wording.get(name, name) for name in names)
        labels = LabelSet(worded, tuple(map(row.descriptions.get, names)), tuple((name,) for name in names))
        if composer is not self._composer:
            return composer.labels(labels)
        if labels not in self._prepared:
            if len(self._prepared) >= _REMEMBERED:
                self._prepared.clear()
            self._prepared[labels] = composer.labels(labels)
        return self._prepared[labels]

    def _inputs(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        inputs = self._padded([prompt.ids for prompt in prompts])
        if self._composer.architecture in ENCODER_DECODERS:
            labels = self._padded([prompt.group.ids for prompt in prompts])
            inputs |= {f"class_{name}": value for name, value in labels.items()}
        return inputs

    def _labels(self, prompts: Sequence[Prompt], mask: Any) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return the distinct labels of a batch that are read by themselves, and which of them each slot holds."""
        if self._composer.architecture not in BI_ENCODERS:
            return {}, None
        places: dict[bytes, int] = {}
        distinct: list[Ids] = []
        index = np.zeros(mask.shape, dtype=np.int64)
        for row, prompt in enumerate(prompts):
            for slot, (ids,) in enumerate(prompt.group.inputs):
                place = places.setdefault(ids.tobytes(), len(distinct))
                if place == len(distinct):
                    distinct.append(ids)
                index[row, slot] = place
        return self._padded(distinct), torch.from_numpy(index).to(self._device)

    def _padded(self, ids: Sequence[Ids]) -> dict[str, Tensor]:
        arrays = pad_inputs(ids, self._composer.folder.pad)
        return {name: torch.from_numpy(value).to(self._device) for name, value in arrays.items()}


def score(model: GliclassModel, batch: Batch) -> Scored:
    """Return the logits of a batch, with gradients."""
    module: Any = model
    if batch.label_index is not None:
        distinct = module.encode_labels(**batch.label_inputs)  # (U, D)
        labels = distinct[batch.label_index] * batch.mask[..., None].to(distinct.dtype)
        if model.config.architecture == "bi-encoder":
            text = module.encode_text(**batch.inputs)
            return Scored(module.score(text, labels, batch.mask), text, labels)
        features = module.features(**batch.inputs, labels=labels, label_mask=batch.mask)
        logits = module.score(features.text, features.labels, features.label_mask)
        return Scored(logits, features.text, features.labels)
    if not hasattr(module, "features"):
        return Scored(module(**batch.inputs), None, None)
    features = module.features(**batch.inputs)
    text = features.text
    if text.ndim == 3:  # the scorer attends to tokens
        weights = features.text_mask.to(text.dtype)[..., None]
        text = (text * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    return Scored(module.score(features), text, features.labels)
