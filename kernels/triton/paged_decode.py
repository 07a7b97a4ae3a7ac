"""Few queries of a sequence: its keys divided among programs, and the merge of what they found."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton.paged_tile import (
    attend,
    finished,
    first_slot,
    load_queries,
    nothing_yet,
    sequence_of,
)

# What is not specialised changes from step to step, and must not make Triton compile anew.
_CHANGES = ["stride_table", "sequences", "shared", "partials", "window"]


@triton.jit(do_not_specialize=_CHANGES)
def split_kernel(
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
    WHOLE: tl.constexpr,
    NATIVE_FP8: tl.constexpr,
):
    """One split of the keys of one token (TOKENS) or of one sequence of at most PER queries.

    WHOLE: there is but one split, and the output is final instead of partial.
    """
    # The splits are the fastest axis, so that those past a sequence's end, which do nothing, lie
    # scattered over the grid and not behind all others. Divisions in its stead cost 30 registers.
    i_split = tl.program_id(0) + shared // SPLIT
    i_h = tl.program_id(1)
    i_item = tl.program_id(2)
    if TOKENS:
        i_s = sequence_of(p_cu, i_item, sequences, PER, TOKENS)
        i_t = i_item
        i_end = tl.load(p_cu + i_s + 1)
        count = 1
    else:
        i_s = i_item
        i_t = tl.load(p_cu + i_s)
        i_end = tl.load(p_cu + i_s + 1)
        count = i_end - i_t
        if (count == 0) | (count > PER):
            return
    position = tl.load(p_lens + i_s) - i_end + i_t
    low = shared
    if WINDOW:
        low = tl.maximum(low, position - window + 1)
    first = tl.maximum(i_split * SPLIT, low // BLOCK_N * BLOCK_N)
    last = tl.minimum((i_split + 1) * SPLIT, position + count)
    if first >= last:
        return

    o_r = tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    m_r = o_r < count * GROUP
    o_i = o_r // GROUP
    o_head = i_h * GROUP + o_r % GROUP
    state = attend(
        load_queries(queries, i_t + o_i, o_head, m_r, D, BLOCK_D),
        tl.where(m_r, position + o_i, -1),
        nothing_yet(BLOCK_M, BLOCK_D),
        cache,
        p_table + i_s.to(tl.int64) * stride_table,
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
    if WHOLE:
        o_out = (i_t + o_i).to(tl.int64) * (HKV * GROUP) + o_head
    else:
        i_u = i_t if TOKENS else first_slot(p_cu, i_s, PER, TOKENS)
        i_partial = i_split + (shared % SPLIT != 0)
        o_out = ((i_u + o_i).to(tl.int64) * (HKV * GROUP) + o_head) * partials + i_partial
        tl.store(p_lse + o_out, b_lse, mask=m_r)
    p = p_out + o_out[:, None] * D + o_d[None, :]
    m = m_r[:, None] & (o_d < D)[None, :]
    tl.store(p, b_out.to(p_out.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["sequences", "shared", "partials", "window"])
def merge_kernel(
    p_partial,
    p_lse,
    p_out,
    p_cu,
    p_lens,
    sequences,
    shared,
    partials,
    window,
    H: tl.constexpr,
    D: tl.constexpr,
    SPLIT: tl.constexpr,
    PER: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """The row of one slot and query head from its partial results, of which it has those of the
    splits that it sees: of the shared keys first, then of its own."""
    i_u = tl.program_id(0)
    i_head = tl.program_id(1)
    i_s = sequence_of(p_cu, i_u, sequences, PER, TOKENS)
    i_start = tl.load(p_cu + i_s)
    i_end = tl.load(p_cu + i_s + 1)
    i_t = i_start + i_u - first_slot(p_cu, i_s, PER, TOKENS)
    if not TOKENS and ((i_t >= i_end) | (i_end - i_start > PER)):
        return
    position = tl.load(p_lens + i_s) - i_end + i_t
    low = 0
    if WINDOW:
        low = tl.maximum(position - window + 1, 0)
    shift = (shared % SPLIT != 0).to(tl.int32)  # the split that the prefix ends in has two
    i_first = low // SPLIT + tl.where(low < shared, 0, shift)
    i_last = position // SPLIT + tl.where(position < shared, 0, shift)

    o_d = tl.arange(0, BLOCK_D)
    o_row = (i_u.to(tl.int64) * H + i_head) * partials
    b_max = float("-inf")
    b_sum = 0.0
    # [BLOCK_D]
    b_acc = tl.zeros([BLOCK_D], tl.float32)
    # Chunks start at multiples of BLOCK_C, so sums are formed the same way in every batch.
    for start in range(i_first // BLOCK_C * BLOCK_C, i_last + 1, BLOCK_C):
        o_c = start + tl.arange(0, BLOCK_C)
        m_c = (o_c >= i_first) & (o_c <= i_last)
        b_lse = tl.load(p_lse + o_row + o_c, mask=m_c, other=float("-inf"))
        # [BLOCK_C, BLOCK_D]
        p = p_partial + (o_row + o_c)[:, None] * D + o_d[None, :]
        b_part = tl.load(p, mask=m_c[:, None] & (o_d < D)[None, :], other=0.0)
        b_new = tl.maximum(b_max, tl.max(b_lse, 0))
        b_pivot = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_alpha = tl.exp2(b_max - b_pivot)
        b_weight = tl.exp2(b_lse - b_pivot)
        b_sum = b_sum * b_alpha + tl.sum(b_weight, 0)
        b_acc = b_acc * b_alpha + tl.sum(b_weight[:, None] * b_part, 0)
        b_max = b_new
    b_out = b_acc / tl.where(b_sum > 0, b_sum, 1.0)
    p = p_out + (i_t.to(tl.int64) * H + i_head) * D + o_d
    tl.store(p, b_out.to(p_out.dtype.element_ty), mask=o_d < D)
