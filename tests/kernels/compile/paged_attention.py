from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import paged_attention, store_kv

SPLIT = 256  # keys of one program: a sequence of no more has one

Call = Callable[[torch.dtype], None]
LLAMA_8B, SMOLLM2, VICUNA = (32, 8, 128), (9, 3, 64), (32, 32, 128)
PHI_2, PHI_3, GEMMA_3 = (32, 32, 80), (32, 32, 96), (4, 1, 256)


def _meta(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _caches(
    kv_heads: int, dim: int, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    caches = (_meta(4096, 16, kv_heads, dim, dtype=dtype) for _ in range(2))
    scales = {}
    if dtype in (torch.int8, torch.float8_e4m3fn):
        shape = 4096, 16, kv_heads
        scales = {name: _meta(*shape, dtype=torch.float32) for name in ("k_scale", "v_scale")}
    return tuple(caches), scales


def _step(
    queries: int,
    heads: tuple[int, int, int],
    *,
    sequences: int = 256,
    length: int = 1024,
    shared: int = 0,
    window: int | None = None,
    cache: torch.dtype | None = None,
) -> Call:
    """A step of sequences of `queries` new tokens each: stores those and attends."""

    def call(dtype: torch.dtype) -> None:
        (h, kv_heads, dim), tokens = heads, sequences * queries
        caches, scales = _caches(kv_heads, dim, cache or dtype)
        qkv = _meta(tokens, h + 2 * kv_heads, dim, dtype=dtype)
        q, k, v = qkv.split([h, kv_heads, kv_heads], dim=1)
        if queries == 1:
            store_kv(k, v, *caches, _meta(tokens), **scales)
        table = _meta(sequences, length // 16)
        layout = _meta(sequences + 1), _meta(sequences), table
        hints = {"shared_blocks": shared // 16, **scales}
        paged_attention(q, *caches, *layout, dim**-0.5, window, **hints)

    names = ["decode" if queries == 1 else "prefill", *map(str, heads), str(cache or "")[6:]]
    said = {"window": window, "shared": shared and queries > 1, "whole": length <= SPLIT}
    call.__name__ = "_".join(filter(None, [*names, *(name for name in said if said[name])]))
    return call


def _prefill(heads: tuple[int, int, int], sequences: int = 2, **options: object) -> Call:
    """With its kernels for sequences of few queries, as in a step that mixes the two."""
    return _step(1024, heads, sequences=sequences, length=2048, **options)


CALLS: list[Call] = [
    _step(1, LLAMA_8B, shared=768),
    _step(1, VICUNA, cache=torch.float8_e4m3fn, shared=768, window=512),
    _prefill(LLAMA_8B),
    _prefill(LLAMA_8B, cache=torch.int8),
    _prefill(SMOLLM2),
    _prefill((8, 1, 256), window=512),
]
BF16_CALLS: list[Call] = [
    *(_step(1, heads) for heads in (SMOLLM2, PHI_2, PHI_3, GEMMA_3)),
    _step(1, SMOLLM2, cache=torch.int8),
    _step(1, SMOLLM2, length=SPLIT),
    _step(1, SMOLLM2, length=SPLIT, cache=torch.int8),
    _prefill(LLAMA_8B, sequences=64, shared=1024),
    _prefill(SMOLLM2, cache=torch.int8),
    _prefill(GEMMA_3, cache=torch.int8),
]
