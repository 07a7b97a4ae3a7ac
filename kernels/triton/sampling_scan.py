"""The sampler's first launch: every row is read once, a program for each block of tokens.

So a single row keeps many multiprocessors busy. The lists (bias, penalties, allowed ids) are
applied here; what is left are maxima and sums of each block, and maxima of each group of tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.sampling import SampleParams

BLOCK = 4096  # tokens; the same for any batch, so that sums are too
GROUP = 64  # tokens; 50 candidates of top_k lie in at most 50 groups, 12.8 KB
_LOG2E = tl.constexpr(1.4426950408889634)
_LIST = 256  # ids a step


@triton.jit
def _listed(p_x, o, m, p_ids, begin, end, first, stop, COUNT: tl.constexpr, LIST: tl.constexpr):
    """Of each of the tokens o, this program's own from `first` to `stop`, how often it is listed;
    1 for at all without COUNT. Overwrites their part of p_x."""
    tl.store(p_x + o, 0.0, mask=m)
    tl.debug_barrier()
    for at in range(begin, end, LIST):
        o_l = at + tl.arange(0, LIST)
        b_id = tl.load(p_ids + o_l, mask=o_l < end, other=-1)
        m_id = (b_id >= first) & (b_id < stop)
        if COUNT:  # whole numbers: their sum is exact in any order
            tl.atomic_add(p_x + b_id, 1.0, mask=m_id, sem="relaxed", scope="cta")
        else:
            tl.store(p_x + b_id, 1.0, mask=m_id)
    tl.debug_barrier()
    b_count = tl.load(p_x + o, mask=m, other=0.0)
    tl.debug_barrier()
    return b_count


@triton.jit
def _biased(p_row, p_x, b_x, o, m, p_ids, p_values, begin, end, first, stop, LIST: tl.constexpr):
    """The logits b_x of the tokens o with their biases. Overwrites their part of p_x."""
    tl.store(p_x + o, b_x, mask=m)
    tl.debug_barrier()
    for at in range(begin, end, LIST):
        o_l = at + tl.arange(0, LIST)
        b_id = tl.load(p_ids + o_l, mask=o_l < end, other=-1)
        m_id = (b_id >= first) & (b_id < stop)
        b_sum = tl.load(p_row + b_id, mask=m_id) + tl.load(p_values + o_l, mask=m_id)
        tl.store(p_x + b_id, b_sum, mask=m_id)
    tl.debug_barrier()
    b_x = tl.load(p_x + o, mask=m, other=-float("inf"))
    tl.debug_barrier()
    return b_x


@triton.jit
def draw_scale(temperature):
    """What differences of logits are multiplied by; greedy rows may have any."""
    return _LOG2E / tl.where(temperature == 0, 1.0, tl.maximum(temperature, 1e-30))


@triton.jit
def _store_part(p_part, b_x, scale, blocks):
    """Stores the largest of b_x, and `blocks` further the sum of its weights relative to it."""
    top = tl.max(tl.max(b_x, axis=1), axis=0)
    pivot = tl.where(top == -float("inf"), 0.0, top)
    tl.store(p_part, top)
    tl.store(p_part + blocks, tl.sum(tl.sum(tl.exp2((b_x - pivot) * scale), axis=1), axis=0))


@triton.jit
def _scan_kernel(
    p_logits,
    stride,
    p_x,
    p_parts,
    p_maxima,
    p_temperature,
    p_penalty,
    p_frequency,
    p_presence,
    p_bias_at,
    p_bias_ids,
    p_bias,
    p_seen_at,
    p_seen,
    p_generated_at,
    p_generated,
    p_allowed_at,
    p_allowed,
    vocab,
    blocks,
    groups,
    DRAW: tl.constexpr,
    BIAS: tl.constexpr,
    SEEN: tl.constexpr,
    GENERATED: tl.constexpr,
    ALLOWED: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    LIST: tl.constexpr,
):
    i_r, i_b = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first = i_b * BLOCK
    stop = tl.minimum(first + BLOCK, vocab)
    p_row, p_x = p_logits + i_r * stride, p_x + i_r * vocab
    p_part = p_parts + i_r * 4 * blocks + i_b
    o_g = tl.arange(0, BLOCK // GROUP)
    o = first + o_g[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    m = o < vocab
    # [BLOCK // GROUP, GROUP]
    b_x = tl.load(p_row + o, mask=m, other=-float("inf"))
    _store_part(p_part, b_x, _LOG2E, blocks)
    if BIAS:
        begin, end = tl.load(p_bias_at + i_r), tl.load(p_bias_at + i_r + 1)
        if begin < end:
            b_x = _biased(p_row, p_x, b_x, o, m, p_bias_ids, p_bias, begin, end, first, stop, LIST)
    if SEEN:
        begin, end = tl.load(p_seen_at + i_r), tl.load(p_seen_at + i_r + 1)
        penalty = tl.load(p_penalty + i_r)
        if (begin < end) & (penalty != 1.0):
            b_seen = _listed(p_x, o, m, p_seen, begin, end, first, stop, False, LIST) > 0
            b_x = tl.where(b_seen, tl.where(b_x > 0, b_x / penalty, b_x * penalty), b_x)
    if GENERATED:
        begin, end = tl.load(p_generated_at + i_r), tl.load(p_generated_at + i_r + 1)
        frequency, presence = tl.load(p_frequency + i_r), tl.load(p_presence + i_r)
        if (begin < end) & ((frequency != 0.0) | (presence != 0.0)):
            b_count = _listed(p_x, o, m, p_generated, begin, end, first, stop, True, LIST)
            b_x -= tl.where(b_count > 0, frequency * b_count + presence, 0.0)
    if DRAW:
        spoilt = tl.sum(tl.sum((b_x < float("inf")).to(tl.int32) ^ 1, axis=1), axis=0) > 0
        if ALLOWED:
            begin, end = tl.load(p_allowed_at + i_r), tl.load(p_allowed_at + i_r + 1)
            if begin < end:
                b_allowed = _listed(p_x, o, m, p_allowed, begin, end, first, stop, False, LIST)
                b_x = tl.where(b_allowed > 0, b_x, -float("inf"))
        scale = draw_scale(tl.load(p_temperature + i_r))
        _store_part(p_part + 2 * blocks, b_x, scale, blocks)
        if spoilt:
            tl.store(p_part + 3 * blocks, float("nan"))
    if BIAS or SEEN or GENERATED or ALLOWED:
        tl.store(p_x + o, b_x, mask=m)
    o_g += i_b * (BLOCK // GROUP)
    tl.store(p_maxima + i_r * groups + o_g, tl.max(b_x, axis=1), mask=o_g < groups)


class Scanned(NamedTuple):
    """What the first launch leaves.

    Attributes:
        x: `[R, V]` the logits with the lists applied.
        parts: `[R, 4, blocks]` of each block the largest logit, the sum of exp relative to it, and
            the same two of x, exp at the row's temperature; NaN where a row cannot be drawn from.
        maxima: `[R, groups]` of x.
        listed: `[R, groups]` int32, room for a list of groups.
    """

    x: Tensor
    parts: Tensor
    maxima: Tensor
    listed: Tensor

    def sizes(self) -> dict[str, int]:
        blocks, groups = self.parts.shape[2], self.maxima.shape[1]
        return {"vocab": self.x.shape[1], "blocks": blocks, "groups": groups}


def scan(logits: Tensor, params: SampleParams | None) -> Scanned:
    """The first launch; without `params` the logits are x, and only their parts are filled."""
    (rows, vocab), device = logits.shape, logits.device
    blocks, groups = triton.cdiv(vocab, BLOCK), triton.cdiv(vocab, GROUP)
    knobs: list[Tensor] = [logits] * 13
    has = {"BIAS": False, "SEEN": False, "GENERATED": False, "ALLOWED": False}
    if params is not None:
        lists = [getattr(params, name.lower()) for name in has]
        has = {name: len(each.ids) > 0 for name, each in zip(has, lists, strict=True)}
        columns = [params.temperature, params.repetition_penalty]
        columns += [params.frequency_penalty, params.presence_penalty]
        columns += [part for each in lists for part in vars(each).values()]
        knobs = [column.contiguous() for column in columns]
    found = Scanned(
        torch.empty(rows, vocab, dtype=logits.dtype, device=device)
        if any(has.values())
        else logits,
        torch.empty(rows, 4, blocks, dtype=torch.float32, device=device),
        torch.empty(rows, groups, dtype=torch.float32, device=device),
        torch.empty(rows, groups, dtype=torch.int32, device=device),
    )
    # 32 elements a thread, all loaded at once; 16 such programs fill a multiprocessor.
    _scan_kernel[rows, blocks](
        logits,
        logits.stride(0),
        found.x,
        found.parts,
        found.maxima,
        *knobs,
        **found.sizes(),
        DRAW=params is not None,
        **has,
        BLOCK=BLOCK,
        GROUP=GROUP,
        LIST=_LIST,
        num_warps=4,
    )
    return found
