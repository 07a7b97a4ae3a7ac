"""Attention of one step's tokens over the paged cache."""

from __future__ import annotations

from torch import Tensor

from engine.config import ModelConfig
from engine.serving.inputs import Inputs
from engine.serving.kv_cache import KVCache
from kernels import paged_attention, store_kv


class PagedAttention:
    """What `Llama.hidden` calls in each layer: stores the new keys and values, then attends."""

    def __init__(self, config: ModelConfig, cache: KVCache, inputs: Inputs[Tensor]) -> None:
        self.cache, self.inputs = cache, inputs
        self.scale = config.head_dim**-0.5
        self.windows = config.layer_windows

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q `[T, H, D]`, k and v `[T, Hkv, D]` -> `[T, H, D]`."""
        keys, values, inputs = self.cache.keys[layer], self.cache.values[layer], self.inputs
        store_kv(k, v, keys, values, inputs.slots)
        return paged_attention(
            q,
            keys,
            values,
            inputs.cu_seqlens,
            inputs.seq_lens,
            inputs.block_table,
            self.scale,
            self.windows[layer],
            shared_blocks=inputs.shared_blocks,
        )
