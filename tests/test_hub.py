"""Models of the hub, from a hub-shaped server on loopback: fresh, cached, cut, wrong, refused, unreachable."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, HubServer
from hypothesis import given
from hypothesis import strategies as st

from gliclass_cli.errors import ModelUnusable
from gliclass_cli.hub import HubName, choose_files, parse_hub_name

BUNDLED = Path(__file__).parents[1] / "gliclass_cli" / "default_model"
CONFIG = b'{"model_type": "GLiClass", "encoder_config": {"model_type": "bert"}, "hidden_size": 8, "vocab_size": 30}'
SMALL = {
    "config.json": CONFIG,
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"[1]",
    "special_tokens_map.json": b"[2]",
}
WEIGHTS = bytes(range(256)) * 4000
UNWANTED = {
    "README.md": b"card",
    "pytorch_model.bin": b"pickle",
    "model.pt": b"pickle",
    "modeling_evil.py": b"import os",
    "training_args.bin": b"pickle",
    "runs/events.out": b"log",
}
CHECKPOINT = {**SMALL, **UNWANTED, "model.safetensors": WEIGHTS}
PUBLISHED = {**CHECKPOINT, "onnx/model.onnx": b"fp32" * 900, "onnx/model_quantized.onnx": b"int8" * 300}
PULL = """
import json, sys
from gliclass_cli.hub import *
name, options = parse_hub_name(sys.argv[1]), json.loads(sys.argv[2])
try:
    told = []
    path = pull(name, announce=told.append, **options)
    print(json.dumps({"path": str(path), "told": told, "cached": [model.name for model in cached_models()]}))
except ModelUnusable as error:
    print(json.dumps({"error": str(error)}))
"""


@dataclass
class User:
    """Someone with a cache and a hub; each command is a process of its own, as in life."""

    hub: HubServer
    home: Path
    url: str

    def environment(self, **more: str) -> dict[str, str]:
        own = {
            "HF_HOME": str(self.home),
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_ETAG_TIMEOUT": "2",
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "GLICLASS_"))}
        return {**kept, **own, **more}

    def pull(
        self, name: str = "org/model", *, environment: Mapping[str, str] | None = None, **options: Any
    ) -> dict[str, Any]:
        options = {"prefer": "torch", "torch_installed": True, **options}
        result = subprocess.run(
            [sys.executable, "-c", PULL, name, json.dumps(options)],
            env=self.environment(**(environment or {})),
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    def gliclass(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gliclass_cli", *arguments]
        return subprocess.run(command, env=self.environment(**environment), capture_output=True, text=True, check=False)

    def files(self) -> list[str]:
        folder = self.home / "hub" / "models--org--model" / "snapshots" / COMMIT
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    repositories = {
        "org/model": dict(CHECKPOINT),
        "org/published": dict(PUBLISHED),
        "org/pickle": {**SMALL, **UNWANTED},
        "org/other": {"weights.txt": b"x"},
        "org/bundled": {path.name: path.read_bytes() for path in BUNDLED.iterdir()},
        "org/sharded": {
            **SMALL,
            "model.safetensors.index.json": json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}).encode(),
            "model-00001-of-00002.safetensors": b"1" * 500,
            "model-00002-of-00002.safetensors": b"2" * 500,
        },
    }  # fmt: skip
    with HubServer(repositories) as hub:
        yield User(hub, tmp_path / "home", hub.url)


# --- names and files, without a server -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("knowledgator/gliclass-base-v3.0", HubName("knowledgator/gliclass-base-v3.0")),
        ("org/name@v1.0", HubName("org/name", "v1.0")),
        (f"org/name@{COMMIT}", HubName("org/name", COMMIT)),
        ("org/name@refs/pr/1", HubName("org/name", "refs/pr/1")),
        *((name, None) for name in ("name", "./a/b", "a/b/c", "/a/b", "../a", "a/..", "a/", "/b", "a/b@", "", "a b/c")),
    ],
)
def test_names(name: str, expected: HubName | None) -> None:
    assert parse_hub_name(name) == expected
    assert expected is None or str(expected) == name


def choose(files: Mapping[str, bytes], **options: Any) -> tuple[str, ...]:
    usual = {"prefer": "onnx", "precision": "auto", "torch_installed": True, "has_onnx_section": False, "name": "o/n"}
    return choose_files(list(files), **{**usual, **options})


def test_only_what_is_needed_is_chosen() -> None:
    small = tuple(SMALL)
    assert choose(CHECKPOINT) == (*small, "model.safetensors")
    assert choose(PUBLISHED) == (*small, "onnx/model.onnx")
    assert choose(PUBLISHED, precision="int8") == (*small, "onnx/model_quantized.onnx")
    assert choose(PUBLISHED, prefer="torch") == (*small, "model.safetensors")
    assert choose({**PUBLISHED, "onnx/model.onnx_data": b""})[-2:] == ("onnx/model.onnx", "onnx/model.onnx_data")
    assert choose({**SMALL, "text.onnx": b"", "label.onnx": b"", "x/y.onnx": b""}, has_onnx_section=True) == (
        *small,
        "text.onnx",
        "label.onnx",
    )


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (CHECKPOINT, {"torch_installed": False}, r"ships no ONNX file, and PyTorch is not installed: pip install 'gliclass-cli\[torch\]'.*gliclass export o/n FOLDER"),
        (CHECKPOINT, {"torch_installed": False, "precision": "int8"}, "ships no ONNX file in int8"),
        ({**SMALL, **UNWANTED}, {}, "pytorch_model.bin only: such files can run code and are never loaded"),
        (SMALL, {}, "has no weights that can be run"),
        (SMALL, {"prefer": "torch"}, r"has no model\.safetensors"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_not_downloaded(files: Any, options: Any, message: str) -> None:
    with pytest.raises(ModelUnusable, match=message):
        choose(files, **options)


@given(
    st.lists(st.sampled_from([*PUBLISHED, "a/b.onnx", "x.ckpt", "model-00001-of-00002.safetensors"]), unique=True),
    st.booleans(),
)
def test_nothing_that_could_run_code_is_ever_chosen(files: list[str], torch_installed: bool) -> None:
    for prefer in ("onnx", "torch"):
        try:
            chosen = choose(dict.fromkeys(files, b""), prefer=prefer, torch_installed=torch_installed)
        except ModelUnusable:
            continue
        assert set(chosen) <= set(files)
        assert all(name.endswith((".json", ".safetensors", ".onnx")) for name in chosen)


# --- pulls -----------------------------------------------------------------------------------------------------------


def test_a_fresh_pull_takes_what_is_needed_and_a_second_one_nothing(user: User) -> None:
    first = user.pull()
    assert user.files() == sorted([*SMALL, "model.safetensors"])
    assert sorted(user.hub.downloads()) == user.files()
    assert (Path(first["path"]) / "model.safetensors").read_bytes() == WEIGHTS
    assert first["told"] == ["downloading org/model from the Hugging Face hub: 4 files, 1.0 MB"]
    assert first["cached"] == ["org/model"]
    user.hub.requests.clear()
    assert user.pull() == {**first, "told": []}
    assert user.hub.downloads() == []
    assert user.pull(force=True)["path"] == first["path"]
    assert sorted(user.hub.downloads()) == user.files()


def test_a_pinned_commit_needs_no_network_again(user: User) -> None:
    first = user.pull(f"org/model@{COMMIT}")
    user.hub.requests.clear()
    assert user.pull(f"org/model@{COMMIT}")["path"] == first["path"]
    assert user.hub.requests == []


def test_a_tag_is_a_revision(user: User) -> None:
    assert user.pull("org/model@v1")["path"].endswith(COMMIT)
    assert user.pull("org/model@v1", offline=True)["path"].endswith(COMMIT)
    assert user.pull("org/model@v9")["error"] == "org/model has no revision v9"


def test_offline_uses_the_cache_and_nothing_else(user: User) -> None:
    refused = user.pull(offline=True)["error"]
    assert "org/model is not in the cache" in refused
    assert "gliclass models pull org/model" in refused
    user.pull()
    user.hub.requests.clear()
    assert user.pull(offline=True)["path"].endswith(COMMIT)
    assert user.pull(environment={"HF_HUB_OFFLINE": "1"})["path"].endswith(COMMIT)
    # Of the cache only what is whole will do: weights are there, ONNX files are not.
    assert "error" in user.pull("org/published", offline=True)
    assert user.hub.requests == []


def test_without_a_network_the_cache_serves_or_the_error_is_clear(user: User) -> None:
    user.pull()
    user.url = "http://127.0.0.1:9"  # nobody listens there
    assert user.pull()["path"].endswith(COMMIT)
    start = time.monotonic()
    error = user.pull("org/published")["error"]
    assert "org/published: the hub cannot be reached" in error
    assert time.monotonic() - start < 20


def test_a_cut_download_goes_on_where_it_broke(user: User) -> None:
    large = WEIGHTS * 12  # the library writes 10 MB at a time
    user.hub.repositories["org/model"]["model.safetensors"] = large  # type: ignore[index]
    user.hub.faults.cut["model.safetensors"] = 11_500_000
    answer = user.pull()
    assert (Path(answer["path"]) / "model.safetensors").read_bytes() == large
    assert [request.headers["Range"] for request in user.hub.requests if "Range" in request.headers] == [
        "bytes=10485760-"
    ]


@pytest.mark.parametrize("data", [b"\0" * len(WEIGHTS), WEIGHTS[:-1], WEIGHTS + b"x"])
def test_a_wrong_file_is_deleted_and_a_good_one_taken(user: User, data: bytes) -> None:
    user.hub.faults.wrong["model.safetensors"] = data
    error = user.pull()["error"]
    assert "org/model: " in error
    assert "try again" in error
    assert "model.safetensors" not in user.files()
    blobs = (user.home / "hub" / "models--org--model" / "blobs").iterdir()
    assert all(path.read_bytes() != data for path in blobs)
    user.hub.faults.wrong.clear()
    assert (Path(user.pull()["path"]) / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "org/nothing",
            "no model 'org/nothing': there is no such folder, and the Hugging Face hub knows no such model",
        ),
        ("org/other", "org/other has no config.json: it is no GLiClass model"),
        ("org/pickle", "such files can run code and are never loaded"),
    ],
)
def test_what_is_no_model_is_named(user: User, name: str, message: str) -> None:
    assert message in user.pull(name)["error"]
    assert not [file for file in user.hub.downloads() if file != "config.json"]


def test_refused_access_says_what_to_do(user: User) -> None:
    user.hub.faults.token = "hf_secret"
    assert "set HF_TOKEN" in user.pull()["error"]
    assert user.pull(environment={"HF_TOKEN": "hf_secret"})["path"].endswith(COMMIT)


def test_a_server_in_trouble_is_named(user: User) -> None:
    user.hub.faults.status = 503
    assert "org/model: the hub cannot be reached" in user.pull()["error"]


def test_onnx_without_pytorch(user: User) -> None:
    answer = user.pull("org/published", prefer="onnx", torch_installed=False)
    assert (Path(answer["path"]) / "onnx" / "model.onnx").read_bytes() == PUBLISHED["onnx/model.onnx"]
    assert not [name for name in user.hub.downloads() if name.endswith((".safetensors", "quantized.onnx"))]
    int8 = user.pull("org/published", prefer="onnx", torch_installed=False, precision="int8")
    assert (Path(int8["path"]) / "onnx" / "model_quantized.onnx").exists()
    error = user.pull("org/model", prefer="onnx", torch_installed=False)["error"]
    assert "gliclass export org/model FOLDER" in error
    assert "model.safetensors" not in user.hub.downloads()


def test_shards_come_together(user: User) -> None:
    path = Path(user.pull("org/sharded")["path"])
    assert (path / "model-00002-of-00002.safetensors").read_bytes() == b"2" * 500
    (path / "model-00001-of-00002.safetensors").unlink()
    assert "error" in user.pull("org/sharded", offline=True)


# --- the command line ------------------------------------------------------------------------------------------------


def test_a_hub_model_at_the_command_line(user: User) -> None:
    pulled = user.gliclass("models", "pull", "org/bundled")
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout == f"{user.home}/hub/models--org--bundled/snapshots/{COMMIT}\n"
    assert "gliclass: downloading org/bundled from the Hugging Face hub: " in pulled.stderr
    user.hub.requests.clear()
    listed = user.gliclass("models", "list").stdout.splitlines()
    assert [line.split("\t")[0] for line in listed] == ["default", "org/bundled"]
    info = json.loads(user.gliclass("models", "info", "org/bundled", "--json").stdout)
    assert (info["runs_on"], info["precision"]) == ("ONNX Runtime", "int8")
    assert user.gliclass("models", "path", "org/bundled").stdout == pulled.stdout
    arguments = ("tag", "I was charged twice", "-l", "billing", "-l", "shipping")
    tagged = user.gliclass(*arguments, "--model", "org/bundled", "--offline")
    assert (tagged.returncode, tagged.stderr) == (0, "")
    assert tagged.stdout == user.gliclass(*arguments).stdout
    assert user.hub.requests == []


def test_wrong_names_and_missing_models_at_the_command_line(user: User) -> None:
    usage = user.gliclass("models", "pull", "bundled")
    assert (usage.returncode, usage.stdout) == (2, "")
    assert "is no name of a hub model" in usage.stderr
    missing = user.gliclass("tag", "x", "-l", "a", "-l", "b", "--model", "org/nothing")
    assert (missing.returncode, missing.stdout) == (4, "")
    assert "the Hugging Face hub knows no such model" in missing.stderr
    assert len(missing.stderr.splitlines()) == 1
    unknown = user.gliclass("models", "info", "org/model")
    assert (unknown.returncode, "gliclass models pull org/model" in unknown.stderr) == (4, True)
    asked = user.gliclass("tag", "x", "-l", "a", "-l", "b", "--model", "org/model", "--offline")
    assert (asked.returncode, "is not in the cache" in asked.stderr) == (4, True)
