"""Token sampling in two launches, with no sort and no wait for the GPU.

The first (sampling_scan.py) reads every row once. The second, a program a row, draws from what that
found: it reads the one block that holds the token, or, where a row is filtered, the few groups of
tokens that its filters may keep (threshold.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sampling import SampleParams, top_logprobs_reference
from kernels.triton.sampling_scan import BLOCK, GROUP, draw_scale, scan
from kernels.triton.threshold import draw, first_beyond, gather, list_groups, mass, threshold

_LOG2E = tl.constexpr(1.4426950408889634)
_TILE = 512  # elements a step
_MOST = 64  # of top_logprobs: so many are ranked by comparing each with each


@triton.jit
def _peak_and_log_sum(b_top, b_sum):
    """The largest logit, and the log of the softmax's denominator relative to it."""
    peak = tl.max(b_top, axis=0)
    return peak, tl.log(tl.sum(b_sum * tl.exp2((b_top - peak) * _LOG2E), axis=0))


@triton.jit
def _draw_any(p_x, b_top, b_mass, total, peak, scale, random, greedy, vocab, BLOCK: tl.constexpr):
    """Draws from the whole row, whose blocks weigh b_mass, reading one block; or, `greedy`, takes
    the first of its largest logits."""
    o_b = tl.arange(0, b_top.shape[0])
    drawn = first_beyond(b_mass, o_b, random * total)
    i_b = tl.where(greedy, tl.min(tl.where(b_top == peak, o_b, 0x7FFFFFFF), axis=0), drawn)
    before = tl.sum(tl.where(o_b < i_b, b_mass, 0.0), axis=0)
    o = i_b * BLOCK + tl.arange(0, BLOCK)
    b_x = tl.load(p_x + o, mask=o < vocab, other=-float("inf"))
    drawn = first_beyond(tl.exp2((b_x - peak) * scale), o, random * total - before)
    return tl.where(greedy, tl.min(tl.where(b_x == peak, o, 0x7FFFFFFF), axis=0), drawn)


@triton.jit
def _draw_filtered(
    p_x,
    p_maxima,
    p_groups,
    total,
    peak,
    scale,
    random,
    top_k,
    top_p,
    min_p,
    vocab,
    groups,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
):
    floor = tl.where(min_p > 0, peak + tl.log2(min_p) / scale, -float("inf"))
    counting, nucleus = top_k > 0, top_p < 1.0
    bound = floor
    if counting | nucleus:
        need = tl.where(counting, top_k.to(tl.float32), top_p * total)
        bound = threshold(
            p_maxima, p_maxima, groups, vocab, need, counting, peak, scale, False, GROUP, TILE
        )
        if top_k == 0:
            # All tokens below (1 - p) / V together weigh less than 1 - p. Half of it, for rounding.
            rest = 0.5 * (1.0 - top_p) * total / vocab
            bound = tl.minimum(tl.maximum(bound, peak + tl.log2(rest) / scale), peak)
    n = list_groups(p_maxima, p_groups, groups, tl.minimum(bound, peak), TILE) * GROUP
    least = floor
    if counting:
        kth = threshold(p_x, p_groups, n, vocab, top_k, True, peak, scale, True, GROUP, TILE)
        total = mass(p_x, p_groups, n, vocab, kth, peak, scale, GROUP, TILE)
        least = tl.maximum(least, kth)
    if nucleus:
        share = top_p * total
        last = threshold(p_x, p_groups, n, vocab, share, False, peak, scale, True, GROUP, TILE)
        least = tl.maximum(least, last)
    least = tl.minimum(least, peak)
    return draw(p_x, p_groups, n, vocab, least, peak, scale, random, GROUP, TILE)


@triton.jit
def _draw_kernel(
    p_logits,
    stride,
    p_x,
    stride_x,
    p_parts,
    p_maxima,
    p_groups,
    p_tokens,
    p_logprobs,
    p_temperature,
    p_top_k,
    p_top_p,
    p_min_p,
    p_seed,
    p_position,
    vocab,
    blocks,
    groups,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
):
    i_r = tl.program_id(0).to(tl.int64)
    o_b = tl.arange(0, BLOCKS)
    m_b = o_b < blocks
    p_part = p_parts + i_r * 4 * blocks + o_b
    # [BLOCKS]
    b_raw_top = tl.load(p_part, mask=m_b, other=-float("inf"))
    b_raw_sum = tl.load(p_part + blocks, mask=m_b, other=0.0)
    b_top = tl.load(p_part + 2 * blocks, mask=m_b, other=-float("inf"))
    b_sum = tl.load(p_part + 3 * blocks, mask=m_b, other=0.0)
    temperature = tl.load(p_temperature + i_r)
    scale = draw_scale(temperature)
    peak = tl.max(b_top, axis=0)
    b_mass = b_sum * tl.exp2((b_top - peak) * scale)
    total = tl.sum(b_mass, axis=0)
    token = tl.cast(-1, tl.int32)
    logprob = -float("inf")
    if (peak > -float("inf")) & (total < float("inf")):  # neither with a NaN
        random = tl.rand(tl.load(p_seed + i_r), tl.load(p_position + i_r))
        top_k = tl.load(p_top_k + i_r)
        top_k = tl.where((top_k > 0) & (top_k < vocab), top_k, 0)
        top_p, min_p = tl.load(p_top_p + i_r), tl.load(p_min_p + i_r)
        greedy = temperature == 0
        p_row = p_x + i_r * stride_x
        if ((top_k > 0) | (top_p < 1.0) | (min_p > 0.0)) & (temperature != 0):
            token = _draw_filtered(
                p_row,
                p_maxima + i_r * groups,
                p_groups + i_r * groups,
                total,
                peak,
                scale,
                random,
                top_k,
                top_p,
                min_p,
                vocab,
                groups,
                GROUP,
                TILE,
            )
        else:
            token = _draw_any(
                p_row, b_top, b_mass, total, peak, scale, random, greedy, vocab, BLOCK
            )
        raw_peak, log_sum = _peak_and_log_sum(b_raw_top, b_raw_sum)
        logprob = tl.load(p_logits + i_r * stride + token) - raw_peak - log_sum
    tl.store(p_tokens + i_r, token.to(tl.int64))
    tl.store(p_logprobs + i_r, logprob)


@triton.jit(do_not_specialize=["k"])
def _top_kernel(
    p_logits,
    stride,
    p_parts,
    p_maxima,
    p_groups,
    p_values,
    p_ids,
    k,
    vocab,
    blocks,
    groups,
    K: tl.constexpr,
    BLOCKS: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
):
    i_r = tl.program_id(0).to(tl.int64)
    o_b, o_k = tl.arange(0, BLOCKS), tl.arange(0, K)
    p_part = p_parts + i_r * 4 * blocks + o_b
    b_top = tl.load(p_part, mask=o_b < blocks, other=-float("inf"))
    b_sum = tl.load(p_part + blocks, mask=o_b < blocks, other=0.0)
    peak, log_sum = _peak_and_log_sum(b_top, b_sum)
    p_row, p_maxima, p_groups = (
        p_logits + i_r * stride,
        p_maxima + i_r * groups,
        p_groups + i_r * groups,
    )
    p_values, p_ids = p_values + i_r * k, p_ids + i_r * k
    m_k = o_k < k
    if (peak > -float("inf")) & (log_sum < float("inf")):  # neither with a NaN
        bound = threshold(p_maxima, p_maxima, groups, vocab, k, True, peak, 1.0, False, GROUP, TILE)
        n = list_groups(p_maxima, p_groups, groups, bound, TILE) * GROUP
        kth = threshold(p_row, p_groups, n, vocab, k, True, peak, 1.0, True, GROUP, TILE)
        larger = tl.cast(0, tl.int32)
        for begin in range(0, n, TILE):
            i = begin + tl.arange(0, TILE)
            b_x, _, _ = gather(p_row, p_groups, i, n, vocab, True, GROUP)
            larger += tl.sum((b_x > kth).to(tl.int32), axis=0)
        # The larger in the first places, of those that tie with the k-th the first in the rest.
        found = tl.cast(0, tl.int32)
        for begin in range(0, n, TILE):
            i = begin + tl.arange(0, TILE)
            b_x, b_o, m = gather(p_row, p_groups, i, n, vocab, True, GROUP)
            b_larger, b_tied = (b_x > kth).to(tl.int32), (m & (b_x == kth)).to(tl.int32)
            b_at = tl.where(
                b_larger > 0,
                found + tl.cumsum(b_larger, axis=0),
                larger + tl.cumsum(b_tied, axis=0),
            )
            m_at = ((b_larger | b_tied) > 0) & (b_at <= k)
            tl.store(p_values + b_at - 1, b_x, mask=m_at)
            tl.store(p_ids + b_at - 1, b_o.to(tl.int64), mask=m_at)
            found += tl.sum(b_larger, axis=0)
            larger += tl.sum(b_tied, axis=0)
        tl.debug_barrier()
        b_x = tl.load(p_values + o_k, mask=m_k, other=-float("inf"))
        b_id = tl.load(p_ids + o_k, mask=m_k, other=vocab).to(tl.int32)
        # [K, K]: whether j stands before i
        m_before = (b_x[None, :] > b_x[:, None]) | (
            (b_x[None, :] == b_x[:, None]) & (b_id[None, :] < b_id[:, None])
        )
        b_rank = tl.sum(m_before.to(tl.int32), axis=1)
        tl.debug_barrier()
        tl.store(p_values + b_rank, b_x - peak - log_sum, mask=m_k)
        tl.store(p_ids + b_rank, b_id.to(tl.int64), mask=m_k)
    else:
        tl.store(p_values + o_k, -float("inf"), mask=m_k)
        tl.store(p_ids + o_k, -1, mask=m_k)


def _rows(logits: Tensor) -> Tensor:
    return logits if logits.stride(1) == 1 else logits.contiguous()


def sample(logits: Tensor, params: SampleParams) -> tuple[Tensor, Tensor]:
    logits = _rows(logits)
    rows, device = len(logits), logits.device
    tokens = torch.empty(rows, dtype=torch.int64, device=device)
    logprobs = torch.empty(rows, dtype=torch.float32, device=device)
    if rows:
        found = scan(logits, params)
        knobs = params.temperature, params.top_k, params.top_p, params.min_p
        # A search's 16 sums an element take 32 registers of 8 warps: two rows a multiprocessor.
        _draw_kernel[(rows,)](
            logits,
            logits.stride(0),
            found.x,
            found.x.stride(0),
            found.parts,
            found.maxima,
            found.listed,
            tokens,
            logprobs,
            *(each.contiguous() for each in (*knobs, params.seed, params.position)),
            **found.sizes(),
            BLOCKS=triton.next_power_of_2(found.parts.shape[2]),
            BLOCK=BLOCK,
            GROUP=GROUP,
            TILE=_TILE,
            num_warps=8,
        )
    return tokens, logprobs


def top_logprobs(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if k > _MOST:
        return top_logprobs_reference(logits, k)
    logits = _rows(logits)
    rows, device = len(logits), logits.device
    values = torch.empty(rows, k, dtype=torch.float32, device=device)
    ids = torch.empty(rows, k, dtype=torch.int64, device=device)
    if rows:
        found = scan(logits, None)
        _top_kernel[(rows,)](
            logits,
            logits.stride(0),
            found.parts,
            found.maxima,
            found.listed,
            values,
            ids,
            k,
            **found.sizes(),
            K=triton.next_power_of_2(k),
            BLOCKS=triton.next_power_of_2(found.parts.shape[2]),
            GROUP=GROUP,
            TILE=_TILE,
            num_warps=8,
        )
    return values, ids
