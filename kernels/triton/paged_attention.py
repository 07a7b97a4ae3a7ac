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

from kernels.triton.paged_cascade import prefix_kernel
from kernels.triton.paged_decode import merge_kernel, split_kernel
from kernels.triton.paged_prefill import tile_kernel
from kernels.triton.paged_tile import readable
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


def _few_rows(group: int, dim: int, dtype: torch.dtype) -> _Tiles:
    """For decode, which waits for memory: the rows are padded to the 16 of a tensor core's tile.

    Blocks are found through the table, so 5 stages are what it takes to have two tiles of keys and
    values under way (3: one). In 16 bits and with D = 128 those are 64 KiB: three programs on an
    H100, two on an A100. On cards with 100 KiB, two programs with one tile each do better by that.
    """
    rows = max(16, triton.next_power_of_2(group))
    if dtype == torch.float32:
        return _Tiles(rows, 32, 8, 1)
    return _Tiles(rows, 64 if dim <= 128 else 32, 4, 3 if shared_bytes() < 160_000 else 5)


def _many_rows(dim: int, cache: torch.dtype, dtype: torch.dtype) -> _Tiles:
    """For prefill, which waits for tensor cores: as many rows as leave the registers unspilled.

    wgmma (compute capability 9.0) takes its operands from shared memory; mma.sync holds them in
    registers, as does the widening of a quantised cache, so there tiles of keys are smaller, or
    fewer under way. fp32 has no tensor cores.
    """
    if dtype == torch.float32:
        return _Tiles(16, 32, 8 if dim > 64 else 4, 1)
    if dim > 128:
        return _Tiles(64, 32, 8, 2)
    if arch() != 90:
        return _Tiles(128, 32, 8, 3)
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
    q = q if q.stride(-1) == 1 else q.contiguous()
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    if out.numel() == 0:
        return out
    tokens, dim, sequences = len(q), q.shape[2], len(seq_lens)
    group = q.shape[1] // k_cache.shape[2]
    table = block_table if block_table.stride(-1) == 1 else block_table.contiguous()
    caches = readable(k_cache), readable(v_cache), k_scale, v_scale
    few, many = _few_rows(group, dim, q.dtype), _many_rows(dim, k_cache.dtype, q.dtype)
    decode = tokens == sequences  # then each token is worked on by itself
    inputs = (
        *(q, *caches, cu_seqlens_q.contiguous(), seq_lens.contiguous(), table),
        *q.stride()[:2],
        *(0 if x is None else x.stride(0) for x in caches),
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
        tile_kernel[grid](*inputs, out, table.stride(0), **options, **many._asdict())
    multiple = max(few.BLOCK_N, many.BLOCK_N)  # both go over the keys by tiles of their own
    shared = _worth_sharing(k_cache, sequences, shared_blocks, multiple)
    units = tokens if decode else sequences
    _split(inputs, out, units, shared, options | {"TOKENS": decode}, few, many)
    return out


def _split(
    inputs: tuple[Any, ...],
    out: Tensor,
    units: int,
    shared: int,
    options: dict[str, Any],
    few: _Tiles,
    many: _Tiles,
) -> None:
    """Sequences of few queries: the `shared` leading keys of all, the others of each, the merge.

    units: the tokens (TOKENS) or sequences that programs work on.
    """
    table, sequences, window = inputs[7], inputs[-3], inputs[-1]
    heads, dim = out.shape[1:]
    slots, kv_heads = units * options["PER"], options["HKV"]
    splits = triton.cdiv(table.shape[1] * options["BS"], SPLIT)
    partials = splits + (shared % SPLIT != 0)
    options = options | {"SPLIT": SPLIT}
    part = lse = out
    merged = shared > 0 or partials > 1
    if merged:
        shape, device = (slots, heads, partials), out.device
        part = torch.empty((*shape, dim), dtype=torch.float32, device=device)
        lse = torch.empty(shape, dtype=torch.float32, device=device)
    if shared:
        rows = triton.cdiv(slots * options["GROUP"], many.BLOCK_M)
        outputs = part, lse, slots, shared, partials
        prefix_kernel[rows, kv_heads, triton.cdiv(shared, SPLIT)](
            *inputs, *outputs, **options, **many._asdict()
        )
    if splits > shared // SPLIT:
        outputs = part, lse, table.stride(0), shared, partials
        whole = {"WHOLE": not merged}
        split_kernel[units * kv_heads, splits - shared // SPLIT](
            *inputs, *outputs, **options, **whole, **few._asdict()
        )
    if merged:
        names = "D", "PER", "BLOCK_D", "TOKENS", "WINDOW", "SPLIT"
        chosen = {name: options[name] for name in names}
        numbers = sequences, shared, partials, window
        merge_kernel[slots, heads](
            part, lse, out, *inputs[5:7], *numbers, H=heads, BLOCK_C=8, num_warps=1, **chosen
        )


def _worth_sharing(cache: Tensor, sequences: int, blocks: int, multiple: int) -> int:
    """How many leading keys to read once for all sequences, 0 if that saves too little."""
    block_size, kv_heads, dim = cache.shape[1:]
    shared = blocks * block_size // multiple * multiple
    saved = shared * (sequences - 1) * 2 * kv_heads * dim * cache.element_size()
    return shared if saved >= _WORTH_SHARING else 0
