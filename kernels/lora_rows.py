"""Low-rank updates of a batch whose rows carry different adapters."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from torch import Tensor

from kernels.dispatch import implementation
from kernels.lora import LoraSlice, check_output, check_updates
from kernels.upload import upload

TILE = 16
"""Rows of a tile: what tensor cores take at once."""

ENTRY = 6
"""Numbers in a table's entry: addresses of A and of Bᵀ, start, n, rank, the bits of scale."""


class LoraBank:
    """One adapter's updates of all linear layers of a model, as inference reads them.

    Args:
        linears: the updates of each layer, which must not overlap; all tensors of one dtype and on
            one device.

    Attributes:
        linears: the same, with each `a` contiguous and each `b` the transpose of such a one.
        sizes: K of each layer, and how many columns its output has at least.
        rank: the highest.
        aligned: whether rows of all tensors begin at multiples of 16 elements.

    Raises:
        ValueError: dtypes or devices differ, shapes do not fit, or columns overlap.
    """

    def __init__(self, linears: Iterable[Iterable[LoraSlice]]) -> None:
        given = [list(parts) for parts in linears]
        self.sizes = [_sizes(f"linears[{i}]", parts) for i, parts in enumerate(given)]
        self.linears = [[_laid_out(part) for part in parts] for parts in given]
        tensors = [x for parts in self.linears for part in parts for x in (part.a, part.b)]
        if len({(x.dtype, x.device) for x in tensors}) > 1:
            raise ValueError("linears: a and b must be of one dtype and on one device")
        self.rank = max((len(part.a) for parts in self.linears for part in parts), default=0)
        self.aligned = all(
            number % 16 == 0
            for parts in self.linears
            for part in parts
            for number in (part.a.data_ptr(), part.b.data_ptr(), len(part.b), part.start)
        )

    @cached_property
    def table(self) -> Tensor:
        """`[linears, most updates of one, ENTRY]` int64 on the tensors' device; rank 0 for none."""
        most = max(len(parts) for parts in self.linears)
        empty = [0] * ENTRY
        entries = [[*map(_entry, parts), *[empty] * (most - len(parts))] for parts in self.linears]
        device = next(part.a.device for parts in self.linears for part in parts)
        return upload([np.array(entries, np.int64)], device)[0]


class LoraRows:
    """Which rows of a batch carry which adapter's updates; the same for all layers of a pass.

    Args:
        ranges: `(start, stop, bank)`, ascending and apart; rows in none are left as they are.

    Raises:
        ValueError: ranges overlap or are out of order.
    """

    def __init__(self, ranges: Sequence[tuple[int, int, LoraBank]]) -> None:
        bounds = [bound for start, stop, _ in ranges for bound in (start, stop)]
        if bounds != sorted(bounds) or min(bounds, default=0) < 0:
            raise ValueError(f"ranges: must be ascending and not overlap, got bounds {bounds}")
        self.ranges = [one for one in ranges if one[0] < one[1] and any(one[2].linears)]
        self.stop = max(bounds, default=0)
        self.banks = list({id(bank): bank for _, _, bank in self.ranges}.values())

    @cached_property
    def tiles(self) -> Tensor:
        """`[tiles, 4]` int64 on the banks' device: start, stop, address and width of the table."""
        tiles = [
            (first, min(first + TILE, stop), bank.table.data_ptr(), bank.table.shape[1])
            for start, stop, bank in self.ranges
            for first in range(start, stop, TILE)
        ]
        return upload([np.array(tiles, np.int64)], self.banks[0].table.device)[0]


def lora_add_rows_(y: Tensor, x: Tensor, rows: LoraRows, linear: int) -> Tensor:
    """Adds each row's adapter's updates to a linear layer's output, in place, without gradients.

    One gathered product for all adapters, as in Punica (arXiv 2310.18547) and S-LoRA (2311.03285).

    Args:
        y: `[T, N]`, the layer's output; rows may be strided, elements of a row contiguous.
        x: `[T, K]`, its input, same dtype; rows may be strided.
        rows: which rows carry which adapter, its tensors in the dtype and on the device of `x`.
            Ranks, and the columns that are updated, may differ between adapters.
        linear: which of the banks' layers this one is.

    Returns:
        `y`. On the CPU and Triton backends each row depends on its own row of `x` and `y` alone.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the rows of `y` are not contiguous.
    """
    check_output(y, x)
    if rows.stop > x.shape[0]:
        raise ValueError(f"rows: go up to row {rows.stop}, but x has {x.shape[0]}")
    for bank in rows.banks:
        _check_bank(bank, linear, y, x)
    return implementation("lora_add_rows_", x)(y, x, rows, linear) if rows.banks else y


def _check_bank(bank: LoraBank, linear: int, y: Tensor, x: Tensor) -> None:
    if not 0 <= linear < len(bank.linears):
        raise ValueError(f"linear: expected 0 to {len(bank.linears) - 1}, got {linear}")
    if not bank.linears[linear]:
        return
    a, (k, columns) = bank.linears[linear][0].a, bank.sizes[linear]
    if a.dtype != x.dtype or a.device != x.device:
        raise ValueError(
            f"rows: a bank is of {a.dtype} on {a.device}, but x of {x.dtype} on {x.device}"
        )
    if k != x.shape[1] or columns > y.shape[1]:
        raise ValueError(
            f"rows: a bank's updates of {columns} columns, of inputs of {k}, do not fit "
            f"y {list(y.shape)} and x {list(x.shape)}"
        )


def lora_add_rows__reference(y: Tensor, x: Tensor, rows: LoraRows, linear: int) -> Tensor:
    """The specification of `lora_add_rows_`: one adapter after the other."""
    add = implementation("lora_add_", x)
    for start, stop, bank in rows.ranges:
        add(y[start:stop], x[start:stop], bank.linears[linear])
    return y


def _sizes(name: str, parts: list[LoraSlice]) -> tuple[int, int]:
    """K and least N of a layer with such updates; raises ValueError if there is none."""
    if not parts:
        return 0, 0
    a, columns = parts[0].a, max(part.start + len(part.b) for part in parts)
    check_updates(name, parts, a.shape[-1], columns, a.device)
    return a.shape[1], columns


def _laid_out(part: LoraSlice) -> LoraSlice:
    a, b = part.a.detach().contiguous(), part.b.detach().T.contiguous().T
    return LoraSlice(a, b, part.start, part.scale)


def _entry(part: LoraSlice) -> list[int]:
    (bits,) = struct.unpack("i", struct.pack("f", part.scale))
    n, rank = part.b.shape
    return [part.a.data_ptr(), part.b.data_ptr(), part.start, n, rank, bits]
