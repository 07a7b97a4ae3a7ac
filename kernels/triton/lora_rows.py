"""Low-rank updates of rows that carry different adapters: two launches, however many there are.

A tile is up to 16 rows of one adapter. It knows its adapter's table, where the kernels find
addresses, ranks and places (`LoraBank.table`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.lora_rows import ENTRY, TILE, LoraRows
from kernels.rows import contiguous_rows
from kernels.triton.lora_add import ADD_COLUMNS, splits_of
from kernels.triton.lora_tile import (
    expand_tile,
    rank_block,
    shrink_config,
    shrink_tile,
)


@triton.jit
def _address(p_entry, p_like, ALIGNED: tl.constexpr):
    """The pointer stored at `p_entry`, to elements as those of `p_like`."""
    p = tl.load(p_entry).to(tl.pointer_type(p_like.dtype.element_ty))
    return tl.multiple_of(p, 16) if ALIGNED else p


@triton.jit(do_not_specialize=["linear", "rows"])
def _shrink_rows_kernel(
    p_x,
    p_tiles,
    p_s,
    linear,
    rows,
    k,
    stride_x,
    chunk,
    R,
    ENTRY: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    p_tile = p_tiles + tl.program_id(0) * 4
    i_slice, split = tl.program_id(1) // BLOCKS, tl.program_id(2)
    first, stop, width = tl.load(p_tile), tl.load(p_tile + 1), tl.load(p_tile + 3)
    if i_slice >= width:
        return
    p_entry = tl.load(p_tile + 2).to(tl.pointer_type(tl.int64)) + (linear * width + i_slice) * ENTRY
    rank = tl.load(p_entry + 4).to(tl.int32)
    o_r = tl.program_id(1) % BLOCKS * BLOCK_R + tl.arange(0, BLOCK_R)
    if tl.program_id(1) % BLOCKS * BLOCK_R >= rank:
        return
    o_t = first + tl.arange(0, BLOCK_T)
    p_row = _address(p_entry, p_x, ALIGNED) + o_r * k
    begin, end = split * chunk, min(k, split * chunk + chunk)
    # [BLOCK_T, BLOCK_R]
    b_s = shrink_tile(p_row, o_r < rank, p_x, o_t, stop, stride_x, begin, end, BLOCK_K)
    o_s = (split * rows + o_t)[:, None] * R + (i_slice * BLOCKS * BLOCK_R + o_r)[None, :]
    tl.store(p_s + o_s, b_s, mask=(o_t < stop)[:, None] & (o_r < rank)[None, :])


@triton.jit(do_not_specialize=["linear"])
def _expand_rows_kernel(
    p_y,
    p_tiles,
    p_s,
    linear,
    stride_y,
    stride_split,
    R,
    ENTRY: tl.constexpr,
    ALIGNED: tl.constexpr,
    SPLITS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    p_tile = p_tiles + tl.program_id(1) * 4
    first, stop, width = tl.load(p_tile), tl.load(p_tile + 1), tl.load(p_tile + 3).to(tl.int32)
    p_table = tl.load(p_tile + 2).to(tl.pointer_type(tl.int64)) + linear * width * ENTRY
    i_n = tl.program_id(0) * BLOCK_N
    o_t, o_n = first + tl.arange(0, BLOCK_T), i_n + tl.arange(0, BLOCK_N)
    m_t, m_n = o_t < stop, o_n < 0
    b_scale = tl.zeros((BLOCK_N,), tl.float32)
    # [BLOCK_T, BLOCK_N]
    b_y = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    for i in tl.range(0, width, num_stages=1):
        p_entry = p_table + i * ENTRY
        start, n = tl.load(p_entry + 2).to(tl.int32), tl.load(p_entry + 3).to(tl.int32)
        if (i_n < start + n) & (i_n + BLOCK_N > start):
            if ALIGNED:
                start, n = tl.multiple_of(start, 16), tl.multiple_of(n, 16)
            m_own = (o_n >= start) & (o_n < start + n)
            scale = tl.load(p_entry + 5).to(tl.int32).to(tl.float32, bitcast=True)
            b_scale = tl.where(m_own, scale, b_scale)
            m_n = m_n | m_own
            b_y = expand_tile(
                b_y,
                p_s + o_t * R + i * WIDTH,
                _address(p_entry + 1, p_y, ALIGNED),
                m_t,
                tl.load(p_entry + 4).to(tl.int32),
                stride_split,
                o_n - start,
                m_own,
                1,
                n,
                SPLITS,
                False,
                BLOCK_R,
                p_y.dtype.element_ty,
            )
    m = m_t[:, None] & m_n[None, :]
    p_out = p_y + o_t[:, None] * stride_y + o_n[None, :]
    b_y = b_y * b_scale[None, :] + tl.load(p_out, mask=m, other=0.0).to(tl.float32)
    tl.store(p_out, b_y.to(p_y.dtype.element_ty), mask=m)


def lora_add_rows_(y: Tensor, x: Tensor, rows: LoraRows, linear: int) -> Tensor:
    slices = max(len(bank.linears[linear]) for bank in rows.banks)
    if not slices or not y.numel():
        return y
    x, tiles = contiguous_rows(x), rows.tiles
    rank = max(bank.rank for bank in rows.banks)
    aligned = all(bank.aligned for bank in rows.banks)
    block_r = rank_block(rank, 32)
    blocks = triton.cdiv(rank, block_r)
    width = blocks * block_r
    splits, chunk = splits_of(x.shape[1])
    s = torch.empty(splits, len(x), slices * width, dtype=torch.float32, device=x.device)
    _shrink_rows_kernel[len(tiles), slices * blocks, splits](
        x,
        tiles,
        s,
        linear,
        len(x),
        x.shape[1],
        x.stride(0),
        chunk,
        slices * width,
        ENTRY=ENTRY,
        ALIGNED=aligned,
        BLOCKS=blocks,
        **shrink_config(TILE, block_r, x.dtype),
    )
    _expand_rows_kernel[triton.cdiv(y.shape[1], ADD_COLUMNS), len(tiles)](
        y,
        tiles,
        s,
        linear,
        y.stride(0),
        s.stride(0),
        slices * width,
        ENTRY=ENTRY,
        ALIGNED=aligned,
        SPLITS=splits,
        WIDTH=width,
        BLOCK_T=TILE,
        BLOCK_N=ADD_COLUMNS,
        BLOCK_R=16,  # all parts of S are in registers at once
        num_warps=8,
    )
    return y
