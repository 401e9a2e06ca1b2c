"""The house's floors: a module imports its own floor or lower ones, heavy libraries have owners, nothing is a cycle."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "gliclass_cli"
FLOORS = [
    {"errors", "records", "labels", "prompts", "runtime", "batching", "predictions", "decoding", "metrics"}
    | {"gold", "json_scanner", "cells"},
    {"files", "readers", "writers", "checkpoint", "model_folder", "hub", "tokens", "cores", "streaming", "model"}
    | {"calibration", "resume", "parquet"},
    {"backends", "loading", "composer", "prototypes", "scoring", "classifier"},
    {"classification", "export", "evaluation", "plots", "training", "benchmark", "distributed"} | {"rehearsal"},
    {"cli"},
]
OWNERS = {
    "onnxruntime": {"backends.onnx", "export"},
    "onnx": {"export", "model.restored"},
    "tokenizers": {"tokens"},
    "typer": {"cli"},
    "rich": {"cli"},
    "tqdm": {"cli"},
    "torch": {"model", "backends.pytorch", "export.convert", "training"},
    "transformers": {"model"},
    "safetensors": {"model", "training", "export.saving"},
    "peft": {"model.adapters"},
    "tomli_w": {"training"},
    "huggingface_hub": {"hub"},
    "sklearn": {"evaluation", "training"},
    "scipy": {"evaluation"},
    "matplotlib": {"plots"},
    "pyarrow": {"parquet"},
    "ray": {"distributed"},
    "fsspec": {"files", "distributed"},
    "click": set(),
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    found = set()
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(names: set[str]) -> set[str]:
    """The modules of ours among imported names; ``__init__`` itself holds the version only."""
    return {name.removeprefix("gliclass_cli.") for name in names if name.startswith("gliclass_cli.")} & set(MODULES)


def floor(module: str) -> int:
    for number, names in enumerate(FLOORS):
        if module.split(".")[0] in names:
            return number
    raise AssertionError(f"{module} stands on no floor: name it in FLOORS")


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ("", "__main__")])
def test_a_module_imports_only_its_own_floor_or_lower(module: str) -> None:
    above = {name for name in own(imports(MODULES[module])) if floor(name) > floor(module)}
    assert not above


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_are_imported_by_their_owners_only(module: str) -> None:
    libraries = {name.split(".")[0] for name in imports(MODULES[module])} & set(OWNERS)
    foreign = {library for library in libraries if not {module, module.split(".")[0]} & OWNERS[library]}
    assert not foreign


def test_there_is_no_import_cycle() -> None:
    # Imports inside functions count too, except from the entry points, which load the rest on demand.
    graph = {name: own(imports(path)) for name, path in MODULES.items() if name not in ("", "__main__")}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for below in graph[module]:
                visit(below, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_nothing_prints() -> None:
    for module, path in MODULES.items():
        calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], module


def test_every_module_says_what_it_is_for() -> None:
    for module, path in MODULES.items():
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), module
