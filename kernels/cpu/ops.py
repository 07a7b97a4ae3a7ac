"""The C++ kernels under their ops' names: outputs are allocated here, arguments pass as addresses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import cpu

_C: Any = cpu.native
_SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}
_LINEAR = {
    (torch.float32, torch.float32): _C.linear_f32,
    (torch.bfloat16, torch.bfloat16): _C.linear_bf16,
    (torch.bfloat16, torch.float32): _C.linear_bf16_f32,
}


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _rows(x: Tensor) -> Tensor:
    """`x` with contiguous rows (strided rows stay as they are)."""
    return x if x.stride(-1) == 1 else x.contiguous()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, out_dtype: torch.dtype) -> Tensor:
    x, weight = _rows(x), weight.contiguous()
    (rows, k), n = x.shape, weight.shape[0]
    y = torch.empty(rows, n, dtype=out_dtype)
    _LINEAR[x.dtype, out_dtype](
        x.data_ptr(), weight.data_ptr(), _address(bias), y.data_ptr(), rows, n, k, x.stride(0), n
    )
    return y
