"""The README's sessions are real: each command is run, and gives the output that is shown."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gliclass_cli.errors import ExitCode

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
NUMBER = re.compile(r"-?\d+\.\d+")


def sessions() -> list[tuple[str, str]]:
    """Each (command, output) of the README's console blocks."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", README, flags=re.M | re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}


def test_there_are_sessions() -> None:
    assert len(sessions()) >= 3


@pytest.mark.parametrize(("command", "output"), sessions())
def test_a_session_gives_what_is_shown(command: str, output: str) -> None:
    if "jq" in command and not shutil.which("jq"):
        pytest.skip("no jq here")
    result = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    # int8 scores differ a little between kinds of processors.
    assert NUMBER.sub("N", result.stdout) == NUMBER.sub("N", output)
    for shown, found in zip(NUMBER.findall(output), NUMBER.findall(result.stdout), strict=True):
        assert float(found) == pytest.approx(float(shown), abs=0.02)


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)[0]
    exec(code, {})
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["billing", "shipping"]


def test_the_options_of_the_recipes_exist() -> None:
    from gliclass_cli.cli.app import app
    from gliclass_cli.cli.reference import describe

    known = {flag for command in describe(app).walk() for item in command.options for flag in item.flags}
    for line in re.findall(r"gliclass (?:classify|tag|eval|train|export|models|doctor)[^\n|`]*", README):
        # What stands in quotes is data.
        for flag in re.findall(r"(?<!\S)(--?[a-z][a-z0-9-]*)", re.sub(r"\"[^\"]*\"", "", line)):
            assert flag in known, line


def test_the_exit_codes_are_all_told() -> None:
    table = README.split("| exit code | meaning |", 1)[1].split("\n\n", 1)[0]
    told = {int(number) for row in re.findall(r"^\| ([\d, ]+) \|", table, flags=re.M) for number in row.split(",")}
    assert told == {int(code) for code in ExitCode}


def test_the_file_tree_names_every_module() -> None:
    tree = README.split("gliclass_cli/\n", 1)[1].split("```", 1)[0]
    for path in (ROOT / "gliclass_cli").iterdir():
        if not path.name.startswith("_") and path.name != "py.typed":
            assert path.name in tree, path.name
