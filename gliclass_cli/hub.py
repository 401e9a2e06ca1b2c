"""Models of the Hugging Face hub: found by name, downloaded once into the hub's own cache, and checked.

Only what is needed to run a model is downloaded: ``config.json``, the tokenizer, and ONNX files or
``model.safetensors``. Nothing that can run code ever is. HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what
they always mean. A model's folder in the cache:

    blobs/DIGEST                 the files
    blobs/DIGEST.incomplete      what has arrived of one
    snapshots/COMMIT/FILE        links to them
    refs/BRANCH                  the commit that a branch or tag was last
    .no_exist/COMMIT/FILE        empty; a file that a commit is known not to have
"""

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from gliclass_cli.errors import ModelUnusable
from gliclass_cli.model_folder import GRAPH_WEIGHTS

# What is to run the model: ONNX Runtime or PyTorch, the other one where there is no file for it, or only the one.
Prefer = Literal["onnx", "only onnx", "torch first", "torch"]

_PART = r"\w(?:[\w.-]{0,94}\w)?"
_NAME = re.compile(f"{_PART}/{_PART}", re.ASCII)
_REVISION = re.compile(r"[^\s/.~^:?*\[\\\x00-\x1f\x7f][^\s/~^:?*\[\\\x00-\x1f\x7f]*")  # each part of it, as in git
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_QUERY = re.compile(r"(https?://[^\s'\"?]+)\?[^\s'\"]*")
_CONFIG = "config.json"
_TOKENIZER = "tokenizer.json"
_SMALL = (
    _CONFIG,
    _TOKENIZER,
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
_DATA = ("_data", ".data")  # endings of what a large ONNX file keeps beside it
_ONNX_CONFIG = "onnx/config.json"
# Every file that choose_files looks for by its name.
_LOOKED_FOR = (
    *(*_SMALL, _WEIGHTS, _INDEX, *_FP32, *_INT8, _ONNX_CONFIG),
    *(f"{file}{ending}" for file in _FP32 for ending in _DATA),
)
# How the hub's library is to behave while it works for us, where it knows the setting.
_SETTINGS = {
    "HF_HUB_DISABLE_TELEMETRY": True,
    "HF_HUB_DISABLE_SYMLINKS_WARNING": True,
    # Else it moves files to a folder that all models share, outside of the model's own, where no link may lead.
    "HF_HUB_DISABLE_SHARED_BLOBS": True,
}
_BUSY = (408, 429, *range(500, 600))  # answers of a server that may well do better in a while


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository of the hub, ``org/name``; ``revision`` is a branch, a tag or a commit, None the main branch."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A GLiClass model in the hub's cache: ``name`` finds it again; ``revision`` is its commit, ``size`` in bytes."""

    name: str
    revision: str
    path: Path
    size: int


def parse_hub_name(name: str) -> HubName | None:
    """Return the repository of ``org/name`` or ``org/name@revision``; None for what is no such name, like a path."""
    repository, at, revision = name.partition("@")
    if not _NAME.fullmatch(repository) or re.search(r"\.\.|--|\.git$", repository):
        return None
    if at and (".." in revision or not all(_REVISION.fullmatch(part) for part in revision.split("/"))):
        return None
    return HubName(repository, revision or None)


def choose_files(
    files: Sequence[str],
    *,
    prefer: Prefer,
    precision: str,
    torch_installed: bool,
    has_onnx_section: bool,
    name: str = "ORG/NAME",
) -> tuple[str, ...]:
    """Return which files of a repository are needed; ``name`` is what messages call it.

    Raises:
        ModelUnusable: nothing here can run the model, or its weights are in files that could run code.
    """
    small = tuple(file for file in _SMALL if file in files)
    weights = _weights(files)
    onnx = _onnx(files, precision, has_onnx_section)
    only_onnx = has_onnx_section or precision == "int8" or prefer == "only onnx"
    weights_do = weights and not only_onnx and (torch_installed or prefer == "torch")
    if onnx and (only_onnx or prefer == "onnx" or (prefer == "torch first" and not weights_do)):
        return (*small, *onnx)
    if weights_do:
        return (*small, *weights)
    raise ModelUnusable(_why_unusable(files, prefer, precision, torch_installed, name))


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

    ``announce`` is told before something is downloaded; bars then show how far that is, if stderr is a terminal.
    ``force`` downloads again what is there. Without a network, the commit that a branch was last will do.

    Raises:
        ModelUnusable: says what failed, and what to do.
    """
    choose = _Choice(name, prefer, precision, torch_installed)
    with _library(name):
        folder = _obtain(name, choose.cached, partial(_download, choose, announce, force), offline, force)
    if folder is None:
        raise ModelUnusable(
            f"{name} is not in the cache ({_cache()}; HF_HOME says where), or not all that is needed of it; run "
            f"gliclass models pull {name} {_with_a_network()} first"
        )
    return folder


def pull_tokenizer(name: HubName, *, offline: bool = False) -> Path:
    """Return the ``tokenizer.json`` of a repository, such as a bi-encoder's label encoder. Raises ModelUnusable."""
    with _library(name):
        path = _obtain(name, lambda sure: _cached_file(name, _TOKENIZER), partial(_download_tokenizer, name), offline)
    if path is None:
        raise ModelUnusable(
            f"{_TOKENIZER} of {name} is not in the cache ({_cache()}; HF_HOME says where); run the same once "
            f"{_with_a_network()}, and it will be"
        )
    return path


def cached_models() -> list[CachedModel]:
    """Return the GLiClass models in the hub's cache that are whole, by name. Raises ModelUnusable."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(_cache()).repos
    except CacheNotFound:
        return []
    except (OSError, ValueError) as error:
        raise ModelUnusable(f"the cache of the Hugging Face hub cannot be read: {error}") from error
    found = [
        CachedModel(_name(repository.repo_id, revision), revision.commit_hash, path, revision.size_on_disk)
        for repository in repositories
        if repository.repo_type == "model"
        for revision in repository.revisions
        if _read_json((path := revision.snapshot_path) / _CONFIG).get("model_type") == "GLiClass"
        and _Choice(HubName(repository.repo_id), "onnx", "auto", True).whole(path) is not None
    ]
    return sorted(found, key=lambda model: model.name)


@dataclass(frozen=True, slots=True)
class _Choice:
    """What is wanted of a repository."""

    name: HubName
    prefer: Prefer
    precision: str
    torch_installed: bool

    def of(self, files: Sequence[str], config: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the files that are needed. Raises ModelUnusable."""
        exported = isinstance(config.get("onnx"), dict)
        if not exported and config.get("architecture_type", "uni-encoder") != "uni-encoder":
            files = [file for file in files if not file.endswith(".onnx")]  # others' ones are run of uni-encoders only
        return choose_files(
            files,
            prefer=self.prefer,
            precision=self.precision,
            torch_installed=self.torch_installed,
            has_onnx_section=exported,
            name=str(self.name),
        )

    def cached(self, sure: bool) -> Path | None:
        """Return the folder of a model that is in the cache, or None."""
        config = _cached_file(self.name, _CONFIG)
        return None if config is None else self.whole(config.parent, sure=sure)

    def whole(self, folder: Path, *, sure: bool = False) -> Path | None:
        """Return the folder if it holds a model that can be run; ``sure``: and the repository has no better files."""
        held = _held(folder)
        absent = _absent(folder)
        unknown = [file for file in _LOOKED_FOR if sure and file not in held and not (absent / file).exists()]
        try:
            wanted = self.of([*held, *unknown], _read_json(folder / _CONFIG))
        except ModelUnusable:
            return None
        return folder if held >= {_TOKENIZER, *wanted} and _lacking(folder, wanted) is None else None


def _weights(files: Sequence[str]) -> tuple[str, ...]:
    if _WEIGHTS in files:
        return (_WEIGHTS,)
    shards = tuple(sorted(file for file in files if _SHARD.fullmatch(file)))
    return (_INDEX, *shards) if _INDEX in files and shards else ()


def _onnx(files: Sequence[str], precision: str, has_onnx_section: bool) -> tuple[str, ...]:
    """Return the ONNX files: all of a model exported by us, or one that others published, after what belongs to it."""
    if has_onnx_section:
        graphs = sorted(file for file in files if file.endswith(".onnx") and "/" not in file)
        return (*(file for file in (GRAPH_WEIGHTS,) if file in files and graphs), *graphs)
    wanted = {"auto": (*_FP32, *_INT8), "fp32": _FP32, "int8": _INT8}.get(precision, ())
    found = next((file for file in wanted if file in files), None)
    if found is None:
        return ()
    beside = (*(f"{found}{ending}" for ending in _DATA), *((_ONNX_CONFIG,) if found.startswith("onnx/") else ()))
    return (*(file for file in beside if file in files), found)  # in this order a graph that has arrived is whole


def _why_unusable(files: Sequence[str], prefer: Prefer, precision: str, torch_installed: bool, name: str) -> str:
    """Return why nothing was chosen, and what to do."""
    no_onnx = f"no ONNX file that can be run{'' if precision == 'auto' else f' in {precision}'}"
    if not _weights(files):
        pickles = sorted(file for file in files if file.endswith(_PICKLES))
        if pickles:
            return (
                f"{name} has its weights in pickle files only ({pickles[0]}): such files can run code and are never "
                f"loaded; ask its author for {_WEIGHTS}"
            )
        return f"{name} has no {_WEIGHTS if prefer == 'torch' else f'{_WEIGHTS} and {no_onnx}'}"
    problem = f"{name} ships {no_onnx}"
    export = f"gliclass export {name} FOLDER{' --int8' if precision == 'int8' else ''}"
    make = f"{export} makes one of it, here or on another machine, after pip install 'gliclass-cli[torch,export]'"
    if torch_installed or precision == "int8" or prefer == "only onnx":
        return f"{problem}; {make}"
    return f"{problem}, and PyTorch is not installed: pip install 'gliclass-cli[torch]' to run it; or {make}"


def _obtain(
    name: HubName,
    cached: Callable[[bool], Path | None],
    download: Callable[[Any], Path],
    offline: bool,
    force: bool = False,
) -> Path | None:
    """Return what is in the cache, where that will do, or download it; None offline, where it is not there."""
    from huggingface_hub import constants

    if offline or constants.HF_HUB_OFFLINE:
        if force:
            raise ModelUnusable(f"{name} cannot be downloaded again without the network (HF_HUB_OFFLINE, --offline)")
        return cached(False)
    if name.revision and _COMMIT.fullmatch(name.revision) and not force and (found := cached(True)) is not None:
        return found
    try:
        info = _describe(name)
    except Exception as error:
        found = None if force or not _is_network(error) else cached(False)
        if found is None:
            raise
        return found
    return download(info)


def _with_a_network() -> str:
    from huggingface_hub import constants

    return "without HF_HUB_OFFLINE, with a network" if constants.HF_HUB_OFFLINE else "with a network"


def _describe(name: HubName) -> Any:
    """Ask the hub for the commit of a revision, and for its files with their sizes and digests."""
    from huggingface_hub import HfApi, constants

    if parse_hub_name(str(name)) != name:  # parts of it become paths
        raise ModelUnusable(f"{name} is no name of a hub model: ORG/NAME or ORG/NAME@REVISION")
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    try:
        info = HfApi().model_info(name.repository, revision=name.revision, files_metadata=True, timeout=timeout)
    except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError) as error:
        raise ConnectionError("something else answers, such as a network's page to log in") from error
    if not _COMMIT.fullmatch(info.sha or ""):
        raise ModelUnusable(f"{name}: {constants.ENDPOINT} answers, but names no commit; check HF_ENDPOINT")
    return info


def _download(choose: _Choice, announce: Callable[[str], None] | None, force: bool, info: Any) -> Path:
    """Download what is missing of a commit, and return its folder."""
    name, items = choose.name, {item.rfilename: item for item in info.siblings or ()}
    if _CONFIG not in items:
        raise ModelUnusable(f"{name} has no {_CONFIG}: it is no GLiClass model")
    folder = _fetch(name, info.sha, items[_CONFIG], force=force).parent
    config = _read_json(folder / _CONFIG)
    if (kind := config.get("model_type", "GLiClass")) != "GLiClass":
        raise ModelUnusable(f"{name} is no GLiClass model: its {_CONFIG} says model_type {str(kind)[:50]!r}")
    wanted = choose.of(list(items), config)
    missing = [items[file] for file in wanted if file != _CONFIG and (force or not (folder / file).is_file())]
    if announce is not None and (new := [item for item in missing if force or not _blob(name, item).exists()]):
        size = sum(item.size or 0 for item in new)
        files = "1 file" if len(new) == 1 else f"{len(new)} files"
        announce(f"downloading {name} from the Hugging Face hub: {files}, {size / 1e6:.1f} MB")
    with _bars(announce is not None):
        for item in missing:
            _fetch(name, info.sha, item, force=force)
    if (lacking := _lacking(folder, wanted)) is not None:
        raise ModelUnusable(f"{name} is not whole: the hub has no {lacking}, which other files of it name")
    _remember(name, folder)
    _note_absent(folder, items)
    return folder


def _download_tokenizer(name: HubName, info: Any) -> Path:
    for item in info.siblings or ():
        if item.rfilename == _TOKENIZER:
            path = _fetch(name, info.sha, item)
            _remember(name, path.parent)
            return path
    raise ModelUnusable(f"{name} has no {_TOKENIZER} on the hub")


def _fetch(name: HubName, commit: str, item: Any, *, force: bool = False) -> Path:
    """Return a file of a commit in the cache; what is not there yet is downloaded and checked."""
    from huggingface_hub import hf_hub_download

    blob = _blob(name, item)
    checked = blob.exists() and not force
    if not checked and not _is_for_the_library(name, commit, item):
        _fetch_blob(name, commit, item, blob, force)
        if force and (old := _cached_file(HubName(name.repository, commit), item.rfilename)) is not None:
            old.unlink()  # a copy, where the disk has no links
        checked, force = True, False
    path = Path(hf_hub_download(name.repository, item.rfilename, revision=commit, force_download=force))
    if not checked or path.resolve() != blob.resolve():
        _check(path, item, name)
    return path


def _is_for_the_library(name: HubName, commit: str, item: Any) -> bool:
    """Tell whether a file comes in chunks of a store of their own (xet), or without the digest to check it by."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if not _DIGEST.fullmatch(digest := _digest(item)) or item.size is None:
        return True
    if item.lfs is None:
        return False
    metadata = get_hf_file_metadata(hf_hub_url(name.repository, item.rfilename, revision=commit))
    offered = getattr(metadata, "xet_file_data", None) is not None
    xet = offered and not constants.HF_HUB_DISABLE_XET and find_spec("hf_xet") is not None
    return xet or metadata.etag != digest


def _fetch_blob(name: HubName, commit: str, item: Any, blob: Path, force: bool) -> None:
    """Download a file's content, going on where an earlier call broke: the library begins anew, since its 2.0."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]

    lock = blob.parents[2] / ".locks" / blob.parents[1].name / f"{blob.name}.lock"  # the library's own
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}.incomplete")
    with WeakFileLock(lock):
        if blob.exists() and not force:
            return  # another process was faster
        with part.open("ab") as file, _checked_later():
            if file.tell() > item.size:
                file.truncate(0)
                file.seek(0)
            http_get(
                hf_hub_url(name.repository, item.rfilename, revision=commit),
                file,
                resume_size=file.tell(),
                headers={**build_hf_headers(), "Accept-Encoding": "identity"},
                expected_size=item.size,
                displayed_filename=item.rfilename,
            )
        _check(part, item, name)
        part.replace(blob)


@contextmanager
def _checked_later() -> Iterator[None]:
    """Pass over the library's complaint, an OSError without a number, that a file has not the size expected."""
    try:
        yield
    except OSError as error:
        if type(error) is not OSError or error.errno is not None:
            raise


def _check(path: Path, item: Any, name: HubName) -> None:
    """Compare a file with the hub's size and digest; a wrong one is deleted. Raises ModelUnusable."""
    size = path.stat().st_size
    problem = None
    if item.size is not None and size != item.size:
        problem = f"it has {size} bytes, not {item.size}"
    elif _DIGEST.fullmatch(digest := _digest(item)):
        with path.open("rb") as file:
            # Git names a small file by its content with a heading.
            heading = hashlib.sha256() if item.lfs is not None else hashlib.sha1(b"blob %d\0" % size)
            if hashlib.file_digest(file, lambda: heading).hexdigest() != digest:
                problem = "its digest is not the one that the hub names"
    if problem is not None:
        _delete(path)
        raise ModelUnusable(f"{name}: {item.rfilename} arrived damaged ({problem}) and was deleted; try again")


def _delete(path: Path) -> None:
    """Delete a file, and all links on the way to it."""
    while True:
        target = path.parent / path.readlink() if path.is_symlink() else None
        path.unlink(missing_ok=True)
        if target is None:
            return
        path = target


def _remember(name: HubName, folder: Path) -> None:
    """Note which commit a branch or tag is, as the library does, so that it is found without a network."""
    revision, commit = name.revision or "main", folder.name
    if _COMMIT.fullmatch(revision):
        return
    reference = folder.parents[1] / "refs" / revision
    with suppress(OSError):  # a cache that cannot be written serves all the same
        if not reference.is_file() or reference.read_text(encoding="utf-8") != commit:
            reference.parent.mkdir(parents=True, exist_ok=True)
            new = reference.with_name(f"{reference.name}.tmp")
            new.write_text(commit, encoding="utf-8")
            new.replace(reference)


def _note_absent(folder: Path, files: Mapping[str, Any]) -> None:
    """Note what a commit does not have, as the library does, so that a pinned one need not be asked about again."""
    with suppress(OSError):
        for file in _LOOKED_FOR:
            if file not in files:
                note = _absent(folder) / file
                note.parent.mkdir(parents=True, exist_ok=True)
                note.touch()


def _absent(folder: Path) -> Path:
    return folder.parents[1] / ".no_exist" / folder.name


def _cached_file(name: HubName, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name.repository, file, revision=name.revision or "main")
    return Path(path) if isinstance(path, str) else None


def _blob(name: HubName, item: Any) -> Path:
    """Return where the library keeps a file's content."""
    return _cache() / f"models--{name.repository.replace('/', '--')}" / "blobs" / Path(_digest(item)).name


def _digest(item: Any) -> str:
    """Return the SHA-256 of a large file, and git's name of a small one."""
    return str(item.lfs.sha256 if item.lfs is not None else item.blob_id)


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _name(repository: str, revision: Any) -> str:
    """Return the name under which a revision in the cache is found without a network."""
    if "main" in revision.refs:
        return repository
    return f"{repository}@{min(revision.refs, default=revision.commit_hash)}"


def _lacking(folder: Path, wanted: Sequence[str]) -> str | None:
    """Return a shard or graph that files of a folder name, but that is not there."""
    named: list[Any] = []
    if _INDEX in wanted:
        shards = _read_json(folder / _INDEX).get("weight_map")
        named += shards.values() if isinstance(shards, dict) else []
    section = _read_json(folder / _CONFIG).get("onnx")
    if isinstance(section, dict):
        named += [graph.get("file") for graph in section.values() if isinstance(graph, dict)]
    held = _held(folder)
    return next((file for file in named if isinstance(file, str) and file not in held), None)


def _held(folder: Path) -> set[str]:
    """Return the files of a folder in the cache, as the hub names them."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _read_json(path: Path) -> Mapping[str, Any]:
    """Return a JSON object of the cache; an empty one for what is none."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


@contextmanager
def _library(name: HubName) -> Iterator[None]:
    """Use the hub's library: quietly, and with its errors turned into ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _settings(), _bars(False):
            try:
                yield
            except ModelUnusable:
                raise
            except Exception as error:
                raise ModelUnusable(_problem(name, error)) from error


@contextmanager
def _settings() -> Iterator[None]:
    """Have the library send no telemetry and write no warnings; a user who asks for its log gets it."""
    from huggingface_hub import constants
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity

    before = {setting: getattr(constants, setting) for setting in _SETTINGS if hasattr(constants, setting)}
    level = get_verbosity()
    for setting in before:
        setattr(constants, setting, _SETTINGS[setting])
    if level == logging.WARNING:
        set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        set_verbosity(level)
        for setting, value in before.items():
            setattr(constants, setting, value)


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Show the library's progress bars, or not; HF_HUB_DISABLE_PROGRESS_BARS goes first."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    group = "huggingface_hub"
    before = not are_progress_bars_disabled(group)
    (enable_progress_bars if shown else disable_progress_bars)(group)
    try:
        yield
    finally:
        (enable_progress_bars if before else disable_progress_bars)(group)


def _problem(name: HubName, error: BaseException) -> str:
    """Return what went wrong, and what to do."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError | ValueError) and error.__cause__ is not None:
        return _problem(name, error.__cause__)  # nothing in the cache, because ...
    status, line = _status(error), _first_line(error)
    page = f"{constants.ENDPOINT}/{name.repository}"
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated: accept its licence on {page}, and set HF_TOKEN to a token of your account"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name.repository} has no revision {name.revision or 'main'}; {page} lists its branches and tags"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{name}: the hub has not all files that are needed: {line}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"no model {name.repository!r}: there is no such folder, and the Hugging Face hub knows no such model "
            "(a private one needs HF_TOKEN)"
        )
    if status in (401, 403):
        return (
            f"{name}: the hub refuses access ({line}); set HF_TOKEN to a token that may read it, and accept the "
            f"licence on {page} if it has one"
        )
    if _is_network(error):
        return (
            f"{name}: the hub ({constants.ENDPOINT}) cannot be reached, or the connection broke ({line}); what has "
            "arrived is kept: try again"
        )
    if isinstance(error, OSError) and error.errno is not None:
        place = error.filename or constants.HF_HUB_CACHE
        return f"{place}: cannot be written: {error.strerror}; HF_HOME moves the cache elsewhere"
    xet = "xet" in f"{type(error).__module__} {line}".lower()
    otherwise = ", or without xet: HF_HUB_DISABLE_XET=1" if xet else ""
    return f"{name}: the download failed ({line}); what has arrived is kept: try again{otherwise}"


def _is_network(error: BaseException) -> bool:
    """Tell whether an error, or what caused it, is one of the network or of the server's state."""
    from huggingface_hub import errors

    if (status := _status(error)) is not None:
        return status in _BUSY
    if isinstance(error, errors.HfHubHTTPError):
        return False
    # Transports of the library's versions: requests, httpx, httpx2.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    network = {"TransportError", "ConnectionError", "Timeout", "TimeoutError", "RequestException", "HTTPError"}
    return bool(kinds & network) or (error.__cause__ is not None and _is_network(error.__cause__))


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of the answer that an error tells of."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's text, without the secrets that signed addresses carry."""
    lines = str(error).strip().splitlines()
    return _QUERY.sub(r"\1", lines[0])[:300] if lines else type(error).__name__
