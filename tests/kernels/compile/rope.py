from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import rope


def _fused(
    dtype: torch.dtype, heads: int, kv_heads: int, dim: int, *, grad: bool, rows: int = 8192
) -> tuple[Tensor, ...]:
    """Views of a fused qkv tensor, the table, and positions."""
    qkv = torch.empty(rows, heads + 2 * kv_heads, dim, dtype=dtype, device="meta")
    qkv.requires_grad_(grad)
    cos, sin = (torch.empty(4096, dim // 2, device="meta") for _ in range(2))
    positions = torch.empty(rows, dtype=torch.int32, device="meta")
    return qkv[:, :heads], qkv[:, heads : heads + kv_heads], cos, sin, positions


def forward_and_backward(dtype: torch.dtype) -> None:
    q, k, *table = _fused(dtype, 32, 8, 128, grad=True)
    outs = rope(q, k, *table)
    torch.autograd.grad(outs, [q, k], [torch.empty_like(out) for out in outs])


def in_place(dtype: torch.dtype, rows: int = 8192) -> None:
    rope(*_fused(dtype, 32, 8, 128, grad=False, rows=rows), inplace=True)


def of_smollm2(dtype: torch.dtype) -> None:
    rope(*_fused(dtype, 9, 3, 64, grad=False), inplace=True)


def ones(dtype: torch.dtype) -> None:
    rope(*_fused(dtype, 1, 1, 2, grad=False, rows=1))


CALLS: list[Callable[[torch.dtype], None]] = [forward_and_backward, in_place, of_smollm2]
ONES = [ones]
VARYING = [(in_place, {"rows": 1}), (in_place, {"rows": 13})]
