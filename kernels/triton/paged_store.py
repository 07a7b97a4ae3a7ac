"""Writes new keys and values into the paged cache, quantising them on the way where it is int8 or
e4m3: each program holds whole rows of one token and head."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.rows import contiguous_rows
from kernels.triton.paged_tile import Cache

_TILE = 2048  # elements of k, and of v, that a program holds


@triton.jit
def _quantised(b_x, INT8: tl.constexpr):
    """Rows `[R, D]` as int8 or as the bits of e4m3, and their scales `[R]`."""
    b_x = b_x.to(tl.float32)
    b_largest = tl.max(tl.abs(b_x), 1)
    b_scale = tl.div_rn(b_largest, tl.full(b_largest.shape, 127.0 if INT8 else 448.0, tl.float32))
    b_divisor = tl.where(b_scale > 0, b_scale, 1.0)[:, None]
    b_y = tl.div_rn(b_x, tl.broadcast_to(b_divisor, b_x.shape))
    if INT8:
        # Adding 1.5 * 2^23 leaves no room for a fraction: it rounds to the nearest, ties to even.
        b_y = ((b_y + 12582912.0) - 12582912.0).to(tl.int8)
    else:
        # Times 2^-120, an fp32 has e4m3's exponents (and subnormals) where it has its own. Then
        # 20 bits of its mantissa are rounded away.
        b_bits = (tl.minimum(tl.abs(b_y), 448.0) * 2.0**-120).to(tl.int32, bitcast=True)
        b_bits = (b_bits + 0x7FFFF + ((b_bits >> 20) & 1)) >> 20
        b_y = (b_bits | tl.where(b_y < 0, 0x80, 0)).to(tl.uint8)
    return b_y, b_scale


@triton.jit(do_not_specialize=["rows"])  # it changes from step to step
def _store_kernel(
    p_k,
    p_v,
    cache,
    p_slots,
    rows,
    stride_k,
    stride_k_head,
    stride_v,
    stride_v_head,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    o_r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    o_d = tl.arange(0, BLOCK_D)
    m_r = o_r < rows
    m = m_r[:, None] & (o_d < D)[None, :]
    o_t = (o_r // HKV).to(tl.int64)
    o_h = o_r % HKV
    b_slot = tl.load(p_slots + o_t, mask=m_r, other=0).to(tl.int64)
    o_block = b_slot // BS
    o_in = b_slot % BS * HKV + o_h
    # [BLOCK_R, BLOCK_D]
    p = p_k + (o_t * stride_k + o_h * stride_k_head)[:, None] + o_d[None, :]
    b_k = tl.load(p, mask=m, other=0.0)
    p = p_v + (o_t * stride_v + o_h * stride_v_head)[:, None] + o_d[None, :]
    b_v = tl.load(p, mask=m, other=0.0)
    if cache.p_k_scale is not None:
        b_k, b_k_scale = _quantised(b_k, cache.p_k.dtype.element_ty == tl.int8)
        b_v, b_v_scale = _quantised(b_v, cache.p_v.dtype.element_ty == tl.int8)
        tl.store(cache.p_k_scale + o_block * cache.stride_k_scale + o_in, b_k_scale, mask=m_r)
        tl.store(cache.p_v_scale + o_block * cache.stride_v_scale + o_in, b_v_scale, mask=m_r)
    p = cache.p_k + (o_block * cache.stride_k + o_in * D)[:, None] + o_d[None, :]
    tl.store(p, b_k, mask=m)
    p = cache.p_v + (o_block * cache.stride_v + o_in * D)[:, None] + o_d[None, :]
    tl.store(p, b_v, mask=m)


def store_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    if k.numel() == 0:
        return
    k, v = (contiguous_rows(x) for x in (k, v))
    (_, block_size, heads, dim), rows = k_cache.shape, k.shape[0] * k.shape[1]
    block_d = triton.next_power_of_2(dim)
    block_r = max(1, _TILE // block_d)
    _store_kernel[(triton.cdiv(rows, block_r),)](
        *(k, v, Cache.of(k_cache, v_cache, k_scale, v_scale), slots.contiguous(), rows),
        *(*k.stride()[:2], *v.stride()[:2]),
        HKV=heads,
        D=dim,
        BS=block_size,
        BLOCK_R=block_r,
        BLOCK_D=block_d,
        num_warps=4,
    )
