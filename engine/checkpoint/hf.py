"""Models as transformers saves them: a folder with config.json and safetensors weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.checkpoint.base import Checkpoint, StoredTensor
from engine.config import config_from_hf
from engine.errors import CheckpointError

if TYPE_CHECKING:
    from engine.text.tokenizer import Tokenizer

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class HfCheckpoint(Checkpoint):
    """A folder with config.json and model.safetensors, or shards and their index.

    Raises CheckpointError, when made, for files that are missing, damaged, truncated or pickled.
    """

    def __init__(self, folder: Path) -> None:
        config_file = folder / "config.json"
        values = _read_json(config_file)
        values.update(_stop_tokens(folder))
        config = config_from_hf(values, str(config_file))
        index, stored = _find_weights(folder)
        super().__init__(folder, index, config, stored)

    def tokenizer(self) -> Tokenizer:
        from engine.text.tokenizer import Tokenizer

        return Tokenizer.from_folder(self.path)

    def _decode(self, stored: StoredTensor, raw: np.ndarray) -> Tensor:
        assert stored.dtype is not None
        return torch.from_numpy(raw).view(stored.dtype)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file; is this a model's folder?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read as JSON ({error}); get it again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: does not hold a JSON object; get it again")
    return values


def _stop_tokens(folder: Path) -> dict[str, Any]:
    """generation_config.json's end tokens: instruction-tuned models list more of them there."""
    file = folder / "generation_config.json"
    values = _read_json(file) if file.exists() else {}
    ids = values.get("eos_token_id")
    return {} if ids is None else {"eos_token_id": ids}


def _find_weights(folder: Path) -> tuple[Path, dict[str, StoredTensor]]:
    """The file that lists the tensors, and where each of them lies."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return single, _read_header(single)
    if index.exists():
        return index, _read_shards(index)
    pickled = sorted(file for pattern in _PICKLED for file in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            f"{pickled[0]}: pickled weights can run code and are never read; convert the model to "
            "safetensors (transformers: model.save_pretrained) or choose one that has them"
        )
    raise CheckpointError(f"{single}: no such file, nor {index.name}; get the weights again")


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    files = _read_json(index).get("weight_map")
    if not isinstance(files, dict):
        raise CheckpointError(f"{index}: has no weight_map; get it again")
    headers: dict[str, dict[str, StoredTensor]] = {}
    stored = {}
    for name, file in files.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{index}: tensor {name} lies in {file!r}, not a file beside it")
        if file not in headers:
            headers[file] = _read_shard(index, file, name)
        if name not in headers[file]:
            raise CheckpointError(
                f"{index.with_name(file)}: tensor {name} is missing, although {index.name} "
                "says it is there; get both again"
            )
        stored[name] = headers[file][name]
    for file, tensors in headers.items():
        unlisted = sorted(name for name in tensors if files.get(name) != file)
        if unlisted:
            raise CheckpointError(
                f"{index.with_name(file)}: holds tensor {unlisted[0]}, which {index.name} does not "
                "list there; get both again"
            )
    return stored


def _read_shard(index: Path, file: str, tensor: str) -> dict[str, StoredTensor]:
    shard = index.with_name(file)
    if not shard.exists():
        raise CheckpointError(
            f"{shard}: no such file, although {index.name} says that it holds {tensor}; "
            "the download is incomplete, finish it"
        )
    return _read_header(shard)


def _read_header(file: Path) -> dict[str, StoredTensor]:
    """Where a safetensors file's tensors lie; the safetensors package checks that all is sound."""
    try:
        with safe_open(file, framework="pt"):
            pass
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file}: not a complete safetensors file ({error}); get it again"
        ) from None
    stored = {}
    for name, about in header.items():
        if name != "__metadata__":
            start, end = about["data_offsets"]
            stored[name] = StoredTensor(
                file=file,
                offset=8 + length + start,
                nbytes=end - start,
                shape=tuple(about["shape"]),
                encoding=about["dtype"],
                dtype=_DTYPES.get(about["dtype"]),
            )
    return stored
