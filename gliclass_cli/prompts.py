"""What the model reads: how texts, labels, a task and examples are worded, and how long texts are read."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gliclass_cli.errors import UsageProblem

LABEL_SLOT = "{label}"
LongTexts = Literal["truncate", "chunk", "error"]
_EXAMPLE = '{"text": "I was charged twice", "labels": ["billing"]}'


@dataclass(frozen=True, slots=True)
class Example:
    """A text with its right labels, shown to the model beside the text to classify."""

    text: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """How texts and labels are read; None stands for the model's own.

    ``prompt``: a task description before each text. ``max_length``: tokens of one input, all included. ``long``:
    what happens to longer texts. ``permutations``: how many orders of the labels the logits are averaged over.
    """

    template: str | None = None
    prompt: str = ""
    examples: tuple[Example, ...] = ()
    max_length: int | None = None
    long: LongTexts = "truncate"
    permutations: int = 1


def word_label(template: str, name: str, description: str | None) -> str:
    """Put a label, and its description if it has one, into the model's label template.

    The template is never a format string: braces and percent signs in a label stay what they are.
    """
    label = f"{name}: {description}" if description else name
    return template.replace(LABEL_SLOT, label)


def word_example(example: Example) -> str:
    """Return an example as models are trained to read it, after its ``<<EXAMPLE>>`` token."""
    return f"{example.text} \nLabels:\n {', '.join(example.labels)}"


def parse_examples(text: str, source: str) -> tuple[Example, ...]:
    """Read examples from JSON Lines: an object with ``text`` and ``labels`` (or ``true_labels``, ``label``) a line.

    Raises:
        UsageProblem: says file and line of what is wrong.
    """
    examples = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                examples.append(_example(json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise UsageProblem(f"{source}:{number}: {error}") from error
    if not examples:
        raise UsageProblem(f"{source}: no examples; each line is one: {_EXAMPLE}")
    return tuple(examples)


def _example(row: Any) -> Example:
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise ValueError(f"an object with a text belongs here, as {_EXAMPLE}")
    labels = next((row[name] for name in ("labels", "true_labels", "label") if row.get(name) is not None), None)
    labels = [labels] if isinstance(labels, str) else labels
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"the example has no labels, as {_EXAMPLE}")
    return Example(row["text"], tuple(labels))


def joined(*parts: str) -> str:
    """Join parts of a text with a space, where none ends in white space already."""
    text = ""
    for part in parts:
        text += part if not text or not part or text[-1].isspace() else f" {part}"
    return text


def label_orders(labels: int, permutations: int) -> list[list[int]]:
    """Return ``permutations`` orders of so many labels: the given one, then rotations, every other one reversed.

    Rotations bring each label to the front, the middle and the back; reversing changes its neighbours. There are
    fewer orders than asked for where the labels have no more.
    """
    rotations = [[*range(start, labels), *range(start)] for start in range(labels)]
    everything = [*rotations, *(order[::-1] for order in rotations)]
    if permutations >= len(everything):
        return [list(order) for order in dict.fromkeys(map(tuple, everything))]
    orders: dict[tuple[int, ...], None] = {}
    for turn in range(permutations):
        order = rotations[turn * labels // permutations]
        wanted = (order[::-1], order) if turn % 2 else (order, order[::-1])
        candidates = (tuple(candidate) for candidate in (*wanted, *everything))
        new = next((candidate for candidate in candidates if candidate not in orders), None)
        if new is not None:
            orders[new] = None
    return [list(order) for order in orders]


def windows(length: int, room: int, overlap: int) -> list[tuple[int, int]]:
    """Return begin and end of the windows of ``room`` tokens, overlapping by at least ``overlap``, that cover all."""
    if length <= room:
        return [(0, length)]
    step = max(1, room - overlap)
    starts = [*range(0, length - room, step), length - room]
    return [(start, start + room) for start in starts]


def groups(sizes: Sequence[int], room: int, most: int | None = None) -> list[list[int]]:
    """Split the indices of ``sizes``, in order, into as few groups as fit into ``room`` each, of ``most`` members.

    A size beyond ``room`` makes a group of its own.
    """
    split: list[list[int]] = []
    used = 0
    for index, size in enumerate(sizes):
        if split and used + size <= room and (most is None or len(split[-1]) < most):
            split[-1].append(index)
            used += size
        else:
            split.append([index])
            used = size
    return split
