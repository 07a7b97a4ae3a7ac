"""Launches attention over a paged cache.

Sequences of few queries (whose rows fit the tile of a decode step) have their keys divided among
programs, always at multiples of SPLIT, so that what a row gets does not depend on the batch. Those
of more queries bring enough tiles of their own. Which is which depends on the sequence alone, and
is found out on the GPU: the grids have room for either.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kernels.rows import contiguous_rows
from kernels.triton.paged_cascade import prefix_kernel
from kernels.triton.paged_decode import merge_kernel, split_kernel
from kernels.triton.paged_prefill import tile_kernel
from kernels.triton.paged_tile import Cache, Queries
from kernels.triton.target import arch, shared_bytes

SPLIT = 256
"""Keys that one program of a decode step reads. A sequence of 1,024 tokens and 8 KV heads is 32
programs. A partial result in fp32 is (query heads per KV head) / SPLIT of the 16-bit keys and
values that it stands for, written once and read once."""
_WORTH_SHARING = 16 << 20
"""Bytes that reading a prefix once must save: an H100 reads them in the 5 us of one more launch."""
_LOG2E = 1.4426950408889634


class _Tiles(NamedTuple):
    """A program's rows and keys at a time, its warps, and the depth of its pipeline."""

    BLOCK_M: int
    BLOCK_N: int
    num_warps: int
    num_stages: int


def _few_rows(group: int, dim: int, cache: torch.dtype, dtype: torch.dtype) -> _Tiles:
    """For decode, which waits for memory: the rows are padded to the 16 of a tensor core's tile.

    Blocks are found through the table, so 5 stages are what it takes to have two tiles of keys and
    values under way (3: one). In 16 bits and with D = 128 those are 64 KiB: three programs on an
    H100, two on an A100. On cards with 100 KiB, two programs with one tile each do better by that.

    With D <= 64 and a quantised cache the compiler aims at so many programs that 4 warps have too
    few registers to widen its tiles in.
    """
    rows = max(16, triton.next_power_of_2(group))
    if dtype == torch.float32:
        return _Tiles(rows, 32 if dim <= 128 else 16, 8, 1)
    warps = 8 if cache != dtype and dim <= 64 else 4
    return _Tiles(rows, 64 if dim <= 128 else 32, warps, 3 if shared_bytes() < 160_000 else 5)


def _many_rows(dim: int, cache: torch.dtype, dtype: torch.dtype) -> _Tiles:
    """For prefill, which waits for tensor cores: as many rows as leave the registers unspilled.

    wgmma (compute capability 9.0) takes its operands from shared memory; mma.sync holds them in
    registers, as does the widening of a quantised cache, so there tiles are smaller, or fewer under
    way. fp32 has no tensor cores.
    """
    if dtype == torch.float32:
        return _Tiles(16, 32 if dim <= 64 else 16, 8 if dim > 64 else 4, 1)
    if dim > 128:
        return _Tiles(64, 32, 8, 2)
    if arch() != 90:
        return _Tiles(64, 64, 8, 3) if cache != dtype and dim > 64 else _Tiles(128, 32, 8, 3)
    return _Tiles(128, 64, 8, 5 if cache == dtype else 3)


def paged_attention(
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
    q = contiguous_rows(q)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if out.numel() == 0:
        return out
    tokens, dim, sequences = len(q), q.shape[2], len(seq_lens)
    group = q.shape[1] // k_cache.shape[2]
    table = contiguous_rows(block_table)
    tiles = dim, k_cache.dtype, q.dtype
    few, many = _few_rows(group, *tiles), _many_rows(*tiles)
    decode = tokens == sequences  # then each token is worked on by itself
    inputs = (
        *(Queries(q, *q.stride()[:2]), Cache.of(k_cache, v_cache, k_scale, v_scale)),
        *(cu_seqlens_q.contiguous(), seq_lens.contiguous(), table, table.stride(0)),
        *(sequences, scale * _LOG2E, window or 0),
    )
    options = {
        "HKV": k_cache.shape[2],
        "GROUP": group,
        "D": dim,
        "BS": k_cache.shape[1],
        "PER": 1 if decode else max(1, few.BLOCK_M // group),
        "BLOCK_D": max(16, triton.next_power_of_2(dim)),
        "WINDOW": int(window is not None),
        "NATIVE_FP8": arch() >= 89,
    }
    if not decode:
        grid = tokens * group // many.BLOCK_M + sequences, k_cache.shape[2]
        tile_kernel[grid](*inputs, out, **options, **many._asdict())
    multiple = max(few.BLOCK_N, many.BLOCK_N)  # both go over the keys by tiles of their own
    shared = _worth_sharing(k_cache, sequences, shared_blocks, multiple)
    _split(inputs, out, table.shape[1], shared, options | {"TOKENS": decode}, few, many)
    return out


def _split(
    inputs: tuple[Any, ...],
    out: Tensor,
    blocks: int,
    shared: int,
    options: dict[str, Any],
    few: _Tiles,
    many: _Tiles,
) -> None:
    """Sequences of few queries: the `shared` leading keys of all, the others of each, the merge.

    blocks: of the longest sequence.
    """
    layout, (sequences, _, window) = inputs[2:4], inputs[-3:]
    tokens, heads, dim = out.shape
    kv_heads, group, per = (options[name] for name in ("HKV", "GROUP", "PER"))
    units, slots = sequences, min(tokens, sequences * per)
    if options["TOKENS"]:
        units = slots = tokens
    splits = triton.cdiv(blocks * options["BS"], SPLIT)
    partials = splits + (shared % SPLIT != 0)
    options = options | {"SPLIT": SPLIT}
    part = lse = out
    merged = shared > 0 or partials > 1
    if merged:
        shape = slots, heads, partials
        part = torch.empty((*shape, dim), dtype=torch.float32, device=out.device)
        lse = torch.empty(shape, dtype=torch.float32, device=out.device)
    if shared:
        grid = triton.cdiv(slots * group, many.BLOCK_M), kv_heads, triton.cdiv(shared, SPLIT)
        prefix_kernel[grid](
            *inputs, *(part, lse, slots, shared, partials), **options, **many._asdict()
        )
    if (own := splits - shared // SPLIT) > 0:
        outputs, whole = (part, lse, shared, partials), {"WHOLE": not merged}
        split_kernel[own, kv_heads, units](*inputs, *outputs, **options, **whole, **few._asdict())
    if merged:
        names = "D", "PER", "BLOCK_D", "TOKENS", "WINDOW", "SPLIT"
        chosen = {name: options[name] for name in names}
        numbers = sequences, shared, partials, window
        merge_kernel[slots, heads](
            part, lse, out, *layout, *numbers, H=heads, BLOCK_C=8, num_warps=1, **chosen
        )


def _worth_sharing(cache: Tensor, sequences: int, blocks: int, multiple: int) -> int:
    """How many leading keys to read once for all sequences, 0 if that saves too little."""
    block_size, kv_heads, dim = cache.shape[1:]
    shared = blocks * block_size // multiple * multiple
    saved = shared * (sequences - 1) * 2 * kv_heads * dim * cache.element_size()
    return shared if saved >= _WORTH_SHARING else 0
