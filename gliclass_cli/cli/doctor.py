"""``gliclass doctor``: is this installation sound?"""

import json
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.main import get_command

from gliclass_cli.cli.config import config_path, default_map, read_config, unknown_variables, variables
from gliclass_cli.cli.options import RuntimeOptions, application
from gliclass_cli.cli.terminal import harmless
from gliclass_cli.errors import ExitCode, GliclassError

_LIBRARIES = ("onnxruntime", "tokenizers", "numpy", "orjson", "typer", "rich", "tqdm", "huggingface_hub")
_OPTIONAL = ("onnx", "torch", "transformers", "safetensors", "peft", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(RuntimeOptions):
    """Everything that ``doctor`` takes."""

    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False


def doctor(options: DoctorOptions) -> None:
    """Check the installation.

    Shows versions, the cores that may be used, what the configuration file and the environment set, and the model;
    checks the model's files against their digests and its answer to an example against the one it was shipped with.
    Exit code 4 if anything is wrong.
    """
    from gliclass_cli.cli.app import app as gliclass

    report = _report(options, get_command(gliclass))
    if options.as_json:
        typer.echo(json.dumps(report))
    else:
        longest = max(map(len, report))
        for name, value in report.items():
            typer.echo(f"{name:<{longest}}  {harmless(_shown(value))}")
    sys.stdout.flush()
    if not report["ready"]:
        raise typer.Exit(int(ExitCode.MODEL))


def _report(options: DoctorOptions, root: Any) -> dict[str, Any]:
    """Return all that is found, by name."""
    from gliclass_cli import __version__
    from gliclass_cli.cores import available_cores
    from gliclass_cli.loading import devices

    path = config_path()
    report: dict[str, Any] = {
        "gliclass": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) or "MISSING" for name in _LIBRARIES},
        **{name: _version(name) or "not installed (optional)" for name in _OPTIONAL},
        "cores": available_cores(),
        "devices": ", ".join(devices()),
        "config_file": f"{path}{'' if path and path.is_file() else ' (not there)'}",
        "config": {},
        "environment": variables(),
    }
    unknown = unknown_variables(root)
    if unknown:
        report["unknown_variables"] = {
            name: f"no option has it{f'; did you mean {near}?' if near else ''}" for name, near in unknown.items()
        }
    problems = []
    for check in (lambda: {"config": _set_by_file(root)}, lambda: _check_model(options)):
        try:
            report |= check()
        except GliclassError as error:
            problems.append(str(error))
    if problems:
        report["problem"] = "; ".join(problems)
    report["ready"] = not problems and all(_version(name) for name in _LIBRARIES)
    return report


def _set_by_file(root: Any) -> dict[str, Any]:
    """Return what the configuration file sets, by table and key. Raises UsageProblem."""
    default_map(root)  # all of it must be right
    return dict(_flat(read_config()))


def _flat(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def _shown(value: Any) -> str:
    """Return a value on one line."""
    from gliclass_cli.writers import printable

    if not isinstance(value, dict):
        return str(value)
    return (
        ", ".join(f"{name} = {printable(json.dumps(below, ensure_ascii=False))}" for name, below in value.items())
        or "-"
    )


def _check_model(options: DoctorOptions) -> dict[str, Any]:
    """Compare the files with their digests, load them, and compare the answer with the one expected."""
    from gliclass_cli.classifier import Classifier
    from gliclass_cli.errors import ModelUnusable
    from gliclass_cli.loading import open_folder
    from gliclass_cli.model_folder import check_digests

    opened = open_folder(options.model, options.runtime())
    if opened.onnx and opened.bundled:  # of others loading checks them
        check_digests(opened.onnx)
    classifier = Classifier.load(options.model, runtime=options.runtime())
    folder = classifier.folder
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


app = application(doctor, DoctorOptions, "doctor")
