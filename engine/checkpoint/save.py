"""Writes a model as a folder that transformers and ``open_checkpoint`` read."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from engine.checkpoint.expected import required_shapes
from engine.config import ModelConfig, config_to_hf
from engine.files import replacing, write_json

_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def save_hf(
    folder: Path,
    config: ModelConfig,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write config.json, generation_config.json and model.safetensors into ``folder``.

    Args:
        tensors: every name of ``required_shapes(config)`` once, in any order, with its tensor (any
            float dtype and device). They are written as they come, so an iterator that makes them
            one by one keeps memory low.
        dtype: what they are stored as: float32, float16 or bfloat16.

    Raises:
        ValueError: a tensor is unknown, misshapen, given twice or not at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_tensors(folder / "model.safetensors", required_shapes(config), tensors, dtype)
    generation = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids) or None,
    }
    write_json(folder / "generation_config.json", generation)
    write_json(folder / "config.json", config_to_hf(config, dtype))


def _write_tensors(
    file: Path,
    shapes: dict[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
) -> None:
    header, starts = _header(shapes, dtype)
    missing = dict(shapes)
    with replacing(file) as stream:
        stream.write(header)
        for name, tensor in tensors:
            if missing.pop(name, None) != tuple(tensor.shape):
                raise ValueError(f"{name} {list(tensor.shape)} is not a tensor still to be written")
            stream.seek(len(header) + starts[name])
            stored = tensor.detach().to("cpu", dtype).contiguous()
            stream.write(stored.view(-1).view(torch.uint8).numpy().data)
        if missing:
            raise ValueError(f"{len(missing)} tensors were not given, first {next(iter(missing))}")


def _header(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> tuple[bytes, dict[str, int]]:
    """The safetensors header (length and padded JSON) and where each tensor starts after it."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, position = {}, 0
    for name, shape in shapes.items():
        starts[name] = position
        position += math.prod(shape) * dtype.itemsize
        entries[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [starts[name], position],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, starts
