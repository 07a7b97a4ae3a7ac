"""Who holds which block of the KV cache: reference counts, free blocks, idle blocks kept."""

from __future__ import annotations

from collections.abc import Callable


class BlockPool:
    """Block numbers `0..num_blocks-1`, each free, held by sequences, or idle.

    An idle block is held by nobody but published: its contents may serve a later request. Idle
    blocks are evicted when blocks run short, the one idle for longest first. A sequence lets go of
    its last block first, so a block never goes before the blocks that continue it.

    Args:
        num_blocks: how many blocks there are.
        evict: called with an idle block before it is given to somebody else.
        roomy: up to this many blocks, untouched ones are preferred to evicting idle ones; beyond,
            memory grows only when nothing is idle.
    """

    def __init__(self, num_blocks: int, evict: Callable[[int], None], roomy: int = 0) -> None:
        self.num_blocks = num_blocks
        self.references = [0] * num_blocks
        self._evict = evict
        self._roomy = min(roomy, num_blocks)
        self._touched = 0  # blocks from here on were never used
        self._free: list[int] = []
        self._idle: dict[int, None] = {}  # in the order in which they became idle
        self._published: set[int] = set()

    @property
    def available(self) -> int:
        """Blocks that `allocate` can give."""
        return len(self._free) + self.num_blocks - self._touched + len(self._idle)

    @property
    def held(self) -> int:
        """Blocks that sequences hold."""
        return self.num_blocks - self.available

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks with one reference each, or None (and no change) if there are too few."""
        if count > self.available:
            return None
        blocks = [self._take() for _ in range(count)]
        for block in blocks:
            self.references[block] = 1
        return blocks

    def share(self, block: int) -> None:
        """One more holder of a held or idle block."""
        if not self.references[block] and block not in self._idle:
            raise RuntimeError(f"block {block} is free and cannot be shared")
        self._idle.pop(block, None)
        self.references[block] += 1

    def release(self, block: int) -> None:
        """One holder less; the last one leaves the block idle if it is published, else free."""
        if not self.references[block]:
            raise RuntimeError(f"block {block} was freed twice")
        self.references[block] -= 1
        if self.references[block]:
            return
        if block in self._published:
            self._idle[block] = None
        else:
            self._free.append(block)

    def publish(self, block: int) -> None:
        """The contents of this held block are findable from now on."""
        self._published.add(block)

    def withdraw(self, block: int) -> None:
        """Undoes `publish`; an idle block becomes free."""
        self._published.discard(block)
        if block in self._idle:
            del self._idle[block]
            self._free.append(block)

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        if self._touched < (self.num_blocks if not self._idle else self._roomy):
            self._touched += 1
            return self._touched - 1
        block = next(iter(self._idle))
        self._evict(block)
        del self._idle[block]
        self._published.discard(block)
        return block
