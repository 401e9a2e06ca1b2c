"""``gliclass export``: an ONNX model of a checkpoint."""

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gliclass_cli.cli.options import LabelFileOptions, application, option
from gliclass_cli.cli.terminal import say
from gliclass_cli.errors import InputUnusable, ModelUnusable, UsageProblem
from gliclass_cli.files import read_text_file
from gliclass_cli.runtime import Runtime

if TYPE_CHECKING:
    from gliclass_cli.export.convert import Precision, Sample

EPILOG = """Examples:

  gliclass export knowledgator/gliclass-base-v3.0 base-onnx

  gliclass export my-checkpoint my-model --int8 --sample tickets.jsonl --labels labels.txt

  gliclass classify tickets.jsonl --labels labels.txt --model my-model"""


@dataclass(frozen=True, kw_only=True)
class ExportOptions(LabelFileOptions):
    """Everything that ``export`` takes."""

    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint's folder, or a hub model: ORG/NAME[@REVISION].")
    ]
    output: Annotated[str, typer.Argument(metavar="FOLDER", help="The new folder.")]
    int8: Annotated[bool, typer.Option("--int8", help="Weights in 8 bits: smaller and faster, nearly as exact.")] = (
        False
    )
    sample: Annotated[
        str | None,
        option(
            "--sample",
            help="Text to compare on, one row a line: JSON Lines with text (and labels), or plain text.",
            metavar="FILE",
        ),
    ] = None
    adapter: Annotated[
        str | None,
        option("--adapter", help="Folder of low-rank adapters that are merged into the weights.", metavar="DIR"),
    ] = None
    offline: Annotated[bool, option("--offline", help="Never use the network.")] = False
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False


def export(options: ExportOptions) -> None:
    """Make an ONNX model of a checkpoint, which runs without PyTorch.

    The graphs are compared with PyTorch on real text before anything is kept: the largest difference of a logit in
    float32, and how often int8 decides as float32 does. A model that disagrees is not written. Any number of labels
    and any length of text goes through one graph; scores never depend on the batch, in int8 too.
    """
    if missing := [name for name in ("torch", "transformers", "onnx") if find_spec(name) is None]:
        raise ModelUnusable(f"export needs {', '.join(missing)}: pip install 'gliclass-cli[torch,export]'")
    from gliclass_cli.export.convert import as_dict, builtin_sample, export_model, report_lines
    from gliclass_cli.labels import LabelProblem
    from gliclass_cli.loading import open_folder

    samples = builtin_sample() if options.sample is None else _samples(options, options.sample)
    folder = open_folder(options.model, Runtime(backend="torch", offline=options.offline, announce=say))
    say(f"building the graphs, and comparing them with PyTorch on {len(samples)} texts ...")
    try:
        precision: Precision = "int8" if options.int8 else "fp32"
        report = export_model(folder, Path(options.output), samples, precision=precision, adapter=options.adapter)
    except LabelProblem as problem:
        raise UsageProblem(f"{options.sample or 'built-in texts'}: {problem}") from problem
    if options.as_json:
        typer.echo(json.dumps({"folder": options.output, **as_dict(report)}))
        return
    for line in (f"{options.output}: {report.precision}, checked", *report_lines(report)):
        typer.echo(line)


def _samples(options: ExportOptions, name: str) -> "list[Sample]":
    """Read the texts to compare on. Raises InputUnusable, UsageProblem."""
    from gliclass_cli.export.convert import Sample
    from gliclass_cli.labels import LabelProblem, labels_from_cell

    labels = options.label_set()
    samples = []
    for number, line in enumerate(read_text_file(name, "sample", InputUnusable).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line) if line.startswith("{") else {"text": line}
            own = labels_from_cell(row["labels"]) if labels is None else labels
            if not isinstance(row["text"], str):
                raise ValueError("text is no text")
            samples.append(Sample(row["text"], own))
        except (ValueError, KeyError, LabelProblem, RecursionError) as error:
            raise UsageProblem(
                f"{name}:{number}: needs a text and labels (or -l, --labels for all rows): {error}"
            ) from error
    if not samples:
        raise UsageProblem(f"{name}: holds no text")
    return samples


app = application(export, ExportOptions, "export", epilog=EPILOG)
