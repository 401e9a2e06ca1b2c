"""Finds a model by its name, and the backend that runs it."""

from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from gliclass_cli.backends import Backend
from gliclass_cli.cores import available_cores
from gliclass_cli.errors import ModelUnusable
from gliclass_cli.hub import HubName, Prefer, parse_hub_name, pull, pull_tokenizer
from gliclass_cli.model_folder import DEFAULT_MODEL, ModelFolder, find_model, read_model_folder
from gliclass_cli.runtime import Runtime

INSTALL_TORCH = "pip install 'gliclass-cli[torch]'"
INSTALL_EXPORT = "pip install 'gliclass-cli[torch,export]'"
_CUDA_DRIVER = Path("/dev/nvidiactl")


def torch_installed() -> bool:
    """Tell whether PyTorch and transformers are there, without importing them."""
    return find_spec("torch") is not None and find_spec("transformers") is not None


def devices() -> list[str]:
    """Return what can compute here: the CPU, and the CUDA devices that PyTorch finds."""
    if not (_CUDA_DRIVER.exists() and torch_installed()):
        return ["cpu"]
    from gliclass_cli.backends.pytorch import cuda_devices

    return ["cpu", *cuda_devices()]


def open_folder(name: str, runtime: Runtime | None = None) -> ModelFolder:
    """Find ``default``, a folder, or a model of the Hugging Face hub (``org/name``, ``org/name@revision``).

    A hub model is downloaded where it is not in the cache, if the network may be used.

    Raises:
        ModelUnusable: there is no such model, or it cannot be run.
    """
    runtime = runtime or Runtime()
    path, offline, hub_name = find_model(name), True, None
    if path is None:
        hub_name = parse_hub_name(name)
        if hub_name is None:
            raise ModelUnusable(
                f"no model {name!r}: give {DEFAULT_MODEL!r} (the bundled model), a folder with a config.json, or the "
                "name of a model on the Hugging Face hub: org/name"
            )
        path, offline = pull_model(hub_name, runtime), runtime.offline
    tokenizer = partial(_hub_tokenizer, offline=offline)
    folder = read_model_folder(path, precision=runtime.precision, find_tokenizer=tokenizer)
    if hub_name is None or folder.version:
        return folder
    # Its folder in the cache has the name of a commit.
    return replace(folder, name=hub_name.repository, version=path.name[:8])


def pull_model(name: HubName, runtime: Runtime, *, force: bool = False) -> Path:
    """Return the folder of a hub model in the cache, after downloading what is missing. Raises ModelUnusable."""
    prefer: Prefer = "only onnx" if runtime.backend == "onnx" else "onnx"
    if runtime.wants_torch:
        prefer = "torch"
    elif _prefers_cuda(runtime):
        prefer = "torch first"
    return pull(
        name,
        prefer=prefer,
        precision=runtime.precision,
        torch_installed=torch_installed(),
        offline=runtime.offline,
        announce=runtime.announce,
        force=force,
    )


def check_runtime(runtime: Runtime) -> None:
    """Refuse, before anything is downloaded, what is not installed. Raises ModelUnusable."""
    if runtime.wants_torch and not torch_installed():
        raise ModelUnusable(f"--backend torch, --adapter, --device cuda, fp16 and bf16 need PyTorch: {INSTALL_TORCH}")


def open_backend(folder: ModelFolder, runtime: Runtime | None = None) -> Backend:
    """Load a model into the backend that suits it, or the one asked for. Raises ModelUnusable."""
    runtime = runtime or Runtime()
    threads = runtime.threads or available_cores()
    if _takes_onnx(folder, runtime):
        from gliclass_cli.backends.onnx import OnnxBackend

        if folder.onnx is None:
            raise folder.unusable(
                f"has no ONNX file; gliclass export {folder.path} FOLDER makes one ({INSTALL_EXPORT}), or leave out "
                "--backend onnx and --precision int8"
            )
        if runtime.precision not in ("auto", folder.onnx.precision):
            raise folder.unusable(f"holds {folder.onnx.precision}, not {runtime.precision}; leave --precision out")
        return OnnxBackend(folder, folder.onnx, threads=threads)
    if not folder.has_weights and not folder.config.shared_encoder:
        raise folder.unusable(
            "holds ONNX files only, which run on the CPU; PyTorch (--backend torch, --device cuda, --precision fp16 or "
            "bf16) needs the checkpoint with its model.safetensors"
        )
    if not torch_installed():
        raise folder.unusable(
            f"holds weights for PyTorch, which is not installed: {INSTALL_TORCH} runs them; or "
            f"gliclass export {folder.path} FOLDER, where {INSTALL_EXPORT} was done, makes an ONNX model of them "
            "that needs neither"
        )
    from gliclass_cli.backends.pytorch import TorchBackend

    return TorchBackend(
        folder, device=runtime.device, precision=runtime.precision, threads=threads, adapter=runtime.adapter
    )


def _takes_onnx(folder: ModelFolder, runtime: Runtime) -> bool:
    if runtime.backend == "onnx" and runtime.wants_torch:
        raise ModelUnusable(
            f"--backend onnx computes on the CPU in fp32 or int8, not with --device {runtime.device} and "
            f"--precision {runtime.precision}"
        )
    if runtime.backend != "auto" or runtime.wants_torch:
        return runtime.backend == "onnx"
    if runtime.precision == "int8":
        return True
    return folder.onnx is not None and not (folder.has_weights and _prefers_cuda(runtime))


def _prefers_cuda(runtime: Runtime) -> bool:
    """Tell whether a GPU is most likely there and would be used; asking PyTorch itself would take seconds."""
    return runtime.backend == "auto" and runtime.device == "auto" and _CUDA_DRIVER.exists() and torch_installed()


def _hub_tokenizer(name: str, *, offline: bool) -> Path:
    """Return the ``tokenizer.json`` of a label encoder that a checkpoint names. Raises ModelUnusable."""
    hub_name = parse_hub_name(name)
    if hub_name is None:
        raise ModelUnusable(
            f"the checkpoint has no label_tokenizer.json, and its label encoder {name!r} is no name on the hub: copy "
            "that encoder's tokenizer.json into the folder under the name label_tokenizer.json"
        )
    return pull_tokenizer(hub_name, offline=offline)
