"""Attention over packed sequences for training: block-diagonal, causal, with shared prefixes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels.checks import FLOATS, expect
from kernels.dispatch import has_backend, implementation


@dataclass(frozen=True, eq=False)
class Segments:
    """How the tokens of a pack fall into sequences.

    Args:
        cu_seqlens: `[S+1]` int32, contiguous; segment s holds tokens `cu_seqlens[s]` to
            `cu_seqlens[s+1] - 1`.
        prefix: `[S]` int32, contiguous, same device; segment s continues segment `prefix[s]` (an
            earlier one, itself without a prefix) and sees all of its tokens; -1 for none.

    Raises:
        ValueError: the tensors do not describe a pack (contents are checked on the CPU only, where
            looking at them is free).
    """

    cu_seqlens: Tensor
    prefix: Tensor

    def __post_init__(self) -> None:
        expect("prefix", self.prefix, ("S",), (torch.int32,))
        bounds, device = (len(self.prefix) + 1,), self.prefix.device
        expect("cu_seqlens", self.cu_seqlens, bounds, (torch.int32,), device)
        for name, x in (("prefix", self.prefix), ("cu_seqlens", self.cu_seqlens)):
            if not x.is_contiguous():
                raise ValueError(f"{name}: must be contiguous, got stride {x.stride(0)}")
        if self.prefix.device.type == "cpu":
            self._check_contents()

    def _check_contents(self) -> None:
        cu, prefix = self.cu_seqlens.tolist(), self.prefix.tolist()
        if cu[0] != 0 or cu != sorted(cu):
            raise ValueError(f"cu_seqlens: must rise from 0, got {cu}")
        for s, p in enumerate(prefix):
            if p != -1 and not (0 <= p < s and prefix[p] == -1):
                raise ValueError(
                    f"prefix: segment {s} cannot continue segment {p}; it must be an earlier "
                    "segment that has no prefix of its own"
                )

    def to(self, device: torch.device | str) -> Segments:
        """The same segments on `device`."""
        return Segments(self.cu_seqlens.to(device), self.prefix.to(device))


def attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, window: int | None = None
) -> Tensor:
    """Softmax attention within each segment and over its prefix, differentiable in q, k and v.

    Args:
        q: `[T, H, D]`, T the tokens of all segments; may be a strided view (of a fused qkv tensor).
        k: `[T, Hkv, D]`, same dtype; query head h reads KV head `h // (H / Hkv)`.
        v: `[T, Hkv, D]`, same dtype.
        segments: the pack's sequences and prefixes, on the same device.
        scale: factor on the dot products, usually `1 / sqrt(D)`.
        window: a query sees only the last `window` positions up to its own, counted over prefix
            and own tokens; None for all.

    Returns:
        `[T, H, D]`, dtype of `q`. Sums are in fp32 (float64 for float64).

    Raises:
        ValueError: shapes, dtypes, devices or segments do not fit.
    """
    _check(q, k, v, segments, scale, window)
    if has_backend("attention", q):
        return _Attention.apply(q, k, v, segments, scale, window)
    return implementation("attention", q)(q, k, v, segments, scale, window)[0]


def _check(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, window: int | None
) -> None:
    expect("q", q, ("T", "H", "D"), FLOATS)
    tokens, heads, dim = q.shape
    expect("k", k, (tokens, "Hkv", dim), (q.dtype,), q.device)
    expect("v", v, k.shape, (q.dtype,), q.device)
    if k.shape[1] == 0 or heads % k.shape[1]:
        raise ValueError(f"k: {k.shape[1]} heads do not divide q's {heads}")
    if window is not None and window < 1:
        raise ValueError(f"window: must be at least 1, got {window}")
    if not scale > 0:
        raise ValueError(f"scale: must be positive, got {scale}")
    cu_seqlens = segments.cu_seqlens
    if cu_seqlens.device != q.device:
        raise ValueError(f"segments: on {cu_seqlens.device}, q on {q.device}")
    if q.device.type == "cpu" and int(cu_seqlens[-1]) != tokens:
        raise ValueError(f"segments: {int(cu_seqlens[-1])} tokens, but q has {tokens}")


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        segments: Segments,
        scale: float,
        window: int | None,
    ) -> Tensor:
        out, lse = implementation("attention", q)(q, k, v, segments, scale, window)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.segments, ctx.scale, ctx.window = segments, scale, window
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        backward = implementation("attention_backward", q)
        dq, dk, dv = backward(grad, q, k, v, out, lse, ctx.segments, ctx.scale, ctx.window)
        return dq, dk, dv, None, None, None


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """The specification of `attention`: (out, lse).

    lse `[T, H]`, fp32 or float64: the natural logarithm of the sum of each row's exponentials.
    """
    out, lse = torch.zeros_like(q), q.new_zeros(q.shape[:2], dtype=_wide(q.dtype))
    outs, lses = [out[:0]], [lse[:0]]
    cu_seqlens = segments.cu_seqlens.tolist()
    for s, p in enumerate(segments.prefix.tolist()):
        own = slice(cu_seqlens[s], cu_seqlens[s + 1])
        before = slice(cu_seqlens[p], cu_seqlens[p + 1]) if p >= 0 else slice(0, 0)
        keys, values = torch.cat([k[before], k[own]]), torch.cat([v[before], v[own]])
        out, lse = _causal(q[own], keys, values, scale, window)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs), torch.cat(lses)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _causal(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """Queries `[L, H, D]` at the last L of the `[P, Hkv, D]` keys' positions."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q.to(_wide(q.dtype)), k.to(_wide(q.dtype))) * scale
    key = torch.arange(len(k), device=q.device)
    distance = key[len(k) - len(q) :, None] - key
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    scores = scores.masked_fill(hidden, -torch.inf)
    out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v.to(scores.dtype))
    return out.to(q.dtype), scores.logsumexp(-1).T
