"""Low-rank updates, backward: one pass over dY for dS and dB, one over X for dA.

As in the forward pass, dX starts as dS A and the vendor's GEMM adds dY W to it. Sums over rows are
kept as fp32 parts, a part for each chunk of rows, and added in a fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.linear import add_base_linear_dx_
from kernels.lora import LoraPlan, lora_linear_backward_reference
from kernels.quantized import Weight
from kernels.rows import contiguous_rows
from kernels.triton.lora import expand, expand_slice, total
from kernels.triton.lora_tile import (
    columns_of_s,
    of_one_dtype,
    padded_rank,
    rank_block,
)
from kernels.triton.target import multiprocessors, shared_bytes


@triton.jit(do_not_specialize=["rows", "chunks"])
def _dy_kernel(
    p_dy,
    p_s,
    slices,  # (B, stride_n, stride_r, start, n, rank, first column of S, scale, its place in dB)
    p_ds,
    p_db,
    rows,
    stride_dy,
    R,
    size,
    chunks,
    width,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    i_t, i_c = tl.program_id(0).to(tl.int64), tl.program_id(1) % chunks
    p_b, stride_n, stride_r, start, n, rank, inner, scale, place = slices[0]
    for i in tl.static_range(1, len(slices)):
        here = tl.program_id(1) >= i * chunks
        p_b = tl.where(here, slices[i][0], p_b)
        stride_n = tl.where(here, slices[i][1], stride_n)
        stride_r = tl.where(here, slices[i][2], stride_r)
        start = tl.where(here, slices[i][3], start)
        n = tl.where(here, slices[i][4], n)
        rank = tl.where(here, slices[i][5], rank)
        inner = tl.where(here, slices[i][6], inner)
        scale = tl.where(here, slices[i][7], scale)
        place = tl.where(here, slices[i][8], place)
    o_t = i_t * BLOCK_T + tl.arange(0, BLOCK_T)
    o_r = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
    m_t, m_r = o_t < rows, o_r < rank
    m_s = m_t[:, None] & (o_r < padded_rank(rank))[None, :]
    # [BLOCK_T, BLOCK_R]
    b_s = tl.load(p_s + o_t[:, None] * R + (inner + o_r)[None, :], mask=m_s, other=0.0)
    b_ds = tl.zeros((BLOCK_T, BLOCK_R), tl.float32)
    for i_n in range(i_c * width, min(n, i_c * width + width), BLOCK_N):
        o_n = i_n + tl.arange(0, BLOCK_N)
        m_n = o_n < n
        # [BLOCK_T, BLOCK_N]
        p_tile = p_dy + o_t[:, None] * stride_dy + (start + o_n)[None, :]
        b_dy = tl.load(p_tile, mask=m_t[:, None] & m_n[None, :], other=0.0)
        # [BLOCK_N, BLOCK_R]
        m_b = m_n[:, None] & m_r[None, :]
        o_b = o_n[:, None] * stride_n + o_r[None, :] * stride_r
        b_b = tl.load(p_b + o_b, mask=m_b, other=0.0).to(b_dy.dtype)
        b_ds = tl.dot(b_dy, b_b, b_ds, input_precision="ieee")
        b_db = tl.dot(tl.trans(b_dy), b_s, input_precision="ieee") * scale
        o_db = i_t * size + place + o_n[:, None] * rank + o_r[None, :]
        tl.store(p_db + o_db, b_db, mask=m_b)
    o_ds = (i_c * rows + o_t)[:, None] * R + (inner + o_r)[None, :]
    tl.store(p_ds + o_ds, b_ds * scale, mask=m_s)


@triton.jit(do_not_specialize=["rows"])
def _da_kernel(
    p_x,
    p_ds,
    p_da,
    rows,
    k,
    stride_x,
    R,
    chunk,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    o_k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    o_r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    i_c = tl.program_id(2)
    m_k, m_r = (o_k < k)[None, :], (o_r < R)[None, :]
    # [BLOCK_K, BLOCK_R]: columns of X are the 64 or more rows that wgmma wants
    b_da = tl.zeros((BLOCK_K, BLOCK_R), tl.float32)
    for i_t in range(i_c * chunk, min(rows, i_c * chunk + chunk), BLOCK_T):
        o_t = i_t + tl.arange(0, BLOCK_T)
        m_t = (o_t < rows)[:, None]
        # [BLOCK_T, BLOCK_K], [BLOCK_T, BLOCK_R]
        o_x = o_t.to(tl.int64)[:, None] * stride_x + o_k[None, :]
        b_x = tl.load(p_x + o_x, mask=m_t & m_k, other=0.0)
        b_ds = tl.load(p_ds + o_t[:, None] * R + o_r[None, :], mask=m_t & m_r, other=0.0)
        b_da = tl.dot(tl.trans(b_x), b_ds, b_da, input_precision="ieee")
    o_da = i_c.to(tl.int64) * R * k + o_r[None, :] * k + o_k[:, None]
    tl.store(p_da + o_da, b_da, mask=(o_k < k)[:, None] & m_r)


def _dy_config(rank: int, dtype: torch.dtype) -> dict[str, int]:
    """The tile of dY: the more rows, the fewer parts of dB (2 r / rows of a pass over dY each way).

    256 rows cost 25 % of a pass with r = 16, and two programs fit on an H100's multiprocessor;
    ranks above 32 fill it with one, which then looks further ahead. 128 where there is less room.
    """
    block_r = rank_block(rank)
    if dtype == torch.float32:
        tile = {"BLOCK_T": 32, "BLOCK_N": 32, "BLOCK_R": min(32, block_r)}
        return {**tile, "num_warps": 8, "num_stages": 3}
    block_t = 256 if shared_bytes() > 200_000 else 128
    tile = {"BLOCK_T": block_t, "BLOCK_N": 64, "BLOCK_R": block_r}
    large = block_t * block_r > 256 * 32
    return {**tile, "num_warps": 8 if large else 4, "num_stages": 3 if large else 2}


def _dy_pass(
    dy: Tensor, s: Tensor, b: Sequence[Tensor], plan: LoraPlan
) -> tuple[Tensor, list[Tensor]]:
    """dS, laid out as S, in the dtype of `dy`, and each dB `[n, r]` in fp32; scaled, both."""
    (rows, ranks), (firsts, _) = s.shape, columns_of_s([part.shape[1] for part in b])
    sizes = [part.numel() for part in b]
    places = [sum(sizes[:i]) for i in range(len(b))]
    like = of_one_dtype(b, dy.dtype)
    parts = zip(like, plan.columns, firsts, plan.scales, places, strict=True)
    slices = tuple(
        (*expand_slice(part, at.start, first, scale), place)
        for part, at, first, scale, place in parts
    )
    widest = max(part.shape[1] for part in b)
    config = _dy_config(widest, dy.dtype)
    tiles, columns = triton.cdiv(rows, config["BLOCK_T"]), [len(part) for part in b]
    # Two programs for each multiprocessor, whatever the rows; each makes its own part of dS. All
    # get as many columns, so that a wide slice is cut into more parts than a narrow one.
    wanted = max(1, 2 * multiprocessors(dy.device) // max(1, tiles))
    width = triton.cdiv(triton.cdiv(sum(columns), wanted), config["BLOCK_N"]) * config["BLOCK_N"]
    chunks = triton.cdiv(max(columns), width)
    ds = torch.empty(chunks, rows, ranks, dtype=torch.float32, device=dy.device)
    db = torch.empty(tiles, sum(sizes), dtype=torch.float32, device=dy.device)
    if tiles:
        grid = tiles, chunks * len(b), triton.cdiv(widest, config["BLOCK_R"])
        _dy_kernel[grid](
            dy, s, slices, ds, db, rows, dy.stride(0), ranks, sum(sizes), chunks, width, **config
        )
    flat = total(db, torch.float32).split(sizes)
    return total(ds, dy.dtype), [part.view(own.shape) for part, own in zip(flat, b, strict=True)]


def _x_pass(ds: Tensor, x: Tensor) -> Tensor:
    """dA in fp32, a row for each column of S."""
    (rows, k), ranks = x.shape, ds.shape[1]
    wide = x.dtype.itemsize == 2
    # [128, R] accumulators take up to 64 registers of 4 warps; 16 KB of X a stage, of which as many
    # are kept as leave room for a second program
    block_t, block_k, block_r = (64, 128, rank_block(ranks)) if wide else (32, 32, 32)
    tiles = triton.cdiv(k, block_k), triton.cdiv(ranks, block_r)
    wanted = 2 * multiprocessors(x.device) // (tiles[0] * tiles[1])
    chunks = max(1, min(wanted, triton.cdiv(rows, block_t)))
    chunk = triton.cdiv(triton.cdiv(rows, chunks), block_t) * block_t
    chunks = triton.cdiv(rows, chunk) if rows else 0
    da = torch.empty(chunks, ranks, k, dtype=torch.float32, device=x.device)
    if chunks:
        grid = *tiles, chunks
        _da_kernel[grid](
            x,
            ds,
            da,
            rows,
            k,
            x.stride(0),
            ranks,
            chunk,
            BLOCK_T=block_t,
            BLOCK_K=block_k,
            BLOCK_R=block_r,
            num_stages=4 if wide and shared_bytes() > 200_000 else 3,
        )
    return total(da, torch.float32)


def lora_linear_backward(
    dy: Tensor,
    x: Tensor,
    weight: Weight,
    plan: LoraPlan,
    s: Tensor,
    a: Tensor,
    b: Sequence[Tensor],
    *,
    want_dx: bool,
) -> tuple[Tensor | None, Tensor, list[Tensor]]:
    if plan.masks is not None:
        return lora_linear_backward_reference(dy, x, weight, plan, s, a, b, want_dx=want_dx)
    dy, x = contiguous_rows(dy), contiguous_rows(x)
    ds, db = _dy_pass(dy, s, b, plan)
    firsts, _ = columns_of_s([part.shape[1] for part in b])
    dx = None
    if want_dx:
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        places = zip(plan.inner, firsts, strict=True)
        expand(dx, ds, None, [expand_slice(a[rows].T, 0, first, 1.0) for rows, first in places])
        add_base_linear_dx_(dx, dy, weight)
    da = _x_pass(ds, x)
    if len(da) > len(a):  # rows between the updates
        parts = zip(b, firsts, strict=True)
        da = torch.cat([da[first : first + part.shape[1]] for part, first in parts])
    return dx, da, db
