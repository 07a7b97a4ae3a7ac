"""Many queries of a sequence: a program for each tile of their rows."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton.paged_tile import attend, finished, load_queries, nothing_yet


@triton.jit(do_not_specialize=["stride_table", "sequences", "window"])
def tile_kernel(
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
    HKV: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BS: tl.constexpr,
    PER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WINDOW: tl.constexpr,
    NATIVE_FP8: tl.constexpr,
):
    """All keys of one tile of the rows of a sequence of more than PER queries."""
    # Late tiles see most keys: they start first.
    i_tile = tl.num_programs(0) - 1 - tl.program_id(0)
    i_h = tl.program_id(1)
    # The tiles of sequence s start at cu[s] * GROUP // BLOCK_M + s: room for all, some left empty.
    i_s = 0
    above = sequences
    while above - i_s > 1:
        middle = (i_s + above) // 2
        if tl.load(p_cu + middle) * GROUP // BLOCK_M + middle <= i_tile:
            i_s = middle
        else:
            above = middle
    i_t = tl.load(p_cu + i_s)
    i_end = tl.load(p_cu + i_s + 1)
    rows = (i_end - i_t) * GROUP
    i_row = (i_tile - i_t * GROUP // BLOCK_M - i_s) * BLOCK_M
    if (i_row >= rows) | (i_end - i_t <= PER):
        return

    o_r = i_row + tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    m_r = o_r < rows
    b_t = i_t + o_r // GROUP
    o_head = i_h * GROUP + o_r % GROUP
    position = tl.load(p_lens + i_s) - i_end + i_t
    b_pos = tl.where(m_r, position + o_r // GROUP, -1)
    # [BLOCK_M, BLOCK_D]
    b_q = load_queries(queries, b_t, o_head, m_r, D, BLOCK_D)
    state = nothing_yet(BLOCK_M, BLOCK_D)

    first_seen = position + i_row // GROUP + 1  # keys that the first row sees
    last = tl.max(b_pos, 0) + 1
    low = 0
    if WINDOW:
        low = tl.maximum(first_seen - window, 0)
    start = low // BLOCK_N * BLOCK_N
    for masked in tl.static_range(WINDOW, 2):
        stop = last if masked else first_seen // BLOCK_N * BLOCK_N
        state = attend(
            b_q,
            b_pos,
            state,
            cache,
            p_table + tl.cast(i_s, tl.int64) * stride_table,
            i_h,
            low,
            start,
            stop,
            scale_log2,
            window,
            HKV=HKV,
            D=D,
            BS=BS,
            BLOCK_N=BLOCK_N,
            BLOCK_D=BLOCK_D,
            WINDOW=WINDOW,
            MASKED=masked,
            NATIVE_FP8=NATIVE_FP8,
        )
        start = stop
    b_out, _ = finished(state, cache.p_v_scale is not None)
    o_out = b_t.to(tl.int64) * (HKV * GROUP) + o_head
    m = m_r[:, None] & (o_d < D)[None, :]
    tl.store(p_out + o_out[:, None] * D + o_d[None, :], b_out.to(p_out.dtype.element_ty), mask=m)
