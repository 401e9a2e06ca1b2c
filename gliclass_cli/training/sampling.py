"""Which rows make a batch, and which labels each text is shown: negatives, shuffling, the paper's augmentations.

All of it is a function of the seed and the number of the batch; nothing is carried from one batch to the next.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from gliclass_cli.prompts import Example, joined
from gliclass_cli.training.rows import Source, TrainingRow
from gliclass_cli.training.settings import Augmentation, NegativeSource, Sampling

# Rows that are sorted by length together: enough for batches of similar length, few enough to stay well mixed.
_SORTED_BATCHES = 50


@dataclass(frozen=True, slots=True)
class Shown:
    """A text as it is shown to the model: its labels in order, and how right each one is."""

    text: str
    labels: tuple[str, ...]
    targets: tuple[float, ...]
    prompt: str = ""
    examples: tuple[Example, ...] = ()
    # The wording of labels, where augmentation changed it: label -> what the model reads.
    wording: Mapping[str, str] = field(default_factory=dict)
    descriptions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelInfo:
    """Other ways to say a label: ``--label-info FILE``."""

    descriptions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws the batches of a run."""

    sources: Sequence[Source]
    batch_size: int
    sampling: Sampling
    augmentation: Augmentation
    info: LabelInfo
    seed: int
    weights: Sequence[float] = ()  # how often the rows of each source come in a pass; none: once

    @property
    def epoch_batches(self) -> int:
        """Batches of one pass over all rows."""
        return sum(-(-self._rows(place) // self.batch_size) for place in range(len(self.sources)))

    def _rows(self, place: int) -> int:
        """Return how many rows a pass takes of a source, one at least where it has a weight."""
        weight = self.weights[place] if self.weights else 1.0
        return max(int(weight > 0), round(len(self.sources[place].rows) * weight))

    def epoch(self, number: int) -> list[tuple[int, tuple[int, ...]]]:
        """Return the batches of a pass: each a source and its rows, of similar length, in random order."""
        draw = random.Random(f"epoch {self.seed} {number}")
        batches: list[tuple[int, tuple[int, ...]]] = []
        for place, source in enumerate(self.sources):
            order: list[int] = []
            while len(order) < self._rows(place):
                order += draw.sample(range(len(source.rows)), len(source.rows))
            order = order[: self._rows(place)]
            size = self.batch_size * _SORTED_BATCHES
            for start in range(0, len(order), size):
                part = sorted(order[start : start + size], key=lambda index: len(source.rows[index].text))
                batches += [(place, tuple(part[i : i + self.batch_size])) for i in range(0, len(part), self.batch_size)]
        draw.shuffle(batches)
        return batches

    def batch(self, number: int, place: int, indices: Sequence[int]) -> list[Shown]:
        """Return the rows of a batch as they are shown."""
        draw = random.Random(f"batch {self.seed} {number}")
        source = self.sources[place]
        rows = [self._augmented(source, index, draw) for index in indices]
        drawn = list(source.pool)
        if len(drawn) > self.sampling.max_labels:  # the same ones for all rows: a bi-encoder reads each of them once
            drawn = draw.sample(drawn, self.sampling.max_labels)
        near = list(dict.fromkeys(label for row in rows for label in row.true))
        synonyms = self._synonyms(draw)
        return [self._shown(row, source, near, drawn, synonyms, draw) for row in rows]

    def _synonyms(self, draw: random.Random) -> dict[str, str]:
        """Draw another way to say some labels, for all rows: a bi-encoder reads each wording once."""
        chance = self.augmentation.synonym
        known = self.info.synonyms.items() if chance else ()
        return {label: draw.choice(texts) for label, texts in known if texts and draw.random() < chance}

    def _shown(
        self,
        row: TrainingRow,
        source: Source,
        near: Sequence[str],
        drawn: Sequence[str],
        synonyms: Mapping[str, str],
        draw: random.Random,
    ) -> Shown:
        own = row.candidates
        pools: dict[NegativeSource, Sequence[str]] = {"candidates": own or (), "batch": near, "pool": drawn}
        names: tuple[NegativeSource, ...] = ("candidates",) if own is not None else ("batch", "pool")
        forbidden = {*row.true, *row.avoid}
        negatives: dict[str, None] = {}
        for name in self.sampling.negatives or names:
            more = [label for label in pools[name] if label not in forbidden and label not in negatives]
            draw.shuffle(more)
            room = max(1, self.sampling.max_labels - len(row.true)) - len(negatives)
            negatives.update(dict.fromkeys(more[: max(0, room)]))
        labels = self._removed_and_added(row, list(negatives), source, draw)
        if self.sampling.shuffle_labels:
            draw.shuffle(labels)
        else:
            order = {label: place for place, label in enumerate(own or source.pool)}
            labels.sort(key=lambda label: order.get(label, len(order)))
        wording, descriptions = self._worded(labels, {**source.descriptions, **row.descriptions}, synonyms, draw)
        targets = tuple(row.true.get(label, 0.0) for label in labels)
        return Shown(row.text, tuple(labels), targets, row.prompt, row.examples, wording, descriptions)

    def _removed_and_added(
        self, row: TrainingRow, negatives: list[str], source: Source, draw: random.Random
    ) -> list[str]:
        """Take labels out, never the last right one; put labels of the pool in, never one that is there or avoided."""
        chances, true = self.augmentation, list(row.true)
        if draw.random() < chances.label_removal:
            if len(negatives) > 1:
                negatives = draw.sample(negatives, draw.randint(1, len(negatives) - 1))
            if len(true) > 1:
                true = draw.sample(true, draw.randint(1, len(true)))
        if draw.random() < chances.label_addition:
            there = {*row.true, *row.avoid, *negatives}
            other = [label for label in source.pool if label not in there]
            negatives = negatives + draw.sample(other, min(len(other), draw.randint(1, 5)))
        return true + negatives

    def _worded(
        self, labels: Sequence[str], known: Mapping[str, str], synonyms: Mapping[str, str], draw: random.Random
    ) -> tuple[dict[str, str], dict[str, str]]:
        """Say some labels in another way; never so that two of a row read the same."""
        wording: dict[str, str] = {}
        descriptions = {label: known[label] for label in labels if label in known}
        taken = set(labels)
        for label in labels:
            if label in synonyms and synonyms[label] not in taken:
                wording[label] = synonyms[label]
                taken.add(wording[label])
            texts = self.info.descriptions.get(label, ())
            if draw.random() < self.augmentation.description and texts:
                descriptions[label] = draw.choice(list(texts))
        return wording, descriptions

    def _augmented(self, source: Source, index: int, draw: random.Random) -> TrainingRow:
        """Put another text behind a text, with its labels; show other rows as solved examples, never itself."""
        row, chances, rows = source.rows[index], self.augmentation, source.rows
        texts = {row.text}
        if draw.random() < chances.text_addition and len(rows) > 1:
            place = draw.randrange(len(rows) - 1)
            other = rows[place + (place >= index)]
            texts.add(other.text)
            own = None if row.candidates is None and other.candidates is None else _union(row, other)
            both = dict(row.true)
            for label, share in other.true.items():
                both[label] = max(share, both.get(label, 0.0))
            avoid = (row.avoid | other.avoid) - both.keys()
            row = replace(row, text=joined(row.text, other.text), true=both, candidates=own, avoid=avoid)
        if draw.random() < chances.examples and not row.examples:
            count = draw.randint(1, chances.max_examples)
            others = [rows[place] for place in draw.sample(range(len(rows)), min(count + 2, len(rows)))]
            shown = [Example(other.text, tuple(other.true)) for other in others if other.text not in texts][:count]
            row = replace(row, examples=tuple(shown))
        return row


def _union(row: TrainingRow, other: TrainingRow) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*(row.candidates or row.true), *(other.candidates or other.true))))
