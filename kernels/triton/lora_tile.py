"""What the kernels of low-rank updates share: their tiles, and how S lies in memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.target import arch, shared_bytes


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
def padded_rank(rank):
    """An update's columns of S with the zeros behind them: rows are read in whole vectors."""
    return tl.cdiv(rank, 16) * 16


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
    PADDED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """b_y + S Bᵀ; `p_s` points to the rows of S, which is the sum of `SPLITS` parts.

    `PADDED`: S holds zeros from column `rank` to the next multiple of 16, as `columns_of_s` says.
    """
    columns = padded_rank(rank) if PADDED else rank
    for i_r in tl.range(0, rank, BLOCK_R, num_stages=1):
        o_r = i_r + tl.arange(0, BLOCK_R)
        m_r = o_r < rank
        # [BLOCK_T, BLOCK_R]
        m_s = m_t[:, None] & (o_r < columns)[None, :]
        b_s = tl.load(p_s[:, None] + o_r[None, :], mask=m_s, other=0.0)
        for i in tl.static_range(1, SPLITS):
            p_part = p_s + i * stride_split
            b_s += tl.load(p_part[:, None] + o_r[None, :], mask=m_s, other=0.0)
        # [BLOCK_R, BLOCK_N]
        o_b = o_r[:, None] * stride_r + o_n[None, :] * stride_n
        b_b = tl.load(p_b + o_b, mask=m_r[:, None] & m_n[None, :], other=0.0)
        b_y = tl.dot(b_s.to(DTYPE), b_b.to(DTYPE), b_y, input_precision="ieee")
    return b_y


def aligned_rows(a: Sequence[Tensor]) -> bool:
    """Whether all rows of contiguous tensors begin at multiples of 16 bytes."""
    return all(x.data_ptr() % 16 == 0 == x.shape[1] * x.itemsize % 16 for x in a)


def of_one_dtype(tensors: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """The tensors, or copies in `dtype` where theirs differ: kernels choose one by its address."""
    same = len({x.dtype for x in tensors}) <= 1
    return tensors if same else [x.to(dtype) for x in tensors]


def columns_of_s(ranks: Sequence[int]) -> tuple[list[int], int]:
    """The first column of each update in S, and how many S has.

    Both are multiples of 16, so that rows are read in whole vectors; columns between are zero.
    """
    ends = list(itertools.accumulate(triton.cdiv(rank, 16) * 16 for rank in ranks))
    return [0, *ends[:-1]], ends[-1]


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
