"""Attention of one step's tokens over the paged cache."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from engine.config import ModelConfig
from engine.serving.kv_cache import KVCache
from kernels import paged_attention, store_kv


class Layout(Protocol):
    """Where a step's tokens go and what they see; as in `Step` and `kernels.paged_attention`."""

    @property
    def slots(self) -> Tensor: ...
    @property
    def cu_seqlens(self) -> Tensor: ...
    @property
    def seq_lens(self) -> Tensor: ...
    @property
    def block_table(self) -> Tensor: ...
    @property
    def shared_blocks(self) -> int: ...


class PagedAttention:
    """What `Llama.hidden` calls in each layer: stores the new keys and values, then attends."""

    def __init__(self, config: ModelConfig, cache: KVCache, step: Layout) -> None:
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
            shared_blocks=step.shared_blocks,
        )
