from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from kernels import Biases, IdLists, SampleParams, sample, top_logprobs


def _logits(vocab: int) -> torch.Tensor:
    """Always fp32, whatever the dtype of the model."""
    return torch.empty(256, vocab, device="meta")


def plain(dtype: torch.dtype) -> None:
    for vocab in (49_152, 151_936):
        sample(_logits(vocab), SampleParams.neutral(256, "meta"))


def with_lists(dtype: torch.dtype) -> None:
    one = [[1]] + [[]] * 255
    params = replace(
        SampleParams.neutral(256, "meta"),
        bias=Biases.of([{1: 1.0}] + [{}] * 255, "meta"),
        seen=IdLists.of(one, "meta"),
        allowed=IdLists.of(one, "meta"),
    )
    sample(_logits(128_256), params)


def best(dtype: torch.dtype) -> None:
    for k in (1, 64):
        top_logprobs(_logits(128_256), k)


CALLS: list[Callable[[torch.dtype], None]] = [plain, with_lists, best]
