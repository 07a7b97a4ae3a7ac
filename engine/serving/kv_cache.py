"""The paged KV cache: its tensors, who holds which block, and which prefixes are kept."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.config import ModelConfig
from engine.errors import RequestError
from engine.serving.block_pool import BlockPool
from engine.serving.prefix_tree import BLOCK_SIZE, Node, PrefixTree


def blocks_for(tokens: int) -> int:
    """Blocks that so many tokens take."""
    return -(-tokens // BLOCK_SIZE)


@dataclass(slots=True, eq=False)
class Holding:
    """A sequence's blocks, in order; the first `published` of them can be found by others.

    `node` is the last one published, None once somebody else had published the same tokens first:
    such a sequence keeps its own copy and publishes no more.
    """

    blocks: list[int]
    published: int
    node: Node | None


class KVCache:
    """Keys and values of running and recent sequences, in blocks of 16 tokens.

    Blocks are shared, never written to while shared: whoever needs part of a block gets a copy.

    Args:
        config: of the model.
        budget: bytes that the blocks may take at most. The tensors are made on first use; on a CPU
            their pages become resident only as blocks are first used, and once a 16th of the
            budget has been touched, blocks that hold old prefixes are reused first.
        dtype, device: the model's.

    Raises:
        RequestError: the budget is too small for a single block.

    Source: Kwon et al. 2023, arXiv 2309.06180; the tree of prefixes as in arXiv 2312.07104.
    """

    def __init__(
        self, config: ModelConfig, budget: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.dtype, self.device = dtype, device
        self.layers = config.num_layers
        self.block_shape = (BLOCK_SIZE, config.num_kv_heads, config.head_dim)
        elements = BLOCK_SIZE * config.num_kv_heads * config.head_dim
        self.block_bytes = 2 * self.layers * elements * dtype.itemsize
        self.num_blocks = budget // self.block_bytes
        if self.num_blocks < 1:
            raise RequestError(
                f"the KV cache's budget of {budget} bytes holds no block of {self.block_bytes}"
            )
        self.generation = 0
        self.release()

    def release(self) -> None:
        """Gives all memory back and forgets every prefix. No sequence may hold blocks.

        `generation` counts these: addresses inside the tensors are good for one of them.
        """
        self.generation += 1
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.tree = PrefixTree()
        self.pool = BlockPool(self.num_blocks, self.tree.remove, roomy=self.num_blocks // 16)
        self._copies: dict[int, int] = {}  # target -> source
        self._unready: list[Node] = []

    def acquire(
        self, owner: Hashable, tokens: Sequence[int], limit: int, spare: int = 0
    ) -> tuple[Holding, int] | None:
        """Blocks for all of `tokens`, with as much as is cached of the first `limit` < all.

        Args:
            owner: the adapter's version, or None; prefixes are shared within one owner.
            tokens: the sequence's ids.
            limit: tokens from here on are to be computed even if they are cached.
            spare: so many blocks must remain available.

        Returns:
            The holding and the number of tokens that need not be computed; None (and no change) if
            there are too few blocks.
        """
        root = self.tree.root(owner)
        found = self.tree.match(root, tokens, limit)
        shared = [node.block for node in found]
        for block in shared:
            self.pool.share(block)
        missing = blocks_for(len(tokens)) - len(shared)
        enough = missing + spare <= self.pool.available
        own = self.pool.allocate(missing) if enough else None
        if own is None:
            self._release_all(shared)
            return None
        node, cached = found[-1] if found else root, len(shared) * BLOCK_SIZE
        source, part = self.tree.closest(node, tokens[cached : min(limit, cached + BLOCK_SIZE)])
        if source is not None:
            self._copies[own[0]] = source.block
        return Holding(shared + own, len(shared), node), cached + part

    def fork(self, parent: Holding, length: int) -> Holding | None:
        """Another holding of the parent's first `length` tokens, which must be computed.

        None (and no change) if a block for the last, partial one is needed and there is none.
        """
        whole, partial = divmod(length, BLOCK_SIZE)
        own = self.pool.allocate(1 if partial else 0)
        if own is None:
            return None
        shared = parent.blocks[:whole]
        for block in shared:
            self.pool.share(block)
        if own:
            self._copies[own[0]] = parent.blocks[whole]
        return Holding(shared + own, parent.published, parent.node)

    def grow(self, holding: Holding) -> bool:
        """Appends one block; False if there is none."""
        own = self.pool.allocate(1)
        holding.blocks += own or ()
        return own is not None

    def publish(self, holding: Holding, tokens: Sequence[int], length: int) -> None:
        """Lets others find the full blocks of the first `length` tokens.

        Their contents must be there already or come with the next step (see `commit`).
        """
        for index in range(holding.published, length // BLOCK_SIZE):
            if holding.node is None:
                return
            start, block = index * BLOCK_SIZE, holding.blocks[index]
            key = tuple(tokens[start : start + BLOCK_SIZE])
            holding.node = self.tree.insert(holding.node, key, block)
            if holding.node is not None:
                holding.published = index + 1
                self.pool.publish(block)
                self._unready.append(holding.node)

    def free(self, holding: Holding) -> None:
        """Lets go of all the holding's blocks; published ones stay cached until evicted."""
        self._release_all(holding.blocks)
        holding.blocks = []

    def prepare(self) -> None:
        """Before a step: makes the tensors if there are none, and the copies asked for so far."""
        if not self.keys:
            shape = (self.num_blocks, *self.block_shape)
            make = [
                torch.empty(shape, dtype=self.dtype, device=self.device)
                for _ in range(2 * self.layers)
            ]
            self.keys, self.values = make[: self.layers], make[self.layers :]
        if self._copies:
            # All sources are read before any target is written: a source may have been evicted
            # meanwhile and be a target itself.
            target, source = (
                torch.tensor(list(blocks), device=self.device)
                for blocks in (self._copies.keys(), self._copies.values())
            )
            for cache in (*self.keys, *self.values):
                cache.index_copy_(0, target, cache.index_select(0, source))
            self._copies = {}

    def commit(self) -> None:
        """After a step: what was published before it is computed now."""
        for node in self._unready:
            node.ready = True
        self._unready = []

    def abort(self) -> None:
        """After a step that failed: what it should have computed is not findable any more."""
        for node in reversed(self._unready):
            self.tree.remove(node.block)
            self.pool.withdraw(node.block)
        self._unready, self._copies = [], {}

    def _release_all(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            self.pool.release(block)
