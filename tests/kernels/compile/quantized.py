from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import QuantizedWeight, quantized_linear
from kernels.quantized import KINDS, Kind


def _meta(*shape: int, dtype: torch.dtype, grad: bool = False) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=grad)


def _weight(kind: Kind, n: int, k: int, group_size: int = 64) -> QuantizedWeight:
    codes = _meta(n, k // 2, dtype=torch.uint8)
    if kind == "int8":
        codes = _meta(n, k, dtype=torch.int8)
    scales = _meta(n, k // group_size, dtype=torch.float16)
    row_scales = _meta(n, dtype=torch.float32)
    return QuantizedWeight(kind, (n, k), group_size, codes, scales, row_scales)


def _decode(dtype: torch.dtype, rows: int, weight: QuantizedWeight) -> None:
    quantized_linear(_meta(rows, weight.shape[1], dtype=dtype), weight)


def int4(dtype: torch.dtype, rows: int = 4) -> None:
    _decode(dtype, rows, _weight("int4", 22016, 4096))


def int4_of_many(dtype: torch.dtype) -> None:
    _decode(dtype, 64, _weight("int4", 22016, 4096, 128))


def nf4(dtype: torch.dtype) -> None:
    _decode(dtype, 1, _weight("nf4", 22016, 4096))


def int8_split(dtype: torch.dtype) -> None:
    _decode(dtype, 16, _weight("int8", 4096, 11008))


def int8_of_many(dtype: torch.dtype) -> None:
    for rows, group_size in ((1, 128), (32, 64), (64, 64)):
        _decode(dtype, rows, _weight("int8", 22016, 4096, group_size))


def nf4_of_many(dtype: torch.dtype) -> None:
    for rows in (32, 64):
        _decode(dtype, rows, _weight("nf4", 22016, 4096))


def train(dtype: torch.dtype) -> None:
    for kind in KINDS:
        x = _meta(2048, 4096, dtype=dtype, grad=True)
        y = quantized_linear(x, _weight(kind, 12288, 4096))
        torch.autograd.grad(y, x, torch.empty_like(y))


def ones(dtype: torch.dtype) -> None:
    _decode(dtype, 1, _weight("int4", 1, 4096))
    _decode(dtype, 1, _weight("int8", 1, 128))
    _decode(dtype, 100, _weight("nf4", 1, 128))


CALLS: list[Callable[[torch.dtype], None]] = [int4, int4_of_many, nf4, int8_split, train]
BF16_CALLS = [int8_of_many, nf4_of_many]
ONES = [ones]
VARYING = [(int4, {"rows": 1}), (int4, {"rows": 16})]
