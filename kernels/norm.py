"""RMS normalisation, alone or fused with the residual addition before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.checks import FLOATS, expect, expect_frozen
from kernels.dispatch import has_backend, implementation


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`x / sqrt(mean(x²) + eps) * weight` over the last dimension, in fp32, rounded once.

    Differentiable in `x`.

    Args:
        x: `[..., D]`; may be strided, last dimension contiguous.
        weight: `[D]`, same dtype as `x`, frozen.
        eps: added to the mean square.

    Returns:
        `[..., D]`, contiguous, dtype of `x`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or `weight` wants a gradient.

    Source: Zhang and Sennrich 2019, arXiv 1910.07467.
    """
    _check(x, weight)
    if x.requires_grad and torch.is_grad_enabled() and has_backend("rms_norm", x):
        return _RMSNorm.apply(x, weight, eps)
    return implementation("rms_norm", x)(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum `x + residual` (rounded to its dtype), and that sum normalised as by `rms_norm`.

    Differentiable in `x` and `residual`.

    Args:
        x: `[..., D]`.
        residual: shape and dtype of `x`.
        weight: `[D]`, same dtype as `x`, frozen.
        eps: added to the mean square.

    Returns:
        `(normed, sum)`, both like `x`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or `weight` wants a gradient.
    """
    _check(x, weight)
    expect("residual", residual, x.shape, (x.dtype,), x.device)
    needs_grad = (x.requires_grad or residual.requires_grad) and torch.is_grad_enabled()
    if needs_grad and has_backend("add_rms_norm", x):
        return _AddRMSNorm.apply(x, residual, weight, eps)
    return implementation("add_rms_norm", x)(x, residual, weight, eps)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The specification of `rms_norm`."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed * weight).to(x.dtype)


def add_rms_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The specification of `add_rms_norm`."""
    total = x + residual
    return rms_norm_reference(total, weight, eps), total


def _check(x: Tensor, weight: Tensor) -> None:
    expect("x", x, x.shape if x.dim() else ("...", "D"), FLOATS)
    expect("weight", weight, x.shape[-1:], (x.dtype,), x.device)
    expect_frozen("weight", weight)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return implementation("rms_norm", x)(x, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight = ctx.saved_tensors
        return implementation("rms_norm_backward", x)(grad, x, weight, ctx.eps), None, None


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        normed, total = implementation("add_rms_norm", x)(x, residual, weight, eps)
        ctx.save_for_backward(total, weight)
        ctx.eps = eps
        return normed, total

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_normed: Tensor, grad_total: Tensor
    ) -> tuple[Tensor, Tensor, None, None]:
        total, weight = ctx.saved_tensors
        backward = implementation("add_rms_norm_backward", total)
        grad = backward(grad_normed, grad_total, total, weight, ctx.eps)
        return grad, grad, None, None
