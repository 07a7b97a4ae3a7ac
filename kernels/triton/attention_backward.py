"""Attention over packed sequences, backward: dq by tiles of queries, dk and dv by tiles of keys.

FlashAttention-2's recomputation from the log-sum-exp. No atomics, so gradients are the same every
time: where many segments continue one prefix, chunks of them write sums of their own, and a third
kernel adds these in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention import Segments
from kernels.rows import contiguous_rows
from kernels.triton.attention import LOG2_E, Shapes, limit, tile
from kernels.triton.segment_tiles import (
    key_tile,
    key_tiles,
    load_rows,
    query_tile,
    query_tiles,
    tiles_in_sight,
    visible,
)

_LOG2_E = tl.constexpr(LOG2_E)
# As in the forward pass; two sums and two operands of keys leave room for fewer rows of queries.
# dkv finds these through `readers`, so it takes 5 stages to have two tiles of them under way; where
# these would spill, 3 for one.
_DQ_SHAPES: Shapes = {
    "sm_90": {64: (128, 64, 8, 3), 128: (128, 64, 8, 3), 256: (64, 32, 8, 2)},
    "sm_80": {64: (64, 64, 8, 2), 128: (64, 64, 8, 2), 256: (64, 32, 8, 1)},
    "fp32": {64: (16, 16, 8, 2), 128: (16, 16, 8, 2), 256: (16, 16, 8, 3)},
}
_DKV_SHAPES: Shapes = {
    "sm_90": {64: (64, 128, 8, 3), 128: (32, 128, 8, 5), 256: (32, 32, 8, 5)},
    "sm_80": {64: (32, 64, 4, 3), 128: (64, 64, 8, 3), 256: (32, 32, 8, 3)},
    "fp32": {64: (16, 16, 8, 1), 128: (16, 16, 8, 1), 256: (16, 16, 8, 1)},
}
_MERGED = 16  # keys of a program that adds chunks
_CHUNK, _SLOT_BYTES = 1024, 128 << 20


@triton.jit
def _dq_kernel(
    p_tiles,
    p_dout,
    p_q,
    p_k,
    p_v,
    p_out,
    p_lse,
    p_delta,
    p_dq,
    stride_dt,
    stride_dh,
    stride_qt,
    stride_qh,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    scale,
    window,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_tile, i_head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    segment, first, last, o_query, o_head, o_position, m_r = query_tile(
        p_tiles, i_tile, i_head, GROUP, BLOCK_M
    )
    _, length, _, prefix = segment
    if length == 0:
        return
    p_k += i_head.to(tl.int64) * stride_kh
    p_v += i_head.to(tl.int64) * stride_vh
    o_n, o_d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    o_query = o_query.to(tl.int64)
    o_out = o_query * (HEADS * GROUP) + o_head
    # [BLOCK_M, BLOCK_D]
    b_q = load_rows(p_q + o_query * stride_qt + o_head * stride_qh, o_d, m_r, D, True)
    b_dout = load_rows(p_dout + o_query * stride_dt + o_head * stride_dh, o_d, m_r, D, True)
    b_out = load_rows(p_out + o_out * D, o_d, m_r, D, True)
    b_dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    # [BLOCK_M]
    b_lse = tl.load(p_lse + o_out, mask=m_r, other=0.0) * _LOG2_E
    b_delta = tl.sum(b_dout.to(tl.float32) * b_out.to(tl.float32), 1)
    tl.store(p_delta + o_out, b_delta, mask=m_r)

    for masked in tl.static_range(2):
        theirs = tiles_in_sight(prefix, prefix + first, prefix + last, window, BLOCK_N, masked)
        own = tiles_in_sight(length, first, last, window, BLOCK_N, masked)
        for i in range(0, theirs[1] + own[1]):
            o_token, keys, position = key_tile(i, segment, theirs, own, BLOCK_N)
            # [BLOCK_N, BLOCK_D]
            b_k = load_rows(p_k + o_token * stride_kt, o_d, o_n < keys, D, masked)
            b_v = load_rows(p_v + o_token * stride_vt, o_d, o_n < keys, D, masked)
            # [BLOCK_M, BLOCK_N]
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
            b_p = tl.exp2(b_s * (scale * _LOG2_E) - b_lse[:, None])
            if masked:
                m = visible(o_position, position, keys, window, BLOCK_N)
                b_p = tl.where(m, b_p, 0.0)
            b_dp = tl.dot(b_dout, tl.trans(b_v), input_precision="ieee")
            b_ds = b_p * (b_dp - b_delta[:, None])
            b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision="ieee")

    m = m_r[:, None] & (o_d < D)[None, :]
    b_dq = (b_dq * scale).to(p_dq.dtype.element_ty)
    tl.store(p_dq + o_out[:, None] * D + o_d[None, :], b_dq, mask=m)


@triton.jit
def _dkv_kernel(
    p_work,
    p_readers,
    p_positions,
    p_dout,
    p_q,
    p_k,
    p_v,
    p_lse,
    p_delta,
    p_dk,
    p_dv,
    p_slots,
    stride_dt,
    stride_dh,
    stride_qt,
    stride_qh,
    stride_kt,
    stride_kh,
    stride_vt,
    stride_vh,
    scale,
    window,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_work, i_head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    p_entry = p_work + i_work * 10
    token, keys, position = tl.load(p_entry), tl.load(p_entry + 1), tl.load(p_entry + 2)
    reader, begin, end = tl.load(p_entry + 3), tl.load(p_entry + 4), tl.load(p_entry + 5)
    full, reach = tl.load(p_entry + 6), tl.load(p_entry + 7)
    shared, slot = tl.load(p_entry + 8), tl.load(p_entry + 9)
    if keys == 0:
        return
    o_m, o_n, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    o_key, m_n = (token + o_n).to(tl.int64), o_n < keys
    # [BLOCK_N, BLOCK_D]
    b_k = load_rows(p_k + o_key * stride_kt + i_head * stride_kh, o_d, m_n, D, True)
    b_v = load_rows(p_v + o_key * stride_vt + i_head * stride_vh, o_d, m_n, D, True)
    b_dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    b_dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)

    p_q += i_head.to(tl.int64) * GROUP * stride_qh
    p_dout += i_head.to(tl.int64) * GROUP * stride_dh
    p_lse += i_head * GROUP
    p_delta += i_head * GROUP
    # A tile of rows needs a mask up to row `full`, at the end, and where the window cuts: the
    # first `seen` of own rows see the first key; rows of others may stand anywhere.
    seen, cut = end - begin, False
    if window is not None:
        near, alone = tl.minimum(window, reach + 1) * GROUP, shared == 0
        end = tl.where(alone, tl.minimum(end, begin + (keys - 1) * GROUP + near), end)
        seen = tl.where(alone, tl.minimum(seen, near), seen)
        cut = (shared != 0) & (reach - position >= window)
    tiles = tl.cdiv(end - begin, BLOCK_M)
    head = tl.minimum(tl.cdiv(tl.maximum(full - begin, 0), BLOCK_M), tiles)
    head = tl.where(cut, tiles, head)
    tail = tl.maximum(seen // BLOCK_M, head)
    for masked in tl.static_range(2):
        for i in range(0, (tiles - tail + head) if masked else (tail - head)):
            i_tile = tl.where(i < head, i, i - head + tail) if masked else head + i
            o_r = begin + i_tile * BLOCK_M + o_m
            m_r = o_r < end
            o_reader, o_head = reader + o_r // GROUP, o_r % GROUP
            # [BLOCK_M]
            if masked:
                o_token = tl.load(p_readers + o_reader, mask=m_r, other=0).to(tl.int64)
            else:
                o_token = tl.load(p_readers + o_reader).to(tl.int64)
            o_row = o_token * (HEADS * GROUP) + o_head
            b_lse = tl.load(p_lse + o_row) * _LOG2_E
            b_delta = tl.load(p_delta + o_row)
            # [BLOCK_M, BLOCK_D]
            p_row = p_q + o_token * stride_qt + o_head * stride_qh
            b_q = load_rows(p_row, o_d, m_r, D, masked)
            p_row = p_dout + o_token * stride_dt + o_head * stride_dh
            b_dout = load_rows(p_row, o_d, m_r, D, masked)
            # [BLOCK_N, BLOCK_M]
            b_s = tl.dot(b_k, tl.trans(b_q), input_precision="ieee")
            b_p = tl.exp2(b_s * (scale * _LOG2_E) - b_lse[None, :])
            if masked:
                o_position = tl.load(p_positions + o_reader, mask=m_r, other=0)
                o_to = tl.where(m_r, o_position - position, -1)
                m = o_n[:, None] <= o_to[None, :]
                if window is not None:
                    m = m & (o_n[:, None] > (o_to - window)[None, :])
                b_p = tl.where(m, b_p, 0.0)
            b_dv = tl.dot(b_p.to(b_dout.dtype), b_dout, b_dv, input_precision="ieee")
            b_dp = tl.dot(b_v, tl.trans(b_dout), input_precision="ieee")
            b_ds = b_p * (b_dp - b_delta[None, :])
            b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision="ieee")

    b_dk *= scale
    if slot >= 0:
        o_sum = o_n[:, None] * BLOCK_D + o_d[None, :]
        p_slot = p_slots + (slot.to(tl.int64) * HEADS + i_head) * (2 * BLOCK_N * BLOCK_D)
        tl.store(p_slot + o_sum, b_dk)
        tl.store(p_slot + BLOCK_N * BLOCK_D + o_sum, b_dv)
    else:
        o_out = (o_key[:, None] * HEADS + i_head) * D + o_d[None, :]
        m = m_n[:, None] & (o_d < D)[None, :]
        tl.store(p_dk + o_out, b_dk.to(p_dk.dtype.element_ty), mask=m)
        tl.store(p_dv + o_out, b_dv.to(p_dv.dtype.element_ty), mask=m)


@triton.jit
def _merge_kernel(
    p_merges,
    p_slots,
    p_dk,
    p_dv,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_head = tl.program_id(0) % HEADS
    o_n = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_d = tl.arange(0, BLOCK_D)
    p_entry = p_merges + tl.program_id(0) // HEADS * 4
    token, keys = tl.load(p_entry), tl.load(p_entry + 1)
    slot, slots = tl.load(p_entry + 2), tl.load(p_entry + 3)
    # [BLOCK_R, BLOCK_D]
    m = (o_n < keys)[:, None] & (o_d < D)[None, :]
    b_dk = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    b_dv = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    p_sum = p_slots + o_n[:, None] * BLOCK_D + o_d[None, :]
    for i in range(0, slots):
        p = p_sum + ((slot + i).to(tl.int64) * HEADS + i_head) * (2 * BLOCK_N * BLOCK_D)
        b_dk += tl.load(p, mask=m, other=0.0)
        b_dv += tl.load(p + BLOCK_N * BLOCK_D, mask=m, other=0.0)
    o_out = ((token + o_n).to(tl.int64)[:, None] * HEADS + i_head) * D + o_d[None, :]
    tl.store(p_dk + o_out, b_dk.to(p_dk.dtype.element_ty), mask=m)
    tl.store(p_dv + o_out, b_dv.to(p_dv.dtype.element_ty), mask=m)


def _chunk(tokens: int, group: int, slots: int, block: int) -> int:
    """Rows of one chunk of a prefix's readers, so many that about `slots` slots are enough.

    A chunk of 1,024 rows is ten times as much work as passing on its sums through memory.
    """
    rows = tokens * tokens * group // (4 * block * slots)
    return max(_CHUNK, triton.next_power_of_2(rows))


def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    segments: Segments,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    (tokens, heads, dim), kv_heads = q.shape, k.shape[1]
    dout, q, k, v = (
        contiguous_rows(dout),
        contiguous_rows(q),
        contiguous_rows(k),
        contiguous_rows(v),
    )
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    if not q.numel():
        return dq, dk, dv
    group, delta = heads // kv_heads, torch.empty_like(lse)
    strides = [each for x in (dout, q, k, v) for each in x.stride()[:2]]
    numbers = *strides, scale, limit(window)
    heads_of = {"HEADS": kv_heads, "GROUP": group, "D": dim}
    on_queries, on_keys = (tile(shapes, dim, q.dtype) for shapes in (_DQ_SHAPES, _DKV_SHAPES))

    tiles = query_tiles(segments, tokens, group, on_queries["BLOCK_M"])
    _dq_kernel[(len(tiles) * kv_heads,)](
        tiles, dout, q, k, v, out, lse, delta, dq, *numbers, **heads_of, **on_queries
    )
    block, width = on_keys["BLOCK_N"], on_keys["BLOCK_D"]
    slot = kv_heads * 2 * block * width
    chunk = _chunk(tokens, group, max(1, _SLOT_BYTES // (4 * slot)), block)
    work = key_tiles(segments, tokens, group, block, chunk)
    slots = torch.empty(work.slots * slot, dtype=torch.float32, device=q.device)
    _dkv_kernel[(len(work.work) * kv_heads,)](
        *(work.work, *work.readers, dout, q, k, v, lse, delta, dk, dv, slots),
        *numbers,
        **heads_of,
        **on_keys,
    )
    if work.slots:
        _merge_kernel[(len(work.merges) * kv_heads, block // _MERGED)](
            *(work.merges, slots, dk, dv),
            HEADS=kv_heads,
            D=dim,
            BLOCK_N=block,
            BLOCK_R=_MERGED,
            BLOCK_D=width,
        )
    return dq, dk, dv
