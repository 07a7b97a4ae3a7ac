"""Y = X Wᵀ + b for inference, with results that do not depend on the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import implementation
from kernels.quantized import (
    QuantizedWeight,
    Weight,
    check_linear,
    column_parts,
    quantized_linear,
    quantized_linear_dx,
    row_parts,
)


def linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Linear layer without gradients.

    Args:
        x: `[T, K]`; rows may be strided, elements of a row contiguous.
        weight: `[N, K]`, contiguous, same dtype as `x`; or quantised.
        bias: `[N]`, same dtype, or None.
        out_dtype: dtype of the result: fp32 or that of `x`, which is also what None means. Sums
            are in fp32 in any case.

    Returns:
        `[T, N]`. On the CPU backend each row depends on its own row of `x` alone, to the last bit;
        on Triton for up to 16 rows, on one card.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
    """
    if isinstance(weight, QuantizedWeight):
        return quantized_linear(x, weight, bias, out_dtype=out_dtype)
    out_dtype = check_linear(x, weight, bias, out_dtype)
    return implementation("linear", x)(x, weight, bias, out_dtype=out_dtype)


def linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, out_dtype: torch.dtype
) -> Tensor:
    """The specification of `linear`."""
    return F.linear(x, weight, bias).to(out_dtype)


def base_linear(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    """The linear layer under low-rank updates, in training; differentiable in `x`."""
    if isinstance(weight, QuantizedWeight):
        return quantized_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def base_linear_dx(dy: Tensor, weight: Weight) -> Tensor:
    """Its gradient with respect to `x`: `dy [T, N]` times W -> `[T, K]`."""
    return quantized_linear_dx(dy, weight) if isinstance(weight, QuantizedWeight) else dy @ weight


def add_base_linear_(y: Tensor, x: Tensor, weight: Weight) -> Tensor:
    """Adds `x [T, K]` times Wᵀ to `y [T, N]` in place; no gradients."""
    if not isinstance(weight, QuantizedWeight):
        return y.addmm_(x, weight.T)
    for columns, part in row_parts(weight, x.dtype):
        y[:, columns].addmm_(x, part.T)
    return y


def add_base_linear_dx_(dx: Tensor, dy: Tensor, weight: Weight) -> Tensor:
    """Adds `dy [T, N]` times W to `dx [T, K]` in place."""
    if not isinstance(weight, QuantizedWeight):
        return dx.addmm_(dy, weight)
    for columns, part in column_parts(weight, dy.dtype):
        dx[:, columns].addmm_(dy, part)
    return dx
