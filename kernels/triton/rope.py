"""Rotary embedding: queries and keys in one launch, each element read and written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Pairs that a program rotates: with 4 warps a thread has 16 bytes of bf16 from either half of a
# head, so that every access is as wide as it can be and enough programs fit to hide the latency.
_TILE = 1024


@triton.jit
def _rotate(
    p_x,
    p_y,
    p_cos,
    p_sin,
    p_positions,
    i_tile,
    rows,
    stride_xt,
    stride_xh,
    stride_yt,
    stride_yh,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    INVERSE: tl.constexpr,
):
    o_r = i_tile * BLOCK_R + tl.arange(0, BLOCK_R)  # (token, head) pairs
    o_d = tl.arange(0, BLOCK_D)
    m_r = o_r < rows * HEADS
    m = m_r[:, None] & (o_d < HALF)[None, :]
    o_t, o_h = (o_r // HEADS).to(tl.int64), (o_r % HEADS).to(tl.int64)
    # [BLOCK_R, BLOCK_D]; the heads first, as their loads wait for nothing
    o_x = (o_t * stride_xt + o_h * stride_xh)[:, None] + o_d[None, :]
    b_low = tl.load(p_x + o_x, mask=m, other=0.0).to(tl.float32)
    b_high = tl.load(p_x + o_x + HALF, mask=m, other=0.0).to(tl.float32)
    o_table = tl.load(p_positions + o_t, mask=m_r, other=0).to(tl.int64)[:, None] * HALF + o_d
    b_cos = tl.load(p_cos + o_table, mask=m, other=0.0)
    b_sin = tl.load(p_sin + o_table, mask=m, other=0.0)
    if INVERSE:
        b_sin = -b_sin
    o_y = (o_t * stride_yt + o_h * stride_yh)[:, None] + o_d[None, :]
    b_first = b_low * b_cos - b_high * b_sin
    b_second = b_high * b_cos + b_low * b_sin
    tl.store(p_y + o_y, b_first.to(p_y.dtype.element_ty), mask=m)
    tl.store(p_y + o_y + HALF, b_second.to(p_y.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["rows", "q_tiles"])
def _rope_kernel(
    p_q,
    p_k,
    p_q_out,
    p_k_out,
    p_cos,
    p_sin,
    p_positions,
    rows,
    q_tiles,
    stride_qt,
    stride_qh,
    stride_kt,
    stride_kh,
    stride_q_out_t,
    stride_q_out_h,
    stride_k_out_t,
    stride_k_out_h,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    INVERSE: tl.constexpr,
):
    i_tile = tl.program_id(0)
    if i_tile < q_tiles:
        _rotate(
            p_q, p_q_out, p_cos, p_sin, p_positions, i_tile, rows,
            stride_qt, stride_qh, stride_q_out_t, stride_q_out_h,
            HEADS, HALF, BLOCK_R, BLOCK_D, INVERSE,
        )  # fmt: skip
    else:
        _rotate(
            p_k, p_k_out, p_cos, p_sin, p_positions, i_tile - q_tiles, rows,
            stride_kt, stride_kh, stride_k_out_t, stride_k_out_h,
            KV_HEADS, HALF, BLOCK_R, BLOCK_D, INVERSE,
        )  # fmt: skip


def rope(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    *,
    inplace: bool = False,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    if inplace:
        q_out, k_out = q, k
    else:
        q, k = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k))
        q_out, k_out = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k))
    (rows, heads, dim), kv_heads = q.shape, k.shape[1]
    block_d = triton.next_power_of_2(max(1, dim // 2))
    block_r = max(1, _TILE // block_d)
    q_tiles, k_tiles = (triton.cdiv(rows * count, block_r) for count in (heads, kv_heads))
    if q_tiles + k_tiles and dim:
        _rope_kernel[(q_tiles + k_tiles,)](
            q, k, q_out, k_out, cos.contiguous(), sin.contiguous(), positions.contiguous(),
            rows, q_tiles, *q.stride()[:2], *k.stride()[:2], *q_out.stride()[:2],
            *k_out.stride()[:2], HEADS=heads, KV_HEADS=kv_heads, HALF=dim // 2,
            BLOCK_R=block_r, BLOCK_D=block_d, INVERSE=inverse, num_warps=4,
        )  # fmt: skip
    return q_out, k_out
