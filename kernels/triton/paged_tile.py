"""What the kernels over a paged cache have in common: whose rows they are, and the online softmax.

A tile's rows are (token, query head) pairs of one KV head, token by token: row `r` is query head
`r % GROUP` of the group and token `r // GROUP`. So all heads that read a key share one load of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


def _readable(cache: Tensor) -> Tensor:
    """The cache as kernels read and write it: e4m3 as its bits, which every GPU can load."""
    return cache.view(torch.uint8) if cache.dtype == torch.float8_e4m3fn else cache


class Queries(NamedTuple):
    """New tokens' queries `[T, H, D]`: the address and the strides of tokens and heads."""

    p: Tensor
    stride: int
    stride_head: int


class Cache(NamedTuple):
    """The paged keys and values, their scales if they are quantised, and the strides of blocks."""

    p_k: Tensor
    p_v: Tensor
    p_k_scale: Tensor | None
    p_v_scale: Tensor | None
    stride_k: int
    stride_v: int
    stride_k_scale: int
    stride_v_scale: int

    @classmethod
    def of(cls, k: Tensor, v: Tensor, k_scale: Tensor | None, v_scale: Tensor | None) -> Cache:
        parts = _readable(k), _readable(v), k_scale, v_scale
        return cls(*parts, *(0 if x is None else x.stride(0) for x in parts))


@triton.jit
def first_slot(p_cu, i_s, PER: tl.constexpr, TOKENS: tl.constexpr):
    """Where partial results of sequence `i_s` start: those of each token (TOKENS), or of sequences
    of at most PER. The latter fit in as many slots as there are tokens, or PER for each sequence.
    """
    o_t = tl.load(p_cu + i_s)
    return o_t if TOKENS else tl.minimum(o_t, i_s * PER)


@triton.jit
def sequence_of(p_cu, i_u, sequences, PER: tl.constexpr, TOKENS: tl.constexpr):
    """The last sequence whose slots start at `i_u` or before; that slot u is the one of sequence u
    is tried first, which spares decode the search."""
    i_s = tl.minimum(i_u, sequences - 1)
    right = first_slot(p_cu, i_s, PER, TOKENS) <= i_u
    if not (right & (first_slot(p_cu, i_s + 1, PER, TOKENS) > i_u)):
        i_s = i_u * 0
        above = i_s + sequences
        while above - i_s > 1:
            middle = (i_s + above) // 2
            if first_slot(p_cu, middle, PER, TOKENS) <= i_u:
                i_s = middle
            else:
                above = middle
    return i_s


@triton.jit
def sequences_of(p_cu, b_u, sequences, PER: tl.constexpr, TOKENS: tl.constexpr):
    """`sequence_of` for slots `[N]`."""
    # [N]
    b_s = tl.minimum(b_u, sequences - 1)
    b_right = first_slot(p_cu, b_s, PER, TOKENS) <= b_u
    b_right = b_right & (first_slot(p_cu, b_s + 1, PER, TOKENS) > b_u)
    if tl.min(b_right.to(tl.int32), 0) == 0:
        b_s = b_u * 0
        b_above = b_s + sequences
        while tl.max(b_above - b_s, 0) > 1:
            b_middle = (b_s + b_above) // 2
            b_right = first_slot(p_cu, b_middle, PER, TOKENS) <= b_u
            b_s = tl.where(b_right, b_middle, b_s)
            b_above = tl.where(b_right, b_above, b_middle)
    return b_s


@triton.jit
def load_queries(queries, b_t, o_head, m_r, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows `[M, BLOCK_D]` of tokens `b_t` and query heads `o_head`, zeros where not `m_r`."""
    o_d = tl.arange(0, BLOCK_D)
    o_q = b_t.to(tl.int64) * queries.stride + o_head * queries.stride_head
    m = m_r[:, None] & (o_d < D)[None, :]
    return tl.load(queries.p + o_q[:, None] + o_d[None, :], mask=m, other=0.0)


@triton.jit
def nothing_yet(BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """The online softmax before its first key: weighted values, maximum and sum of weights."""
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    return b_acc, b_max, tl.zeros([BLOCK_M], tl.float32)


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
    state,  # the softmax so far, as `nothing_yet` has it
    cache,
    p_table,
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
    b_acc, b_max, b_sum = state
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
        o_k = b_block * cache.stride_k + o_head * D
        o_v = b_block * cache.stride_v + o_head * D
        m_k = (o_d < D)[:, None]
        m_v = (o_d < D)[None, :]
        if MASKED:
            m_k = m_k & m_n[None, :]
            m_v = m_v & m_n[:, None]
        # [BLOCK_D, BLOCK_N]
        b_k = tl.load(cache.p_k + o_k[None, :] + o_d[:, None], mask=m_k, other=0)
        b_k = _widened(b_k, b_q.dtype, NATIVE_FP8)
        # [M, BLOCK_N]; where nothing else scales, the exponent is one product and sum
        b_s = tl.dot(b_q, b_k, input_precision="ieee")
        scale = scale_log2
        if cache.p_k_scale is not None:
            p = cache.p_k_scale + b_block * cache.stride_k_scale + o_head
            b_s *= (tl.load(p, mask=m_n, other=0.0) * scale)[None, :]
            scale = 1.0
        if MASKED:
            m_s = o_n[None, :] <= b_pos[:, None]
            if WINDOW:
                m_s = m_s & (o_n[None, :] > b_pos[:, None] - window)
            b_s = tl.where(m_s, b_s, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale)
        b_pivot = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_alpha = tl.exp2(b_max - b_pivot)
        b_p = tl.exp2(b_s * scale - b_pivot[:, None])
        b_sum = b_sum * b_alpha + tl.sum(b_p, 1)
        b_max = b_new
        if cache.p_v_scale is not None:
            # 256, undone by `finished`, keeps probability x scale out of fp16's subnormals.
            p = cache.p_v_scale + b_block * cache.stride_v_scale + o_head
            b_p *= (tl.load(p, mask=m_n, other=0.0) * 256.0)[None, :]
        # [BLOCK_N, BLOCK_D]
        b_v = tl.load(cache.p_v + o_v[:, None] + o_d[None, :], mask=m_v, other=0)
        b_v = _widened(b_v, b_q.dtype, NATIVE_FP8)
        # [M, BLOCK_D]
        b_acc = tl.dot(b_p.to(b_q.dtype), b_v, b_acc * b_alpha[:, None], input_precision="ieee")
    return b_acc, b_max, b_sum


@triton.jit
def finished(state, SCALED: tl.constexpr):
    """Output [M, BLOCK_D] and base-2 log-sum-exp [M]; 0 and -inf where a row saw nothing."""
    b_acc, b_max, b_sum = state
    b_total = tl.where(b_sum > 0, b_sum, 1.0)
    if SCALED:
        b_acc *= 1 / 256
    b_lse = tl.where(b_sum > 0, b_max + tl.log2(b_total), float("-inf"))
    return b_acc / b_total[:, None], b_lse
