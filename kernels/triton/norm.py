"""RMS normalisation: each program holds whole rows in registers and reads memory once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096  # elements that a program holds at most, unless one row is longer


@triton.jit(do_not_specialize=["rows"])
def _rms_norm_kernel(
    p_x,
    p_residual,
    p_weight,
    p_y,
    p_total,
    rows,
    inner,
    stride_outer,
    stride_inner,
    eps,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ADD: tl.constexpr,
):
    o_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_d = tl.arange(0, BLOCK_D)
    m = (o_r < rows)[:, None] & (o_d < D)[None, :]
    o_x = (o_r // inner * stride_outer + o_r % inner * stride_inner)[:, None] + o_d[None, :]
    o_y = o_r[:, None] * D + o_d[None, :]
    # [BLOCK_R, BLOCK_D]
    b_x = tl.load(p_x + o_x, mask=m, other=0.0).to(tl.float32)
    if ADD:
        b_x += tl.load(p_residual + o_y, mask=m, other=0.0).to(tl.float32)
        b_total = b_x.to(p_total.dtype.element_ty)
        tl.store(p_total + o_y, b_total, mask=m)
        b_x = b_total.to(tl.float32)  # the norm is that of the rounded sum
    b_rstd = tl.rsqrt(tl.sum(b_x * b_x, axis=1) / D + eps)
    b_weight = tl.load(p_weight + o_d, mask=o_d < D, other=0.0).to(tl.float32)
    b_y = b_x * b_rstd[:, None] * b_weight[None, :]
    tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["rows"])
def _rms_norm_backward_kernel(
    p_dy,
    p_dtotal,
    p_x,
    p_weight,
    p_dx,
    rows,
    inner,
    stride_outer,
    stride_inner,
    eps,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ADD: tl.constexpr,
):
    o_r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_d = tl.arange(0, BLOCK_D)
    m = (o_r < rows)[:, None] & (o_d < D)[None, :]
    o_x = (o_r // inner * stride_outer + o_r % inner * stride_inner)[:, None] + o_d[None, :]
    o_y = o_r[:, None] * D + o_d[None, :]
    # [BLOCK_R, BLOCK_D]
    b_x = tl.load(p_x + o_x, mask=m, other=0.0).to(tl.float32)
    b_dy = tl.load(p_dy + o_y, mask=m, other=0.0).to(tl.float32)
    b_weight = tl.load(p_weight + o_d, mask=o_d < D, other=0.0).to(tl.float32)
    b_rstd = tl.rsqrt(tl.sum(b_x * b_x, axis=1) / D + eps)
    b_normed = b_x * b_rstd[:, None]
    b_dnormed = b_dy * b_weight[None, :]
    b_mean = tl.sum(b_dnormed * b_normed, axis=1) / D
    b_dx = (b_dnormed - b_normed * b_mean[:, None]) * b_rstd[:, None]
    if ADD:
        b_dx += tl.load(p_dtotal + o_y, mask=m, other=0.0).to(tl.float32)
    tl.store(p_dx + o_y, b_dx.to(p_dx.dtype.element_ty), mask=m)


def _tiles(rows: int, dim: int) -> tuple[tuple[int], dict[str, int]]:
    """The grid and the tile's shape; a row longer than `_TILE` is a tile of its own."""
    block_d = triton.next_power_of_2(dim)
    block_r = max(1, _TILE // block_d) if block_d < 1024 else 1
    warps = min(16, max(4, block_r * block_d // 512))
    return (triton.cdiv(rows, block_r),), {
        "D": dim,
        "BLOCK_R": block_r,
        "BLOCK_D": block_d,
        "num_warps": warps,
    }


def _walk(x: Tensor) -> tuple[Tensor, tuple[int, int, int, int]]:
    """`x` and how its rows lie in memory: rows, rows within each outer step, both strides."""
    if x.dim() == 2 and x.stride(1) == 1:
        return x, (x.shape[0], 1, x.stride(0), 0)
    if x.dim() == 3 and x.stride(2) == 1:
        return x, (x.shape[0] * x.shape[1], x.shape[1], x.stride(0), x.stride(1))
    x, dim = x.contiguous(), x.shape[-1]
    return x, (x.numel() // max(1, dim), 1, dim, 0)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x, walk = _walk(x)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if y.numel():
        grid, tile = _tiles(walk[0], x.shape[-1])
        _rms_norm_kernel[grid](x, x, weight.contiguous(), y, y, *walk, eps, ADD=False, **tile)
    return y


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x, walk = _walk(x)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    total = torch.empty_like(y)
    if y.numel():
        grid, tile = _tiles(walk[0], x.shape[-1])
        tensors = x, residual.contiguous(), weight.contiguous(), y, total
        _rms_norm_kernel[grid](*tensors, *walk, eps, ADD=True, **tile)
    return y, total


def rms_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, eps: float, dtotal: Tensor | None = None
) -> Tensor:
    x, walk = _walk(x)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    if dx.numel():
        grid, tile = _tiles(walk[0], x.shape[-1])
        tensors = dy.contiguous(), dx if dtotal is None else dtotal.contiguous(), x
        _rms_norm_backward_kernel[grid](
            *tensors, weight.contiguous(), dx, *walk, eps, ADD=dtotal is not None, **tile
        )
    return dx


def add_rms_norm_backward(
    dy: Tensor, dtotal: Tensor, total: Tensor, weight: Tensor, eps: float
) -> Tensor:
    return rms_norm_backward(dy, total, weight, eps, dtotal)
