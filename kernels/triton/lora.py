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
from kernels.triton.target import arch, multiprocessors, shared_bytes

_LEAST_PART = 512  # columns of X, where it is cut


@triton.jit
def shrink_tile(
    p_row,
    m_row,
    p_x,
    o_t,
    rows,
    stride_x,
    begin,
    end,
    BLOCK_K: tl.constexpr,
):
    """X Aᵀ over the columns from `begin` to `end`; `p_row` points to rows of A."""
    b_s = tl.zeros((o_t.shape[0], p_row.shape[0]), tl.float32)
    for i_k in range(begin, end, BLOCK_K):
        o_k = i_k + tl.arange(0, BLOCK_K)
        m_k = (o_k < end)[None, :]
        # [BLOCK_T, BLOCK_K]
        m_x = (o_t < rows)[:, None] & m_k
        b_x = tl.load(p_x + o_t[:, None] * stride_x + o_k[None, :], mask=m_x, other=0.0)
        # [BLOCK_R, BLOCK_K]
        b_a = tl.load(p_row[:, None] + o_k[None, :], mask=m_row[:, None] & m_k, other=0.0)
        b_s = tl.dot(b_x, tl.trans(b_a.to(b_x.dtype)), b_s, input_precision="ieee")
    return b_s


@triton.jit
def expand_tile(
    b_y,
    p_s,
    p_b,
    m_t,
    rank,
    stride_split,
    o_n,
    m_n,
    stride_n,
    stride_r,
    SPLITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """b_y + S Bᵀ; `p_s` points to the rows of S, which is the sum of `SPLITS` parts."""
    for i_r in tl.range(0, rank, BLOCK_R, num_stages=1):
        o_r = i_r + tl.arange(0, BLOCK_R)
        m_r = o_r < rank
        # [BLOCK_T, BLOCK_R]
        m_s = m_t[:, None] & m_r[None, :]
        b_s = tl.load(p_s[:, None] + o_r[None, :], mask=m_s, other=0.0)
        for i in tl.static_range(1, SPLITS):
            p_part = p_s + i * stride_split
            b_s += tl.load(p_part[:, None] + o_r[None, :], mask=m_s, other=0.0)
        # [BLOCK_R, BLOCK_N]
        o_b = o_r[:, None] * stride_r + o_n[None, :] * stride_n
        b_b = tl.load(p_b + o_b, mask=m_r[:, None] & m_n[None, :], other=0.0)
        b_y = tl.dot(b_s.to(DTYPE), b_b.to(DTYPE), b_y, input_precision="ieee")
    return b_y


@triton.jit
def shrink_kernel(
    p_x,
    slices,  # (A, rank) of each
    p_s,
    rows,
    k,
    stride_x,
    chunk,
    R,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    o_t = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    o_r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    split = tl.program_id(2)
    # [BLOCK_R]
    p_row, first = slices[0][0] + o_r * k, slices[0][1]
    for i in tl.static_range(1, len(slices)):
        p_row = tl.where(o_r < first, p_row, slices[i][0] + (o_r - first) * k)
        first += slices[i][1]
    begin, end = split * chunk, min(k, split * chunk + chunk)
    b_s = shrink_tile(p_row, o_r < R, p_x, o_t, rows, stride_x, begin, end, BLOCK_K)
    m = (o_t < rows)[:, None] & (o_r < R)[None, :]
    o_s = (split * rows + o_t)[:, None] * R + o_r[None, :]
    tl.store(p_s + o_s, b_s.to(p_s.dtype.element_ty), mask=m)


@triton.jit
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


def contiguous_rows(x: Tensor) -> Tensor:
    """`x`, or a copy of it whose rows' elements lie next to each other."""
    return x if x.stride(-1) == 1 else x.contiguous()


def of_one_dtype(tensors: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """The tensors, or copies in `dtype` where theirs differ: kernels choose one by its address."""
    same = len({x.dtype for x in tensors}) <= 1
    return tensors if same else [x.to(dtype) for x in tensors]


def rank_block(rank: int, most: int = 64) -> int:
    """The power of two that covers `rank`: at least the tensor cores' 16, and at most `most`."""
    return min(most, max(16, triton.next_power_of_2(rank)))


def shrink_config(rows: int, block_r: int, dtype: torch.dtype) -> dict[str, int]:
    """How much of K to load at once, and how deep to pipeline it.

    128 columns where wgmma reads them from shared memory; 64 where mma.sync takes registers.
    """
    wide = 128 if rows >= 64 and arch() == 90 else 64
    block_k = wide if dtype.itemsize == 2 else 32
    stage = (rows + block_r) * block_k * dtype.itemsize
    stages = max(2, min(4, (shared_bytes() - 4096) // stage))
    return {"BLOCK_T": rows, "BLOCK_R": block_r, "BLOCK_K": block_k, "num_stages": stages}


def _shrink(x: Tensor, a: Sequence[Tensor]) -> Tensor:
    """S `[T, R]` for training, in the dtype of `x`."""
    slices, ranks = tuple((part, len(part)) for part in a), sum(map(len, a))
    rows, k = x.shape
    # 64 rows are one wgmma. All ranks up to 128 in one program, so that X is read once; what a card
    # lacks in row tiles it gets in parts of K.
    config = shrink_config(64, rank_block(ranks, 128 if x.dtype != torch.float32 else 64), x.dtype)
    tiles = triton.cdiv(rows, 64), triton.cdiv(ranks, config["BLOCK_R"])
    most = multiprocessors(x.device) // max(1, tiles[0] * tiles[1])
    splits = max(1, min(most, k // _LEAST_PART))
    chunk = triton.cdiv(triton.cdiv(k, splits), config["BLOCK_K"]) * config["BLOCK_K"]
    splits = triton.cdiv(k, chunk)
    dtype = x.dtype if splits == 1 else torch.float32
    s = torch.empty(splits, rows, ranks, dtype=dtype, device=x.device)
    if s.numel():
        grid = *tiles, splits
        shrink_kernel[grid](x, slices, s, rows, k, x.stride(0), chunk, ranks, **config)
    return total(s, x.dtype)


def expand_slice(
    b: Tensor, start: int, inner: int, scale: float
) -> tuple[Tensor, int, int, int, int, int, int, float]:
    """One update as the kernels take it."""
    return b, b.stride(0), b.stride(1), start, *b.shape, inner, scale


def expand(y: Tensor, s: Tensor, bias: Tensor | None, slices: Sequence[Any]) -> None:
    """Writes the updates from S `[T, R]`, with the bias, to `y`; columns without one become 0."""
    # A tile of 128 x 64 reads S and B, half as much as it writes, and leaves registers for 24 warps
    # a multiprocessor, whose stores overlap. fp32 has no tensor cores: its products take registers.
    rows = len(y)
    tall = y.dtype.itemsize == 2 and rows > 64
    block_t = 128 if tall else min(32, max(16, triton.next_power_of_2(rows)))
    most = rank_block(max(part[5] for part in slices))
    launch_expand(y, s[None], bias, slices, False, block_t, 64, most, 8 if tall else 4)


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
    s = _shrink(x, [a.contiguous()])
    y = torch.empty(len(x), weight.shape[0], dtype=x.dtype, device=x.device)
    parts = zip(b, plan.columns, plan.inner, plan.scales, strict=True)
    slices = [expand_slice(part, at.start, inner.start, scale) for part, at, inner, scale in parts]
    expand(y, s, bias, slices)
    return add_base_linear_(y, x, weight), s
