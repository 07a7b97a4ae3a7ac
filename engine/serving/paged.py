"""Attention of one step's tokens over the paged cache."""

from __future__ import annotations

from torch import Tensor

from engine.config import ModelConfig
from engine.serving.kv_cache import KVCache
from engine.serving.scheduler import S, Step
from kernels import paged_attention, store_kv


class PagedAttention:
    """What `Llama.hidden` calls in each layer: stores the new keys and values, then attends."""

    def __init__(self, config: ModelConfig, cache: KVCache, step: Step[S]) -> None:
        self.cache, self.step = cache, step
        self.scale = config.head_dim**-0.5
        self.windows = config.layer_windows

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q `[T, H, D]`, k and v `[T, Hkv, D]` -> `[T, H, D]`."""
        keys, values, step = self.cache.keys[layer], self.cache.values[layer], self.step
        store_kv(k, v, keys, values, step.slots)
        return paged_attention(
            q,
            keys,
            values,
            step.cu_seqlens,
            step.seq_lens,
            step.block_table,
            self.scale,
            self.windows[layer],
        )
