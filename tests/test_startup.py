"""What a fresh interpreter imports, and how much processor time it takes."""

import resource
import subprocess
import sys

import pytest

LOADED = """
import sys, runpy
sys.argv = ["gliclass", *{arguments!r}]
import os
end = os._exit
def report(code):
    sys.stderr.write("\\nLOADED " + " ".join(sorted(sys.modules)))
    sys.stderr.flush()
    end(code)
os._exit = report
from gliclass_cli.__main__ import main
main()
report(0)
"""


def loaded(*arguments: str) -> set[str]:
    """The modules in memory when a command ends."""
    result = subprocess.run(
        [sys.executable, "-c", LOADED.format(arguments=arguments)], capture_output=True, text=True, check=False
    )
    assert "\nLOADED " in result.stderr, result.stderr
    return set(result.stderr.rsplit("\nLOADED ", 1)[1].split())


def test_version_imports_next_to_nothing() -> None:
    assert not loaded("--version") & {"typer", "rich", "orjson", "numpy", "onnxruntime", "gliclass_cli.cli"}


@pytest.mark.parametrize("arguments", [["--help"], ["classify", "--help"], ["completions", "bash"]])
def test_help_imports_no_heavy_library(arguments: list[str]) -> None:
    heavy = {"onnxruntime", "torch", "transformers", "numpy", "pydantic", "tokenizers", "rich", "tqdm", "orjson"}
    heavy |= {"pyarrow", "ray", "fsspec"}
    assert not loaded(*arguments) & heavy


def test_without_a_configuration_file_no_toml_is_read() -> None:
    assert "tomllib" not in loaded("tag", "hello", "-l", "greeting", "-l", "billing")


def test_a_command_imports_no_other_command() -> None:
    modules = loaded("tag", "hello", "-l", "greeting", "-l", "billing")
    others = {f"gliclass_cli.cli.{name}" for name in ("classify", "evaluate", "train", "bench", "doctor", "models")}
    assert "gliclass_cli.cli.tag" in modules
    assert not modules & others


def test_a_run_imports_neither_torch_nor_the_hub() -> None:
    modules = loaded("tag", "hello", "-l", "greeting", "-l", "billing")
    assert "onnxruntime" in modules
    assert not modules & {
        "torch",
        "transformers",
        "huggingface_hub",
        "pydantic",
        "rich",
        "tqdm",
        "onnx",
        "pyarrow",
        "ray",
    }


def cpu_seconds(*arguments: str) -> float:
    """The least processor time of a few runs: what the machine does besides only adds to it."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


# On a slow machine the libraries alone take as long: then a multiple of that is what may be taken.


def test_help_takes_less_than_0_3_seconds_of_processor_time() -> None:
    assert cpu_seconds("-m", "gliclass_cli", "--help") < max(0.3, 5 * cpu_seconds("-c", "import typer"))


def test_a_one_off_tag_takes_less_than_0_8_seconds_of_processor_time() -> None:
    command = ("tag", "I was charged twice", "-l", "billing", "-l", "shipping")
    libraries = cpu_seconds("-c", "import numpy, onnxruntime, tokenizers, typer")
    assert cpu_seconds("-m", "gliclass_cli", *command) < max(0.8, 3 * libraries)
