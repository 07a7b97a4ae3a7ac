"""Adapters on disk in the layout of the PEFT library: adapter_config.json and safetensors."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from engine.adapters.lora import Adapter, Key, LoraPair, module_name, target_shape
from engine.adapters.peft_config import PeftSettings, settings_of
from engine.config import ModelConfig
from engine.errors import AdapterError
from engine.files import write_atomic, write_json

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."


def load_adapter(
    folder: str | Path, name: str, model: ModelConfig, device: torch.device
) -> Adapter:
    """Reads a PEFT LoRA folder as an adapter of `model`.

    Args:
        folder: holds adapter_config.json and adapter_model.safetensors.
        name: the adapter's name from now on.
        model: the model it must fit.
        device: where its fp32 tensors go.

    Raises:
        AdapterError: something is missing, damaged, surplus, misshapen or not supported (DoRA,
            biases, fully trained modules, LoRA on embeddings or head, pickled weights).
    """
    folder = Path(folder).expanduser()
    settings = PeftSettings(folder / CONFIG_FILE)
    expected = settings.modules(model)
    tensors = _read_tensors(folder)
    pairs = {}
    for key, (rank, scale) in expected.items():
        n, k = target_shape(model, key[1])
        a = _take(tensors, folder, _tensor_name(key, "A"), (rank, k), device)
        b = _take(tensors, folder, _tensor_name(key, "B"), (n, rank), device)
        pairs[key] = LoraPair(a, b, scale)
    if tensors:
        raise AdapterError(
            f"{folder / WEIGHTS_FILE}: tensor {min(tensors)} has no place in this model"
            f"{_and_more(len(tensors))}; the adapter is for another model or target_modules"
        )
    targets = {target for _, target in pairs}
    return Adapter(name, settings.lora_config(targets), model, pairs)


def save_adapter(adapter: Adapter, folder: str | Path, base_model: str) -> None:
    """Writes `adapter` as PEFT does (fp32); `base_model` names the model in its config.

    The weights are written before the config, each file atomically.
    """
    folder = Path(folder).expanduser()
    tensors = {}
    for key, pair in adapter.pairs.items():
        tensors[_tensor_name(key, "A")] = pair.a.detach().cpu().contiguous()
        tensors[_tensor_name(key, "B")] = pair.b.detach().cpu().contiguous()
    write_atomic(folder / WEIGHTS_FILE, safetensors.torch.save(tensors, {"format": "pt"}))
    write_json(folder / CONFIG_FILE, settings_of(adapter, base_model))


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.exists() and path.with_suffix(".bin").exists():
        raise AdapterError(
            f"{path.with_suffix('.bin')}: pickled weights can run code and are never read; "
            "save the adapter again with safetensors"
        )
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise AdapterError(f"{path}: no such file; get the adapter again") from None
    except (OSError, SafetensorError) as error:
        raise AdapterError(
            f"{path}: not a complete safetensors file ({error}); get the adapter again"
        ) from None


def _take(
    tensors: dict[str, Tensor],
    folder: Path,
    name: str,
    shape: tuple[int, int],
    device: torch.device,
) -> Tensor:
    """Removes one tensor from those read, checked, in fp32."""
    where = f"{folder / WEIGHTS_FILE}: tensor {name}"
    tensor = tensors.pop(name, None)
    if tensor is None:
        raise AdapterError(f"{where} is missing; get the adapter again")
    if tuple(tensor.shape) != shape:
        raise AdapterError(f"{where} has shape {list(tensor.shape)}, the model needs {list(shape)}")
    if not tensor.is_floating_point():
        raise AdapterError(f"{where} is {tensor.dtype}, not floating point")
    if not tensor.isfinite().all():
        raise AdapterError(f"{where} holds NaN or infinity; train the adapter again")
    return tensor.to(device, torch.float32)


def _tensor_name(key: Key, matrix: str) -> str:
    return f"{_PREFIX}{module_name(*key)}.lora_{matrix}.weight"


def _and_more(count: int) -> str:
    return f" (and {count - 1} more have none)" if count > 1 else ""
