from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from kernels import Biases, IdLists, SampleParams, sample, top_logprobs


def _logits(vocab: int, rows: int = 256) -> torch.Tensor:
    """Always fp32, whatever the dtype of the model."""
    return torch.empty(rows, vocab, device="meta")


def plain(dtype: torch.dtype) -> None:
    for vocab in (49_152, 151_936):
        sample(_logits(vocab), SampleParams.neutral(256, "meta"))


def with_lists(dtype: torch.dtype, vocab: int = 128_256, rows: int = 256) -> None:
    one = [[0]] + [[]] * (rows - 1)
    params = replace(
        SampleParams.neutral(rows, "meta"),
        bias=Biases.of([{0: 1.0}] + [{}] * (rows - 1), "meta"),
        seen=IdLists.of(one, "meta"),
        generated=IdLists.of(one, "meta"),
        allowed=IdLists.of(one, "meta"),
    )
    sample(_logits(vocab, rows), params)


def counting(dtype: torch.dtype) -> None:
    generated = IdLists.of([[0]] + [[]] * 255, "meta")
    params = replace(SampleParams.neutral(256, "meta"), generated=generated)
    sample(_logits(128_256), params)


def best(dtype: torch.dtype) -> None:
    for k in (1, 64):
        top_logprobs(_logits(128_256), k)


def ones(dtype: torch.dtype) -> None:
    with_lists(dtype, vocab=1, rows=1)
    top_logprobs(_logits(1, 1), 1)


CALLS: list[Callable[[torch.dtype], None]] = [plain, with_lists, counting, best]
ONES = [ones]
