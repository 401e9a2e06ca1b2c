"""Everything that a training run is told: defaults, checks, and the TOML file beside the trained weights."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from gliclass_cli.errors import UsageProblem

Method = Literal["supervised", "ppo"]
LossName = Literal["auto", "bce", "focal", "softmax", "contrastive"]
NegativeSource = Literal["candidates", "batch", "pool"]
Freeze = Literal["embeddings", "encoder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is learnt, and from which rows."""

    method: Method = "supervised"
    multi: bool | None = None  # None: by the rows, several right labels in one of them
    shots: int = 0  # rows drawn for each label; 0: all rows
    seed: int = 0
    max_length: int = 0  # tokens of one input; 0: 256 for a bi-encoder, else 512
    allow_empty: bool = False  # rows without a right label: none of their candidates is


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimisation:
    """How weights move. Learning rates rise over the first share ``warmup`` of the steps, then fall to 0 in a line."""

    epochs: float = 3.0
    steps: int = 0  # 0: as many as the epochs have, but at most
    most_steps: int = 0  # 0: any number
    batch_size: int = 16
    accumulation: int = 1  # batches whose gradients are added up for one step
    encoder_lr: float = 1e-5
    others_lr: float = 3e-5
    weight_decay: float = 0.01
    warmup: float = 0.05
    max_grad_norm: float = 1.0
    freeze: tuple[Freeze, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What is made small: terms with their weights, ``bce=4`` and ``softmax=0.25`` for example.

    ``auto`` is softmax where each row has one right label, else bce. ``focal_alpha`` below 0 is off.
    """

    loss: tuple[str, ...] = ("auto",)
    focal_alpha: float = -1.0
    focal_gamma: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Which labels a text is shown.

    ``negatives``: where wrong labels come from, in this order, until there are ``max_labels``: the row's own
    candidates, the right labels of the other rows of the batch, all labels of the file. Empty: ``candidates``, or
    ``batch`` and ``pool`` for rows that bring none.
    """

    max_labels: int = 64
    negatives: tuple[NegativeSource, ...] = ()
    shuffle_labels: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Probabilities, for each row each time, of changes that keep it right (paper, section 4)."""

    label_removal: float = 0.0
    label_addition: float = 0.0
    text_addition: float = 0.0
    description: float = 0.0
    synonym: float = 0.0
    examples: float = 0.0
    max_examples: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Watching:
    """When the model is measured and saved, in steps; 0: ten times a run. ``patience`` 0: never stop early."""

    eval_every: int = 0
    patience: int = 0
    save_every: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters; ``lora_targets`` are ends of module names, none: those that suit the model."""

    lora: bool = False
    lora_rank: int = 16
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PpoSettings:
    """Proximal policy optimisation over labels; a coefficient of 0 is off, and costs nothing.

    ``reward``: parts with their weights, of f1, jaccard and accuracy.
    """

    reward: tuple[str, ...] = ("f1",)
    clip: float = 0.2
    inner_steps: int = 2
    kl: float = 0.1
    entropy: float = 0.0
    value_lr: float = 1e-3
    value_weight: float = 1.0
    normalize_advantages: bool = True
    ppo_focal_gamma: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """All settings of a run, in the groups that the TOML file has as tables."""

    task: Task = field(default_factory=Task)
    optimisation: Optimisation = field(default_factory=Optimisation)
    loss: Loss = field(default_factory=Loss)
    sampling: Sampling = field(default_factory=Sampling)
    augmentation: Augmentation = field(default_factory=Augmentation)
    watching: Watching = field(default_factory=Watching)
    lora: LoraSettings = field(default_factory=LoraSettings)
    ppo: PpoSettings = field(default_factory=PpoSettings)


# Of 8 rows a label or so: no tuning needed (scripts/compare_few_shot.py).
FEW_SHOT: Mapping[str, Any] = {
    "epochs": 20.0,
    "most_steps": 200,
    "encoder_lr": 1e-4,
    "others_lr": 1e-3,
    "warmup": 0.1,
    "freeze": ("embeddings",),
}
# For adapters, whose weights begin at nothing.
LORA: Mapping[str, Any] = {"encoder_lr": 5e-4, "others_lr": 1e-3}
# The paper's learning rates for PPO.
PPO: Mapping[str, Any] = {"encoder_lr": 2e-6, "others_lr": 3e-6, "epochs": 1.0}

_GROUPS = {item.name: get_type_hints(TrainSettings)[item.name] for item in fields(TrainSettings)}
_HINTS = {name: (group, hint) for group, kind in _GROUPS.items() for name, hint in get_type_hints(kind).items()}
_POSITIVE = ("epochs", "batch_size", "accumulation", "max_labels", "lora_rank", "lora_alpha", "clip",
             "inner_steps", "max_grad_norm", "max_examples")  # fmt: skip
_SHARES = ("warmup", "label_removal", "label_addition", "text_addition", "description", "synonym", "examples",
           "lora_dropout")  # fmt: skip
_ANY_SIGN = ("focal_alpha", "seed")


def known_settings() -> tuple[str, ...]:
    """Return the names of all settings."""
    return tuple(_HINTS)


def make_settings(values: Mapping[str, Any]) -> TrainSettings:
    """Build settings from values by name, those that are not named at what suits few shots, LoRA or PPO.

    Raises:
        UsageProblem: a name is not known, or a value cannot be.
    """
    checked = {name: _checked(name, value) for name, value in values.items()}
    suited: dict[str, Any] = {}
    if checked.get("shots"):
        suited |= FEW_SHOT
    if checked.get("lora"):
        suited |= LORA
    if checked.get("method") == "ppo":
        suited |= PPO
    groups: dict[str, dict[str, Any]] = {group: {} for group in _GROUPS}
    for name, value in (suited | checked).items():
        groups[_HINTS[name][0]][name] = value
    return TrainSettings(**{group: _GROUPS[group](**found) for group, found in groups.items()})


def read_settings(text: str, source: str) -> dict[str, Any]:
    """Return the settings of a TOML file by name: at its top, or in the tables that ``to_toml`` writes.

    Raises:
        UsageProblem: not TOML, or a table or setting that is not known; names the file.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageProblem(f"{source}: not TOML: {error}") from error
    values: dict[str, Any] = {}
    for name, value in document.items():
        if name in ("run", *_GROUPS) and isinstance(value, dict):
            values |= {} if name == "run" else value
        else:
            values[name] = value
    for name, value in values.items():
        try:
            _checked(name, value)
        except UsageProblem as problem:
            raise UsageProblem(f"{source}: {problem}") from problem
    return values


def parse_setting(text: str) -> tuple[str, Any]:
    """Read ``NAME=VALUE`` of --set, the value as TOML or a plain word. Raises UsageProblem."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageProblem(f"--set {text!r}: NAME=VALUE belongs here, for example --set warmup=0.1")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    name = name.strip().replace("-", "_")
    return name, _checked(name, parsed)


def to_tables(settings: TrainSettings) -> dict[str, dict[str, Any]]:
    """Return settings as tables of TOML."""
    return {
        group: {item.name: _plain(getattr(getattr(settings, group), item.name)) for item in fields(kind)}
        for group, kind in _GROUPS.items()
    }


def with_multi(settings: TrainSettings, multi: bool) -> TrainSettings:
    """Return settings in which it is said whether rows have several right labels."""
    return replace(settings, task=replace(settings.task, multi=multi))


def parse_weights(items: tuple[str, ...], known: tuple[str, ...], what: str) -> dict[str, float]:
    """Read parts with weights, ``name`` or ``name=0.5``. Raises UsageProblem."""
    weights: dict[str, float] = {}
    for item in items:
        name, equals, number = item.partition("=")
        try:
            weights[name.strip()] = float(number) if equals else 1.0
        except ValueError as error:
            raise UsageProblem(f"{what} {item!r}: {number!r} is no number") from error
        if name.strip() not in known:
            raise UsageProblem(f"{what} {item!r}: known are {', '.join(known)}")
        if not 0 < weights[name.strip()] < 1e6:
            raise UsageProblem(f"{what} {item!r}: a weight is above 0")
    return weights


def _plain(value: Any) -> Any:
    if value is None:
        return "auto"
    return list(value) if isinstance(value, tuple) else value


def _checked(name: str, value: Any) -> Any:
    """Return a setting's value in its type. Raises UsageProblem."""
    if name not in _HINTS:
        raise UsageProblem(f"setting {name!r} is not known; known are {', '.join(_HINTS)}")
    hint = _HINTS[name][1]
    kinds = get_args(hint)
    if hint == bool | None:
        if value in (None, "auto"):
            return None
        hint = bool
    if hint is bool and isinstance(value, bool):
        return value
    if (hint is int and type(value) is int) or (hint is float and type(value) in (int, float)):
        return _number(name, hint(value))
    if hint is str and isinstance(value, str):
        return value
    if kinds and all(isinstance(kind, str) for kind in kinds) and value in kinds:  # a Literal
        return value
    if Ellipsis in kinds:
        items = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else (None,)
        choices = get_args(kinds[0])
        if all(isinstance(item, str) and (not choices or item in choices) for item in items):
            return items
        kinds = choices or ("a list of texts",)
    plain = {bool: "true or false", int: "a whole number", str: "a text"}
    needed = ", ".join(map(str, kinds)) if kinds else plain.get(hint, "a number")
    raise UsageProblem(f"setting {name} is {value!r}; it must be {needed}")


def _number(name: str, value: float) -> float:
    """Return a number that a setting can have. Raises UsageProblem."""
    least = -1e9 if name in _ANY_SIGN else 0
    if not least <= value < 1e9 or (name in _POSITIVE and value <= 0):
        raise UsageProblem(f"setting {name} is {value}; it must be {'above 0' if name in _POSITIVE else '0 or more'}")
    if name in _SHARES and value > 1:
        raise UsageProblem(f"setting {name} is {value}; it must be from 0 to 1")
    return value
