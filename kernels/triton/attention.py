"""Attention over packed sequences, forward: a program has a tile of queries and goes over keys.

FlashAttention-2 (arXiv 2307.08691), where the query heads of a KV head are rows of one matrix.
"""

from __future__ import annotations

from math import log

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention import Segments
from kernels.rows import contiguous_rows
from kernels.triton.segment_tiles import (
    key_tile,
    load_rows,
    query_tile,
    query_tiles,
    tiles_in_sight,
    visible,
)
from kernels.triton.target import arch

LOG2_E = 1 / log(2)
_LN_2 = tl.constexpr(log(2))
_FAR = 2**30  # no position lies so far back

# Rows and keys of a tile, warps and stages, by card and padded head size. 128 rows are read against
# each tile of keys, so that the L2 cache keeps up with the tensor cores (64 operations a byte and
# head); keys are as many as the registers bear without spilling and two or three stages of them
# fit beside the queries. "sm_80" fits the 99 KB of an RTX 4090 too. fp32 has no tensor cores.
Shapes = dict[str, dict[int, tuple[int, int, int, int]]]
_SHAPES: Shapes = {
    "sm_90": {64: (128, 128, 8, 3), 128: (128, 64, 8, 3), 256: (64, 64, 8, 2)},
    "sm_80": {64: (128, 64, 8, 3), 128: (128, 32, 8, 2), 256: (64, 32, 8, 2)},
    "fp32": {64: (16, 32, 4, 1), 128: (32, 32, 8, 1), 256: (32, 32, 16, 1)},
}


@triton.jit
def _attention_kernel(
    p_tiles,
    p_q,
    p_k,
    p_v,
    p_out,
    p_lse,
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
    # [BLOCK_M, BLOCK_D]; queries' offsets widen where they are used, as registers are short
    b_q = load_rows(p_q + o_query.to(tl.int64) * stride_qt + o_head * stride_qh, o_d, m_r, D, True)
    b_out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    # [BLOCK_M]; the maximum starts finite, so that a row which sees nothing gets zeros, not NaN
    b_max = tl.full([BLOCK_M], -1e30, tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)

    for masked in tl.static_range(2):
        theirs = tiles_in_sight(prefix, prefix + first, prefix + last, window, BLOCK_N, masked)
        own = tiles_in_sight(length, first, last, window, BLOCK_N, masked)
        for i in range(0, theirs[1] + own[1]):
            o_token, keys, position = key_tile(i, segment, theirs, own, BLOCK_N)
            # [BLOCK_N, BLOCK_D]
            b_k = load_rows(p_k + o_token * stride_kt, o_d, o_n < keys, D, masked)
            # [BLOCK_M, BLOCK_N]
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
            if masked:
                m = visible(o_position, position, keys, window, BLOCK_N)
                b_s = tl.where(m, b_s, -float("inf"))
            b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale)
            b_p = tl.exp2(b_s * scale - b_new[:, None])
            b_shrink = tl.exp2(b_max - b_new)
            b_max = b_new
            b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
            # [BLOCK_N, BLOCK_D]
            b_v = load_rows(p_v + o_token * stride_vt, o_d, o_n < keys, D, masked)
            b_out *= b_shrink[:, None]
            b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out, input_precision="ieee")

    o_row = o_query.to(tl.int64) * (HEADS * GROUP) + o_head
    tl.store(p_lse + o_row, (b_max + tl.log2(b_sum)) * _LN_2, mask=m_r)
    b_out /= b_sum[:, None]
    m = m_r[:, None] & (o_d < D)[None, :]
    tl.store(p_out + o_row[:, None] * D + o_d[None, :], b_out.to(p_out.dtype.element_ty), mask=m)


def limit(window: int | None) -> int | None:
    """The window as kernels take it: within 32 bits; None is compiled in."""
    return None if window is None else min(window, _FAR)


def tile(shapes: Shapes, dim: int, dtype: torch.dtype) -> dict[str, int]:
    """What a kernel is compiled for on this card, of its `shapes`."""
    width = max(16, triton.next_power_of_2(dim))  # tensor cores take powers of 2
    if width > 256:
        raise ValueError(f"q: a head size of {dim}, and Triton's attention goes up to 256")
    # 9.0 alone has wgmma; 12.0 (RTX 5090) has mma.sync and the shared memory of 8.9
    card = "fp32" if dtype == torch.float32 else "sm_90" if arch() == 90 else "sm_80"
    m, n, warps, stages = shapes[card][max(64, width)]
    return {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_D": width, "num_warps": warps, "num_stages": stages}


def attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    (tokens, heads, dim), kv_heads = q.shape, k.shape[1]
    q, k, v = contiguous_rows(q), contiguous_rows(k), contiguous_rows(v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    if out.numel():
        group, shape = heads // kv_heads, tile(_SHAPES, dim, q.dtype)
        tiles = query_tiles(segments, tokens, group, shape["BLOCK_M"])
        _attention_kernel[(len(tiles) * kv_heads,)](
            *(tiles, q, k, v, out, lse),
            *(*q.stride()[:2], *k.stride()[:2], *v.stride()[:2]),
            *(scale * LOG2_E, limit(window)),
            HEADS=kv_heads,
            GROUP=group,
            D=dim,
            **shape,
        )
    return out, lse
