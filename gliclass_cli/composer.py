"""Puts texts and labels together, by token id, the way each architecture reads them.

Labels are never cut. What a prompt has no room for is cut from the text, or the text is read in windows; labels that
leave no room for a text are split into groups. With ``[CLS]``, ``[SEP]`` for what the tokenizer puts around an input
and ``<<...>>`` for the model's own tokens:

    uni-encoder          [CLS] <<LABEL>> l1 <<LABEL>> l2 ... <<SEP>> task text <<EXAMPLE>> ... <<SEP>> [SEP]
      text first         [CLS] text <<LABEL>> l1 <<LABEL>> l2 ... <<SEP>> task <<EXAMPLE>> ... <<SEP>> [SEP]
    bi-encoder           [CLS] task text [SEP]                 and each label by itself: [CLS] l1 [SEP]
    bi-encoder-fused     [CLS] task <<LABEL>> <<LABEL>> ... <<SEP>> text <<EXAMPLE>> ... <<SEP>> [SEP]
      text first         [CLS] text task <<LABEL>> <<LABEL>> ... <<SEP>> <<EXAMPLE>> ... <<SEP>> [SEP]
    encoder-decoder      text <<EXAMPLE>> ... <<SEP>> </s>     and <<LABEL>> l1 <<LABEL>> l2 ... <<SEP>> task </s>
    decoder-kv           task <<EXAMPLE>> ... <<SEP>> text <<SEP>> l1 <<LABEL>> l2 <<LABEL>> ... <<SEP>>

A bi-encoder reads an example by itself too, as a text; its label moves towards it (see ``prototypes.py``).
"""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gliclass_cli.checkpoint import BI_ENCODERS, ENCODER_DECODERS
from gliclass_cli.decoding import Floats
from gliclass_cli.errors import UsageProblem
from gliclass_cli.labels import LabelProblem, LabelSet
from gliclass_cli.model_folder import ModelFolder
from gliclass_cli.prompts import Example, Reading, groups, joined, label_orders, windows, word_example, word_label
from gliclass_cli.prototypes import teachable
from gliclass_cli.tokens import Ids, Tokenizer

# Beside the labels there is always room for a text of so many tokens, or for half of a shorter input.
LEAST_TEXT = 32
_MOST_OVERLAP = 64


@dataclass(frozen=True, slots=True, eq=False)
class LabelGroup:
    """Labels that are read together. ``columns`` (C,) says which of the label set they are, in their order here.

    ``ids`` is their part of the prompt; where labels are read by themselves, ``inputs`` (C) holds the input of each, in
    all wordings, and ``vectors`` (C, D) what the label encoder made of them; examples may add ``shifts`` (C,) to their
    logits.
    """

    columns: NDArray[np.int64]
    ids: Ids
    inputs: tuple[tuple[Ids, ...], ...] = ()
    vectors: Any = None
    shifts: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """Examples that a bi-encoder reads as texts.

    ``inputs`` are those of all examples, the same tuple for every label set; ``chosen`` (N,) says which of them carry
    labels of the set, and ``carried`` (N, K) which labels.
    """

    inputs: tuple[Ids, ...]
    chosen: NDArray[np.int64]
    carried: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class PreparedLabels:
    """A label set as the model reads it; ``room``: tokens that are left for a text beside the longest group."""

    labels: LabelSet
    groups: tuple[LabelGroup, ...]
    room: int
    split: int  # groups that hold the set once; more than one where it does not fit into one prompt
    shown: Shown | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One input of the model, and the labels it is scored against; ``window`` counts those of one text.

    ``pieces`` are shared with other prompts: a long text has many, of which few are computed at a time.
    """

    pieces: tuple[Ids, ...]
    group: LabelGroup
    window: int = 0

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    @property
    def ids(self) -> Ids:
        """The input itself (L,)."""
        return np.concatenate(self.pieces)


@dataclass(frozen=True, slots=True)
class Composed:
    """The prompts of one text; ``tokens``: the length of its longest prompt, had nothing been cut to ``limit``."""

    prompts: list[Prompt]
    labels: PreparedLabels
    windows: int
    tokens: int
    limit: int
    too_long: bool


@dataclass(frozen=True, slots=True)
class _Marks:
    """The model's own tokens, each as an array of one id."""

    label: Ids
    separator: Ids
    example: Ids | None


@dataclass(frozen=True, slots=True)
class _Fixed:
    """What stands in every prompt: the task where it has a piece of its own, the examples, and the room they take."""

    task: Ids
    examples: Ids
    length: int


class Composer:
    """Composes prompts for one model. It may be used from several threads at once."""

    def __init__(
        self,
        folder: ModelFolder,
        reading: Reading | None = None,
        *,
        slots: int | None = None,
        length: int | None = None,
    ) -> None:
        """Load the tokenizers. ``slots``, ``length``: the most labels and tokens that a fixed graph takes.

        Raises:
            ModelUnusable: a tokenizer is missing, broken, or not the model's.
            UsageProblem: the model reads no examples, or task and examples leave no room for a text.
        """
        self.reading = reading = reading or Reading()
        self.folder = folder
        self.architecture = folder.config.architecture
        self.max_length = min(length or folder.positions, reading.max_length or folder.max_length)
        self._slots = slots
        self._templates = (reading.template,) if reading.template else folder.label_templates
        config = folder.config
        control = (config.class_token_index, config.text_token_index, config.example_token_index)
        self.tokenizer = Tokenizer(folder.tokenizer, control)
        tied = folder.label_tokenizer == folder.tokenizer
        self._label_tokenizer = self.tokenizer if tied else Tokenizer(folder.label_tokenizer)
        self._marks = None if self.architecture == "bi-encoder" else self._find_marks()
        self._read_task()

    def with_task(self, prompt: str, examples: tuple[Example, ...] = ()) -> "Composer":
        """Return a composer for another task and other examples. Raises UsageProblem, as making one does."""
        other = copy(self)
        other.reading = replace(self.reading, prompt=prompt, examples=examples)
        other._read_task()
        return other

    @property
    def reads_examples(self) -> bool:
        """Whether the model was made to read solved examples beside a text."""
        return self._marks is not None and self._marks.example is not None

    def labels(self, labels: LabelSet) -> PreparedLabels:
        """Tokenise a label set, and split it into groups that fit.

        Raises:
            LabelProblem: a label is too long for the model; it would have to be cut.
        """
        if self.architecture in BI_ENCODERS:
            inputs = self._label_inputs(labels)
            sizes = [0 if self.architecture == "bi-encoder" else 1] * len(inputs)
        else:
            worded = self.worded(labels, self._templates[0])
            inputs = [(ids,) for ids in self.tokenizer.encode(worded, first=False)]
            sizes = [len(ids) + 1 for (ids,) in inputs]
        room = self._label_room()
        for name, size in zip(labels.names, sizes, strict=True):
            if size > room:
                raise LabelProblem(_too_long(name, size, max(0, room), self.max_length < self.folder.positions))
        split = groups(sizes, room, self._slots)
        permutations = 1 if self.architecture == "bi-encoder" else self.reading.permutations
        composed = tuple(
            self._group([members[i] for i in order], inputs)
            for members in split
            for order in label_orders(len(members), permutations)
        )
        longest = 0 if self.architecture in ENCODER_DECODERS else max(len(group.ids) for group in composed)
        room = max(1, self._text_room() - longest)
        return PreparedLabels(labels, composed, room, len(split), self._shown(labels))

    @property
    def labels_apart(self) -> bool:
        """Whether labels are read by themselves, not beside a text."""
        return self.architecture in BI_ENCODERS

    @property
    def label_room(self) -> int:
        """Return how many tokens there are for a label, or where they are read together for a group of labels."""
        return self.folder.positions if self.labels_apart else max(0, self._label_room())

    def label_tokens(self, labels: LabelSet) -> list[int]:
        """Return how many tokens each label has in its longest wording, with those around it; none is refused."""
        tokenizer, around = self.tokenizer, 1
        if self.labels_apart:
            tokenizer = self._label_tokenizer
            around = len(tokenizer.prefix) + len(tokenizer.suffix)
        wordings = (self.worded(labels, template) for template in self._templates)
        sizes = [[len(ids) for ids in tokenizer.encode(worded, first=self.labels_apart)] for worded in wordings]
        return [max(several) + around for several in zip(*sizes, strict=True)]

    def readable(self, ids: Ids, *, label: bool = False) -> str:
        """Return an input as text, the model's own tokens included; ``label``: an input of the label encoder."""
        return (self._label_tokenizer if label else self.tokenizer).decode(ids)

    def check_examples(self, labels: PreparedLabels) -> None:
        """Raise UsageProblem where a bi-encoder's examples tell none of the labels from another."""
        if labels.shown is None or teachable(labels.shown.carried):
            return
        names = ", ".join(labels.labels.names[:3]) + (", ..." if len(labels.labels) > 3 else "")
        if not len(labels.shown.chosen):
            raise UsageProblem(
                f"the examples' labels match none of the labels ({names}): write them the same, or leave --examples out"
            )
        raise UsageProblem(
            f"the examples do not tell the labels ({names}) apart: give examples of at least two of them, or leave "
            "--examples out"
        )

    def worded(self, labels: LabelSet, template: str) -> list[str]:
        """Return labels as the model reads them in a wording."""
        pairs = zip(labels.names, labels.descriptions, strict=True)
        return [word_label(template, name, description) for name, description in pairs]

    def compose(self, texts: Sequence[str], labels: PreparedLabels) -> list[Composed]:
        """Tokenise texts and put them together with their labels."""
        task, whole = 0, texts
        if self.reading.prompt and self._task_before_text:
            whole = [self._with_task(text) for text in texts]
        composed = []
        for ids in self.tokenizer.encode(whole, first=self._text_is_first):
            if whole is not texts:
                task = self._task_length(ids)
            composed.append(self._compose_one(ids[:task], ids[task:], labels))
        return composed

    def _read_task(self) -> None:
        """Tokenise what stands in every prompt."""
        glued = self.reading.prompt if self._task_before_text else ""
        self._task = self.tokenizer.encode([glued], first=self._text_is_first)[0]  # in one piece with the text
        self._fixed = self._compose_fixed()
        self._shown_inputs = self._compose_shown() if self.architecture == "bi-encoder" else ()

    def _compose_shown(self) -> tuple[Ids, ...]:
        """Return the examples as a bi-encoder reads texts, cut where they are too long."""
        examples, task = self.reading.examples, self.reading.prompt
        texts = [self._with_task(example.text) if task else example.text for example in examples]
        room = max(1, self._text_room())
        around = self.tokenizer.prefix, self.tokenizer.suffix
        return tuple(
            np.concatenate((around[0], ids[:room], around[1])) for ids in self.tokenizer.encode(texts, first=True)
        )

    def _shown(self, labels: LabelSet) -> Shown | None:
        """Return which examples carry which of the labels; None where the model reads no examples by themselves."""
        if not self._shown_inputs:
            return None
        column = {name: number for number, name in enumerate(labels.names)}
        carried = np.zeros((len(self._shown_inputs), len(labels)), dtype=np.bool_)
        for row, example in enumerate(self.reading.examples):
            for label in example.labels:
                if label.strip() in column:
                    carried[row, column[label.strip()]] = True
        chosen = np.flatnonzero(carried.any(axis=1))
        return Shown(self._shown_inputs, chosen, carried[chosen])

    def _with_task(self, text: str) -> str:
        """Return task and text as one; bi-encoders read a space between them, whatever the task ends in."""
        task = self.reading.prompt
        return f"{task} {text}" if self.architecture == "bi-encoder" else joined(task, text)

    def _compose_one(self, task: Ids, text: Ids, labels: PreparedLabels) -> Composed:
        room = max(1, labels.room - len(task))
        tokens = self.max_length - room + len(text)
        too_long = len(text) > room
        if too_long and self.reading.long == "chunk":
            spans = windows(len(text), room, min(_MOST_OVERLAP, room // 4))
        else:
            spans = [(0, min(room, len(text)))]
        prompts = [
            Prompt(self._pieces((task, part), group), group, number)
            for number, part in enumerate(text[start:end] for start, end in spans)
            for group in labels.groups
        ]
        return Composed(prompts, labels, len(spans), tokens, self.max_length, too_long)

    @property
    def _task_before_text(self) -> bool:
        """Whether the task stands right before the text, in one piece with it."""
        if self.architecture == "bi-encoder":
            return True
        if self.architecture == "decoder-kv":
            return not self.reading.examples
        return self.architecture == "uni-encoder" and self.folder.config.prompt_first

    @property
    def _text_is_first(self) -> bool:
        """Whether nothing but the tokenizer's own tokens stands before the text."""
        if self.architecture in ("uni-encoder", "bi-encoder-fused"):
            return not self.folder.config.prompt_first
        return self.architecture != "decoder-kv" or not self.reading.examples

    def _pieces(self, text: tuple[Ids, ...], group: LabelGroup) -> tuple[Ids, ...]:
        """Return the pieces of one input."""
        before, after, fixed = self.tokenizer.prefix, self.tokenizer.suffix, self._fixed
        if self._marks is None:
            return (before, *text, after)
        separator = self._marks.separator
        if self.architecture in ENCODER_DECODERS:
            return (before, *text, fixed.examples, after)
        if self.architecture == "decoder-kv":
            return (fixed.task, fixed.examples, *text, group.ids)
        fused = self.architecture == "bi-encoder-fused"
        head = (fixed.task, group.ids, separator) if fused else (group.ids, separator, fixed.task)
        pieces = (*head, *text) if self.folder.config.prompt_first else (*text, *head)
        return (before, *pieces, fixed.examples, after)

    def _group(self, members: Sequence[int], inputs: Sequence[tuple[Ids, ...]]) -> LabelGroup:
        """Return the labels ``members`` as a group."""
        columns = np.array(members, dtype=np.int64)
        chosen = [inputs[i] for i in members]
        if self._marks is None:
            return LabelGroup(columns, _EMPTY, tuple(chosen))
        mark, separator = self._marks.label, self._marks.separator
        if self.architecture == "bi-encoder-fused":
            return LabelGroup(columns, np.repeat(mark, len(members)), tuple(chosen))
        if self.architecture == "decoder-kv":
            after = _flat((ids, mark) for (ids,) in chosen)
            return LabelGroup(columns, np.concatenate((separator, after, separator)))
        before = _flat((mark, ids) for (ids,) in chosen)
        if self.architecture in ENCODER_DECODERS:
            around = self.tokenizer.prefix, self.tokenizer.suffix
            before = np.concatenate((around[0], before, separator, self._fixed.task, around[1]))
        return LabelGroup(columns, before)

    def _label_inputs(self, labels: LabelSet) -> list[tuple[Ids, ...]]:
        """Return the inputs of the label encoder: of each label all wordings."""
        return list(zip(*(self._worded_inputs(labels, template) for template in self._templates), strict=True))

    def _worded_inputs(self, labels: LabelSet, template: str) -> list[Ids]:
        tokenizer, worded = self._label_tokenizer, self.worded(labels, template)
        inputs = [
            np.concatenate((tokenizer.prefix, ids, tokenizer.suffix)) for ids in tokenizer.encode(worded, first=True)
        ]
        for text, ids in zip(worded, inputs, strict=True):
            if len(ids) > self.folder.positions:
                raise LabelProblem(_too_long(text, len(ids), self.folder.positions))
        return inputs

    def _text_room(self) -> int:
        """Return how many tokens are left for a text, its task and the labels."""
        if self.architecture == "decoder-kv":
            return self.max_length - self._fixed.length
        around = len(self.tokenizer.prefix) + len(self.tokenizer.suffix)
        own = 0 if self._marks is None or self.architecture in ENCODER_DECODERS else 1  # <<SEP>>
        return self.max_length - around - own - self._fixed.length

    def _label_room(self) -> int:
        """Return how many tokens a group of labels may take."""
        least = min(LEAST_TEXT, self.max_length // 2)
        if self.architecture in ENCODER_DECODERS:
            around = len(self.tokenizer.prefix) + len(self.tokenizer.suffix)
            return self.max_length - around - 1 - len(self._fixed.task)
        separators = 2 if self.architecture == "decoder-kv" else 0
        return self._text_room() - len(self._task) - separators - least

    def _compose_fixed(self) -> _Fixed:
        """Tokenise the task where it is a piece of its own, and the examples. Raises UsageProblem."""
        reading = self.reading
        task = examples = _EMPTY
        if reading.prompt and not self._task_before_text:
            fused = self.architecture == "bi-encoder-fused"
            space = " " if fused else ""  # between the task and the labels
            first = self.architecture == "decoder-kv" or (fused and self.folder.config.prompt_first)
            task = self.tokenizer.encode([reading.prompt + space], first=first)[0]
        if reading.examples:
            examples = self._compose_examples()
        inside = self.architecture in ENCODER_DECODERS
        fixed = _Fixed(task, examples, len(examples) + (0 if inside else len(task)))
        taken = fixed.length + len(self._task)
        if taken and self.max_length - taken < min(2 * LEAST_TEXT, self.max_length // 2):
            raise UsageProblem(
                f"the task and the examples take {taken} tokens; the model reads {self.max_length} in all: "
                "shorten them, or raise --max-length"
            )
        return fixed

    def _compose_examples(self) -> Ids:
        if self._marks is None:
            self._check_dot_product()
            return _EMPTY
        if self._marks.example is None:
            raise UsageProblem(
                "this model was made without examples (it has no token <<EXAMPLE>>); leave --examples out"
            )
        worded = [word_example(example) for example in self.reading.examples]
        pieces = self.tokenizer.encode(worded, first=False)
        mark = self._marks.example
        return np.concatenate((_flat((mark, ids) for ids in pieces), self._marks.separator))

    def _check_dot_product(self) -> None:
        folder = self.folder
        if folder.config.scorer != "simple" or (folder.onnx is not None and folder.onnx.scorer is not None):
            raise UsageProblem(
                "examples move a bi-encoder's labels where a dot product compares them with a text; this model has "
                f"a scorer of its own ({folder.config.scorer}); leave --examples out"
            )

    def _task_length(self, ids: Ids) -> int:
        """Return how many of the ids of task and text together are the task's."""
        alone = self._task
        most = min(len(alone), len(ids))
        different = np.flatnonzero(alone[:most] != ids[:most])
        return int(different[0]) if len(different) else most

    def _find_marks(self) -> _Marks:
        """Find the model's own tokens by id; the reference looks for these names."""
        config, tokenizer = self.folder.config, self.tokenizer
        for role in ("class_token_index", "text_token_index"):
            if tokenizer.token(getattr(config, role)) is None:
                raise self.folder.unusable(f"the tokenizer has no token {getattr(config, role)}, which is {role}")
        separator = tokenizer.number("<<SEP>>")
        example = tokenizer.number("<<EXAMPLE>>")
        if example is None and tokenizer.token(config.example_token_index) is not None:
            example = config.example_token_index
        return _Marks(
            np.array([config.class_token_index], dtype=np.int64),
            np.array([config.text_token_index if separator is None else separator], dtype=np.int64),
            None if example is None else np.array([example], dtype=np.int64),
        )


def combine(composed: Composed, logits: Sequence[Floats], *, multi: bool) -> Floats:
    """Return the logits (L,) of a text from those of its prompts.

    Orders of the labels are averaged. Of several windows a label of its own (``multi``) takes the best one: something
    is said somewhere. Where labels compete, windows are averaged: the text as a whole is about something.
    """
    if len(composed.prompts) == 1 and len(composed.prompts[0].group.columns) == len(logits[0]):
        only = logits[0]
        columns = composed.prompts[0].group.columns
        ordered = np.empty_like(only)
        ordered[columns] = only
        return ordered
    shape = composed.windows, len(composed.labels.labels)
    total, count = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    for prompt, values in zip(composed.prompts, logits, strict=True):
        total[prompt.window, prompt.group.columns] += values
        count[prompt.window, prompt.group.columns] += 1
    averaged = total / count
    best: Floats = averaged.max(axis=0) if multi else averaged.mean(axis=0)
    return best


_EMPTY = np.empty(0, dtype=np.int64)


def _flat(pieces: Iterable[tuple[Ids, Ids]]) -> Ids:
    return np.concatenate([part for pair in pieces for part in pair] or [_EMPTY])


def _too_long(name: str, size: int, room: int, can_be_more: bool = False) -> str:
    shown = name if len(name) <= 40 else f"{name[:39]}…"
    more = ", or raise --max-length" if can_be_more else ""
    return f"label {shown!r} has {size} tokens; labels are never cut, and there is room for {room}: shorten it{more}"
