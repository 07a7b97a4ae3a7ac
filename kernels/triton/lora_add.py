"""Low-rank updates added in place, for inference: tiles of few rows, parts of S along K."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from kernels.lora import LoraSlice
from kernels.rows import contiguous_rows
from kernels.triton.lora import expand_slice, launch_expand, launch_shrink
from kernels.triton.lora_tile import (
    columns_of_s,
    of_one_dtype,
    rank_block,
    shrink_config,
)

ADD_ROWS, ADD_COLUMNS = 16, 128
"""A tile of Y, whatever the batch, so that a row's result never depends on it. Taller tiles would
change from mma.sync to wgmma; 16 rows read A and B from L2 once more per 16 rows, which is little
beside the layer's own weights while rows are few, and beside its products when they are many."""

_CHUNK, _MOST_SPLITS = 512, 8


def splits_of(k: int) -> tuple[int, int]:
    """Parts that S is summed in, and the columns of X in each; k alone decides.

    Few rows make few programs, so X is cut along K to use more of the card; that the cut depends on
    nothing else keeps a row's result independent of the batch.
    """
    chunk = max(_CHUNK, triton.cdiv(triton.cdiv(k, _MOST_SPLITS), 128) * 128)
    return triton.cdiv(k, chunk), chunk


def lora_add_(y: Tensor, x: Tensor, lora: Sequence[LoraSlice]) -> Tensor:
    if not y.numel() or not lora:
        return y
    x, rows = contiguous_rows(x), len(x)
    firsts, ranks = columns_of_s([len(part.a) for part in lora])
    splits, chunk = splits_of(x.shape[1])
    s = torch.empty(splits, rows, ranks, dtype=torch.float32, device=x.device)
    # 32 ranks a program: X is read from L2 again for more, and few rows have programs enough.
    block_r = rank_block(ranks, 32)
    config = shrink_config(ADD_ROWS, block_r, x.dtype)
    launch_shrink(s, x, of_one_dtype([part.a for part in lora], x.dtype), firsts, chunk, config)
    slices = [
        expand_slice(part.b, part.start, first, part.scale)
        for part, first in zip(lora, firsts, strict=True)
    ]
    most = rank_block(max(len(part.a) for part in lora), 32)
    launch_expand(y, s, None, slices, True, ADD_ROWS, ADD_COLUMNS, most, 4)
    return y
