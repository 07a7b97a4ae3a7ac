"""Attention over a paged KV cache: prefill, chunked prefill and decode in one op."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.checks import FLOATS, expect
from kernels.dispatch import implementation

QUANTISED = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""Dtypes of a quantised cache, and the largest value that each holds."""


def store_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Writes row `t` of `k` and `v` to block `slots[t] // bs`, offset `slots[t] % bs`.

    Given scales, it quantises: each token's head gets the scale `absmax / 127` (int8) or
    `absmax / 448` (e4m3), and its values divided by that, rounded to the nearest, ties to even.

    Args:
        k: `[T, Hkv, D]`; may be a strided view, last dimension contiguous.
        v: shape and dtype of `k`.
        k_cache: `[B, bs, Hkv, D]`, dtype of `k`, or int8 or float8_e4m3fn with scales; each block
            contiguous.
        v_cache: shape and dtype of `k_cache`.
        slots: `[T]` int32, each in `0..B*bs-1`, no two alike.
        k_scale: `[B, bs, Hkv]` fp32, each block contiguous: written where `k_cache` is. None for a
            cache that is not quantised.
        v_scale: the same of `v_cache`.

    Raises:
        ValueError: shapes, dtypes, devices or layouts do not fit, or a slot lies outside the cache
            (CPU).

    Source: Kwon et al. 2023, arXiv 2309.06180.
    """
    expect("k", k, ("T", "Hkv", "D"), FLOATS)
    expect("v", v, k.shape, (k.dtype,), k.device)
    expect("slots", slots, k.shape[:1], (torch.int32,), k.device)
    _check_caches(k_cache, v_cache, k_scale, v_scale, k, k.shape[1])
    implementation("store_kv", k)(k, v, k_cache, v_cache, slots, k_scale, v_scale)


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    scale: float,
    window: int | None = None,
    *,
    shared_blocks: int = 0,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    """Causal attention of each sequence's newest tokens to all its tokens in the cache.

    Rows `cu_seqlens_q[s]..cu_seqlens_q[s+1]` of `q` are the last tokens of sequence `s`: row `i` of
    `n` stands at position `seq_lens[s] - n + i`, its own K and V already stored, and sees the
    positions up to its own. On the CPU backend a row's result depends, to the last bit, only on
    its own query and the keys and values it sees, not on how its sequence was chunked. On Triton it
    depends on its sequence's other queries as well, and with `shared_blocks` on the whole batch,
    within rounding.

    Args:
        q: `[T, H, D]`, H a multiple of Hkv; may be a strided view, last dimension contiguous.
        k_cache: `[B, bs, Hkv, D]`, dtype of `q`, or int8 or float8_e4m3fn with scales; each block
            contiguous.
        v_cache: shape and dtype of `k_cache`.
        cu_seqlens_q: `[S+1]` int32, from 0 to T, not decreasing.
        seq_lens: `[S]` int32: tokens of each sequence in the cache, the queries' included.
        block_table: `[S, M]` int32: position `p` of sequence `s` lies in block
            `block_table[s, p // bs]` at offset `p % bs`.
        scale: factor of the scores, positive, usually `D ** -0.5`.
        window: a query at position `p` sees only `p - window + 1..p`; None for all.
        shared_blocks: a promise that the first so many entries of every row of `block_table` are
            the same, which lets a GPU read them once for all sequences. Not checked.
        k_scale: `[B, bs, Hkv]` fp32, each block contiguous, as `store_kv` wrote them: the keys are
            `k_cache * k_scale[..., None]`. None for a cache that is not quantised.
        v_scale: the same of `v_cache`.

    Returns:
        `[T, H, D]`, contiguous, dtype of `q`.

    Raises:
        ValueError: shapes, dtypes, devices or layouts do not fit, or (CPU) lengths or blocks out of
            range.

    Source: Kwon et al. 2023, arXiv 2309.06180; online softmax of arXiv 1805.02867; splits of the
    keys merged by log-sum-exp as in arXiv 2311.01282, shared prefixes as in arXiv 2402.05099.
    """
    expect("q", q, ("T", "H", "D"), FLOATS)
    _check_caches(k_cache, v_cache, k_scale, v_scale, q, "Hkv")
    if k_cache.shape[2] == 0 or q.shape[1] % k_cache.shape[2]:
        raise ValueError(f"q: {q.shape[1]} heads are no multiple of k_cache's {k_cache.shape[2]}")
    expect("seq_lens", seq_lens, ("S",), (torch.int32,), q.device)
    sequences = len(seq_lens)
    expect("cu_seqlens_q", cu_seqlens_q, (sequences + 1,), (torch.int32,), q.device)
    expect("block_table", block_table, (sequences, "M"), (torch.int32,), q.device)
    if window is not None and window < 1:
        raise ValueError(f"window: expected at least 1 or None, got {window}")
    if not scale > 0:
        raise ValueError(f"scale: must be positive, got {scale}")
    if not 0 <= shared_blocks <= block_table.shape[1]:
        raise ValueError(
            f"shared_blocks: expected 0..{block_table.shape[1]}, the width of block_table, "
            f"got {shared_blocks}"
        )
    caches = q, k_cache, v_cache
    layout = cu_seqlens_q, seq_lens, block_table
    options = scale, window, shared_blocks, k_scale, v_scale
    return implementation("paged_attention", q)(*caches, *layout, *options)


def store_kv_reference(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """The specification of `store_kv`."""
    at = slots.long() // k_cache.shape[1], slots.long() % k_cache.shape[1]
    for x, cache, scale in ((k, k_cache, k_scale), (v, v_cache, v_scale)):
        if scale is None:
            cache[at] = x
        else:
            cache[at], scale[at] = _quantise(x, cache.dtype)


def _quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x `[T, Hkv, D]` as values of `dtype`, and their scales `[T, Hkv]`."""
    x, largest = x.float(), QUANTISED[dtype]
    scale = x.abs().amax(-1) / largest
    x = (x / torch.where(scale > 0, scale, 1.0)[..., None]).clamp(-largest, largest)
    return (x.round() if dtype == torch.int8 else x).to(dtype), scale


def paged_attention_reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    scale: float,
    window: int | None = None,
    shared_blocks: int = 0,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    """The specification of `paged_attention`; there is nothing to gain from `shared_blocks`."""
    bounds, out, bs = cu_seqlens_q.tolist(), torch.empty_like(q), k_cache.shape[1]
    if k_scale is not None and v_scale is not None:
        k_cache, v_cache = (
            k_cache.float() * k_scale[..., None],
            v_cache.float() * v_scale[..., None],
        )
    for s, length in enumerate(seq_lens.tolist()):
        rows = slice(bounds[s], bounds[s + 1])
        blocks = block_table[s, : -(-length // bs)].long()
        keys, values = (c[blocks].flatten(0, 1)[:length] for c in (k_cache, v_cache))
        out[rows] = _attend(q[rows], keys, values, scale, window)
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """q `[n, H, D]`: the last n positions of k, v `[N, Hkv, D]`."""
    wide = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // k.shape[1]
    q, k, v = q.to(wide), *(x.to(wide).repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("nhd,mhd->hnm", q, k) * scale
    n, m = scores.shape[1:]
    behind = torch.arange(m - n, m, device=q.device)[:, None] - torch.arange(m, device=q.device)
    hidden = behind < 0 if window is None else (behind < 0) | (behind >= window)
    return torch.einsum("hnm,mhd->nhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


def _check_caches(
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    x: Tensor,
    heads: int | str,
) -> None:
    """x `[T, ..., D]`: of the dtype of a cache that is not quantised."""
    device, shape = x.device, ("B", "bs", heads, x.shape[2])
    expect("k_cache", k_cache, shape, (x.dtype,) if k_scale is None else (*QUANTISED,), device)
    expect("v_cache", v_cache, k_cache.shape, (k_cache.dtype,), device)
    _check_blocks("k_cache", k_cache)
    _check_blocks("v_cache", v_cache)
    if k_scale is None or v_scale is None:
        if k_scale is not v_scale:
            raise ValueError("v_scale: expected with k_scale, and not without")
        return
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        expect(name, scale, k_cache.shape[:3], (torch.float32,), device)
        _check_blocks(name, scale)


def _check_blocks(name: str, x: Tensor) -> None:
    if not (x.is_contiguous() or x[:1].is_contiguous()):
        raise ValueError(f"{name}: each block must be contiguous, got strides {x.stride()}")
