"""A run of tokens that the scheduler computes, and the table of those it is computing."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from engine.adapters.lora import Adapter
from engine.serving.kv_cache import Holding


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """Tokens to be computed with one adapter (or none).

    Args:
        tokens: ids; grows while the sequence runs (by `Scheduler.append` only).
        adapter: what they are computed with.
        place: sequences are batched in this order within an adapter; neighbours should have
            prefixes in common.
        width: how many sequences it will be forked into.
        cached: tokens that were found in the cache when it was first admitted, -1 before that.
    """

    tokens: list[int]
    adapter: Adapter | None
    place: tuple[int, int]
    width: int = 1
    cached: int = -1
    slot: int = field(default=-1, init=False)
    holding: Holding | None = field(default=None, init=False)

    @property
    def owner(self) -> int | None:
        """Whose keys and values these are."""
        return None if self.adapter is None else self.adapter.version

    @property
    def first_needed(self) -> int:
        """The first position whose hidden state is needed: it cannot come from the cache."""
        return len(self.tokens) - 1


class Slots:
    """One row for each running sequence, in arrays, so that a step is planned without loops.

    Attributes:
        block_table: `[S, M]` int32.
        blocks: `[S]`, blocks held.
        total: `[S]`, tokens known.
        computed: `[S]`, tokens whose keys and values are in the cache.
        count: `[S]`, tokens that the step at hand computes.
        published: `[S]`, blocks that were offered to the prefix tree.
        last: `[S]` int64, the newest token.
    """

    def __init__(self, slots: int, max_blocks: int) -> None:
        self.block_table = np.zeros((slots, max_blocks), np.int32)
        arrays = np.zeros((5, slots), np.int32)
        self.blocks, self.total, self.computed, self.count, self.published = arrays
        self.last = np.zeros(slots, np.int64)
        self._free = list(range(slots))[::-1]

    @property
    def full(self) -> bool:
        return not self._free

    def after(self, rows: np.ndarray | int) -> np.ndarray:
        """Tokens that will be computed after the step at hand."""
        return self.computed[rows] + self.count[rows]

    def add(self, sequence: Sequence, holding: Holding, computed: int) -> None:
        """Gives the sequence a row."""
        slot = sequence.slot = self._free.pop()
        sequence.holding = holding
        self.blocks[slot] = len(holding.blocks)
        self.block_table[slot, : len(holding.blocks)] = holding.blocks
        self.total[slot], self.computed[slot] = len(sequence.tokens), computed
        self.published[slot] = holding.published
        self.last[slot] = sequence.tokens[-1]

    def append_block(self, slot: int, block: int) -> None:
        self.block_table[slot, self.blocks[slot]] = block
        self.blocks[slot] += 1

    def remove(self, sequence: Sequence) -> Holding:
        """Takes the row back and returns what the sequence held."""
        holding = sequence.holding
        if holding is None:
            raise RuntimeError("the sequence is not running")
        self._free.append(sequence.slot)
        sequence.slot, sequence.holding = -1, None
        return holding
