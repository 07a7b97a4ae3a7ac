from __future__ import annotations

from collections.abc import Callable

import torch

from kernels import linear_cross_entropy


def _loss(
    dtype: torch.dtype, vocab: int, smoothing: float, weighted: bool, grad: bool, rows: int = 2048
) -> None:
    dim = 4096
    hidden = torch.empty(rows, dim, dtype=dtype, device="meta", requires_grad=grad)
    weight = torch.empty(vocab, dim, dtype=dtype, device="meta")
    targets = torch.empty(rows, dtype=torch.int64, device="meta")
    weights = torch.empty(rows, device="meta") if weighted else None
    kept = torch.empty(-(-rows // 2), dtype=torch.int64, device="meta")
    loss, _ = linear_cross_entropy(hidden, weight, targets, weights, smoothing, rows=kept)
    if grad:
        torch.autograd.grad(loss, hidden)


def training(dtype: torch.dtype) -> None:
    _loss(dtype, 128_256, 0.0, weighted=True, grad=True)


def training_of_smollm2(dtype: torch.dtype) -> None:
    _loss(dtype, 49_152, 0.1, weighted=True, grad=True)


def odd_vocabulary(dtype: torch.dtype) -> None:
    _loss(dtype, 50_257, 0.1, weighted=False, grad=True)


def evaluation(dtype: torch.dtype) -> None:
    _loss(dtype, 151_936, 0.0, weighted=True, grad=False)


def ones(dtype: torch.dtype) -> None:
    _loss(dtype, 1, 1.0, weighted=True, grad=True, rows=1)


CALLS: list[Callable[[torch.dtype], None]] = [
    training,
    training_of_smollm2,
    odd_vocabulary,
    evaluation,
]
ONES = [ones]
