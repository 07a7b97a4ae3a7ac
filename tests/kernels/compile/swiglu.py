from __future__ import annotations

from collections.abc import Callable

import torch

from kernels import swiglu


def wide(dtype: torch.dtype, features: int = 14336) -> None:
    x = torch.empty(8192, 2 * features, dtype=dtype, device="meta", requires_grad=True)
    y = swiglu(x)
    torch.autograd.grad(y, x, torch.empty_like(y))


def of_smollm2(dtype: torch.dtype) -> None:
    wide(dtype, 1536)


def ones(dtype: torch.dtype) -> None:
    x = torch.empty(1, 2, dtype=dtype, device="meta", requires_grad=True)
    y = swiglu(x)
    torch.autograd.grad(y, x, torch.empty_like(y))


CALLS: list[Callable[[torch.dtype], None]] = [wide, of_smollm2]
ONES = [ones]
