"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: added for training, saved by themselves, merged for use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from gliclass_cli.checkpoint import Values, file_inside, read_json_object
from gliclass_cli.errors import ModelUnusable, OutputFailed, UsageProblem
from gliclass_cli.model.architectures import GliclassModel

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
INSTALL = "pip install 'gliclass-cli[train]'"
_UNUSED = ".pooler."  # of BERT: nothing comes of it


def add_lora(
    model: GliclassModel, base: str, *, rank: int, alpha: float, dropout: float = 0.0, targets: Sequence[str] = ()
) -> Any:
    """Add adapters to a model, in place; only they are trained from then on.

    ``targets`` are ends of names of linear layers, none: all of them. ``base``: the name of the model, which the
    adapters will be loaded on. Returns peft's model, for ``save_lora``. Raises UsageProblem: no such layer.
    """
    from peft import LoraConfig

    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and _UNUSED not in name]
    chosen = [name for name in linear if not targets or _ends(name, targets)]
    unknown = [end for end in targets if not any(_ends(name, (end,)) for name in linear)]
    if unknown:
        ends = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise UsageProblem(f"lora_targets {', '.join(unknown)}: no linear layer ends so; known are {', '.join(ends)}")
    scaled: Any = alpha  # an int, says its type
    config = LoraConfig(r=rank, lora_alpha=scaled, lora_dropout=dropout, target_modules=chosen)
    largest = max(max(layer.weight.shape) for layer in model.modules() if isinstance(layer, nn.Linear))
    if rank > largest:
        raise UsageProblem(f"lora_rank {rank}: the largest layer is {largest} wide, which is the most that makes sense")
    adapted = _adapted(model, config)
    config.base_model_name_or_path = base
    return adapted


def save_lora(adapted: Any, folder: Path) -> None:
    """Save adapters in peft's format: adapter_config.json, adapter_model.safetensors. Raises OutputFailed."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)  # else it asks the hub
    try:
        adapted.peft_config["default"].save_pretrained(str(folder))
        part = folder / f".{WEIGHTS}.part"
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part)
        part.chmod((folder / CONFIG).stat().st_mode)  # safetensors lets only the owner read what it writes
        part.replace(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise OutputFailed(f"{folder}: the adapter cannot be saved: {error}") from error


def merge_lora(model: GliclassModel, folder: Path) -> GliclassModel:
    """Load adapters from a folder, and add them to the model's own weights.

    Only ranks, weights and layers are taken from the configuration, and only safetensors are read.

    Raises:
        ModelUnusable: the folder holds no adapter, or not one for this model.
    """
    try:
        from peft import LoraConfig, set_peft_model_state_dict
    except ImportError as error:
        raise ModelUnusable(f"--adapter needs peft: {INSTALL}") from error
    values = Values(_read_config(folder), str(folder / CONFIG))
    values.one_of("peft_type", ("LORA",))
    path = file_inside(folder, WEIGHTS)
    if path is None:
        raise ModelUnusable(f"{folder}: no {WEIGHTS}: this is not an adapter")
    known = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    targets = values.strings("target_modules")
    if missing := [name for name in targets if not any(_ends(layer, (name,)) for layer in known)]:
        raise values.wrong("target_modules", f"the model has no layer {missing[0]!r}: is it for another model?")
    alpha: Any = values.positive("lora_alpha")
    config = LoraConfig(
        r=values.whole("r", 1),
        lora_alpha=alpha,
        target_modules=list(targets),
        use_rslora=values.optional("use_rslora", False),
        use_dora=values.optional("use_dora", False),
    )
    try:
        adapted = _adapted(model, config)
        found: Any = set_peft_model_state_dict(adapted, load_file(path))
        merged: GliclassModel = adapted.merge_and_unload()
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelUnusable(f"{path}: does not fit the model: {str(error).strip()[:200]}") from error
    if found.unexpected_keys:
        raise ModelUnusable(f"{path}: holds {found.unexpected_keys[0]}, which the model does not have")
    return merged.eval()


def _adapted(model: GliclassModel, config: Any) -> Any:
    """Return peft's model around ours, whose layers it replaces in place."""
    from peft import get_peft_model

    wrap: Any = get_peft_model  # made for models of transformers, says its type; any module will do
    return wrap(model, config)


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file():
        raise ModelUnusable(f"{folder}: no {CONFIG}: this is not an adapter; gliclass train --lora makes one")
    return dict(read_json_object(folder / CONFIG))


def _ends(name: str, ends: Sequence[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)
