"""A prefix that all sequences share, read once for the queries of all of them."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton.paged_tile import (
    attend,
    finished,
    first_slot,
    load_queries,
    nothing_yet,
    sequences_of,
)

_CHANGES = ["stride_table", "sequences", "slots", "shared", "partials", "window"]


@triton.jit(do_not_specialize=_CHANGES)
def prefix_kernel(
    queries,
    cache,
    p_cu,
    p_lens,
    p_table,
    stride_table,
    sequences,
    scale_log2,
    window,
    p_out,
    p_lse,
    slots,
    shared,
    partials,
    HKV: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BS: tl.constexpr,
    SPLIT: tl.constexpr,
    PER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    NATIVE_FP8: tl.constexpr,
):
    """One split of the `shared` leading keys, for a tile of the rows of all slots."""
    i_h = tl.program_id(1)
    i_split = tl.program_id(2)
    o_r = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    o_u = o_r // GROUP
    m_r = o_u < slots
    # [BLOCK_M]
    b_u = tl.where(m_r, o_u, 0)
    b_s = sequences_of(p_cu, b_u, sequences, PER, TOKENS)
    b_end = tl.load(p_cu + b_s + 1)
    b_start = tl.load(p_cu + b_s)
    b_t = b_start + b_u - first_slot(p_cu, b_s, PER, TOKENS)
    if not TOKENS:
        m_r = m_r & (b_t < b_end) & (b_end - b_start <= PER)
    b_pos = tl.where(m_r, tl.load(p_lens + b_s) - b_end + b_t, -1)
    first = i_split * SPLIT
    last = tl.minimum(tl.minimum(first + SPLIT, shared), tl.max(b_pos, 0) + 1)
    low = 0
    if WINDOW:
        low = tl.min(tl.where(m_r, b_pos, 0x7FFFFFFF), 0) - window + 1
    if tl.maximum(first, low) >= last:
        return

    o_head = i_h * GROUP + o_r % GROUP
    # `first` must not come of a reduction, as `low` does: loads that depend on one get no vectors.
    state = attend(
        load_queries(queries, b_t, o_head, m_r, D, BLOCK_D),
        b_pos,
        nothing_yet(BLOCK_M, BLOCK_D),
        cache,
        p_table,
        i_h,
        low,
        first,
        last,
        scale_log2,
        window,
        HKV=HKV,
        D=D,
        BS=BS,
        BLOCK_N=BLOCK_N,
        BLOCK_D=BLOCK_D,
        WINDOW=WINDOW,
        MASKED=True,
        NATIVE_FP8=NATIVE_FP8,
    )
    b_out, b_lse = finished(state, cache.p_v_scale is not None)
    o_out = (o_u.to(tl.int64) * (HKV * GROUP) + o_head) * partials + i_split
    tl.store(p_lse + o_out, b_lse, mask=m_r)
    m = m_r[:, None] & (o_d < D)[None, :]
    tl.store(p_out + o_out[:, None] * D + o_d[None, :], b_out, mask=m)
