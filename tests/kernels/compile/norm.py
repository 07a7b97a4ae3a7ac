from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import add_rms_norm, rms_norm


def _meta(*shape: int, dtype: torch.dtype, grad: bool = False) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=grad)


def hidden(dtype: torch.dtype, dim: int = 4096, rows: int = 8192) -> None:
    x, weight = _meta(rows, dim, dtype=dtype, grad=True), _meta(dim, dtype=dtype)
    y = rms_norm(x, weight, 1e-5)
    torch.autograd.grad(y, x, torch.empty_like(y))


def hidden_of_smollm2(dtype: torch.dtype) -> None:
    hidden(dtype, 576)


def heads(dtype: torch.dtype) -> None:
    x = _meta(8192, 48, 128, dtype=dtype, grad=True)[:, :32]
    y = rms_norm(x, _meta(128, dtype=dtype), 1e-6)
    torch.autograd.grad(y, x, torch.empty_like(y))


def with_residual(dtype: torch.dtype) -> None:
    x, residual = (_meta(8192, 4096, dtype=dtype, grad=True) for _ in range(2))
    outs = add_rms_norm(x, residual, _meta(4096, dtype=dtype), 1e-5)
    torch.autograd.grad(outs, [x, residual], [torch.empty_like(out) for out in outs])


def ones(dtype: torch.dtype) -> None:
    for shape in ((1, 1), (1, 1, 128), (1, 8, 1)):
        x, weight = _meta(*shape, dtype=dtype, grad=True), _meta(shape[-1], dtype=dtype)
        outs = add_rms_norm(x, x, weight, 1e-6)
        torch.autograd.grad(outs, x, [torch.empty_like(out) for out in outs])


CALLS: list[Callable[[torch.dtype], None]] = [hidden, hidden_of_smollm2, heads, with_residual]
ONES = [ones]
VARYING = [(hidden, {"rows": 8191})]
