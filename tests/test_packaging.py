"""What the wheel holds, and that its extras and constraints are what the README promises."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from gliclass_cli import __version__
from gliclass_cli.model_folder import file_digest, find_model, read_model_folder

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_model_the_man_pages_and_the_completions(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    data = f"gliclass_cli-{__version__}.data/data/share"
    bundled = find_model("default")
    assert bundled
    model = {path.name for path in bundled.iterdir()}
    assert {f"gliclass_cli/default_model/{name}" for name in model} <= names
    assert {f"{data}/man/man1/{page.name}" for page in (ROOT / "man").iterdir()} <= names
    assert f"{data}/bash-completion/completions/gliclass.bash" in names
    assert f"{data}/zsh/site-functions/_gliclass" in names
    assert f"{data}/fish/vendor_completions.d/gliclass.fish" in names
    assert "gliclass_cli/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "examples", "scripts"))]


def test_the_base_install_has_no_torch() -> None:
    base = {re.split(r"[\s<>=!~;\[]", requirement)[0] for requirement in PROJECT["dependencies"]}
    assert base == {
        "typer",
        "rich",
        "tqdm",
        "orjson",
        "numpy",
        "tokenizers",
        "onnxruntime",
        "huggingface_hub",
        "backports.zstd",
    }


def test_the_bundled_model_is_small_and_has_its_licence() -> None:
    path = find_model("default")
    assert path
    folder = read_model_folder(path)
    assert folder.size <= 36_000_000
    assert {"README.md", "LICENSE", "THIRD_PARTY_NOTICES", "config.json", "tokenizer.json"} <= {
        path.name for path in folder.path.iterdir()
    }
    assert folder.onnx and folder.onnx.weights
    card = (folder.path / "README.md").read_text("utf-8")
    assert all(file.sha256 == file_digest(file.path) and file.sha256 in card for file in folder.onnx.files)


def test_constraints_pin_every_version() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert "torch==2.13.0" in lines


def test_no_file_speaks_of_the_workplace() -> None:
    result = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if result.returncode:
        pytest.skip("not a git checkout")
    words = ("/" + "work/", "../" + "shared", "." + "library", "/root" + "/")
    for name in result.stdout.decode().split("\0"):
        path = ROOT / name
        if path.suffix in ("", ".py", ".md", ".toml", ".txt", ".json", ".1", ".bash", ".fish") and path.is_file():
            text = path.read_text("utf-8", errors="ignore")
            assert not [word for word in words if word in text], name
