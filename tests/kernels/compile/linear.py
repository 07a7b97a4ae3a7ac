from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import linear


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _linear(dtype: torch.dtype, rows: int, n: int, k: int, bias: bool = False) -> None:
    x, weight = _meta(rows, k, dtype=dtype), _meta(n, k, dtype=dtype)
    linear(x, weight, _meta(n, dtype=dtype) if bias else None)


def square(dtype: torch.dtype, rows: int = 16) -> None:
    _linear(dtype, rows, 4096, 4096)


def gate_up(dtype: torch.dtype) -> None:
    _linear(dtype, 8, 22016, 4096)


def split_with_bias(dtype: torch.dtype) -> None:
    _linear(dtype, 2, 1024, 4096, bias=True)


def head(dtype: torch.dtype) -> None:
    x, weight = _meta(1, 576, dtype=dtype), _meta(49152, 576, dtype=dtype)
    linear(x, weight, out_dtype=torch.float32)


def ones(dtype: torch.dtype) -> None:
    _linear(dtype, 1, 1, 4096, bias=True)
    _linear(dtype, 1, 16, 1)


CALLS: list[Callable[[torch.dtype], None]] = [square, gate_up, split_with_bias, head]
ONES = [ones]
VARYING = [(square, {"rows": 1})]
