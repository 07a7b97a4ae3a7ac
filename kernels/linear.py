"""Y = X Wᵀ + b for inference, with results that do not depend on the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import implementation
from kernels.quantized import QuantizedWeight, quantized_linear, quantized_linear_dx


def linear(
    x: Tensor,
    weight: Tensor | QuantizedWeight,
    bias: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Linear layer without gradients.

    Args:
        x: `[T, K]`; rows may be strided, elements of a row contiguous.
        weight: `[N, K]`, contiguous, same dtype as `x`; or quantised.
        bias: `[N]`, same dtype, or None.
        out_dtype: dtype of the result; None for that of `x`. Sums are in fp32 in any case.

    Returns:
        `[T, N]`. On the CPU backend each row depends on its own row of `x` alone, to the last bit;
        on Triton for up to 16 rows, on one card.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if isinstance(weight, QuantizedWeight):
        return quantized_linear(x, weight, bias, out_dtype=out_dtype)
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x: shape {tuple(x.shape)} does not fit weight {tuple(weight.shape)}")
    if x.dtype != weight.dtype:
        raise ValueError(f"x: dtype {x.dtype} differs from weight's {weight.dtype}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: shape {tuple(bias.shape)} does not fit {tuple(weight.shape)}")
    return implementation("linear", x)(x, weight, bias, out_dtype=out_dtype or x.dtype)


def linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, out_dtype: torch.dtype
) -> Tensor:
    """The specification of `linear`."""
    return F.linear(x, weight, bias).to(out_dtype)


def base_linear(x: Tensor, weight: Tensor | QuantizedWeight, bias: Tensor | None) -> Tensor:
    """The linear layer in training, by the fastest product of many rows; differentiable in `x`."""
    if isinstance(weight, QuantizedWeight):
        return quantized_linear(x, weight, bias)
    return F.linear(x, weight, bias)


def base_linear_dx(dy: Tensor, weight: Tensor | QuantizedWeight) -> Tensor:
    """Its gradient with respect to `x`: `dy [T, N]` times W -> `[T, K]`."""
    return quantized_linear_dx(dy, weight) if isinstance(weight, QuantizedWeight) else dy @ weight
