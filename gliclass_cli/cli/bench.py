"""``gliclass bench``: how fast a model is on this machine."""

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gliclass_cli.cli.options import InputOptions, LabelFileOptions, ModelOptions, application, option
from gliclass_cli.cli.terminal import is_terminal
from gliclass_cli.errors import InputUnusable, ModelUnusable, UsageProblem
from gliclass_cli.files import STDIN, Output

if TYPE_CHECKING:
    from gliclass_cli.benchmark import Point, Start
    from gliclass_cli.labels import LabelSet
    from gliclass_cli.records import Record

EPILOG = """Examples:

  gliclass bench

  gliclass bench tickets.jsonl --labels labels.txt --vary threads=1,2 --plot speed.svg

  gliclass bench --model my-model --vary backend=onnx,torch --vary labels=5,77"""

_LABELS = (1, 2, 4, 8, 16, 32, 64, 128)
_USUAL_LABELS = 16  # of the built-in ones, where their number is not varied
_WORDS = {"backend": ("onnx", "torch"), "precision": ("fp32", "fp16", "bf16", "int8")}
_NUMBERS = ("threads", "batch_tokens", "labels")
_INSTALL = "pip install 'gliclass-cli[eval]'"


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """What is varied, and where the figures go."""

    vary: Annotated[
        list[str] | None,
        option(
            "--vary",
            help="Measure several values of backend, precision, threads, batch_tokens or labels (how many of them); "
            f"repeatable. Default: labels={','.join(map(str, _LABELS))}.",
            metavar="NAME=A,B,...",
        ),
    ] = None
    repeats: Annotated[
        int, option("--repeats", help="Runs of each; the median counts.", min=1, max=99, metavar="N")
    ] = 3
    json: Annotated[
        str | None,
        option("--json", help="Write the figures as a JSON object; -: instead of the table.", metavar="FILE"),
    ] = None
    plot: Annotated[str | None, option("--plot", help="Draw the figures, as .png or .svg.", metavar="FILE")] = None


@dataclass(frozen=True, kw_only=True)
class BenchOptions(ModelOptions, MeasureOptions, InputOptions, LabelFileOptions):
    """Everything that ``bench`` takes."""


def bench(options: BenchOptions) -> None:
    """Measure how fast a model is on this machine.

    Without input it reads texts of many kinds and lengths that are part of gliclass. Every text is computed, also one
    that comes twice; settings take turns, so that a busy minute harms all alike. Latency is that of one text alone;
    "padding" the share of computed tokens that are none; "computing" the share of the threads' time in the model, the
    rest being reading, tokenising and waiting.
    """
    varied = _varied(options.vary or [])
    if options.plot is not None and PurePath(options.plot).suffix.lower() not in (".png", ".svg"):
        raise UsageProblem(f"--plot {options.plot!r}: must end in .png or .svg")
    if options.plot is not None and find_spec("matplotlib") is None:
        raise ModelUnusable(f"--plot needs matplotlib: {_INSTALL}")
    texts, labels = _sample(options)
    from tqdm import tqdm

    from gliclass_cli.benchmark import bench as measure
    from gliclass_cli.benchmark import measure_start, settings_of

    usual = sorted({count for count in _LABELS if count <= len(labels)} | {len(labels)})
    settings = settings_of({**({} if options.vary else {"labels": usual}), **varied})
    given = options.label is not None or options.labels is not None
    most = max((setting.labels or 0 for setting in settings), default=0)
    if most > len(labels):
        raise UsageProblem(f"--vary labels={most}: there are {len(labels)} labels")
    with ExitStack() as stack:
        outputs = {
            kind: stack.enter_context(Output(name))
            for kind, name in (("json", options.json), ("plot", options.plot))
            if name is not None
        }
        bar = stack.enter_context(
            tqdm(total=len(settings) * options.repeats, unit="run", leave=False, disable=not is_terminal(sys.stderr))
        )
        points = measure(
            options.model,
            settings,
            texts,
            [_first(labels, setting.labels or (len(labels) if given else _USUAL_LABELS)) for setting in settings],
            reading=options.reading(),
            runtime=options.runtime(),
            repeats=options.repeats,
            listener=bar.update,
        )
        bar.close()
        start = measure_start(options.model, labels, options.runtime())
        values: dict[str, Any] = {
            "texts": len(texts),
            "start": asdict(start),
            "points": [point.to_dict() for point in points],
        }
        if "json" in outputs:
            outputs["json"].write((json.dumps(values, indent=None if options.json == STDIN else 2) + "\n").encode())
        if "plot" in outputs and options.plot is not None:
            from gliclass_cli.plots import plot_speed

            outputs["plot"].write(plot_speed(values["points"], options.plot))
    if options.json != STDIN:
        _show(points, start, len(texts))


def _varied(given: list[str]) -> dict[Any, tuple[Any, ...]]:
    """Read NAME=A,B,... Raises UsageProblem."""
    varied: dict[Any, tuple[Any, ...]] = {}
    for text in given:
        name, _, values = text.partition("=")
        name, parts = name.strip().replace("-", "_"), [part.strip() for part in values.split(",")]
        if name in _NUMBERS:
            if not all(part.isascii() and part.isdigit() and 0 < int(part) < 10**9 for part in parts):
                raise UsageProblem(f"--vary {text!r}: numbers above 0 belong behind the =, for example {name}=1,2")
            varied[name] = tuple(map(int, parts))
        elif name in _WORDS:
            if not set(parts) <= set(_WORDS[name]):
                raise UsageProblem(f"--vary {text!r}: known are {', '.join(_WORDS[name])}")
            varied[name] = tuple(parts)
        else:
            raise UsageProblem(f"--vary {text!r}: known are {', '.join((*_WORDS, *_NUMBERS))}")
    return varied


def _sample(options: BenchOptions) -> tuple[list[str], "LabelSet"]:
    """Return the texts to time and their labels, the user's or built-in ones. Raises UsageProblem, InputUnusable."""
    from gliclass_cli.benchmark import builtin_sample

    texts, labels = builtin_sample()
    labels = options.label_set() or labels
    if options.inputs:
        from gliclass_cli.classification import Inputs

        names = options.names("bench", "  gliclass bench tickets.jsonl")
        limit = None if options.limit is None else options.skip + options.limit
        rows = islice(Inputs(names, options.read_options()), options.skip, limit)
        texts = [text for row in rows if (text := _text(row, options))]
        if not texts:
            raise InputUnusable(f"{', '.join(names)}: no row has a text")
    return texts, labels


def _text(row: "Record", options: BenchOptions) -> str | None:
    """Return the text of a row that has one."""
    from gliclass_cli.records import FieldProblem, text_of

    try:
        return text_of(row.fields, options.text_field or ()) if row.fields is not None and row.error is None else None
    except FieldProblem:
        return None


def _first(labels: "LabelSet", count: int) -> "LabelSet":
    from gliclass_cli.labels import LabelSet

    return LabelSet(labels.names[:count], labels.descriptions[:count], labels.paths[:count])


def _show(points: list["Point"], start: "Start", texts: int) -> None:
    """Print the table."""
    from gliclass_cli.cli.report import table

    models = list(dict.fromkeys(point.model for point in points))
    for model in models:
        typer.echo(f"{model}, {texts:,} texts")
        chosen = [point for point in points if point.model == model]
        names = [name for name in chosen[0].to_dict() if getattr(chosen[0].setting, name, None) is not None]
        head = (*names, "rows/s", "tokens/s", "padding", "computing", "p50 ms", "p95 ms")
        rows = [
            (
                *(getattr(point.setting, name) for name in names),
                round(point.rows_per_second, 1),
                round(point.tokens_per_second),
                f"{point.padding:.1%}",
                f"{point.computing:.0%}",
                round(point.p50, 1),
                round(point.p95, 1),
            )
            for point in chosen
        ]
        for line in table(head, rows, texts=0):
            typer.echo(f"  {line}")
    typer.echo(
        f"gliclass tag of one text: {start.seconds:.2f} s, {start.cpu_seconds:.2f} s of processor time, "
        f"{start.peak_megabytes:.0f} MB"
    )


app = application(bench, BenchOptions, "bench", epilog=EPILOG)
