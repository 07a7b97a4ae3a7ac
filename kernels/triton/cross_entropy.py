"""Loss and gradient of a chunk of logits: one program a row, which it reads twice, in place."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2E = tl.constexpr(1.4426950408889634)
_LONG_ROW = 1 << 17  # bytes


@triton.jit
def _cross_entropy_kernel(
    p_logits,
    p_targets,
    p_weights,
    p_losses,
    p_logprobs,
    vocab,
    smoothing,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    SMOOTH: tl.constexpr,
    WEIGHTED: tl.constexpr,
    GRAD: tl.constexpr,
    STAGES: tl.constexpr,
):
    i_r = tl.program_id(0).to(tl.int64)
    p_row = p_logits + i_r * vocab
    # [LANES, WIDTH]; a thread holds whole lanes, so that nothing crosses threads within the loops
    o = tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    target = tl.load(p_targets + i_r).to(tl.int32)
    chosen = tl.load(p_row + target).to(tl.float32)
    # [LANES]
    b_top = tl.full([LANES], -1.0e38, tl.float32)
    b_mass = tl.zeros([LANES], tl.float32)
    b_total = tl.zeros([LANES], tl.float32)
    for begin in tl.range(0, vocab, LANES * WIDTH, num_stages=STAGES):
        m = begin + o < vocab
        b_x = tl.load(
            p_row + begin + o, mask=m, other=-float("inf"), eviction_policy="evict_last"
        ).to(tl.float32)
        b_new = tl.maximum(b_top, tl.max(b_x, axis=1))
        b_part = tl.sum(tl.exp2((b_x - b_new[:, None]) * _LOG2E), axis=1)
        b_mass = b_mass * tl.exp2((b_top - b_new) * _LOG2E) + b_part
        b_top = b_new
        if SMOOTH:
            b_total += tl.sum(tl.where(m, b_x, 0.0), axis=1)
    top = tl.max(b_top, axis=0)
    lse = top + tl.log(tl.sum(b_mass * tl.exp2((b_top - top) * _LOG2E), axis=0))
    logprob = chosen - lse
    loss = -(1 - smoothing) * logprob
    if SMOOTH:
        loss -= smoothing * (tl.sum(b_total, axis=0) / vocab - lse)
    weight = 1.0
    if WEIGHTED:
        weight = tl.load(p_weights + i_r)
    tl.store(p_losses + i_r, loss * weight)
    tl.store(p_logprobs + i_r, logprob)
    if GRAD:
        even = smoothing / vocab
        for begin in tl.range(0, vocab, LANES * WIDTH, num_stages=STAGES):
            m = begin + o < vocab
            b_x = tl.load(p_row + begin + o, mask=m, other=0.0, eviction_policy="evict_first")
            b_p = tl.exp2((b_x.to(tl.float32) - lse) * _LOG2E)
            if SMOOTH:
                b_p -= even
            b_p = tl.where(begin + o == target, b_p - (1 - smoothing), b_p) * weight
            tl.store(p_row + begin + o, b_p.to(p_logits.dtype.element_ty), mask=m)


def cross_entropy_chunk(
    logits: Tensor, targets: Tensor, weights: Tensor | None, label_smoothing: float, grad: bool
) -> tuple[Tensor, Tensor]:
    rows, vocab = logits.shape
    losses, logprobs = (
        torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(2)
    )
    if rows:
        # Every thread moves 16 bytes a step, three steps in flight. A row is read again for its
        # gradient, and should still be in L2: a multiprocessor's registers hold the threads of one
        # long row or of two others, which makes up to 34 MB on an H100.
        size = logits.element_size()
        warps = 32 if vocab * size > _LONG_ROW else 16
        _cross_entropy_kernel[(rows,)](
            logits,
            targets,
            logits if weights is None else weights,
            losses,
            logprobs,
            vocab,
            label_smoothing,
            LANES=32 * warps,
            WIDTH=16 // size,
            SMOOTH=label_smoothing > 0,
            WEIGHTED=weights is not None,
            GRAD=grad,
            STAGES=4,
            num_warps=warps,
        )
    return losses, logprobs
