"""``gliclass doctor``: is this installation sound?"""

import json
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import Annotated, Any

import typer

from gliclass_cli.cli.options import RuntimeOptions
from gliclass_cli.errors import ExitCode, GliclassError

_LIBRARIES = ("onnxruntime", "tokenizers", "numpy", "orjson", "typer", "rich", "tqdm", "huggingface_hub")
_OPTIONAL = ("onnx", "torch", "transformers", "safetensors", "peft", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(RuntimeOptions):
    """Everything that ``doctor`` takes."""

    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False


def doctor(options: DoctorOptions) -> None:
    """Check the installation.

    Shows versions, the cores that may be used and the model, checks the model's file against its digest and its answer
    to an example against the one it was shipped with. Exit code 4 if anything is wrong.
    """
    from gliclass_cli import __version__
    from gliclass_cli.cores import available_cores
    from gliclass_cli.loading import devices

    report: dict[str, Any] = {
        "gliclass": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) or "MISSING" for name in _LIBRARIES},
        **{name: _version(name) or "not installed (optional)" for name in _OPTIONAL},
        "cores": available_cores(),
        "devices": ", ".join(devices()),
    }
    try:
        report |= _check_model(options)
        ready = True
    except GliclassError as error:
        report["problem"] = str(error)
        ready = False
    report["ready"] = ready and all(_version(name) for name in _LIBRARIES)
    if options.as_json:
        typer.echo(json.dumps(report))
    else:
        longest = max(map(len, report))
        for name, value in report.items():
            typer.echo(f"{name:<{longest}}  {value}")
    sys.stdout.flush()
    if not report["ready"]:
        raise typer.Exit(int(ExitCode.MODEL))


def _check_model(options: DoctorOptions) -> dict[str, Any]:
    """Compare the model's files with their digests, and its answer with the one it was shipped with."""
    from gliclass_cli.classifier import Classifier
    from gliclass_cli.errors import ModelUnusable
    from gliclass_cli.loading import open_folder
    from gliclass_cli.model_folder import file_digest

    folder = open_folder(options.model, options.runtime())
    graphs = (folder.onnx.text, folder.onnx.label, folder.onnx.scorer) if folder.onnx else ()
    for graph in graphs:
        if graph is not None and graph.sha256 is not None and file_digest(graph.path) != graph.sha256:
            raise ModelUnusable(f"{graph.path}: is not the file it should be (SHA-256 differs); install it again")
    classifier = Classifier.load(options.model, runtime=options.runtime())
    report = {"model": " ".join((folder.name, folder.version, f"in {folder.path}")), "runs_on": classifier.backend}
    if folder.self_check is None:
        classifier.predict(["This is a test."], ["test", "example"])
        return report | {"self_check": "it runs; the model has no example of its own to compare with"}
    difference = classifier.self_check()
    if not difference <= folder.self_check.tolerance:
        raise ModelUnusable(
            f"{folder.path}: the self-check is off by {difference:.4f} (at most {folder.self_check.tolerance})"
        )
    return report | {"self_check": f"logits within {difference:.4f} of the expected ones"}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
