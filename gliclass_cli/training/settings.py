"""Everything that a training run is told: defaults, checks, and the TOML file beside the trained weights."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, get_args, get_type_hints

from gliclass_cli.errors import UsageProblem

Method = Literal["supervised", "ppo"]
NegativeSource = Literal["candidates", "batch", "pool"]
Freeze = Literal["embeddings", "encoder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is learnt, and from which rows."""

    method: Annotated[Method, "supervised, or ppo, for rows with several right labels"] = "supervised"
    multi: Annotated[bool | None, "whether rows have several right labels; auto: if one of them has"] = None
    shots: Annotated[int, "rows drawn for each label; 0: all rows"] = 0
    seed: Annotated[int, "seed of all random choices"] = 0
    max_length: Annotated[int, "tokens of one input; 0: 256 for a bi-encoder (128 with shots), else 512"] = 0
    allow_empty: Annotated[bool, "take rows to which no candidate applies"] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimisation:
    """How weights move: AdamW; learning rates rise at first, then fall to 0 in a line."""

    epochs: Annotated[float, "passes over the rows"] = 3.0
    steps: Annotated[int, "steps, instead of epochs; 0: as many as the epochs have"] = 0
    most_steps: Annotated[int, "the most steps that epochs may come to; 0: any number"] = 0
    batch_size: Annotated[int, "texts of a batch"] = 16
    accumulation: Annotated[int, "batches whose gradients are added up for one step"] = 1
    encoder_lr: Annotated[float, "learning rate of the encoders"] = 1e-5
    others_lr: Annotated[float, "learning rate of everything else"] = 3e-5
    weight_decay: Annotated[float, "decay of weights, biases and norms excepted"] = 0.01
    warmup: Annotated[float, "share of the steps in which learning rates rise"] = 0.05
    dropout: Annotated[
        bool, "whether dropout acts, which it never does in PPO; without it a step is a fifth faster"
    ] = True
    max_grad_norm: Annotated[float, "length that gradients are cut to"] = 1.0
    freeze: Annotated[tuple[Freeze, ...], "what stays as it is: embeddings, encoder"] = ()
    freeze_layers: Annotated[int, "lowest layers of each backbone that stay as they are, with the embeddings"] = 0
    layer_decay: Annotated[float, "learning rate of a backbone's layer, as a share of the next higher one's"] = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What is made small."""

    loss: Annotated[
        tuple[str, ...],
        "bce, focal, softmax and contrastive, each with a weight if wanted (bce=4), or auto: softmax where each row "
        "has one right label, else bce",
    ] = ("auto",)
    focal_alpha: Annotated[
        float, "weight of right labels in the focal loss, of wrong ones 1 less it; below 0: off"
    ] = -1.0
    focal_gamma: Annotated[float, "how much the focal loss leaves easy labels aside"] = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Which labels a text is shown."""

    max_labels: Annotated[int, "labels that a text is shown, right ones always"] = 64
    negatives: Annotated[
        tuple[NegativeSource, ...],
        "where wrong labels come from, in this order, until there are max_labels: candidates (the row's own), batch "
        "(right labels of the other rows), pool (all labels of the file); none: candidates, or batch and pool for rows "
        "that bring none",
    ] = ()
    shuffle_labels: Annotated[bool, "show labels in random order"] = True
    source_weights: Annotated[
        tuple[str, ...],
        "how often the rows of a file come in one pass over all (name=0.5, name=0), by its name without folder and "
        "endings, or by the first pattern that fits (news_*=2); files that are not named: once",
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Probabilities, for each row each time, of changes that leave it right (paper, section 4)."""

    label_removal: Annotated[float, "take labels away, never the last right one"] = 0.0
    label_addition: Annotated[float, "add up to 5 wrong labels of the file"] = 0.0
    text_addition: Annotated[float, "put another row's text behind the text, its right labels with it"] = 0.0
    description: Annotated[float, "add a description of --label-info, for each label"] = 0.0
    synonym: Annotated[float, "say a label by a synonym of --label-info, for each label of a batch"] = 0.0
    examples: Annotated[float, "show other rows as solved examples"] = 0.0
    max_examples: Annotated[int, "solved examples at most"] = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Watching:
    """When the model is measured and saved."""

    eval_every: Annotated[int, "steps between measurements on the dev file; 0: ten times a run"] = 0
    patience: Annotated[int, "measurements without gain before the run stops; 0: never"] = 0
    save_every: Annotated[int, "steps between checkpoints; 0: every five minutes"] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters."""

    lora: Annotated[bool, "train adapters only"] = False
    lora_rank: Annotated[int, "rank"] = 16
    lora_alpha: Annotated[float, "weight, divided by the rank"] = 32.0
    lora_dropout: Annotated[float, "share of an adapter's inputs that are dropped"] = 0.0
    lora_targets: Annotated[tuple[str, ...], "ends of names of linear layers; none: all"] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PpoSettings:
    """Proximal policy optimisation over labels; a coefficient of 0 is off, and costs nothing."""

    reward: Annotated[tuple[str, ...], "f1, jaccard and accuracy of a text's labels, with weights (f1=2)"] = ("f1",)
    clip: Annotated[float, "how far a ratio of probabilities may go from 1"] = 0.2
    inner_steps: Annotated[int, "steps on the same actions"] = 2
    kl: Annotated[float, "weight of the divergence from the model at the start"] = 0.1
    entropy: Annotated[float, "weight of a bonus for being undecided"] = 0.0
    value_lr: Annotated[float, "learning rate of the value head"] = 1e-3
    value_weight: Annotated[float, "weight of the value's squared error"] = 1.0
    normalize_advantages: Annotated[bool, "advantages of a batch to mean 0 and deviation 1"] = True
    ppo_focal_gamma: Annotated[float, "how much labels that are easy to get right count less"] = 0.0


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
    "most_steps": 150,
    "encoder_lr": 1e-4,
    "others_lr": 1e-3,
    "warmup": 0.1,
    "freeze": ("embeddings",),
}
# For adapters, whose weights begin at nothing.
LORA: Mapping[str, Any] = {"encoder_lr": 1e-3, "others_lr": 1e-3}
FEW_SHOT_LORA: Mapping[str, Any] = {"encoder_lr": 2e-3}
# The paper's learning rates for PPO.
PPO: Mapping[str, Any] = {"encoder_lr": 2e-6, "others_lr": 3e-6, "epochs": 1.0}

_GROUPS = {item.name: get_type_hints(TrainSettings)[item.name] for item in fields(TrainSettings)}
_HINTS = {name: (group, hint) for group, kind in _GROUPS.items() for name, hint in get_type_hints(kind).items()}
_POSITIVE = ("epochs", "batch_size", "accumulation", "max_labels", "lora_rank", "lora_alpha", "clip",
             "inner_steps", "max_grad_norm", "max_examples")  # fmt: skip
_SHARES = ("warmup", "layer_decay", "label_removal", "label_addition", "text_addition", "description", "synonym",
           "examples", "lora_dropout")  # fmt: skip
_ANY_SIGN = ("focal_alpha", "seed")
_LARGEST = 1e9


def describe_settings() -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Yield what each group is about, and its settings: name, default as in TOML, and what it says."""
    for kind in _GROUPS.values():
        hints = get_type_hints(kind, include_extras=True)
        about = (kind.__doc__ or "").strip()
        yield about, [(item.name, _spelled(item.default), get_args(hints[item.name])[1]) for item in fields(kind)]


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
    if checked.get("lora") and checked.get("shots"):
        suited |= FEW_SHOT_LORA
    if checked.get("method") == "ppo":
        suited |= PPO
    if "epochs" in checked:
        suited.pop("most_steps", None)
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
    except (tomllib.TOMLDecodeError, RecursionError) as error:
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
    except (tomllib.TOMLDecodeError, RecursionError):
        parsed = value
    name = name.strip().replace("-", "_")
    return name, _checked(name, parsed)


def to_tables(settings: TrainSettings) -> dict[str, dict[str, Any]]:
    """Return settings as tables of TOML."""
    return {
        group: {item.name: _plain(getattr(getattr(settings, group), item.name)) for item in fields(kind)}
        for group, kind in _GROUPS.items()
    }


def parse_weights(items: tuple[str, ...], known: tuple[str, ...], what: str, *, zero: bool = False) -> dict[str, float]:
    """Read parts with weights, ``name`` or ``name=0.5``; ``zero``: a weight may be 0. Raises UsageProblem."""
    weights: dict[str, float] = {}
    for item in items:
        name, equals, number = item.partition("=")
        if name.strip() in weights:
            raise UsageProblem(f"{what} {item!r}: {name.strip()} is given twice")
        try:
            weights[name.strip()] = float(number) if equals else 1.0
        except ValueError as error:
            raise UsageProblem(f"{what} {item!r}: {number!r} is no number") from error
        if name.strip() not in known:
            raise UsageProblem(f"{what} {item!r}: known are {', '.join(known)}")
        if not (0 < weights[name.strip()] < 1e6 or (zero and weights[name.strip()] == 0)):
            raise UsageProblem(f"{what} {item!r}: a weight is {'0 or more' if zero else 'above 0'}, and below 1e6")
    return weights


def _spelled(value: Any) -> str:
    return json.dumps(_plain(value))


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
        return hint(_number(name, value))
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
    least = -_LARGEST if name in _ANY_SIGN else 0
    if not least <= value < _LARGEST or (name in _POSITIVE and value <= 0):
        lower = "above 0" if name in _POSITIVE else f"{least:g} or more"
        raise UsageProblem(f"setting {name} is {str(value)[:20]}; it must be {lower}, and below {_LARGEST:g}")
    if name in _SHARES and value > 1:
        raise UsageProblem(f"setting {name} is {value}; it must be from 0 to 1")
    return value
