"""What public functions ask of their tensors, asked in one way: a ValueError names the argument.

Only what a tensor says of itself is looked at, never its contents, so no GPU is waited for. A check
takes less than a microsecond.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = torch.float32, torch.bfloat16, torch.float16, torch.float64


def expect(
    name: str,
    x: Tensor,
    shape: Sequence[int | str],
    dtypes: Sequence[torch.dtype],
    device: torch.device | None = None,
) -> None:
    """Raises ValueError unless `x` is such a tensor.

    Args:
        name: of the argument.
        shape: size of each dimension, or what to call one of any size: `("T", 64)`.
        dtypes: those that it may have.
        device: where it must be; None for anywhere.
    """
    if x.dtype in dtypes and (device is None or x.device == device) and _fits(x.shape, shape):
        return
    names = " or ".join(str(dtype)[6:] for dtype in dtypes)
    wanted = f"[{', '.join(map(str, shape))}] {names} on {device or x.device}"
    raise ValueError(
        f"{name}: expected {wanted}, got {list(x.shape)} {str(x.dtype)[6:]} on {x.device}"
    )


def _fits(sizes: torch.Size, shape: Sequence[int | str]) -> bool:
    if sizes == shape:
        return True
    if len(sizes) != len(shape):
        return False
    for size, wanted in zip(sizes, shape, strict=True):
        if size != wanted and wanted.__class__ is not str:
            return False
    return True


def expect_frozen(name: str, x: Tensor) -> None:
    """Raises ValueError if `x` wants a gradient, which the op would not give it."""
    if x.requires_grad:
        raise ValueError(f"{name}: must be frozen (requires_grad_(False))")
