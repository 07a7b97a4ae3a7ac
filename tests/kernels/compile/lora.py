from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import LoraBank, LoraRows, LoraSlice, lora_add_, lora_add_rows_, lora_linear


def _meta(*shape: int, dtype: torch.dtype, grad: bool = False) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=grad)


def _slices(
    k: int, columns: list[int], rank: int, dtype: torch.dtype, *, train: bool
) -> list[LoraSlice]:
    found, start = [], 0
    for n in columns:
        a = _meta(rank, k, dtype=dtype, grad=train)
        b = _meta(n, rank, dtype=dtype, grad=train) if train else _meta(rank, n, dtype=dtype).T
        found.append(LoraSlice(a, b, start, 2.0))
        start += n
    return found


def _train(
    dtype: torch.dtype, k: int, columns: list[int], rank: int, *, first: bool, rows: int = 8192
) -> None:
    """The `first` layer of a model has a bias here, and an input that wants no gradient."""
    x, weight = _meta(rows, k, dtype=dtype, grad=not first), _meta(sum(columns), k, dtype=dtype)
    slices = _slices(k, columns, rank, torch.float32, train=True)
    bias = _meta(sum(columns), dtype=dtype) if first else None
    y = lora_linear(x, weight, bias, slices)
    leaves = [part for s in slices for part in (s.a, s.b)]
    torch.autograd.grad(y, leaves if first else [x, *leaves], torch.empty_like(y))


def train_qkv(dtype: torch.dtype, rows: int = 8192) -> None:
    _train(dtype, 4096, [4096, 1024, 1024], 16, first=False, rows=rows)


def train_rank_128(dtype: torch.dtype) -> None:
    _train(dtype, 14336, [4096], 128, first=True)


def train_rank_8(dtype: torch.dtype) -> None:
    _train(dtype, 4096, [4096, 1024], 8, first=False)


def add_to_qkv(dtype: torch.dtype, rows: int = 256) -> None:
    x, y = _meta(rows, 4096, dtype=dtype), _meta(rows, 6144, dtype=dtype)
    lora_add_(y, x, _slices(4096, [4096, 1024, 1024], 16, dtype, train=False))


def rows_of_many_adapters(dtype: torch.dtype, rows: int = 2048, linear: int = 0) -> None:
    x, y = _meta(rows, 4096, dtype=dtype), _meta(rows, 28672, dtype=dtype)
    banks = [
        LoraBank([_slices(4096, [14336, 14336], rank, dtype, train=False)] * 2) for rank in (16, 64)
    ]
    lora_add_rows_(y, x, LoraRows([(0, 48, banks[0]), (48, rows, banks[1])]), linear)


def ones(dtype: torch.dtype) -> None:
    for first in (False, True):
        _train(dtype, 8, [1, 1, 2], 1, first=first, rows=1)
    x, y = (_meta(1, 1, dtype=dtype) for _ in range(2))
    slices = _slices(1, [1], 1, dtype, train=False)
    lora_add_(y, x, slices)
    lora_add_rows_(y, x, LoraRows([(0, 1, LoraBank([slices, slices]))]), 1)


CALLS: list[Callable[[torch.dtype], None]] = [
    train_qkv,
    train_rank_128,
    train_rank_8,
    add_to_qkv,
    rows_of_many_adapters,
]
ONES = [ones]
VARYING = [
    (train_qkv, {"rows": 8191}),
    (add_to_qkv, {"rows": 1}),
    (add_to_qkv, {"rows": 13}),
    (rows_of_many_adapters, {"rows": 2047, "linear": 1}),
]
