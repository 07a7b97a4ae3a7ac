"""SwiGLU's elementwise half: silu(gate) * up."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.checks import FLOATS, expect
from kernels.dispatch import has_backend, implementation


def swiglu(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up` of the two halves of each row, in fp32, rounded once. Differentiable.

    Args:
        gate_up: `[T, 2F]`: gate in columns `0..F`, up behind it; rows may be strided.

    Returns:
        `[T, F]`, contiguous, dtype of `gate_up`.

    Raises:
        ValueError: not two-dimensional, an odd number of columns, or no floats.

    Source: Shazeer 2020, arXiv 2002.05202.
    """
    expect("gate_up", gate_up, ("T", "2F"), FLOATS)
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up: the columns must be even, got {gate_up.shape[1]}")
    if gate_up.requires_grad and torch.is_grad_enabled() and has_backend("swiglu", gate_up):
        return _SwiGLU.apply(gate_up)
    return implementation("swiglu", gate_up)(gate_up)


def swiglu_reference(gate_up: Tensor) -> Tensor:
    """The specification of `swiglu`."""
    wide = gate_up.to(torch.promote_types(gate_up.dtype, torch.float32))
    gate, up = wide.chunk(2, dim=-1)
    return (F.silu(gate) * up).to(gate_up.dtype)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return implementation("swiglu", gate_up)(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        return implementation("swiglu_backward", gate_up)(grad, gate_up)
