"""What backends ask of a tensor's layout."""

from __future__ import annotations

from torch import Tensor


def contiguous_rows(x: Tensor) -> Tensor:
    """`x`, or a copy of it whose rows' elements lie next to each other (rows may be strided)."""
    return x if x.stride(-1) == 1 else x.contiguous()
