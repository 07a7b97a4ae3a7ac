"""What every kind of checkpoint has in common: a config and tensors that lie in files."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from engine.config import ModelConfig, config_to_hf
from engine.errors import CheckpointError

if TYPE_CHECKING:
    from engine.text.tokenizer import Tokenizer

# Tensors are decoded by rows, about this many numbers at a time, so that loading needs little
# memory beside the model. Files are read, not mapped: touched pages of a map count as resident.
_NUMBERS_AT_A_TIME = 1 << 20
_SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies and how: ``dtype`` is that of its numbers once decoded.

    ``encoding`` is the file format's own name of the type (``BF16``, ``Q4_K`` ...); ``dtype`` is
    None if the engine cannot decode it.
    """

    file: Path
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    encoding: str
    dtype: torch.dtype | None


class Checkpoint(ABC):
    """A model on disk: its config and its tensors under the names that transformers gives them.

    Tensors are read one at a time, when asked for. ``path`` is the folder or file, ``index`` the
    file that says which tensors there are (named in errors about missing ones).
    """

    def __init__(
        self, path: Path, index: Path, config: ModelConfig, stored: Mapping[str, StoredTensor]
    ) -> None:
        self.path = path
        self.index = index
        self.config = config
        self.stored = stored

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The tokenizer beside or inside the weights. Raises TokenizerError."""

    @abstractmethod
    def _decode(self, stored: StoredTensor, raw: np.ndarray) -> Tensor:
        """Numbers ``[rows, n]`` from the bytes uint8 ``[rows, bytes of a row]``."""

    def _row_order(self, name: str) -> Tensor | None:
        """Where each stored row belongs in the tensor, int64 ``[rows]``; None: in stored order."""
        return None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, by its transformers name."""
        return {name: stored.shape for name, stored in self.stored.items()}

    def read(self, name: str) -> Tensor:
        """One tensor on the CPU, in its stored dtype (float32 if it was quantised)."""
        stored = self.stored[name]
        out = torch.empty(stored.shape, dtype=stored.dtype)
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: Tensor) -> None:
        """Copy one tensor into ``out`` (same shape, any float dtype and device, may be a slice).

        Needs a few MiB beside ``out``. Raises CheckpointError if the file ends too early.
        """
        stored = self.stored[name]
        order = self._row_order(name)
        target = out.unsqueeze(0) if out.dim() == 1 and order is None else out
        lines = target.shape[0]
        step = max(1, _NUMBERS_AT_A_TIME * lines // out.numel())
        with stored.file.open("rb") as file:
            file.seek(stored.offset)
            for start in range(0, lines, step):
                count = min(step, lines - start)
                raw = np.empty((count, stored.nbytes // lines), dtype=np.uint8)
                if file.readinto(raw.data) != raw.nbytes:
                    raise CheckpointError(f"{stored.file}: ends within tensor {name}; get it again")
                piece = self._decode(stored, raw).view(count, *target.shape[1:])
                rows = slice(start, start + count)
                target[rows if order is None else order[rows]] = piece.to(out.device, out.dtype)

    def fingerprint(self) -> str:
        """A hash (64 hex digits) that changes when the model does, at the cost of little reading.

        SHA-256 of the config and, by name, of every tensor's shape, encoding and size and of three
        4 KiB samples of its bytes: first, middle and last. Training, merging or quantising a model
        changes every matrix nearly everywhere, which samples see; a change of single numbers made
        by hand between them goes unseen. File names and sharding do not matter.
        """
        digest = hashlib.sha256()
        config = config_to_hf(self.config, torch.float32)
        digest.update(json.dumps(config, sort_keys=True).encode())
        for name, stored in sorted(self.stored.items()):
            about = [name, list(stored.shape), stored.encoding, stored.nbytes]
            digest.update(json.dumps(about).encode())
            digest.update(_samples(stored))
        return digest.hexdigest()


def _samples(stored: StoredTensor) -> bytes:
    last = max(0, stored.nbytes - _SAMPLE_BYTES)
    samples = b""
    with stored.file.open("rb") as file:
        for start in sorted({0, last // 2, last}):
            file.seek(stored.offset + start)
            samples += file.read(min(_SAMPLE_BYTES, stored.nbytes - start))
    return samples
