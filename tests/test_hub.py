"""Models of the hub, from a hub-shaped server on loopback: fresh, cached, cut, wrong, refused, unreachable."""

import contextlib
import errno
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hub_server import COMMIT, OTHER_COMMIT, HubServer
from hypothesis import given
from hypothesis import strategies as st

from gliclass_cli.errors import ModelUnusable
from gliclass_cli.hub import HubName, cached_models, choose_files, parse_hub_name, pull, pull_tokenizer

BUNDLED = Path(__file__).parents[1] / "gliclass_cli" / "default_model"
CONFIG = b'{"model_type": "GLiClass", "encoder_config": {"model_type": "bert"}, "hidden_size": 8, "vocab_size": 30}'
SMALL = {
    "config.json": CONFIG,
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b'{"tokenizer_class": "BertTokenizer"}',
    "special_tokens_map.json": b'{"cls_token": "[CLS]"}',
}
WEIGHTS = bytes(range(256)) * 4000
UNWANTED = {
    "README.md": b"card",
    "pytorch_model.bin": b"pickle",
    "model.pt": b"pickle",
    "modeling_evil.py": b"import os",
    "tf_model.h5": b"keras",
    "flax_model.msgpack": b"flax",
    "runs/events.out": b"log",
    "onnx/model_fp16.onnx": b"fp16",
}
CHECKPOINT = {**SMALL, **UNWANTED, "model.safetensors": WEIGHTS}
ONNX = {
    "onnx/model.onnx": b"fp32" * 900,
    "onnx/model_quantized.onnx": b"int8" * 300,
    "onnx/config.json": b'{"onnx": 1}',
}
PUBLISHED = {**CHECKPOINT, **ONNX}
SHARDS = {"model-00001-of-00002.safetensors": b"1" * 500, "model-00002-of-00002.safetensors": b"2" * 500}
INDEX = {"model.safetensors.index.json": json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}).encode()}
GRAPHS = {"text.onnx": b"text" * 99, "label.onnx": b"label" * 99}
EXPORTED_CONFIG = {"model_type": "GLiClass", "onnx": {f"{name[:-5]}_graph": {"file": name} for name in GRAPHS}}
EXPORTED = {**SMALL, **GRAPHS, "config.json": json.dumps(EXPORTED_CONFIG).encode(), "x/y.onnx": b"other"}
MODEL = HubName("org/model")
PINNED = HubName("org/model", COMMIT)


# --- names and files, without a server -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("knowledgator/gliclass-base-v3.0", HubName("knowledgator/gliclass-base-v3.0")),
        ("org/_name.x", HubName("org/_name.x")),
        ("org/name@v1.0", HubName("org/name", "v1.0")),
        ("org/name@with@at", HubName("org/name", "with@at")),
        (f"org/name@{COMMIT}", HubName("org/name", COMMIT)),
        ("org/name@refs/pr/1", HubName("org/name", "refs/pr/1")),
        *(
            (name, None)
            for name in (
                *("", "name", "./a/b", "a/b/c", "/a/b", "../a", "a/..", "..", "a/", "/b", "a b/c", "a/b.", "-a/b"),
                *("a/b.git", "a--b/c", "örg/name", "a/b\n", f"a/{'b' * 97}"),
                *("a/b@", "@b", "a/b@../x", "a/b@/etc/x", "a/b@x/../y", "a/b@x y", "a/b@x//y", "a/b@.x", "a/b@x^"),
            )
        ),
    ],
)
def test_names(name: str, expected: HubName | None) -> None:
    assert parse_hub_name(name) == expected
    assert expected is None or str(expected) == name


@given(st.text() | st.from_regex(r"\A[\w.-]+/[\w.-]+@[\w./@-]+\Z"))
def test_a_name_stays_a_name_and_a_revision_a_path_below(text: str) -> None:
    name = parse_hub_name(text)
    if name is not None:
        assert str(name) == text
        assert not Path(name.revision or "").is_absolute()
        assert ".." not in Path(name.revision or "").parts


def choose(files: Any, **options: Any) -> tuple[str, ...]:
    usual = {"prefer": "onnx", "precision": "auto", "torch_installed": True, "has_onnx_section": False}
    return choose_files(list(files), **{**usual, **options})


def without(files: Mapping[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name not in names}


INT8_ONLY = without(PUBLISHED, "onnx/model.onnx")


@pytest.mark.parametrize(
    ("files", "options", "expected"),
    [
        (CHECKPOINT, {}, ["model.safetensors"]),
        (PUBLISHED, {}, ["onnx/config.json", "onnx/model.onnx"]),
        (PUBLISHED, {"prefer": "only onnx"}, ["onnx/config.json", "onnx/model.onnx"]),
        (PUBLISHED, {"torch_installed": False, "precision": "fp32"}, ["onnx/config.json", "onnx/model.onnx"]),
        (PUBLISHED, {"precision": "int8"}, ["onnx/config.json", "onnx/model_quantized.onnx"]),
        (PUBLISHED, {"precision": "int8", "prefer": "torch"}, ["onnx/config.json", "onnx/model_quantized.onnx"]),
        (PUBLISHED, {"prefer": "torch"}, ["model.safetensors"]),
        (PUBLISHED, {"prefer": "torch first"}, ["model.safetensors"]),
        (without(PUBLISHED, "model.safetensors"), {"prefer": "torch first"}, ["onnx/config.json", "onnx/model.onnx"]),
        (PUBLISHED, {"prefer": "torch first", "torch_installed": False}, ["onnx/config.json", "onnx/model.onnx"]),
        (PUBLISHED, {"prefer": "torch", "torch_installed": False}, ["model.safetensors"]),
        (PUBLISHED, {"precision": "bf16"}, ["model.safetensors"]),
        (INT8_ONLY, {}, ["onnx/config.json", "onnx/model_quantized.onnx"]),
        (INT8_ONLY, {"precision": "fp32"}, ["model.safetensors"]),
        ({**PUBLISHED, "onnx/model.onnx_data": b""}, {}, ["onnx/model.onnx_data", "onnx/config.json", "onnx/model.onnx"]),
        ({**SMALL, "model.onnx": b"", "model.onnx.data": b"", **ONNX}, {}, ["onnx/config.json", "onnx/model.onnx"]),
        ({**SMALL, "model.onnx": b"", "model.onnx.data": b""}, {}, ["model.onnx.data", "model.onnx"]),
        ({**SMALL, "model-int8-quantized.onnx": b""}, {}, ["model-int8-quantized.onnx"]),
        ({**SMALL, "onnx/model_int8.onnx": b""}, {"precision": "int8"}, ["onnx/model_int8.onnx"]),
        ({**SMALL, **INDEX, **SHARDS}, {}, [*INDEX, *SHARDS]),
        ({**CHECKPOINT, **INDEX, **SHARDS}, {}, ["model.safetensors"]),
        (EXPORTED, {"has_onnx_section": True}, ["label.onnx", "text.onnx"]),
        ({**EXPORTED, "weights.safetensors": b""}, {"has_onnx_section": True}, ["weights.safetensors", "label.onnx", "text.onnx"]),
        ({**EXPORTED, **CHECKPOINT}, {"has_onnx_section": True, "prefer": "torch"}, ["label.onnx", "text.onnx"]),
    ],
)  # fmt: skip
def test_only_what_is_needed_is_chosen(files: Any, options: Any, expected: list[str]) -> None:
    assert choose(files, **options) == (*SMALL, *expected)


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (CHECKPOINT, {"torch_installed": False}, r"^ORG/NAME ships no ONNX file that can be run, and PyTorch is not installed: pip install 'gliclass-cli\[torch\]' to run it; or gliclass export ORG/NAME FOLDER makes one .* on another machine, after pip install 'gliclass-cli\[torch,export\]'$"),
        (CHECKPOINT, {"torch_installed": False, "name": "o/n"}, "^o/n ships .* gliclass export o/n FOLDER"),
        (CHECKPOINT, {"precision": "int8"}, "can be run in int8; gliclass export ORG/NAME FOLDER --int8 makes one"),
        (CHECKPOINT, {"precision": "int8", "torch_installed": False}, "in int8; gliclass export"),
        (CHECKPOINT, {"prefer": "only onnx"}, "no ONNX file that can be run; gliclass export"),
        (CHECKPOINT, {"prefer": "only onnx", "torch_installed": False}, "no ONNX file that can be run; gliclass export"),
        ({**SMALL, "onnx/model.onnx": b""}, {"precision": "int8"}, r"has no model\.safetensors and no ONNX file that can be run in int8$"),
        (INT8_ONLY, {"precision": "fp32", "torch_installed": False}, "can be run in fp32, and PyTorch"),
        ({**SMALL, **UNWANTED}, {}, r"in pickle files only \(model\.pt\): .* never loaded; ask its author for model\.safetensors"),
        ({**SMALL, **UNWANTED}, {"prefer": "torch"}, "in pickle files only"),
        (SMALL, {}, r"has no model\.safetensors and no ONNX file that can be run$"),
        (SMALL, {"prefer": "torch"}, r"has no model\.safetensors$"),
        ({**SMALL, **INDEX}, {}, r"has no model\.safetensors"),
        ({}, {}, r"has no model\.safetensors"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_not_chosen(files: Any, options: Any, message: str) -> None:
    with pytest.raises(ModelUnusable, match=message):
        choose(files, **options)


@given(
    files=st.lists(st.sampled_from([*PUBLISHED, *INDEX, *SHARDS, *EXPORTED, "x.ckpt", "y.pkl", "../z.onnx"]), unique=True),
    options=st.fixed_dictionaries(
        {
            "prefer": st.sampled_from(["onnx", "only onnx", "torch"]),
            "precision": st.sampled_from(["auto", "fp32", "fp16", "bf16", "int8"]),
            "torch_installed": st.booleans(),
            "has_onnx_section": st.booleans(),
        }
    ),
)  # fmt: skip
def test_nothing_that_could_run_code_is_ever_chosen(files: list[str], options: Any) -> None:
    with contextlib.suppress(ModelUnusable):
        chosen = choose(files, **options)
        assert set(chosen) <= set(files)
        assert len(set(chosen)) == len(chosen)
        assert all(name.endswith((".json", ".safetensors", ".onnx")) for name in chosen)
        assert {name.endswith(".onnx") for name in chosen if not name.endswith(".json")} in ({True}, {False})


# --- pulls -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub, a user of it who has an empty cache, and a library that does not wait before it tries again."""
    repositories = {
        "org/model": dict(CHECKPOINT),
        "org/published": dict(PUBLISHED),
        "org/pickle": {**SMALL, **UNWANTED},
        "org/other": {"weights.txt": b"x"},
        "org/bert": {**CHECKPOINT, "config.json": b'{"model_type": "bert"}'},
        "org/bi": {**PUBLISHED, "config.json": b'{"model_type": "GLiClass", "architecture_type": "bi-encoder"}'},
        "org/exported": dict(EXPORTED),
        "org/sharded": {**SMALL, **INDEX, **SHARDS},
    }
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "GLICLASS_"))]:
        monkeypatch.delenv(name)
    with HubServer(repositories) as server:
        point_at(server.url, home, monkeypatch)
        yield server


def point_at(url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT and HF_HOME do: the library reads them when it is imported."""
    from huggingface_hub import constants

    settings = {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_ETAG_TIMEOUT": 5,
        "DOWNLOAD_CHUNK_SIZE": 1 << 16,  # what may get lost where a connection breaks
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value, raising=False)
        monkeypatch.setattr(f"huggingface_hub.file_download.{name}", value, raising=False)  # older versions import it


def get(name: HubName = MODEL, **options: Any) -> Path:
    return pull(name, **{"prefer": "torch", "torch_installed": True, **options})


def refusal(name: HubName = MODEL, **options: Any) -> str:
    with pytest.raises(ModelUnusable) as caught:
        get(name, **options)
    return str(caught.value)


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def blobs(home: Path, repository: str = "model") -> list[bytes]:
    """What the cache holds of a repository, the unfinished included."""
    return [path.read_bytes() for path in (home / "hub" / f"models--org--{repository}" / "blobs").iterdir()]


def test_a_fresh_pull_takes_what_is_needed_and_a_second_one_nothing(hub: HubServer, home: Path) -> None:
    told: list[str] = []
    folder = get(announce=told.append)
    assert folder == home / "hub" / "models--org--model" / "snapshots" / COMMIT
    assert files_of(folder) == sorted([*SMALL, "model.safetensors"]) == sorted(hub.downloads())
    assert hub.downloads()[0] == "config.json"
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert told == ["downloading org/model from the Hugging Face hub: 4 files, 1.0 MB"]
    # No telemetry: nothing is asked but for the model, and nothing is said of this machine's libraries.
    assert {request.path.split("/")[1] for request in hub.requests} == {"api", "org"}
    assert not [request for request in hub.requests if "torch" in request.headers["user-agent"]]

    hub.requests.clear()
    assert get(announce=told.append) == folder
    assert [request.path for request in hub.requests] == ["/api/models/org/model"]
    assert len(told) == 1


def test_force_downloads_each_file_again(hub: HubServer, home: Path) -> None:
    folder = get()
    (folder / "model.safetensors").resolve().write_bytes(b"damaged by a disk")
    (folder / "tokenizer.json").resolve().write_bytes(b"too")
    hub.requests.clear()
    assert get(force=True) == folder
    assert sorted(hub.downloads()) == files_of(folder)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "tokenizer.json").read_bytes() == SMALL["tokenizer.json"]
    assert "without the network" in refusal(force=True, offline=True)


def test_force_downloads_again_on_a_disk_without_links(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda cache_dir=None: False)
    path = get() / "model.safetensors"
    assert not path.is_symlink()
    path.write_bytes(b"damaged by a disk")
    get(force=True)
    assert path.read_bytes() == WEIGHTS


def test_a_new_commit_with_the_same_files_downloads_none(hub: HubServer) -> None:
    get()
    hub.requests.clear()
    hub.revisions["main"] = OTHER_COMMIT
    told: list[str] = []
    folder = get(announce=told.append)
    assert (folder.name, hub.downloads(), told) == (OTHER_COMMIT, [], [])
    assert get(offline=True) == folder
    assert get(PINNED, offline=True).name == COMMIT

    hub.revisions["main"] = COMMIT
    hub.repositories["org/model"]["tokenizer.json"] = b'{"version": "2.0"}'
    hub.revisions["main"] = hub.revisions["v2"] = "f" * 40
    hub.revisions["f" * 40] = "f" * 40
    assert (get(announce=told.append) / "tokenizer.json").read_bytes() == b'{"version": "2.0"}'
    assert (hub.downloads(), told) == (["tokenizer.json"], ["downloading org/model from the Hugging Face hub: 1 file, 0.0 MB"])  # fmt: skip


def test_a_pinned_commit_needs_no_network_again(hub: HubServer) -> None:
    folder = get(PINNED)
    hub.requests.clear()
    assert get(PINNED) == folder
    # ONNX is preferred here, and known not to be there.
    assert get(PINNED, prefer="onnx") == folder
    assert hub.requests == []
    assert "ships no ONNX file" in refusal(PINNED, prefer="onnx", torch_installed=False)


def test_a_pinned_commit_does_not_depend_on_what_was_pulled_before(hub: HubServer) -> None:
    pinned = HubName("org/published", COMMIT)
    for options, file in (
        ({"prefer": "torch"}, "model.safetensors"),
        ({"prefer": "onnx", "precision": "int8"}, "onnx/model_quantized.onnx"),
        ({"prefer": "onnx"}, "onnx/model.onnx"),
    ):
        hub.requests.clear()
        assert (get(pinned, **options) / file).is_file()
        assert file in hub.downloads()
        hub.requests.clear()
        get(pinned, **options)
        assert hub.requests == []


def test_branches_and_tags_are_revisions(hub: HubServer) -> None:
    for revision in ("v1", "refs/pr/1"):
        name = HubName("org/model", revision)
        assert get(name).name == COMMIT
        assert get(name, offline=True).name == COMMIT
    assert "is not in the cache" in refusal(offline=True)
    assert f"org/model has no revision v9; {hub.url}/org/model lists" in refusal(HubName("org/model", "v9"))
    assert refusal(HubName("org/model", "f" * 40)).startswith(f"org/model has no revision {'f' * 40}")


@pytest.mark.parametrize("revision", ["../../../../x", "/x", ""])
def test_a_revision_is_no_way_out_of_the_cache(hub: HubServer, revision: str) -> None:
    hub.revisions[revision] = COMMIT
    assert "is no name of a hub model" in refusal(HubName("org/model", revision))
    assert hub.requests == []


@pytest.mark.parametrize("sha", ["../../../../x", "main"])
def test_a_hub_that_names_no_commit_is_none(hub: HubServer, sha: str) -> None:
    hub.faults.sha = sha
    assert "names no commit; check HF_ENDPOINT" in refusal()


def test_offline_uses_the_cache_and_nothing_else(
    hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    assert refusal(offline=True) == (
        f"org/model is not in the cache ({home}/hub; HF_HOME says where), or not all that is needed of it; run gliclass "
        "models pull org/model with a network first"
    )
    folder = get()
    hub.requests.clear()
    assert get(offline=True) == folder
    assert "is not in the cache" in refusal(HubName("org/published"), offline=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert get() == folder
    assert refusal(HubName("org/published")).endswith(
        "run gliclass models pull org/published without HF_HUB_OFFLINE, with a network first"
    )
    # Weights are there; without PyTorch they are not what is needed.
    assert "is not in the cache" in refusal(prefer="onnx", torch_installed=False)
    (folder / "tokenizer.json").unlink()
    assert "is not in the cache" in refusal()
    assert hub.requests == []


@pytest.mark.parametrize("repository", ["sharded", "exported"])
def test_a_model_with_a_part_missing_is_not_in_the_cache(hub: HubServer, repository: str) -> None:
    folder = get(HubName(f"org/{repository}"))
    assert get(HubName(f"org/{repository}"), offline=True) == folder
    (folder / ("text.onnx" if repository == "exported" else "model-00001-of-00002.safetensors")).unlink()
    assert "is not in the cache" in refusal(HubName(f"org/{repository}"), offline=True)
    assert cached_models() == []
    assert get(HubName(f"org/{repository}", COMMIT)) == folder
    assert get(HubName(f"org/{repository}"), offline=True) == folder


@pytest.mark.parametrize(
    "fault",
    [
        *({"status": status} for status in (503, 429)),
        *({"page": page} for page in (b"<html>log in", "<html>für Gäste".encode("latin-1"), b'{"login": 1}', b"[]")),
        {"slow": 9.0},
        None,
    ],
)
def test_without_a_network_the_cache_serves_or_the_error_is_clear(
    hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any] | None
) -> None:
    folder = get()
    if fault is None:
        point_at("http://127.0.0.1:9", home, monkeypatch)  # nobody listens there
    for name, value in (fault or {}).items():
        setattr(hub.faults, name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.3)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits to try again"))
    hub.requests.clear()
    assert get() == folder
    assert len(hub.requests) <= 1  # asked once, for as long as HF_HUB_ETAG_TIMEOUT says
    error = refusal(HubName("org/published"))
    assert error.startswith("org/published: the hub (http://127.0.0.1:")
    assert "cannot be reached, or the connection broke" in error
    assert "cannot be reached" in refusal(force=True)


def test_a_name_that_does_not_resolve_is_no_network(
    hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    point_at("http://hub.invalid", home, monkeypatch)
    assert "the hub (http://hub.invalid) cannot be reached" in refusal()
    with pytest.raises(ModelUnusable, match=r"hub\.invalid\) cannot be reached"):
        pull_tokenizer(HubName("org/published"))


# --- large files -----------------------------------------------------------------------------------------------------


def test_a_connection_that_breaks_is_taken_up_at_once(hub: HubServer) -> None:
    hub.faults.cut["model.safetensors"] = 600_000
    assert (get() / "model.safetensors").read_bytes() == WEIGHTS
    first, second = hub.ranges("model.safetensors")
    assert (first, second) == (None, f"bytes={600_000 >> 16 << 16}-")


@pytest.mark.parametrize("ignores_range", [False, True])
def test_a_broken_download_goes_on_at_the_next_call(hub: HubServer, home: Path, ignores_range: bool) -> None:
    for cut in (300_000, 200_000):
        hub.faults.cut["model.safetensors"] = cut
        with pytest.MonkeyPatch.context() as patch:
            # The server goes away with the connection, so that trying again at once is of no use.
            patch.setattr("time.sleep", lambda seconds: setattr(hub.faults, "status", 503))
            assert "org/model: the hub" in refusal()
        hub.faults.status = None
    arrived = (300_000 >> 16 << 16) + (200_000 >> 16 << 16)
    assert WEIGHTS[:arrived] in blobs(home)
    assert "is not in the cache" in refusal(offline=True)
    hub.requests.clear()
    hub.faults.ignores_range = ignores_range
    assert (get() / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.ranges("model.safetensors") == [f"bytes={arrived}-"]
    assert len(blobs(home)) == len(SMALL) + 1


def test_a_file_that_has_arrived_but_was_not_checked_yet_is_not_downloaded_again(hub: HubServer) -> None:
    blob = (get() / "model.safetensors").resolve()
    for data, ranges in ((WEIGHTS, []), (b"x" * len(WEIGHTS), [None])):
        blob.unlink()
        blob.with_name(f"{blob.name}.incomplete").write_bytes(data)
        hub.requests.clear()
        if ranges:
            assert "arrived damaged" in refusal()
        assert (get() / "model.safetensors").read_bytes() == WEIGHTS
        assert hub.ranges("model.safetensors") == ranges


def test_an_unfinished_file_that_is_too_long_is_begun_anew(hub: HubServer, home: Path) -> None:
    blob = (get() / "model.safetensors").resolve()
    blob.with_name(f"{blob.name}.incomplete").write_bytes(WEIGHTS + b"x")
    hub.requests.clear()
    get(force=True)
    assert hub.ranges("model.safetensors") == [None]
    assert blob.read_bytes() == WEIGHTS


CHILD = """
import resource
import sys
from huggingface_hub import constants
from gliclass_cli.hub import *
constants.DOWNLOAD_CHUNK_SIZE = 1 << 16
if "limit" in sys.argv:
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
announce = (lambda text: sys.stderr.write(text + chr(10))) if "bars" in sys.argv else None
pull(parse_hub_name(sys.argv[1]), prefer="torch", torch_installed=True, announce=announce)
"""


def child(hub: HubServer, home: Path, *arguments: str, **settings: Any) -> "subprocess.Popen[str]":
    """A process that pulls, with the environment of a user."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", CHILD, *arguments]
    return subprocess.Popen(command, env=environment, text=True, **{"stderr": subprocess.PIPE, **settings})


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_a_download_that_was_stopped_goes_on_at_the_next_call(hub: HubServer, home: Path, way: signal.Signals) -> None:
    hub.faults.stall["model.safetensors"] = 500_000
    process = child(hub, home, "org/model")
    assert hub.stalled.wait(20)
    folder = home / "hub" / "models--org--model" / "blobs"
    while not any(path.stat().st_size >= 6 << 16 for path in folder.glob("*.incomplete")):
        hub.stopped.wait(0.01)
    process.send_signal(way)
    process.communicate(timeout=20)
    hub.faults.stall.clear()
    hub.requests.clear()
    assert (get() / "model.safetensors").read_bytes() == WEIGHTS
    (asked,) = hub.ranges("model.safetensors")
    assert asked in (f"bytes={6 << 16}-", f"bytes={7 << 16}-")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["bytes", "short", "long", "empty"])
def test_a_wrong_file_is_deleted_and_a_good_one_taken(hub: HubServer, home: Path, name: str, damage: str) -> None:
    good = hub.repositories["org/model"][name]
    wrong = {"bytes": b"x" * len(good), "short": good[:-1], "long": good + b"x", "empty": b""}[damage]
    hub.faults.wrong[name] = wrong
    problem = "its digest is not the one that the hub names" if damage == "bytes" else f"it has {len(wrong)} bytes, not {len(good)}"  # fmt: skip
    assert refusal() == f"org/model: {name} arrived damaged ({problem}) and was deleted; try again"
    assert set(blobs(home)) < set(CHECKPOINT.values())  # the others, if any
    assert not list((home / "hub" / "models--org--model" / "snapshots").rglob(name))
    assert "is not in the cache" in refusal(offline=True)
    hub.faults.wrong.clear()
    assert (get() / name).read_bytes() == good
    assert len(blobs(home)) == len(SMALL) + 1


@pytest.mark.parametrize("large", [True, False])
def test_what_the_library_downloads_is_checked_too(hub: HubServer, home: Path, large: bool, monkeypatch: Any) -> None:
    name = "model.safetensors" if large else "tokenizer.json"
    monkeypatch.setattr("gliclass_cli.hub._is_for_the_library", lambda *arguments: True)
    hub.faults.wrong[name] = b"x" * len(hub.repositories["org/model"][name])
    assert refusal() == f"org/model: {name} arrived damaged (its digest is not the one that the hub names) and was deleted; try again"  # fmt: skip
    assert set(blobs(home)) < set(CHECKPOINT.values())
    assert not list((home / "hub" / "models--org--model" / "snapshots").rglob(name))
    hub.faults.wrong.clear()
    assert (get() / name).read_bytes() == hub.repositories["org/model"][name]


def test_what_was_in_the_cache_is_not_read_again(hub: HubServer) -> None:
    folder = get()
    (folder / "model.safetensors").resolve().write_bytes(b"\0" * len(WEIGHTS))
    assert get() == folder
    assert get(PINNED) == folder


def test_a_file_that_cannot_be_written_to_its_end_goes_on_where_there_is_room(hub: HubServer, home: Path) -> None:
    said = child(hub, home, "org/model", "limit").communicate(timeout=20)[1].splitlines()[-1]
    assert said.endswith(f"{home}/hub: cannot be written: File too large; HF_HOME moves the cache elsewhere")
    assert WEIGHTS[:500_000] in blobs(home)
    hub.requests.clear()
    assert (get() / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.ranges("model.safetensors") == ["bytes=500000-"]


def test_a_full_disk_is_named(hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.file_download.http_get", full)
        assert refusal() == f"{home}/hub: cannot be written: No space left on device; HF_HOME moves the cache elsewhere"  # fmt: skip
    (home / "hub").rename(home / "old")
    (home / "hub").touch()
    assert f"{home}/hub" in (error := refusal())
    assert "cannot be written" in error
    with pytest.raises(ModelUnusable, match="cache of the Hugging Face hub cannot be read"):
        cached_models()


def test_a_cache_that_cannot_be_written_serves(hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = get()
    (home / "hub" / "models--org--model" / "refs" / "main").unlink()

    def read_only(*arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("mkdir", "touch", "write_text"):
        monkeypatch.setattr(Path, name, read_only)
    assert get() == folder


def test_files_come_from_another_host_which_gets_no_token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.elsewhere, hub.faults.token = True, "hf_secret"
    hub.faults.cut["model.safetensors"] = 600_000
    assert (get() / "model.safetensors").read_bytes() == WEIGHTS
    elsewhere = [request for request in hub.requests if request.path.startswith("/elsewhere/")]
    assert [request.headers.get("range") for request in elsewhere] == [None, f"bytes={600_000 >> 16 << 16}-"]
    assert not [request for request in elsewhere if "authorization" in request.headers]


def test_signed_addresses_are_not_shown(hub: HubServer) -> None:
    hub.elsewhere, hub.faults.elsewhere = True, 500
    error = refusal()
    assert f"{hub.other_host}/elsewhere/org/model/model.safetensors" in error
    assert "Signature" not in error


def test_a_model_has_its_old_name_too(hub: HubServer) -> None:
    hub.renamed["old/name"] = "org/model"
    folder = get(HubName("old/name"))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert get(HubName("old/name"), offline=True) == folder


def test_two_processes_share_one_download(hub: HubServer, home: Path) -> None:
    processes = [child(hub, home, "org/model") for _ in range(2)]
    assert [(process.communicate(timeout=20)[1], process.returncode) for process in processes] == [("", 0)] * 2
    assert sorted(hub.downloads()) == files_of(get(offline=True))


@pytest.mark.parametrize("fails", [False, True])
def test_chunks_are_the_library_s_and_files_stay_in_the_model_s_folder(
    hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    def xet_get(*, incomplete_path: Path, **options: Any) -> None:
        if fails:
            raise RuntimeError("Xet: the store is out")
        incomplete_path.write_bytes(WEIGHTS)

    hub.xet = True
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr("huggingface_hub.file_download.xet_get", xet_get)
    if fails:
        assert "try again, or without xet: HF_HUB_DISABLE_XET=1" in refusal()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    path = get() / "model.safetensors"
    assert ("model.safetensors" in hub.downloads()) == fails
    assert path.read_bytes() == WEIGHTS
    assert path.resolve().parent == home / "hub" / "models--org--model" / "blobs"


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "^no model 'org/nothing': there is no such folder, and the Hugging Face hub knows no such model"),
        ("other", "^org/other has no config.json: it is no GLiClass model$"),
        ("bert", "^org/bert is no GLiClass model: its config.json says model_type 'bert'$"),
        ("pickle", "such files can run code and are never loaded"),
    ],
)
def test_what_is_no_model_is_named_and_not_downloaded(hub: HubServer, name: str, message: str) -> None:
    with pytest.raises(ModelUnusable, match=message):
        get(HubName(f"org/{name}"))
    assert set(hub.downloads()) <= {"config.json"}
    assert cached_models() == []


def test_a_gated_model_says_what_to_do(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults.token = "hf_secret"
    said = f"org/model is gated: accept its licence on {hub.url}/org/model, and set HF_TOKEN to a token of your account"
    assert refusal() == said
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert refusal() == said
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert get().name == COMMIT
    assert [request.headers["authorization"] for request in hub.requests[2:]] == ["Bearer hf_secret"] * (len(hub.requests) - 2)  # fmt: skip


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(("status", "code"), [(401, "GatedRepo"), (403, "GatedRepo"), (401, None), (403, None)])
def test_refused_access_says_what_to_do(hub: HubServer, status: int, code: str | None, file: str) -> None:
    hub.faults.file_status[file], hub.faults.code = status, code
    error = refusal()
    assert error.startswith("org/model is gated" if code else "org/model: the hub refuses access")
    assert "HF_TOKEN" in error
    assert f"licence on {hub.url}/org/model" in error


def test_to_strangers_a_private_model_does_not_exist(hub: HubServer) -> None:
    hub.faults.status, hub.faults.code = 401, "RepoNotFound"
    assert refusal().startswith("no model 'org/model': ")
    assert refusal().endswith("(a private one needs HF_TOKEN)")


def test_an_expired_token_is_refused_with_the_model_in_the_cache_too(hub: HubServer) -> None:
    get()
    hub.faults.status = 401
    assert "org/model: the hub refuses access" in refusal()
    assert get(offline=True).name == COMMIT


def test_a_file_that_the_server_cannot_give_is_no_missing_cache(hub: HubServer) -> None:
    hub.faults.file_status["model.safetensors"] = 503
    assert "cannot be reached, or the connection broke" in refusal()
    hub.faults.file_status["model.safetensors"], hub.faults.code = 404, "EntryNotFound"
    assert "org/model: the hub has not all files that are needed" in refusal()
    hub.faults.code = None
    assert "org/model: the download failed (" in refusal()


def test_an_index_that_names_what_is_not_there(hub: HubServer) -> None:
    del hub.repositories["org/sharded"]["model-00002-of-00002.safetensors"]
    assert "org/sharded is not whole: the hub has no model-00002-of-00002.safetensors" in refusal(
        HubName("org/sharded")
    )


# --- kinds of models -------------------------------------------------------------------------------------------------


def test_onnx_without_pytorch(hub: HubServer) -> None:
    without_torch: dict[str, Any] = {"prefer": "onnx", "torch_installed": False}
    folder = get(HubName("org/published"), **without_torch)
    assert files_of(folder) == sorted([*SMALL, "onnx/config.json", "onnx/model.onnx"])
    assert get(HubName("org/published"), **without_torch, offline=True) == folder
    get(HubName("org/published"), **without_torch, precision="int8")
    assert (folder / "onnx" / "model_quantized.onnx").is_file()
    assert "gliclass export org/model FOLDER" in refusal(**without_torch)
    assert "model.safetensors" not in hub.downloads()


@pytest.mark.parametrize("graph", ["onnx/model.onnx", "model.onnx", "onnx/model_quantized.onnx"])
@pytest.mark.parametrize("ending", ["_data", ".data"])
def test_a_graph_comes_with_its_weights_or_not_at_all(hub: HubServer, graph: str, ending: str) -> None:
    hub.repositories["org/large"] = {**SMALL, graph: b"graph", f"{graph}{ending}": WEIGHTS}
    pinned = HubName("org/large", COMMIT)
    hub.faults.file_status[f"{graph}{ending}"] = 503
    assert "cannot be reached" in refusal(pinned, prefer="onnx")
    assert "is not in the cache" in refusal(pinned, prefer="onnx", offline=True)
    assert cached_models() == []
    hub.faults.file_status.clear()
    folder = get(pinned, prefer="onnx")
    assert files_of(folder) == sorted([*SMALL, graph, f"{graph}{ending}"])
    assert get(pinned, prefer="onnx", offline=True) == folder
    (model,) = cached_models()
    assert model.path == folder


def test_an_exported_model_brings_all_its_graphs(hub: HubServer) -> None:
    folder = get(HubName("org/exported"), prefer="onnx", torch_installed=False)
    assert files_of(folder) == sorted([*SMALL, *GRAPHS])
    hub.requests.clear()
    assert get(HubName("org/exported", COMMIT)) == folder
    assert hub.requests == []


@pytest.mark.parametrize("file", ["a" * 300, "a\0b", "/etc/passwd", "../refs/main", "..", ""])
def test_a_config_that_names_no_file_of_the_folder_hides_no_other_model(hub: HubServer, file: str) -> None:
    config = {"model_type": "GLiClass", "onnx": {"text_graph": {"file": file}}}
    hub.repositories["org/hostile"] = {**EXPORTED, "config.json": json.dumps(config).encode()}
    assert "org/hostile is not whole" in refusal(HubName("org/hostile"))
    get()
    assert [model.name for model in cached_models()] == ["org/model"]


def test_published_onnx_files_are_taken_of_uni_encoders_only(hub: HubServer) -> None:
    assert (get(HubName("org/bi"), prefer="onnx") / "model.safetensors").is_file()
    assert "ships no ONNX file that can be run" in refusal(HubName("org/bi"), prefer="onnx", torch_installed=False)


def test_shards_come_together(hub: HubServer) -> None:
    folder = get(HubName("org/sharded"))
    assert files_of(folder) == sorted([*SMALL, *INDEX, *SHARDS])
    assert (folder / "model-00002-of-00002.safetensors").read_bytes() == b"2" * 500


def test_the_tokenizer_of_a_label_encoder_comes_alone(hub: HubServer, home: Path, monkeypatch: Any) -> None:
    bert = HubName("org/bert")
    with pytest.raises(ModelUnusable, match=r"^tokenizer\.json of org/bert is not in the cache"):
        pull_tokenizer(bert, offline=True)
    path = pull_tokenizer(bert)
    assert path.read_bytes() == SMALL["tokenizer.json"]
    assert hub.downloads() == ["tokenizer.json"]
    hub.requests.clear()
    assert pull_tokenizer(bert, offline=True) == pull_tokenizer(HubName("org/bert", COMMIT)) == path
    assert hub.requests == []
    assert pull_tokenizer(bert) == path
    with pytest.raises(ModelUnusable, match=r"^org/other has no tokenizer\.json on the hub"):
        pull_tokenizer(HubName("org/other"))
    point_at("http://127.0.0.1:9", home, monkeypatch)
    assert pull_tokenizer(bert) == path
    assert cached_models() == []


def test_cached_models_are_named_as_they_are_found_again(hub: HubServer, home: Path) -> None:
    assert cached_models() == []
    get(HubName("org/sharded", "v1"))
    get(HubName("org/bi", COMMIT))
    get()
    hub.revisions["main"] = OTHER_COMMIT
    get()
    found = cached_models()
    assert [model.name for model in found] == [f"org/bi@{COMMIT}", "org/model", f"org/model@{COMMIT}", "org/sharded@v1"]
    assert [model.revision for model in found] == [COMMIT, OTHER_COMMIT, COMMIT, COMMIT]
    assert found[1].size == len(WEIGHTS) + sum(map(len, SMALL.values()))
    for model in found:
        name = parse_hub_name(model.name)
        assert name and get(name, offline=True) == model.path


# --- what the library writes and keeps -------------------------------------------------------------------------------


def test_the_library_is_left_as_it_was(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled

    before = (logging.get_verbosity(), dict(vars(constants)), are_progress_bars_disabled("huggingface_hub.http_get"))
    get(announce=lambda text: None)
    refusal(HubName("org/nothing"))
    assert before == (logging.get_verbosity(), vars(constants), are_progress_bars_disabled("huggingface_hub.http_get"))


@pytest.mark.parametrize("setting", [True, False])
def test_the_user_s_setting_of_bars_raises_no_warning(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, setting: bool
) -> None:  # fmt: skip
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", setting)
    get(announce=(lambda text: None) if setting else None)


@pytest.mark.parametrize("bars", [True, False])
def test_bars_are_shown_on_a_terminal_that_wants_them(hub: HubServer, home: Path, bars: bool) -> None:
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(stderr, (24, 80))
    hub.faults.cut["model.safetensors"] = 600_000  # which the library would like to tell
    process = child(hub, home, "org/model", *(["bars"] if bars else []), stderr=stderr)
    os.close(stderr)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the other end is closed
        while piece := os.read(terminal, 1 << 16):
            shown += piece
    os.close(terminal)
    assert process.wait(20) == 0
    assert (b"model.safetensors: 100%" in shown) == bars
    assert (
        shown.startswith(b"downloading org/model") if bars else shown == b""
    )  # no bar before it is told what it is of


# --- the command line ------------------------------------------------------------------------------------------------


def gliclass(hub: HubServer, home: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gliclass_cli", *arguments]
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", **more}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_hub_model_at_the_command_line(hub: HubServer, home: Path) -> None:
    hub.repositories["org/bundled"] = {path.name: path.read_bytes() for path in BUNDLED.iterdir()}
    hub.faults.token = "hf_secret"
    pulled = gliclass(hub, home, "models", "pull", "org/bundled", HF_TOKEN="hf_secret")
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout == f"{home}/hub/models--org--bundled/snapshots/{COMMIT}\n"
    (said,) = pulled.stderr.splitlines()
    assert said.startswith("gliclass: downloading org/bundled from the Hugging Face hub: ")
    hub.requests.clear()
    listed = gliclass(hub, home, "models", "list").stdout.splitlines()
    assert [line.split("\t")[0] for line in listed] == ["default", "org/bundled"]
    info = json.loads(gliclass(hub, home, "models", "info", "org/bundled", "--json").stdout)
    assert (info["runs_on"], info["precision"]) == ("ONNX Runtime", "int8")
    assert gliclass(hub, home, "models", "path", "org/bundled").stdout == pulled.stdout
    tagged = gliclass(hub, home, "tag", "charged twice", "-l", "billing", "-l", "shipping", "--model", "org/bundled", HF_HUB_OFFLINE="1")  # fmt: skip
    assert (tagged.returncode, tagged.stderr) == (0, "")
    assert json.loads(tagged.stdout)["prediction"]["label"] == "billing"
    offline = gliclass(hub, home, "tag", "charged twice", "-l", "billing", "-l", "shipping", "--model", "org/bundled", "--offline")  # fmt: skip
    assert (offline.returncode, offline.stdout, offline.stderr) == (0, tagged.stdout, "")
    assert hub.requests == []


def test_missing_models_at_the_command_line(hub: HubServer, home: Path) -> None:
    missing = gliclass(hub, home, "tag", "x", "-l", "a", "-l", "b", "--model", "org/nothing")
    assert (missing.returncode, missing.stdout) == (4, "")
    assert "the Hugging Face hub knows no such model" in missing.stderr
    assert len(missing.stderr.splitlines()) == 1
    pulled = gliclass(hub, home, "models", "pull", "org/nothing")
    assert (pulled.returncode, pulled.stdout, pulled.stderr) == (4, "", missing.stderr)
    offline = gliclass(hub, home, "tag", "x", "-l", "a", "-l", "b", "--model", "org/model", "--offline")
    assert (offline.returncode, offline.stdout) == (4, "")
    assert "run gliclass models pull org/model with a network first" in offline.stderr
    unknown = gliclass(hub, home, "models", "info", "org/model")
    assert (unknown.returncode, unknown.stdout, unknown.stderr) == (4, "", offline.stderr)


def test_wrong_names_at_the_command_line(hub: HubServer, home: Path) -> None:
    usage = gliclass(hub, home, "models", "pull", "bundled")
    assert (usage.returncode, usage.stdout) == (2, "")
    assert "is no name of a hub model" in usage.stderr
