"""The head of a GGUF file: its metadata and where its tensors lie.

The gguf package names the types, sizes and keys and decodes the numbers. The head is parsed here
because the package's reader makes several objects of every token of the vocabulary (2 s and 160 MB
for 49,152 tokens and their merges) and trusts every length in the file.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFValueType

from engine.checkpoint.base import StoredTensor
from engine.errors import CheckpointError

_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
_PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}


@dataclass(frozen=True)
class GgufHead:
    """Metadata by key, as Python numbers, strings and lists; tensors by their GGUF names."""

    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


def read_head(file: Path) -> GgufHead:
    """Read everything but the tensors' bytes.

    Raises CheckpointError for a file that is not GGUF version 2 or 3 in little-endian order, is
    damaged, or is shorter than its tensors need.
    """
    try:
        with file.open("rb", buffering=1 << 20) as stream:
            return _Parser(file, stream, file.stat().st_size).head()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None


class _Parser:
    def __init__(self, file: Path, stream: BinaryIO, size: int) -> None:
        self.file, self.stream, self.size = file, stream, size

    def head(self) -> GgufHead:
        if self.stream.read(4) != b"GGUF":
            raise CheckpointError(f"{self.file}: not a GGUF file (it does not begin with 'GGUF')")
        version = self.number("I")
        if version not in (2, 3):
            raise CheckpointError(
                f"{self.file}: GGUF version {version} is not supported, only little-endian 2 and 3"
            )
        tensor_count, key_count = self.number("Q"), self.number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self.string("a key")
            metadata[key] = self.value(self.kind(key), key)
        infos = [self.tensor_info() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise self.damaged("general.alignment")
        data = math.ceil(self.stream.tell() / alignment) * alignment
        return GgufHead(metadata, {info[0]: self.locate(data, *info) for info in infos})

    def tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape (outermost first), type number and offset of the next tensor."""
        name = self.string("a tensor's name")
        dims = self.number("I")
        if not 1 <= dims <= 4:
            raise self.damaged(f"tensor {name}")
        shape = tuple(self.number("Q") for _ in range(dims))[::-1]
        return name, shape, self.number("I"), self.number("Q")

    def locate(
        self, data: int, name: str, shape: tuple[int, ...], number: int, offset: int
    ) -> StoredTensor:
        try:
            kind = GGMLQuantizationType(number)
        except ValueError:
            raise CheckpointError(
                f"{self.file}: tensor {name} has type {number}, which the installed gguf package "
                "does not know; upgrade it (pip install -U gguf)"
            ) from None
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        nbytes = math.prod(shape) // block * block_bytes
        if not nbytes or shape[-1] % block:
            raise self.damaged(f"tensor {name}")
        if data + offset + nbytes > self.size:
            raise CheckpointError(
                f"{self.file}: truncated, tensor {name} ends at byte {data + offset + nbytes} "
                f"but the file has {self.size}; get it again"
            )
        return StoredTensor(self.file, data + offset, nbytes, shape, kind.name, _dtype(kind))

    def value(self, kind: GGUFValueType, key: str) -> Any:
        if kind == GGUFValueType.STRING:
            return self.string(key)
        if kind != GGUFValueType.ARRAY:
            return self.number(_SCALARS[kind])
        item, count = self.kind(key), self.number("Q")
        if item in _SCALARS:
            code = _SCALARS[item]
            return list(
                struct.unpack(f"<{count}{code}", self.take(count, key, struct.calcsize(code)))
            )
        if count > self.size:
            raise self.damaged(key)
        return [self.value(item, key) for _ in range(count)]

    def kind(self, key: str) -> GGUFValueType:
        try:
            return GGUFValueType(self.number("I"))
        except ValueError:
            raise self.damaged(key) from None

    def number(self, code: str) -> Any:
        (value,) = struct.unpack(f"<{code}", self.take(1, "a number", struct.calcsize(f"<{code}")))
        return value

    def string(self, key: str) -> str:
        try:
            return self.take(self.number("Q"), key).decode()
        except UnicodeDecodeError:
            raise self.damaged(key) from None

    def take(self, count: int, key: str, item_bytes: int = 1) -> bytes:
        if count * item_bytes > self.size:
            raise self.damaged(key)
        raw = self.stream.read(count * item_bytes)
        if len(raw) != count * item_bytes:
            raise CheckpointError(f"{self.file}: truncated within {key}; get it again")
        return raw

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: damaged at {what}; get it again")


def _dtype(kind: GGMLQuantizationType) -> torch.dtype | None:
    """The dtype that tensors of this type decode to; None if the gguf package cannot decode it."""
    if kind in _PLAIN:
        return _PLAIN[kind]
    try:
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return None
    return torch.float32
