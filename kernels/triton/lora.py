"""Low-rank updates, forward: S = X Aᵀ in one pass over X, then all of Y's columns in one launch.

The vendor's GEMM computes the base product. Training writes the updates (and the bias) first and
lets the GEMM add to them, so that Y is not read and written once more; inference adds in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear import add_base_linear_
from kernels.lora import LoraPlan, lora_linear_forward_reference
from kernels.quantized import Weight
from kernels.rows import contiguous_rows
from kernels.triton.lora_tile import (
    aligned_rows,
    columns_of_s,
    expand_tile,
    rank_block,
    shrink_config,
    shrink_tile,
)
from kernels.triton.target import multiprocessors

_LEAST_PART = 512  # columns of X, where it is cut


@triton.jit(do_not_specialize=["rows"])
def shrink_kernel(
    p_x,
    slices,  # (A, its first column of S, the one after its last) of each
    p_s,
    rows,
    k,
    stride_x,
    chunk,
    R,
    ALIGNED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # neighbouring programs share rows of X
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_t = tl.program_id(1).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    split = tl.program_id(2)
    # [BLOCK_R]
    p_a, first, stop = slices[0]
    for i in tl.static_range(1, len(slices)):
        here = o_r >= slices[i][1]
        p_a = tl.where(here, slices[i][0], p_a)
        first = tl.where(here, slices[i][1], first)
        stop = tl.where(here, slices[i][2], stop)
    p_row = p_a + (o_r - first) * k
    if ALIGNED:  # which Triton 3.9 does not see through a choice of pointers
        p_row = tl.multiple_of(p_row, 16)
    begin, end = split * chunk, min(k, split * chunk + chunk)
    b_s = shrink_tile(p_row, o_r < stop, p_x, o_t, rows, stride_x, begin, end, BLOCK_K)
    m = (o_t < rows)[:, None] & (o_r < R)[None, :]
    o_s = (split * rows + o_t)[:, None] * R + o_r[None, :]
    tl.store(p_s + o_s, b_s.to(p_s.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["rows"])
def _expand_kernel(
    p_y,
    p_s,
    p_bias,
    slices,  # (B, stride_n, stride_r, start, n, rank, first column of S, scale) of each
    rows,
    columns,
    stride_y,
    stride_split,
    R,
    SPLITS: tl.constexpr,
    ADD: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    # neighbouring programs share rows of S, and write neighbouring columns of Y
    o_t = tl.program_id(1).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    i_n = tl.program_id(0) * BLOCK_N
    o_n = i_n + tl.arange(0, BLOCK_N)
    m_t = o_t < rows
    # [BLOCK_N]: each column's factor, and which columns are written
    b_scale = tl.zeros((BLOCK_N,), tl.float32)
    m_n = o_n < (0 if ADD else columns)
    # [BLOCK_T, BLOCK_N]
    b_y = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    for i in tl.static_range(len(slices)):
        p_b, stride_n, stride_r, start, n, rank, inner, scale = slices[i]
        if (i_n < start + n) & (i_n + BLOCK_N > start):
            m_own = (o_n >= start) & (o_n < start + n)
            b_scale = tl.where(m_own, scale, b_scale)
            m_n = m_n | m_own
            b_y = expand_tile(
                b_y,
                p_s + o_t * R + inner,
                p_b,
                m_t,
                rank,
                stride_split,
                o_n - start,
                m_own,
                stride_n,
                stride_r,
                SPLITS,
                True,
                BLOCK_R,
                p_y.dtype.element_ty,
            )
    b_y *= b_scale[None, :]
    if BIAS:
        b_y += tl.load(p_bias + o_n, mask=o_n < columns, other=0.0).to(tl.float32)[None, :]
    m = m_t[:, None] & m_n[None, :]
    o_y = o_t[:, None] * stride_y + o_n[None, :]
    if ADD:
        b_y += tl.load(p_y + o_y, mask=m, other=0.0).to(tl.float32)
    tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["parts"])
def _total_kernel(p_parts, p_out, parts, size, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr):
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    b_total = tl.zeros((BLOCK,), tl.float32)
    for i_p in range(0, parts, BLOCK_P):
        o_p = i_p + tl.arange(0, BLOCK_P)
        # [BLOCK_P, BLOCK]
        m = (o_p < parts)[:, None] & (o < size)[None, :]
        o_parts = o_p.to(tl.int64)[:, None] * size + o[None, :]
        b_total += tl.sum(tl.load(p_parts + o_parts, mask=m, other=0.0), axis=0)
    tl.store(p_out + o, b_total.to(p_out.dtype.element_ty), mask=o < size)


def total(parts: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over the first dimension of fp32 `parts`, in a fixed order."""
    if len(parts) == 1:
        return parts[0].to(dtype)
    out = torch.empty(parts.shape[1:], dtype=dtype, device=parts.device)
    if size := out.numel():
        grid = (triton.cdiv(size, 512),)
        _total_kernel[grid](parts, out, len(parts), size, BLOCK_P=8, BLOCK=512)
    return out


def _shrink(x: Tensor, a: Sequence[Tensor]) -> Tensor:
    """S for training, in the dtype of `x`."""
    firsts, ranks = columns_of_s([len(part) for part in a])
    rows, k = x.shape
    # 64 rows are one wgmma. All ranks up to 128 in one program, so that X is read once; what a card
    # lacks in row tiles it gets in parts of K.
    config = shrink_config(64, rank_block(ranks, 128 if x.dtype.itemsize == 2 else 32), x.dtype)
    tiles = triton.cdiv(ranks, config["BLOCK_R"]), triton.cdiv(rows, 64)
    most = multiprocessors(x.device) // max(1, tiles[0] * tiles[1])
    splits = max(1, min(most, k // _LEAST_PART))
    chunk = triton.cdiv(triton.cdiv(k, splits), config["BLOCK_K"]) * config["BLOCK_K"]
    splits = triton.cdiv(k, chunk)
    dtype = x.dtype if splits == 1 else torch.float32
    s = torch.empty(splits, rows, ranks, dtype=dtype, device=x.device)
    if s.numel():
        launch_shrink(s, x, a, firsts, chunk, config)
    return total(s, x.dtype)


def launch_shrink(
    s: Tensor,
    x: Tensor,
    a: Sequence[Tensor],
    firsts: Sequence[int],
    chunk: int,
    config: dict[str, int],
) -> None:
    """Writes the parts of S, `chunk` columns of X in each."""
    splits, rows, ranks = s.shape
    grid = triton.cdiv(ranks, config["BLOCK_R"]), triton.cdiv(rows, config["BLOCK_T"]), splits
    a = [part.contiguous() for part in a]
    parts = zip(a, firsts, strict=True)
    shrink_kernel[grid](
        x,
        tuple((part, first, first + len(part)) for part, first in parts),
        s,
        rows,
        x.shape[1],
        x.stride(0),
        chunk,
        ranks,
        ALIGNED=aligned_rows(a),
        **config,
    )


def expand_slice(
    b: Tensor, start: int, first: int, scale: float
) -> tuple[Tensor, int, int, int, int, int, int, float]:
    """One update as the kernels take it."""
    return b, b.stride(0), b.stride(1), start, *b.shape, first, scale


def expand(y: Tensor, s: Tensor, bias: Tensor | None, slices: Sequence[Any]) -> None:
    """Writes the updates from S, with the bias, to `y`; columns without one become 0."""
    # A tile of 128 x 64 reads S and B, half as much as it writes, and leaves registers for 24 warps
    # a multiprocessor, whose stores overlap. fp32 has no tensor cores: its products take registers,
    # which an eighth of that tile leaves enough of.
    rows = len(y)
    tall = y.dtype.itemsize == 2 and rows > 64
    block_t = 128 if tall else min(32, max(16, triton.next_power_of_2(rows)))
    block_n = 64 if tall else 32
    most = rank_block(max(part[5] for part in slices))
    launch_expand(y, s[None], bias, slices, False, block_t, block_n, most, 8 if tall else 4)


def launch_expand(
    y: Tensor,
    s: Tensor,
    bias: Tensor | None,
    slices: Sequence[Any],
    add: bool,
    block_t: int,
    block_n: int,
    block_r: int,
    warps: int,
) -> None:
    splits, rows, ranks = s.shape
    grid = triton.cdiv(y.shape[1], block_n), triton.cdiv(rows, block_t)
    if not y.numel():
        return
    _expand_kernel[grid](
        y,
        s,
        y if bias is None else bias,
        tuple(slices),
        rows,
        y.shape[1],
        y.stride(0),
        s.stride(0),
        ranks,
        SPLITS=splits,
        ADD=add,
        BIAS=bias is not None,
        BLOCK_T=block_t,
        BLOCK_N=block_n,
        BLOCK_R=block_r,
        num_warps=warps,
    )


def lora_linear_forward(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    plan: LoraPlan,
    a: Tensor,
    b: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    if plan.masks is not None:
        return lora_linear_forward_reference(x, weight, bias, plan, a, b)
    x = contiguous_rows(x)
    s = _shrink(x, [a[rows] for rows in plan.inner])
    y = torch.empty(len(x), weight.shape[0], dtype=x.dtype, device=x.device)
    firsts, _ = columns_of_s([part.shape[1] for part in b])
    parts = zip(b, plan.columns, firsts, plan.scales, strict=True)
    slices = [expand_slice(part, at.start, first, scale) for part, at, first, scale in parts]
    expand(y, s, None if bias is None else bias.contiguous(), slices)
    return add_base_linear_(y, x, weight), s
