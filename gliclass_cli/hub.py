"""Models of the Hugging Face hub: found by name, downloaded once into the hub's own cache, and checked.

Only what is needed to run a model is downloaded: ``config.json``, the tokenizer, and ONNX files or
``model.safetensors``. Nothing that can run code ever is. HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what
they always mean.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from gliclass_cli.errors import ModelUnusable

Prefer = Literal["onnx", "torch"]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SMALL = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "label_tokenizer.json",
)
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_FP32 = ("onnx/model.onnx", "model.onnx")
_INT8 = tuple(
    f"{folder}{name}"
    for folder in ("onnx/", "")
    for name in ("model_quantized.onnx", "model-int8-quantized.onnx", "model_int8.onnx")
)
_SECONDS = 10.0  # to wait for an answer


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository of the hub, ``org/name``; ``revision`` is a branch, a tag or a commit, None the main branch."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A GLiClass model in the hub's cache; ``revision`` is its commit, ``size`` in bytes."""

    name: str
    revision: str
    path: Path
    size: int


def parse_hub_name(name: str) -> HubName | None:
    """Return the repository of ``org/name`` or ``org/name@revision``; None for what is no such name, like a path."""
    repository, at, revision = name.partition("@")
    if not _NAME.fullmatch(repository) or ".." in repository or (at and not revision):
        return None
    return HubName(repository, revision or None)


def choose_files(
    files: Sequence[str], *, prefer: Prefer, precision: str, torch_installed: bool, has_onnx_section: bool, name: str
) -> tuple[str, ...]:
    """Return which files of a repository are needed.

    Raises:
        ModelUnusable: nothing here can run the model, or its weights are in files that could run code.
    """
    small = tuple(file for file in _SMALL if file in files)
    weights = _weights(files)
    onnx = _onnx(files, precision, has_onnx_section)
    if onnx and (prefer == "onnx" or has_onnx_section):
        return (*small, *onnx)
    if weights and (torch_installed or prefer == "torch"):
        return (*small, *weights)
    if weights:
        raise ModelUnusable(
            f"{name} ships no ONNX file{'' if precision == 'auto' else f' in {precision}'}, and PyTorch is not "
            "installed: pip install 'gliclass-cli[torch]' to run it; or make an ONNX model of it, here or on another "
            f"machine, after pip install 'gliclass-cli[torch,export]': gliclass export {name} FOLDER"
        )
    pickles = [file for file in files if file.endswith(_PICKLES)]
    if pickles:
        raise ModelUnusable(
            f"{name} has its weights as {pickles[0]} only: such files can run code and are never loaded; ask its "
            "author for model.safetensors"
        )
    raise ModelUnusable(f"{name} has no {'model.safetensors' if prefer == 'torch' else 'weights that can be run'}")


def pull(
    name: HubName,
    *,
    prefer: Prefer = "onnx",
    precision: str = "auto",
    torch_installed: bool,
    offline: bool = False,
    announce: Callable[[str], None] | None = None,
    force: bool = False,
) -> Path:
    """Return a model's folder in the cache, after downloading what is missing.

    ``announce`` is told before something is downloaded, and then bars show the progress.

    Raises:
        ModelUnusable: says what failed, and what to do.
    """
    _send_no_statistics()
    with _hub_errors(name), _bars(announce is not None):
        choose = _Choice(prefer, precision, torch_installed)
        if offline or (name.revision and _COMMIT.fullmatch(name.revision) and not force):
            folder = _cached(name, choose)
            if folder is not None:
                return folder
            if offline or _forced_offline():
                raise ModelUnusable(
                    f"{name} is not in the cache, or not all that is needed of it; gliclass models pull {name} "
                    "downloads it where there is a network (HF_HOME says where the cache is)"
                )
        try:
            info = _describe(name)
        except Exception as error:
            folder = None if not _is_network(error) or force else _cached(name, choose)
            if folder is None:
                raise
            return folder
        return _download(name, info, choose, announce, force=force)


def pull_tokenizer(name: HubName, *, offline: bool = False) -> Path:
    """Return the ``tokenizer.json`` of a repository, such as a bi-encoder's label encoder. Raises ModelUnusable."""
    _send_no_statistics()
    from huggingface_hub import hf_hub_download

    with _hub_errors(name), _bars(False):
        return Path(
            hf_hub_download(name.repository, "tokenizer.json", revision=name.revision, local_files_only=offline)
        )


def cached_models() -> list[CachedModel]:
    """Return the GLiClass models in the hub's cache, by name."""
    _send_no_statistics()
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = [
        CachedModel(repository.repo_id, revision.commit_hash, revision.snapshot_path, revision.size_on_disk)
        for repository in repositories
        if repository.repo_type == "model"
        for revision in repository.revisions
        if _read_config(revision.snapshot_path).get("model_type") == "GLiClass"
    ]
    latest = {model.name: model for model in found}
    return [latest[name] for name in sorted(latest)]


@dataclass(frozen=True, slots=True)
class _Choice:
    """What is wanted of a repository."""

    prefer: Prefer
    precision: str
    torch_installed: bool

    def of(self, files: Sequence[str], config: Mapping[str, Any], name: HubName) -> tuple[str, ...]:
        return choose_files(
            files,
            prefer=self.prefer,
            precision=self.precision,
            torch_installed=self.torch_installed,
            has_onnx_section=isinstance(config.get("onnx"), dict),
            name=str(name),
        )


def _weights(files: Sequence[str]) -> tuple[str, ...]:
    if _WEIGHTS in files:
        return (_WEIGHTS,)
    return (_INDEX, *(file for file in files if _SHARD.fullmatch(file))) if _INDEX in files else ()


def _onnx(files: Sequence[str], precision: str, has_onnx_section: bool) -> tuple[str, ...]:
    """Return the ONNX files: all of a model exported by us, or one that others published, with its data."""
    if has_onnx_section:
        return tuple(file for file in files if file.endswith(".onnx") and "/" not in file)
    wanted = {"auto": (*_FP32, *_INT8), "fp32": _FP32, "int8": _INT8}.get(precision, ())
    found = next((file for file in wanted if file in files), None)
    return () if found is None else tuple(file for file in (found, f"{found}_data") if file in files)


def _describe(name: HubName) -> Any:
    """Ask the hub for the commit of a revision, and for its files with their sizes and digests."""
    from huggingface_hub import HfApi

    return HfApi().model_info(name.repository, revision=name.revision, files_metadata=True, timeout=_SECONDS)


def _download(
    name: HubName, info: Any, choose: _Choice, announce: Callable[[str], None] | None, *, force: bool
) -> Path:
    """Download what is missing of a commit, check it, and return its folder."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    files = [item.rfilename for item in info.siblings or ()]
    if "config.json" not in files:
        raise ModelUnusable(f"{name} has no config.json: it is no GLiClass model")

    def fetch(file: str) -> Path:
        return Path(hf_hub_download(name.repository, file, revision=info.sha, force_download=force))

    config = fetch("config.json")
    wanted = choose.of(files, _read_config(config.parent), name)
    known = [try_to_load_from_cache(name.repository, file, revision=info.sha) for file in wanted]
    pairs = zip(wanted, known, strict=True)
    missing = [file for file, path in pairs if file != "config.json" and (force or not isinstance(path, str))]
    by_name = {item.rfilename: item for item in info.siblings}
    if announce is not None and missing:
        size = sum(by_name[file].size or 0 for file in missing)
        announce(f"downloading {name} from the Hugging Face hub: {len(missing)} files, {size / 1e6:.1f} MB")
    for file in missing:
        _check(fetch(file), by_name[file], name)
    _remember(name, info.sha, config.parent)
    return config.parent


def _check(path: Path, item: Any, name: HubName) -> None:
    """Compare a file with the hub's size and digest; a wrong one is deleted. Raises ModelUnusable."""
    size = path.stat().st_size
    problem = None
    if item.size is not None and size != item.size:
        problem = f"it has {size} bytes, not {item.size}"
    elif item.lfs is not None:
        digest = item.lfs["sha256"] if isinstance(item.lfs, dict) else item.lfs.sha256
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                problem = "its SHA-256 is not the one that the hub names"
    if problem is not None:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise ModelUnusable(f"{name}: {item.rfilename} arrived damaged ({problem}) and was deleted; try again")


def _remember(name: HubName, commit: str, snapshot: Path) -> None:
    """Note which commit a branch or tag is, as the hub's own downloads do, so that it is found without a network."""
    revision = name.revision or "main"
    if not _COMMIT.fullmatch(revision) and ".." not in PurePosixPath(revision).parts:
        reference = snapshot.parents[1] / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit, encoding="utf-8")


def _cached(name: HubName, choose: _Choice) -> Path | None:
    """Return the folder of a model that is whole in the cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name.repository, "config.json", revision=name.revision or "main")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    try:
        wanted = choose.of(files, _read_config(folder), name)
    except ModelUnusable:
        return None
    return folder if _is_whole(folder, wanted) else None


def _is_whole(folder: Path, wanted: Sequence[str]) -> bool:
    """Tell whether a tokenizer and all shards that an index names are there."""
    if "tokenizer.json" not in wanted:
        return False
    if _INDEX not in wanted:
        return True
    shards = _read_json(folder / _INDEX).get("weight_map", {})
    return isinstance(shards, dict) and all((folder / str(shard)).is_file() for shard in shards.values())


def _read_config(folder: Path) -> Mapping[str, Any]:
    return _read_json(folder / "config.json")


def _read_json(path: Path) -> Mapping[str, Any]:
    """Return a JSON object of the cache; an empty one for what is none."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _send_no_statistics() -> None:
    """Tell the hub's library, before it is imported, to send nothing but what a download needs."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Show the hub's progress bars, or not."""
    import logging as levels

    from huggingface_hub.utils import logging
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before, level = are_progress_bars_disabled(), logging.get_verbosity()
    (enable_progress_bars if shown else disable_progress_bars)()
    logging.set_verbosity(levels.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        (disable_progress_bars if before else enable_progress_bars)()


@contextmanager
def _hub_errors(name: HubName) -> Iterator[None]:
    """Turn what the hub's library raises into our error, which says what to do."""
    try:
        yield
    except ModelUnusable:
        raise
    except Exception as error:
        raise ModelUnusable(_problem(name, error)) from error


def _problem(name: HubName, error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"{name}: its authors want to know who you are: accept the terms on its page and set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name.repository} has no revision {name.revision or 'main'}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"no model {name.repository!r}: there is no such folder, and the Hugging Face hub knows no such model "
            "(a private one needs HF_TOKEN)"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"{name} is not in the cache; gliclass models pull {name} downloads it where there is a network"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{name}: the hub has not all files that are needed: {_first_line(error)}"
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return f"{name}: a file arrived damaged ({_first_line(error)}) and was deleted; try again"
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.filename}: cannot be written: {error.strerror}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{name}: the hub refuses access ({status}); check HF_TOKEN"
    if _is_network(error):
        problem = _first_line(error)
        return (
            f"{name}: the hub cannot be reached, or the connection broke ({problem}); what is there is kept: try again"
        )
    return f"{name}: download failed: {type(error).__name__}: {_first_line(error)}"


def _is_network(error: BaseException) -> bool:
    """Tell whether an error, or what caused it, is one of the network or of the server's state."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled) or (status is not None and status >= 500):
        return True
    if isinstance(error, errors.HfHubHTTPError):
        return False
    kinds = {kind.__name__ for kind in type(error).__mro__}
    network = {"TransportError", "ConnectionError", "Timeout", "TimeoutError", "RequestException", "HTTPError"}
    return bool(kinds & network) or (error.__cause__ is not None and _is_network(error.__cause__))


def _forced_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
