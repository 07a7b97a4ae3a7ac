"""What the kernels over a paged cache have in common: whose rows they are, and the online softmax.

A tile's rows are (token, query head) pairs of one KV head, token by token: row `r` is query head
`r % GROUP` of the group and token `r // GROUP`. So all heads that read a key share one load of it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def sequence_of(p_cu, i_t, sequences):
    """The last sequence s with cu[s] <= i_t; that token t is the one of sequence t is tried first,
    which spares decode the search."""
    i_s = tl.minimum(i_t, sequences - 1)
    if (tl.load(p_cu + i_s) > i_t) | (tl.load(p_cu + i_s + 1) <= i_t):
        i_s = i_t * 0
        above = i_s + sequences
        while above - i_s > 1:
            middle = (i_s + above) // 2
            if tl.load(p_cu + middle) <= i_t:
                i_s = middle
            else:
                above = middle
    return i_s


@triton.jit
def sequences_of(p_cu, b_t, sequences):
    """`sequence_of` for tokens `[N]`."""
    # [N]
    b_s = tl.minimum(b_t, sequences - 1)
    b_right = (tl.load(p_cu + b_s) <= b_t) & (tl.load(p_cu + b_s + 1) > b_t)
    if tl.min(b_right.to(tl.int32), 0) == 0:
        b_s = b_t * 0
        b_above = b_s + sequences
        while tl.max(b_above - b_s, 0) > 1:
            b_middle = (b_s + b_above) // 2
            b_right = tl.load(p_cu + b_middle) <= b_t
            b_s = tl.where(b_right, b_middle, b_s)
            b_above = tl.where(b_right, b_above, b_middle)
    return b_s


@triton.jit
def _widened(b_x, DTYPE: tl.constexpr, NATIVE_FP8: tl.constexpr):
    """Cached values as the dot takes them; int8 and e4m3 (loaded as uint8) lack their scale yet."""
    if b_x.dtype == tl.uint8:
        if NATIVE_FP8:
            b_x = b_x.to(tl.float8e4nv, bitcast=True)
        else:
            # e4m3's exponent and mantissa, put into fp16's, are 2^-8 of the value, subnormals too.
            b_bits = b_x.to(tl.int16)
            b_bits = ((b_bits & 0x80) << 8) | ((b_bits & 0x7F) << 7)
            b_x = (b_bits.to(tl.float16, bitcast=True) * 256.0).to(tl.float16)
    return b_x.to(DTYPE)


@triton.jit
def attend(
    b_q,
    b_pos,
    b_acc,
    b_max,
    b_sum,
    p_table,
    p_k,
    p_v,
    p_k_scale,
    p_v_scale,
    stride_k,
    stride_v,
    stride_k_scale,
    stride_v_scale,
    i_h,
    low,
    first,
    last,
    scale_log2,
    window,
    HKV: tl.constexpr,
    D: tl.constexpr,
    BS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
    NATIVE_FP8: tl.constexpr,
):
    """Goes on with the online softmax of rows `b_q` over the keys `first..last` of a sequence.

    `first` is a multiple of BLOCK_N. Keys below `low` are not read. MASKED False promises that
    every row sees every key and that `last` is a multiple of BLOCK_N as well.
    """
    o_d = tl.arange(0, BLOCK_D)
    for start in range(first, last, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_n = o_n < last
        if WINDOW:
            m_n = m_n & (o_n >= low)
        # [BLOCK_N]
        if MASKED:
            b_block = tl.load(p_table + o_n // BS, mask=m_n, other=0).to(tl.int64)
        else:
            b_block = tl.load(p_table + o_n // BS).to(tl.int64)
        o_head = o_n % BS * HKV + i_h
        o_k = b_block * stride_k + o_head * D
        o_v = b_block * stride_v + o_head * D
        m_k = (o_d < D)[:, None]
        m_v = (o_d < D)[None, :]
        if MASKED:
            m_k = m_k & m_n[None, :]
            m_v = m_v & m_n[:, None]
        # [BLOCK_D, BLOCK_N]
        b_k = tl.load(p_k + o_k[None, :] + o_d[:, None], mask=m_k, other=0)
        b_k = _widened(b_k, b_q.dtype, NATIVE_FP8)
        # [M, BLOCK_N]
        b_s = tl.dot(b_q, b_k, input_precision="ieee") * scale_log2
        if p_k_scale is not None:
            p = p_k_scale + b_block * stride_k_scale + o_head
            b_s *= tl.load(p, mask=m_n, other=0.0)[None, :]
        if MASKED:
            m_s = o_n[None, :] <= b_pos[:, None]
            if WINDOW:
                m_s = m_s & (o_n[None, :] > b_pos[:, None] - window)
            b_s = tl.where(m_s, b_s, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_pivot = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_alpha = tl.exp2(b_max - b_pivot)
        b_p = tl.exp2(b_s - b_pivot[:, None])
        b_sum = b_sum * b_alpha + tl.sum(b_p, 1)
        b_max = b_new
        if p_v_scale is not None:
            # 256, undone by `finished`, keeps probability x scale out of fp16's subnormals.
            p = p_v_scale + b_block * stride_v_scale + o_head
            b_p *= (tl.load(p, mask=m_n, other=0.0) * 256.0)[None, :]
        # [BLOCK_N, BLOCK_D]
        b_v = tl.load(p_v + o_v[:, None] + o_d[None, :], mask=m_v, other=0)
        b_v = _widened(b_v, b_q.dtype, NATIVE_FP8)
        # [M, BLOCK_D]
        b_acc = tl.dot(b_p.to(b_q.dtype), b_v, b_acc * b_alpha[:, None], input_precision="ieee")
    return b_acc, b_max, b_sum


@triton.jit
def finished(b_acc, b_max, b_sum, SCALED: tl.constexpr):
    """Output [M, BLOCK_D] and base-2 log-sum-exp [M]; 0 and -inf where a row saw nothing."""
    b_total = tl.where(b_sum > 0, b_sum, 1.0)
    if SCALED:
        b_acc *= 1 / 256
    b_lse = tl.where(b_sum > 0, b_max + tl.log2(b_total), float("-inf"))
    return b_acc / b_total[:, None], b_lse


def readable(cache: Tensor) -> Tensor:
    """The cache as kernels read and write it: e4m3 as its bits, which every GPU can load.

    Raises:
        ValueError: a block is not contiguous.
    """
    if cache.shape[0] and not cache[0].is_contiguous():
        raise ValueError(f"cache: blocks must be contiguous, got strides {cache.stride()}")
    return cache.view(torch.uint8) if cache.dtype == torch.float8_e4m3fn else cache
