from __future__ import annotations

from collections.abc import Callable

import torch

from kernels import Segments, attention

SMOLLM2, PHI_2, PHI_3 = (9, 3, 64), (32, 32, 80), (32, 32, 96)
LLAMA_8B, GEMMA_3 = (32, 8, 128), (4, 1, 256)
MODELS = {  # bf16 and fp16 are the same code but for the type, so they share the head sizes
    torch.bfloat16: [SMOLLM2, PHI_2, LLAMA_8B, GEMMA_3],
    torch.float16: [PHI_3, LLAMA_8B],
    torch.float32: [SMOLLM2, LLAMA_8B, GEMMA_3],
}


def training(dtype: torch.dtype, window: int | None = None) -> None:
    """Micro-batches of 100 segments, on views of one fused tensor."""
    for heads, kv_heads, dim in MODELS[dtype]:
        qkv = torch.empty(8192, heads + 2 * kv_heads, dim, dtype=dtype, device="meta")
        leaves = [x.requires_grad_() for x in qkv.split([heads, kv_heads, kv_heads], dim=1)]
        cu_seqlens = torch.empty(101, dtype=torch.int32, device="meta")
        out = attention(*leaves, Segments(cu_seqlens, cu_seqlens[1:]), dim**-0.5, window)
        torch.autograd.grad(out, leaves, torch.empty_like(out))


def training_window(dtype: torch.dtype) -> None:
    training(dtype, 512)


CALLS: list[Callable[[torch.dtype], None]] = [training, training_window]
