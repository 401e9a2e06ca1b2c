"""``gliclass models``: the bundled model, model folders, and models of the Hugging Face hub."""

import json
from dataclasses import dataclass, replace
from typing import Annotated

import typer

from gliclass_cli.cli.options import Backend, Precision, command, new_app, option
from gliclass_cli.cli.terminal import say
from gliclass_cli.errors import ModelUnusable, UsageProblem
from gliclass_cli.model_folder import DEFAULT_MODEL, ModelFolder, file_digest
from gliclass_cli.runtime import Runtime

app = new_app(no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Show the bundled model, model folders and hub models; download them."""


_MODEL_HELP = "'default', a model folder, or a hub model that is in the cache."


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Everything that ``models list`` takes."""

    folders: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FOLDER]...", show_default=False, help="Model folders to list beside the others."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Everything that ``models info`` takes."""

    model: Annotated[str, typer.Argument(metavar="[MODEL]", help=_MODEL_HELP)] = DEFAULT_MODEL
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False


@dataclass(frozen=True, kw_only=True)
class PullOptions:
    """Everything that ``models pull`` takes."""

    model: Annotated[str, typer.Argument(metavar="ORG/NAME[@REVISION]", help="A model of the Hugging Face hub.")]
    backend: Annotated[
        Backend, option("--backend", help="What it is for. auto: ONNX files where there are any, else weights.")
    ] = Backend.auto
    precision: Annotated[Precision, option("--precision", help="Which ONNX file, where there are several.")] = (
        Precision.auto
    )
    force: Annotated[bool, typer.Option("--force", help="Download again what is in the cache.")] = False


@dataclass(frozen=True, kw_only=True)
class PathOptions:
    """Everything that ``models path`` takes."""

    model: Annotated[str, typer.Argument(metavar="[MODEL]", help=_MODEL_HELP)] = DEFAULT_MODEL


def list_models(options: ListOptions) -> None:
    """List models: the bundled one, folders, and what is in the hub's cache.

    A line each: the name to give to --model, what it is, its architecture, its precision and its size.
    """
    from gliclass_cli.hub import cached_models
    from gliclass_cli.loading import open_folder
    from gliclass_cli.writers import printable

    cached = [model.name for model in cached_models()]
    for name in (DEFAULT_MODEL, *(options.folders or ()), *cached):
        try:
            folder = open_folder(name, Runtime(offline=True))
        except ModelUnusable as error:
            if name not in cached:
                raise
            say(str(error))
            continue
        title = printable(" ".join((folder.name, folder.version)).strip())
        typer.echo(f"{name}\t{title}\t{folder.config.architecture}\t{_precision(folder)}\t{_megabytes(folder)}")


def info(options: InfoOptions) -> None:
    """Show what a model is and how it is run."""
    from gliclass_cli.loading import open_folder
    from gliclass_cli.writers import printable

    values = describe(open_folder(options.model, Runtime(offline=True)))
    if options.as_json:
        typer.echo(json.dumps(values))
        return
    longest = max(map(len, values))
    for name, value in values.items():
        typer.echo(f"{name:<{longest}}  {printable(str(value))}")


def pull(options: PullOptions) -> None:
    """Download a model of the Hugging Face hub, and print its folder.

    Only what is needed to run it is downloaded: config.json, the tokenizer, and ONNX files or model.safetensors.
    Nothing that could run code ever is. HF_HOME says where the cache is, HF_TOKEN who you are.
    """
    from gliclass_cli.hub import parse_hub_name
    from gliclass_cli.loading import open_folder, pull_model

    name = parse_hub_name(options.model)
    if name is None:
        raise UsageProblem(f"{options.model!r} is no name of a hub model: ORG/NAME or ORG/NAME@REVISION")
    runtime = Runtime(backend=options.backend.value, precision=options.precision.value, announce=say)
    pull_model(name, runtime, force=options.force)
    typer.echo(str(open_folder(options.model, replace(runtime, announce=None)).path))


def path(options: PathOptions) -> None:
    """Print the folder of a model."""
    from gliclass_cli.loading import open_folder

    typer.echo(str(open_folder(options.model, Runtime(offline=True)).path))


def describe(folder: ModelFolder) -> dict[str, str | int | bool]:
    """Return what a person asks about a model."""
    config = folder.config
    values: dict[str, str | int | bool] = {
        "name": folder.name,
        "version": folder.version,
        "architecture": config.architecture,
        "backbone": config.backbone,
        "scorer": config.scorer,
        "runs_on": _runs_on(folder),
        "precision": _precision(folder),
        "languages": ", ".join(folder.language),
        "license": folder.license,
        "max_length": folder.max_length,
        "longest_input": folder.positions,
        "label_template": " | ".join(folder.label_templates),
        "labels_first": config.prompt_first,
        "size": _megabytes(folder),
        "sha256": file_digest((folder.onnx.weights or folder.onnx.text).path) if folder.onnx else "",
        "path": str(folder.path),
    }
    return {name: value for name, value in values.items() if value != ""}


def _runs_on(folder: ModelFolder) -> str:
    names = ["ONNX Runtime"] if folder.onnx else []
    return ", ".join(names + (["PyTorch"] if folder.has_weights else []))


def _precision(folder: ModelFolder) -> str:
    return folder.onnx.precision if folder.onnx else "fp32"


def _megabytes(folder: ModelFolder) -> str:
    return f"{folder.size / 1e6:.1f} MB"


command(app, ListOptions, "list")(list_models)
command(app, InfoOptions, "info")(info)
command(app, PullOptions, "pull")(pull)
command(app, PathOptions, "path")(path)
