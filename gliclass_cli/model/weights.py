"""Checkpoints on disk: safetensors read strictly, never pickle; saved so that the reference can read them."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from gliclass_cli.checkpoint import CheckpointConfig, file_inside, read_json_object
from gliclass_cli.errors import ModelUnusable, OutputFailed
from gliclass_cli.model.architectures import GliclassModel, build_model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PREFIX = "model."
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model.pt", "model.pt")
_MOST_POSITIONS = 2**24
_FLOATS = ("F64", "F32", "F16", "BF16")
# Tied to the encoder's embeddings; the reference, under transformers 5, draws them at random where they are not saved.
_LOST = "decoder.embed_tokens.weight"
# Saved by older versions of transformers, computed by newer ones.
_COMPUTED = ("position_ids", "inv_freq", "original_inv_freq")


def load_model(
    folder: Path, config: CheckpointConfig, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> GliclassModel:
    """Load the checkpoint of a folder, ready for inference; weights of other types are converted to ``dtype``.

    Raises:
        ModelUnusable: weights are missing, broken, of wrong shapes, too many, or only there as pickle; or the
            configuration asks for what is not supported.
    """
    with ExitStack() as stack:
        stored = {tensor.name: tensor for tensor in _open_weights(folder, stack)}
        _check_size(folder, config, len(stored))
        try:
            with _parameters_without_values():
                model = build_model(config)
        except ModelUnusable as error:
            raise ModelUnusable(f"{folder}: {error}") from error
        try:
            _fill(model, stored, folder, torch.device(device), dtype)
            return model.to(device).eval()
        except torch.cuda.OutOfMemoryError as error:
            raise ModelUnusable(f"{folder}: the model does not fit into the memory of {device}") from error


def save_model(model: GliclassModel, folder: Path) -> None:
    """Save ``config.json`` and ``model.safetensors``; the reference reads them too. Raises OutputFailed.

    Files are complete or not there: both are written beside their place first.
    """
    named = model.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(named.items())}
    tensors = {}
    for name, tensor in named.items():
        if first[id(tensor)] == name:
            tensors[_PREFIX + name] = tensor.detach().cpu().contiguous()
        elif name.endswith(_LOST):
            tensors[_PREFIX + name] = tensor.detach().cpu().clone()
    raw = _saved_config(model)
    weights, config = folder / f".{WEIGHTS}.part", folder / ".config.json.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, weights, metadata={"format": "pt"})
        config.write_text(json.dumps(raw, indent=2, ensure_ascii=False) + "\n", "utf-8")
        weights.chmod(config.stat().st_mode)  # safetensors lets only the owner read what it writes
        weights.replace(folder / WEIGHTS)
        config.replace(folder / "config.json")
    except (OSError, SafetensorError) as error:
        raise OutputFailed(f"{folder}: the model cannot be saved: {error}") from error
    finally:
        for part in (weights, config):
            with suppress(OSError):
                part.unlink()


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor of a file: its name, shape and type, known from the header, and its values, read on demand."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    handle: Any

    def read(self) -> Tensor:
        try:
            tensor: Tensor = self.handle.get_tensor(self.name)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ModelUnusable(f"{self.file}: {self.name} cannot be read: {error}") from error
        return tensor


def _open_weights(folder: Path, stack: ExitStack) -> Iterator[_Stored]:
    """Open the weight files of a folder and go through their tensors."""
    seen: dict[str, Path] = {}
    for file, expected in _weight_files(folder):
        try:
            handle = stack.enter_context(safe_open(file, framework="pt"))
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                if name in seen:
                    raise ModelUnusable(f"{file}: {name} is in {seen[name].name} too")
                seen[name] = file
                part = handle.get_slice(name)
                yield _Stored(name, tuple(part.get_shape()), part.get_dtype(), file, handle)
        except (OSError, SafetensorError) as error:
            raise ModelUnusable(f"{file}: not a safetensors file, or a damaged one: {error}") from error
        lost = sorted(name for name in expected if seen.get(name) != file)
        if lost:
            raise ModelUnusable(f"{file}: {INDEX} promises tensors that are not in it: {_few(lost)}")


def _weight_files(folder: Path) -> list[tuple[Path, list[str]]]:
    """Return the files of a folder's weights, and of each what the index says it holds."""
    if (folder / WEIGHTS).exists() or (folder / WEIGHTS).is_symlink():
        return [(_inside(folder, WEIGHTS), [])]
    if (folder / INDEX).exists():
        return _read_index(folder)
    pickles = [name for name in _PICKLES if (folder / name).exists()]
    if pickles:
        raise ModelUnusable(
            f"{folder}: the weights are only there as {pickles[0]}, a pickle, which can run any code: it is never "
            f"loaded; ask whoever made the model for {WEIGHTS}"
        )
    raise ModelUnusable(f"{folder}: no {WEIGHTS}: the model has no weights")


def _read_index(folder: Path) -> list[tuple[Path, list[str]]]:
    """Return the shards that an index names, each with its tensors."""
    places = read_json_object(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise ModelUnusable(f"{folder / INDEX}: weight_map is no object of tensor names and file names")
    shards: dict[str, list[str]] = {}
    for tensor, name in places.items():
        shards.setdefault(name, []).append(tensor)
    return [(_inside(folder, name), tensors) for name, tensors in sorted(shards.items())]


def _inside(folder: Path, name: str) -> Path:
    """Return a file of the folder; a name or a link that leads out of it is refused."""
    path = file_inside(folder, name)
    if path is None:
        raise ModelUnusable(f"{folder}: the weight file {name!r} is not in the folder")
    return path


def _check_size(folder: Path, config: CheckpointConfig, tensors: int) -> None:
    """Refuse a configuration of more layers or positions than can be, before anything of that size is built."""
    scorer = {"num_layers": config.scorer_encoder_num_layers if config.architecture == "decoder-kv" else 0}
    for values in (config.encoder, config.label_encoder or {}, scorer):
        positions = values.get("max_position_embeddings")
        if isinstance(positions, int) and positions > _MOST_POSITIONS:
            raise ModelUnusable(f"{folder}: config.json asks for {positions} positions; {_MOST_POSITIONS} are the most")
        for name in ("num_hidden_layers", "num_layers", "num_decoder_layers"):
            layers = values.get(name)
            if isinstance(layers, int) and layers > tensors:
                raise ModelUnusable(
                    f"{folder}: config.json asks for {layers} layers; the weights are {tensors} tensors"
                )


@contextmanager
def _parameters_without_values() -> Iterator[None]:
    """Have modules built on this thread hold no memory for their parameters, and draw no values for them.

    Buffers, which no checkpoint holds, are computed as ever: so this is not PyTorch's ``device("meta")``.
    """
    thread = threading.get_ident()

    def drop_values(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta or threading.get_ident() != thread:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    hook = register_module_parameter_registration_hook(drop_values)
    try:
        yield
    finally:
        hook.remove()


def _fill(
    model: GliclassModel, stored: Mapping[str, _Stored], folder: Path, device: torch.device, dtype: torch.dtype
) -> None:
    """Give every parameter (and saved buffer) of a model its stored values; nothing may be left over."""
    named = model.state_dict(keep_vars=True)
    _check_names(named, stored, folder)
    parameters: dict[int, nn.Parameter] = {}  # tied ones stay one parameter
    buffers: dict[int, Tensor] = {}
    for name, tensor in named.items():
        source = stored.get(_PREFIX + name)
        if source is None:
            continue
        _check_shape(source, tensor)
        # Copied: what is mapped from a file changes, or fails, with the file.
        value = source.read().to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
        first = parameters.get(id(tensor))
        if first is not None and not torch.equal(first, value):
            raise ModelUnusable(f"{source.file}: {source.name} is tied to another tensor, but holds other values")
        if isinstance(tensor, nn.Parameter):
            parameters.setdefault(id(tensor), nn.Parameter(value, requires_grad=tensor.requires_grad))
        else:
            buffers[id(tensor)] = value
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, parameters[id(parameter)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            if id(buffer) in buffers:
                setattr(module, name, buffers[id(buffer)])


def _check_names(named: Mapping[str, Tensor], stored: Mapping[str, _Stored], folder: Path) -> None:
    """Refuse weights that lack tensors of the model, or hold others."""
    unknown = sorted(name for name in stored if name.removeprefix(_PREFIX) not in named or not name.startswith(_PREFIX))
    unknown = [name for name in unknown if not _is_computed(name)]
    found = {id(tensor) for name, tensor in named.items() if _PREFIX + name in stored}
    missing = [_PREFIX + name for name, tensor in named.items() if id(tensor) not in found]
    if missing:
        raise ModelUnusable(
            f"{folder}: the weights lack {len(missing)} tensors that config.json asks for: {_few(missing)}"
        )
    if unknown:
        raise ModelUnusable(
            f"{folder}: the weights hold {len(unknown)} tensors that config.json knows nothing of: {_few(unknown)}"
        )


def _is_computed(name: str) -> bool:
    # DeBERTa-v3 is saved with position embeddings by some tools, and never uses them.
    return name.rsplit(".", 1)[-1] in _COMPUTED or ".position_embeddings." in name


def _check_shape(source: _Stored, tensor: Tensor) -> None:
    if source.shape != tuple(tensor.shape):
        raise ModelUnusable(
            f"{source.file}: {source.name} has the shape {list(source.shape)}; "
            f"config.json asks for {list(tensor.shape)}"
        )
    if tensor.is_floating_point() and source.dtype not in _FLOATS:
        raise ModelUnusable(f"{source.file}: {source.name} has the type {source.dtype}; known are {', '.join(_FLOATS)}")


def _saved_config(model: GliclassModel) -> dict[str, Any]:
    """Return what ``config.json`` holds: all that it came with, and the type of the weights as they are saved."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    raw = {name: value for name, value in model.config.raw.items() if name not in ("dtype", "torch_dtype")}
    for name in ("encoder_config", "label_model_config"):
        if isinstance(raw.get(name), Mapping):
            raw[name] = {key: value for key, value in raw[name].items() if key not in ("dtype", "torch_dtype")}
    return {"architectures": ["GLiClassModel"], "model_type": "GLiClass"} | raw | {"dtype": dtype}


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown}, ..." if len(names) > 3 else shown
