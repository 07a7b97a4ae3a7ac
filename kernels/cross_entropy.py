"""Output head and cross-entropy in one op, without ever holding all logits.

The head is frozen, so only the gradient of the hidden states is needed: it is computed beside the
loss, chunk by chunk, and each chunk's logits become their own gradient in place (the idea of Liger
Kernel, arXiv 2410.10989, without its weight gradient and with chunks sized by memory).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.checks import FLOATS, expect, expect_frozen
from kernels.dispatch import implementation

IGNORED = -100
_CPU_CHUNK = 32 << 20, 256  # bytes of logits; least rows, or the matrix products starve
_GPU_CHUNK = 512 << 20, 1024


def _chunk_rows(hidden: Tensor, vocab: int) -> int:
    """Rows of a chunk: as many as the device's budget of logits holds.

    On a GPU at T = 8192, D = 4096, V = 128,256 in bf16 that is 2,093 rows: 512 MiB of logits, 32
    MiB for their hidden states and these states' gradient, and 64 MiB for the gradient of all: 608
    MiB. F.cross_entropy on fp32 copies holds at least 12 bytes a logit (log-softmax, its gradient
    and that of the logits, each in fp32), 11.7 GiB: 20 times as much.
    """
    budget, least = _CPU_CHUNK if hidden.device.type == "cpu" else _GPU_CHUNK
    return max(least, budget // (vocab * hidden.element_size()))


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    *,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted sum of the tokens' cross-entropies, differentiable in `hidden`.

    Args:
        hidden: `[T, D]`; the logits are rounded to its dtype, all that follows is in fp32.
        weight: `[V, D]`, the output head, same dtype, frozen.
        targets: `[T]` int64; rows with -100 are ignored and cost nothing.
        weights: `[T]` factor of each token's loss, in floats, frozen; None for 1.
        label_smoothing: share of the target mass spread evenly over the vocabulary, in [0, 1].
        rows: `[R]` int64, ascending, all rows that are not ignored. None finds them, for which a
            GPU is waited for.

    Returns:
        The sum of the losses in nats (scalar, fp32; float64 for float64), and `[T]` of the same
        dtype the targets' log-probabilities, 0 where ignored, which carry no gradient.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, `weight` or `weights` wants a gradient, or
            (checked on the CPU only, where looking is free) a target is neither -100 nor a row of
            `weight`, or `rows` are others than those not ignored.
    """
    expect("hidden", hidden, ("T", "D"), FLOATS)
    tokens, device = hidden.shape[:1], hidden.device
    expect("weight", weight, ("V", hidden.shape[1]), (hidden.dtype,), device)
    expect_frozen("weight", weight)
    expect("targets", targets, tokens, (torch.int64,), device)
    if targets.device.type == "cpu" and _outside(targets, len(weight)):
        raise ValueError(f"targets: must be {IGNORED} or in 0..{len(weight) - 1}")
    if weights is not None:
        expect("weights", weights, tokens, FLOATS, device)
        expect_frozen("weights", weights)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing: must be in [0, 1], got {label_smoothing}")
    if rows is None:
        rows = _kept(targets)
    else:
        expect("rows", rows, ("R",), (torch.int64,), device)
        if device.type == "cpu" and not torch.equal(rows, _kept(targets)):
            raise ValueError(f"rows: must be those whose target is not {IGNORED}, ascending")
    return _LinearCrossEntropy.apply(hidden, weight, targets, weights, label_smoothing, rows)


def _kept(targets: Tensor) -> Tensor:
    return (targets != IGNORED).nonzero().squeeze(1)


def _outside(targets: Tensor, vocab: int) -> bool:
    """Whether some target is neither ignored nor an id."""
    return bool(((targets != IGNORED) & ((targets < 0) | (targets >= vocab))).any())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        label_smoothing: float,
        kept: Tensor,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        gradient = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        one_chunk = implementation("cross_entropy_chunk", hidden)
        size = _chunk_rows(hidden, len(weight))
        buffer = hidden.new_empty(min(size, len(kept)), len(weight))
        factors = None if weights is None else weights[kept].to(wide).split(size)
        found: list[tuple[Tensor, Tensor]] = []  # each chunk's losses and log-probabilities
        for i, (rows, chosen) in enumerate(
            zip(kept.split(size), targets[kept].split(size), strict=True)
        ):
            logits = torch.mm(hidden[rows], weight.T, out=buffer[: len(rows)])
            factor = None if factors is None else factors[i]
            found.append(one_chunk(logits, chosen, factor, label_smoothing, gradient is not None))
            if gradient is not None:
                gradient.index_copy_(0, rows, logits @ weight)
        losses, chosen_logprobs = (torch.cat(parts) for parts in zip(*found, strict=True))
        logprobs = torch.zeros(targets.shape, dtype=wide, device=hidden.device)
        logprobs.index_copy_(0, kept, chosen_logprobs)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(logprobs)
        return losses.sum(), logprobs

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None, None, None, None  # a scalar: fp32 factor, dtype kept


def cross_entropy_chunk_reference(
    logits: Tensor, targets: Tensor, weights: Tensor | None, label_smoothing: float, grad: bool
) -> tuple[Tensor, Tensor]:
    """Losses and target log-probabilities, `[R]` each, of one chunk's logits `[R, V]`.

    With `grad` the logits are replaced by the gradient of the losses' sum; else they are scratch.
    """
    logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    chosen = logprobs.gather(1, targets[:, None]).squeeze(1)
    losses = -(1 - label_smoothing) * chosen - label_smoothing * logprobs.mean(-1)
    if grad:
        change = logprobs.exp_().sub_(label_smoothing / logits.shape[1])
        change.scatter_add_(
            1, targets[:, None], chosen.new_full((len(chosen), 1), label_smoothing - 1)
        )
        logits.copy_(change if weights is None else change.mul_(weights[:, None]))
    return losses if weights is None else losses * weights, chosen


def linear_cross_entropy_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The specification of `linear_cross_entropy`."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    logprobs = (hidden @ weight.T).to(wide).log_softmax(-1)
    kept = targets != IGNORED
    chosen = logprobs.gather(1, targets.clamp_min(0)[:, None]).squeeze(1)
    losses = F.cross_entropy(
        logprobs, targets, reduction="none", label_smoothing=label_smoothing, ignore_index=IGNORED
    )
    loss = (losses if weights is None else losses * weights).sum()
    return loss, torch.where(kept, chosen.detach(), 0.0)
