"""``gliclass models``: the bundled model and model folders."""

import json
from dataclasses import dataclass
from typing import Annotated

import typer

from gliclass_cli.cli.options import command
from gliclass_cli.model_folder import DEFAULT_MODEL, ModelFolder, file_digest, find_model, read_model_folder

models = typer.Typer(help="Show the bundled model and model folders.", no_args_is_help=True)


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Everything that ``models list`` takes."""

    folders: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FOLDER]...", show_default=False, help="Model folders to list beside the bundled one."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class InfoOptions:
    """Everything that ``models info`` takes."""

    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="'default' or a model folder.")] = DEFAULT_MODEL
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False


@dataclass(frozen=True, kw_only=True)
class PathOptions:
    """Everything that ``models path`` takes."""

    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="'default' or a model folder.")] = DEFAULT_MODEL


def list_models(options: ListOptions) -> None:
    """List models: name to give to --model, what it is, size."""
    for name in (DEFAULT_MODEL, *(options.folders or ())):
        folder = read_model_folder(find_model(name))
        typer.echo(
            f"{name}\t{folder.name} {folder.version}\t{folder.architecture}\t{folder.precision}\t{_megabytes(folder)}"
        )


def info(options: InfoOptions) -> None:
    """Show what a model is and how it is run."""
    folder = read_model_folder(find_model(options.model))
    values = describe(folder)
    if options.as_json:
        typer.echo(json.dumps(values))
        return
    longest = max(map(len, values))
    for name, value in values.items():
        typer.echo(f"{name:<{longest}}  {value}")


def path(options: PathOptions) -> None:
    """Print the folder of a model."""
    typer.echo(str(read_model_folder(find_model(options.model)).path))


def describe(folder: ModelFolder) -> dict[str, str | int]:
    """Return what a person asks about a model."""
    return {
        "name": folder.name,
        "version": folder.version,
        "architecture": folder.architecture,
        "precision": folder.precision,
        "languages": ", ".join(folder.language),
        "license": folder.license,
        "max_length": folder.max_length,
        "label_template": folder.label_template,
        "size": _megabytes(folder),
        "sha256": file_digest(folder.graph.path),
        "path": str(folder.path),
    }


def _megabytes(folder: ModelFolder) -> str:
    return f"{folder.size / 1e6:.1f} MB"


command(models, ListOptions, "list")(list_models)
command(models, InfoOptions, "info")(info)
command(models, PathOptions, "path")(path)
