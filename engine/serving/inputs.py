"""What the model takes of a step: planned on the host, sent to the device in one copy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from kernels.upload import upload

Array = TypeVar("Array", bound=np.ndarray | Tensor)


@dataclass(frozen=True, slots=True)
class Inputs(Generic[Array]):
    """T tokens of S sequences, as the model and `kernels.paged_attention` take them.

    tokens: `[T]` int64.
    positions, slots: `[T]` int32.
    cu_seqlens: `[S+1]` int32; seq_lens: `[S]` int32; block_table: `[S, M]` int32.
    shared_blocks: so many leading entries of all rows of block_table are the same (0 for one row).
    """

    tokens: Array
    positions: Array
    slots: Array
    cu_seqlens: Array
    seq_lens: Array
    block_table: Array
    shared_blocks: int = field(kw_only=True)

    @property
    def arrays(self) -> list[Array]:
        """All of them, in order."""
        parts = self.tokens, self.positions, self.slots
        return [*parts, self.cu_seqlens, self.seq_lens, self.block_table]


def send(inputs: Inputs[np.ndarray], device: torch.device) -> Inputs[Tensor]:
    """The inputs on `device`; nobody waits for the copy."""
    return Inputs(*upload(inputs.arrays, device), shared_blocks=inputs.shared_blocks)
