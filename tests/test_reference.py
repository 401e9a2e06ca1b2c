"""Completion scripts and man pages: as checked in as generated, whole, and understood by the programs that read them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from gliclass_cli.cli.app import app
from gliclass_cli.cli.manual import man_pages
from gliclass_cli.cli.reference import describe
from gliclass_cli.cli.shells import COMPLETION_FILES, completion_script

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("shell", COMPLETION_FILES)
def test_completion_scripts_are_up_to_date(shell: str) -> None:
    checked_in = (ROOT / "completions" / COMPLETION_FILES[shell]).read_text("utf-8")
    assert checked_in == completion_script(app, shell), "run: python scripts/write_reference.py"


def test_man_pages_are_up_to_date() -> None:
    checked_in = {path.name: path.read_text("utf-8") for path in (ROOT / "man").iterdir()}
    assert checked_in == man_pages(app), "run: python scripts/write_reference.py"


def test_every_option_is_in_every_reference() -> None:
    pages = man_pages(app)
    bash, zsh, fish = (completion_script(app, shell) for shell in ("bash", "zsh", "fish"))
    for command in describe(app).walk():
        page = pages["-".join(command.path[:2]) + ".1"]
        for item in command.options:
            for flag in item.flags:
                assert flag.replace("-", "\\-") in page
                assert flag in bash
                assert flag in zsh
                assert flag.lstrip("-") in fish


def test_every_option_has_its_environment_variable() -> None:
    for command in describe(app).walk():
        for item in command.options:
            if item.variable:
                assert item.variable == "GLICLASS_" + item.flags[-1].lstrip("-").replace("-", "_").upper()


def complete(line: str, folder: Path) -> list[str]:
    """What bash offers at the end of a line."""
    script = ROOT / "completions" / "gliclass.bash"
    words = line.split(" ")
    program = (
        "compopt() { :; }; source " + str(script) + "; COMP_WORDS=(" + " ".join(f"'{word}'" for word in words) + "); "
        f"COMP_CWORD={len(words) - 1}; _gliclass; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    result = subprocess.run(["bash", "-c", program], capture_output=True, text=True, cwd=folder, check=True)
    assert not result.stderr
    return [word for word in result.stdout.split("\n") if word]


def test_bash_completes_commands_options_values_files_and_models(tmp_path: Path) -> None:
    (tmp_path / "my labels.txt").write_text("a\n")
    (tmp_path / "models").mkdir()
    assert set(complete("gliclass ", tmp_path)) >= {"classify", "tag", "models", "doctor", "completions", "--version"}
    assert complete("gliclass cl", tmp_path) == ["classify"]
    assert complete("gliclass classify --output-f", tmp_path) == ["--output-format"]
    assert complete("gliclass classify --output-format t", tmp_path) == ["tsv", "table"]
    assert complete("gliclass classify --on-error = s", tmp_path) == ["skip", "stop"]
    assert complete("gliclass classify --labels my", tmp_path) == ["my labels.txt"]
    assert complete("gliclass classify my", tmp_path) == ["my labels.txt"]
    assert complete("gliclass classify --model ", tmp_path) == ["default", "models"]
    assert set(complete("gliclass models ", tmp_path)) >= {"list", "info", "path"}
    assert complete("gliclass models info d", tmp_path) == ["default"]
    assert complete("gliclass completions ", tmp_path) == ["bash", "zsh", "fish"]


@pytest.mark.parametrize(
    ("shell", "check"), [("bash", ["bash", "-n"]), ("zsh", ["zsh", "-n"]), ("fish", ["fish", "-n"])]
)
def test_shells_can_read_their_script(shell: str, check: list[str]) -> None:
    if not shutil.which(check[0]):
        pytest.skip(f"no {shell} here")
    subprocess.run([*check, str(ROOT / "completions" / COMPLETION_FILES[shell])], check=True)


def test_man_can_read_its_pages() -> None:
    if not shutil.which("man"):
        pytest.skip("no man here")
    for page in (ROOT / "man").iterdir():
        result = subprocess.run(
            ["man", "--warnings", "-l", str(page)],
            capture_output=True,
            text=True,
            check=True,
            env={"LC_ALL": "C.UTF-8", "MANWIDTH": "100", "PATH": "/usr/bin:/bin"},
        )
        assert not result.stderr
        assert "EXIT STATUS" in result.stdout
