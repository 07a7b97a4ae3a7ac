"""Rotary position embedding of queries and keys, half-split convention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.checks import FLOATS, expect
from kernels.dispatch import has_backend, implementation


def rope(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    *,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Rotates each pair `(x[i], x[i + D/2])` of every head by the angle of its row's position.

    Computed in fp32, rounded once. Differentiable in `q` and `k`.

    Args:
        q: `[T, H, D]`, D even; may be a strided view, in place with the last dimension contiguous.
        k: `[T, Hkv, D]`, same dtype.
        cos: `[P, D/2]` fp32, contiguous: cosines of the angles of positions `0..P-1`.
        sin: `[P, D/2]` fp32, contiguous.
        positions: `[T]` int32 or int64, each in `0..P-1`.
        inplace: overwrite `q` and `k` and return them; no gradients.

    Returns:
        Rotated `(q, k)`, contiguous unless in place.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, a position lies outside the table (CPU),
            or `inplace` is asked of tensors that need gradients or whose last dimension is strided.

    Source: Su et al. 2021, arXiv 2104.09864, with the pairing of Hugging Face's `rotate_half`.
    """
    _check(q, k, cos, sin, positions)
    if inplace:
        _check_inplace("q", q)
        _check_inplace("k", k)
    needs_grad = (q.requires_grad or k.requires_grad) and torch.is_grad_enabled()
    if needs_grad and has_backend("rope", q):
        return _Rope.apply(q, k, cos, sin, positions)
    return implementation("rope", q)(q, k, cos, sin, positions, inplace=inplace)


def rope_reference(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    *,
    inplace: bool = False,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """The specification of `rope`; `inverse` rotates backwards, which is its gradient."""
    c, s = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)
    rotated_q, rotated_k = (_rotate(x, c, -s if inverse else s) for x in (q, k))
    return (q.copy_(rotated_q), k.copy_(rotated_k)) if inplace else (rotated_q, rotated_k)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)


def _check(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
    expect("q", q, ("T", "H", "D"), FLOATS)
    (rows, _, dim), dtype, device = q.shape, q.dtype, q.device
    if dim % 2:
        raise ValueError(f"q: the head size must be even, got {dim}")
    expect("k", k, (rows, "Hkv", dim), (dtype,), device)
    expect("cos", cos, ("P", dim // 2), (torch.float32,), device)
    expect("sin", sin, cos.shape, (torch.float32,), device)
    expect("positions", positions, (rows,), (torch.int32, torch.int64), device)


def _check_inplace(name: str, x: Tensor) -> None:
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"inplace: {name} needs gradients; call it without inplace")
    if x.stride(2) != 1:
        raise ValueError(f"{name}: strided heads (by {x.stride(2)}) cannot be rotated in place")


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin, positions)
        return implementation("rope", q)(q, k, cos, sin, positions)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_q: Tensor, grad_k: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None]:
        cos, sin, positions = ctx.saved_tensors
        rotate = implementation("rope", grad_q)
        return *rotate(grad_q, grad_k, cos, sin, positions, inverse=True), None, None, None
