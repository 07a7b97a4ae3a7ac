"""What a microbenchmark runs: sizes, where inputs are made, both sides and the work done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], object]
Eager = Callable[[], Any]
EPS, RANK, BLOCK = 1e-5, 16, 16  # of norms, of LoRA, tokens of the paged cache


@dataclass(frozen=True)
class Shapes:
    """A model's sizes, and `rows`, the tokens of a prefill or a training pack."""

    width: int
    inner: int
    vocabulary: int
    heads: int
    kv_heads: int
    head: int
    rows: int

    @property
    def qkv(self) -> int:
        """Columns of the fused projection."""
        return (self.heads + 2 * self.kv_heads) * self.head


SMOLLM2_135M = Shapes(576, 1536, 49152, 9, 3, 64, 512)
LLAMA_8B = Shapes(4096, 14336, 128256, 32, 8, 128, 8192)


@dataclass(frozen=True)
class Place:
    """Where inputs are made and in which dtype."""

    device: torch.device
    dtype: torch.dtype

    def random(self, *shape: int, grad: bool = False, dtype: torch.dtype | None = None) -> Tensor:
        """Normally distributed numbers."""
        x = torch.randn(shape, device=self.device, dtype=dtype or self.dtype)
        return x.requires_grad_(grad)

    def ints(self, *values: int) -> Tensor:
        """`[len(values)]` int32."""
        return torch.tensor(values, dtype=torch.int32, device=self.device)


@dataclass(frozen=True)
class Case:
    """One operation on fixed inputs, computed by us and by torch.

    Attributes:
        ours, torch: run it once.
        amount: FLOPs or bytes of one run.
        unit: "GFLOP/s" or "GB/s".
    """

    ours: Run
    torch: Run
    amount: float
    unit: str


def plain(run: Eager) -> Eager:
    """As it is; the cases' `through` may be torch.compile instead."""
    return run


def with_gradients(run: Callable[[], Tensor], leaves: list[Tensor]) -> Run:
    """Forward and backward of `run`, from a gradient of ones."""

    def both() -> None:
        out = run()
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    return both


def backward(outs: Tensor | tuple[Tensor, ...], leaves: list[Tensor]) -> Run:
    """The backward pass alone, from random gradients, of what has been computed."""
    outs = (outs,) if isinstance(outs, Tensor) else outs
    grads = [torch.randn_like(out) for out in outs]
    return lambda: torch.autograd.grad(outs, leaves, grads, retain_graph=True)
