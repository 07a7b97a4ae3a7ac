"""Host arrays to the device, many in one copy that nobody waits for.

A copy from pageable memory ends in a wait for all that the GPU was asked to do before, and each
costs its ten microseconds; a decode step has twenty small arrays to send.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 16  # bytes: the widest load of a thread


def upload(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Copies of the arrays on `device`, of their dtypes and shapes, all views of one buffer."""
    return unpack(pack(arrays, device).to(device, non_blocking=True), arrays)


def pack(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """The arrays end to end in a host buffer `[N]` uint8, from which `device` can copy by itself.

    For a GPU that is pinned memory. torch does not give it out anew before copies from it (with
    `non_blocking`) are done.
    """
    starts, size = _layout(arrays)
    pinned = device.type == "cuda"
    buffer = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned)
    room = buffer.numpy()
    for start, array in zip(starts, arrays, strict=True):
        part = room[start : start + array.nbytes].view(array.dtype)
        part.reshape(array.shape)[...] = array
    return buffer


def unpack(buffer: Tensor, arrays: Sequence[np.ndarray]) -> list[Tensor]:
    """Views of a buffer that was packed from arrays of the same dtypes and shapes."""
    starts, _ = _layout(arrays)
    flat = (
        buffer[start : start + array.nbytes].view(_dtype(array.dtype))
        for start, array in zip(starts, arrays, strict=True)
    )
    return [
        each if array.ndim == 1 else each.view(array.shape)  # a view takes a microsecond
        for each, array in zip(flat, arrays, strict=True)
    ]


def _layout(arrays: Sequence[np.ndarray]) -> tuple[list[int], int]:
    """Where each array starts, and the size of all, in bytes."""
    starts, size = [], 0
    for array in arrays:
        starts.append(size)
        size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    return starts, size


@cache
def _dtype(dtype: np.dtype) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
