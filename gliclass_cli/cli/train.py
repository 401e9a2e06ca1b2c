"""``gliclass train``: fine-tune a model on rows with right labels."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gliclass_cli.cli.options import ComputeOptions, Format, LabelFileOptions, application, option
from gliclass_cli.cli.terminal import interruptible, is_terminal, say, width
from gliclass_cli.errors import ModelUnusable, UsageProblem
from gliclass_cli.files import STDIN, read_text_file

if TYPE_CHECKING:
    from gliclass_cli.training.rows import Source
    from gliclass_cli.training.run import Report
    from gliclass_cli.training.sampling import LabelInfo
    from gliclass_cli.training.settings import TrainSettings

EPILOG = """Examples:

  gliclass train tickets.jsonl --output my-model --shots 8

  gliclass train train.jsonl --dev dev.jsonl --output my-model --epochs 5 --patience 3

  gliclass train train.jsonl --model knowledgator/gliclass-base-v3.0 --lora --output my-adapter

  gliclass classify new.jsonl --labels labels.txt --model my-model"""

_LIBRARIES = ("torch", "transformers", "sklearn", "onnx", "peft", "tomli_w", "matplotlib")
# Options that are settings of the same name.
_SETTINGS = (
    "method",
    "shots",
    "seed",
    "epochs",
    "steps",
    "batch_size",
    "encoder_lr",
    "others_lr",
    "loss",
    "max_labels",
    "negatives",
    "max_length",
    "freeze",
    "patience",
    "lora",
    "lora_rank",
    "lora_alpha",
    "lora_targets",
    "allow_empty",
)


@dataclass(frozen=True, kw_only=True)
class DataOptions(LabelFileOptions):
    """The rows."""

    data: Annotated[
        list[str],
        typer.Argument(metavar="DATA", help="Rows with right labels, in any format that classify reads."),
    ]
    output: Annotated[str, option("-o", "--output", help="The new folder of the trained model.", metavar="DIR")]
    dev: Annotated[
        str | None,
        option("--dev", help="Rows to measure on during training; the weights that are best there are kept.",
               metavar="FILE"),
    ] = None  # fmt: skip
    text_field: Annotated[
        list[str] | None,
        option("-t", "--text-field", help="Field of the text, dotted if nested; repeated: joined. Default: text.",
               metavar="FIELD"),
    ] = None  # fmt: skip
    gold_field: Annotated[
        str | None,
        option("--gold-field", help="Field of the right labels: one, a list, or {label: confidence}. Default: the "
               "first of true_labels, gold, label, labels.", metavar="FIELD"),
    ] = None  # fmt: skip
    labels_field: Annotated[
        str | None,
        option("--labels-field", help="Field of the row's own candidates. Default: all_labels, else all labels met.",
               metavar="FIELD"),
    ] = None  # fmt: skip
    format: Annotated[
        Format | None, option("-f", "--format", help="Format of the rows. Default: by their name, else first byte.")
    ] = None
    allow_empty: Annotated[
        bool | None,
        option("--allow-empty", help="Take rows without a right label: none of their candidates is right."),
    ] = None
    label_info: Annotated[
        str | None,
        option("--label-info", help='JSON for augmentation: {label: {"descriptions": [...], "synonyms": [...]}}.',
               metavar="FILE"),
    ] = None  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ComputeOptions, DataOptions):
    """Everything that ``train`` takes; None: what suits the method."""

    shots: Annotated[
        int | None,
        option("--shots", help="Train on N rows of each label, drawn with --seed, with settings for so few.", min=1,
               metavar="N"),
    ] = None  # fmt: skip
    method: Annotated[str | None, option("--method", help="supervised, or ppo (multi-label).", metavar="NAME")] = None
    epochs: Annotated[
        float | None, option("--epochs", help="Passes over the rows; 3, with --shots 20.", metavar="X")
    ] = None
    steps: Annotated[int | None, option("--steps", help="Steps, instead of epochs.", min=1, metavar="N")] = None
    batch_size: Annotated[int | None, option("--batch-size", help="Texts of a batch; 16.", min=1, metavar="N")] = None
    encoder_lr: Annotated[
        float | None,
        option("--lr", help="Learning rate of the encoders; 1e-5, with --shots 1e-4, with --lora more.", metavar="X"),
    ] = None
    others_lr: Annotated[
        float | None,
        option("--others-lr", help="Learning rate of everything else; 3e-5, with --shots or --lora 1e-3.", metavar="X"),
    ] = None
    loss: Annotated[
        list[str] | None,
        option("--loss", help="bce, focal, softmax or contrastive, with a weight (bce=4) if several. Default: softmax, "
               "or bce for several right labels.", metavar="NAME"),
    ] = None  # fmt: skip
    max_labels: Annotated[
        int | None,
        option("--max-labels", help="Labels that a text is shown, all right ones among them; 64.", min=2, metavar="N"),
    ] = None
    negatives: Annotated[
        list[str] | None,
        option("--negatives", help="Where wrong labels come from: candidates, batch, pool. Default: the row's "
               "candidates, else batch and pool.", metavar="NAME"),
    ] = None  # fmt: skip
    max_length: Annotated[
        int | None,
        option(
            "--max-length",
            help="Tokens of one input; 256 for a bi-encoder, with --shots 128, else 512.",
            min=8,
            metavar="N",
        ),
    ] = None
    freeze: Annotated[
        list[str] | None, option("--freeze", help="Leave embeddings or encoder as they are.", metavar="NAME")
    ] = None
    patience: Annotated[
        int | None,
        option("--patience", help="Stop after N evaluations on --dev without gain; 0: never.", min=0, metavar="N"),
    ] = None
    lora: Annotated[bool | None, option("--lora", help="Train low-rank adapters only; the model stays.")] = None
    lora_rank: Annotated[int | None, option("--lora-rank", help="Rank of the adapters; 16.", min=1, metavar="R")] = None
    lora_alpha: Annotated[
        float | None, option("--lora-alpha", help="Weight of the adapters, divided by the rank; 32.", metavar="A")
    ] = None
    lora_targets: Annotated[
        list[str] | None,
        option("--lora-targets", help="Linear layers that get adapters, by the end of their names. Default: all.",
               metavar="NAME"),
    ] = None  # fmt: skip
    seed: Annotated[int | None, option("--seed", help="Seed of all random choices; 0.", metavar="N")] = None
    config: Annotated[
        str | None, option("--config", help="TOML file of settings; options given here win.", metavar="FILE")
    ] = None
    set_: Annotated[
        list[str] | None,
        option("--set", help="Any setting of the TOML file, for example warmup=0.1 (man gliclass-train lists them).",
               metavar="NAME=VALUE"),
    ] = None  # fmt: skip
    resume: Annotated[bool, option("--resume", help="Go on with the run in DIR that was interrupted.")] = False
    quiet: Annotated[bool, option("-q", "--quiet", help="No progress, no summary; errors only.")] = False


def train(options: TrainOptions) -> None:
    """Fine-tune a model on rows with right labels; it runs in classify at once.

    Rows are those that classify reads, with a field that holds what is right: true_labels, label, labels or
    --gold-field. All of them are checked before anything starts. The folder DIR gets the model, train.toml (the
    settings as they were resolved; --config reads them again), metrics.jsonl and loss.png. An interrupted or killed
    run goes on with --resume, and ends with the same weights as one that was never stopped.
    """
    settings = _settings(options)
    sources, dev = _rows(options, settings)
    if missing := [name for name in _LIBRARIES if find_spec(name) is None]:
        raise ModelUnusable(f"training needs {', '.join(missing)}: pip install 'gliclass-cli[train]'")
    from gliclass_cli.training.loop import Listeners
    from gliclass_cli.training.run import Job, train

    job = Job(
        model=options.model,
        sources=sources,
        output=Path(options.output),
        settings=settings,
        dev=dev,
        info=_label_info(options),
        runtime=options.runtime(),
        resume=options.resume,
    )
    with interruptible("the step") as stop, _Watch(shown=not options.quiet) as watch:
        report = train(job, Listeners(watch.step, watch.message), stop)
    if not options.quiet:
        say(_summary(options, report))


def _settings(options: TrainOptions) -> "TrainSettings":
    """Return the settings: of the file, then --set, then options. Raises UsageProblem."""
    from gliclass_cli.training.settings import make_settings, parse_setting, read_settings

    values: dict[str, Any] = {}
    if options.config is not None:
        values |= read_settings(read_text_file(options.config, "settings", UsageProblem), options.config)
    values |= dict(parse_setting(text) for text in options.set_ or ())
    given = {name: getattr(options, name) for name in _SETTINGS}
    values |= {name: value for name, value in given.items() if value not in (None, [])}
    return make_settings(values)


def _rows(options: TrainOptions, settings: "TrainSettings") -> "tuple[list[Source], Source | None]":
    """Read and check all rows. Raises InputUnusable, UsageProblem."""
    from gliclass_cli.readers import ReadOptions
    from gliclass_cli.training.rows import RowFields, check_multi, check_pools, draw_shots, read_sources

    if [*options.data, options.dev, options.labels].count(STDIN) > 1:
        raise UsageProblem("standard input (-) can be read once only")
    if not options.output:
        raise UsageProblem("-o '': name a folder")
    read = ReadOptions(
        format=options.format.value if options.format else None, text_fields=tuple(options.text_field or ())
    )
    fields, empty = RowFields(options.gold_field, options.labels_field), settings.task.allow_empty
    labels = options.label_set()
    sources = read_sources(options.data, read, labels=labels, fields=fields, allow_empty=empty)
    check_pools(sources)
    dev = None
    if options.dev is not None:
        [dev] = read_sources([options.dev], read, labels=labels, fields=fields, allow_empty=empty)
        if labels is None:
            dev = dev.with_labels([label for source in sources for label in source.pool])
    multi = check_multi(sources, settings.task.multi)
    if settings.task.shots:
        drawn = [draw_shots(source, settings.task.shots, settings.task.seed) for source in sources]
        sources = [source for source, _ in drawn]
        few = {label: count for _, counts in drawn for label, count in counts.items()}
        if few and not options.quiet:
            names = ", ".join(f"{label!r} {count}" for label, count in list(few.items())[:5])
            say(f"labels with fewer than {settings.task.shots} rows: {names}{', ...' if len(few) > 5 else ''}")
    if not options.quiet:
        rows, count = sum(len(source.rows) for source in sources), len({n for source in sources for n in source.pool})
        say(f"{rows:,} rows, {count:,} labels, {'several' if multi else 'one'} right a row")
    return sources, dev


def _label_info(options: TrainOptions) -> "LabelInfo":
    """Read descriptions and synonyms of labels. Raises UsageProblem."""
    from gliclass_cli.training.sampling import LabelInfo

    if options.label_info is None:
        return LabelInfo()
    needed = f'{options.label_info}: {{label: {{"descriptions": [...], "synonyms": [...]}}}} belongs here'
    try:
        found = json.loads(read_text_file(options.label_info, "label info", UsageProblem))
    except (ValueError, RecursionError) as error:
        raise UsageProblem(f"{needed}: {error}") from error
    parts: dict[str, dict[str, list[str]]] = {"descriptions": {}, "synonyms": {}}
    for label, info in found.items() if isinstance(found, dict) else [("", None)]:
        if not isinstance(info, dict) or not info.keys() <= parts.keys():
            raise UsageProblem(f"{needed}; see {label!r}")
        for part, texts in info.items():
            if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
                raise UsageProblem(f"{needed}; {part} of {label!r} is no list of texts")
            parts[part][label] = texts
    return LabelInfo(**parts)


def _summary(options: TrainOptions, report: "Report") -> str:
    parts = [f"{report.steps} of {report.total} steps", f"{report.seconds:.0f} s"]
    if report.loss is not None:
        parts.append(f"last loss {report.loss:.4f}")
    if report.best is not None:
        parts.append(f"best on dev {report.best:.4f} after step {report.best_step}")
    return f"{options.output}: {', '.join(parts)}"


class _Watch:
    """The progress bar: loss, rate, time left; evaluations stay on the screen. Nothing but those off a terminal."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._bar: Any = None
        self._loss: float | None = None

    def __enter__(self) -> "_Watch":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, values: Mapping[str, Any]) -> None:
        """Show a step, or a measure on the dev file."""
        if "dev" in values:
            measures = ", ".join(f"{name} {value:.4f}" for name, value in values["dev"].items())
            self.message(f"after step {values['step']}: {measures}")
            return
        if not self._shown or not is_terminal(sys.stderr):
            return
        if self._bar is None:
            from tqdm import tqdm

            bar = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"
            self._bar = tqdm(total=values["total"], initial=values["step"] - 1, file=sys.stderr, leave=False,
                             bar_format=bar, ncols=width(sys.stderr), nrows=24)  # fmt: skip
        loss = values["loss"]
        self._loss = loss if self._loss is None else 0.9 * self._loss + 0.1 * loss
        description = f"step {values['step']}, loss {self._loss:.4f}, {values['rows_per_second']:.1f} rows/s"
        self._bar.set_description_str(description, refresh=False)
        self._bar.update()

    def message(self, text: str) -> None:
        """Tell something above the bar."""
        if not self._shown:
            return
        if self._bar is not None:
            self._bar.clear()
        say(text)


app = application(train, TrainOptions, "train", epilog=EPILOG)
