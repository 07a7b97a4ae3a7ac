"""Which cached block holds the keys and values of which tokens: a tree with one block a node."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

BLOCK_SIZE = 16
"""Tokens in a block."""

Key = tuple[int, ...]


@dataclass(slots=True, eq=False)
class Node:
    """A full block: `key` are its tokens, the path from the root the tokens before them.

    `ready` says that the contents are computed. A block that is being computed by the very step
    that is planned may be shared by the step's other sequences (each layer stores all keys and
    values before it attends), but not copied from.
    """

    key: Key
    block: int
    parent: Node | None
    ready: bool = False
    children: dict[Key, Node] = field(default_factory=dict)


class PrefixTree:
    """Finds the blocks that hold a prefix of a token sequence.

    Keys and values depend on the adapter they were computed with, so there is one root for each
    `owner` (any hashable; None for no adapter).
    """

    def __init__(self) -> None:
        self._roots: dict[Hashable, Node] = {}
        self._nodes: dict[int, Node] = {}

    def root(self, owner: Hashable) -> Node:
        """Where the sequences of `owner` begin."""
        if owner not in self._roots:
            self._roots[owner] = Node((), -1, None, ready=True)
        return self._roots[owner]

    def match(self, root: Node, tokens: Sequence[int], limit: int) -> list[Node]:
        """The nodes that hold the longest prefix of `tokens[:limit]` in full blocks."""
        found, node = [], root
        for start in range(0, limit - BLOCK_SIZE + 1, BLOCK_SIZE):
            child = node.children.get(tuple(tokens[start : start + BLOCK_SIZE]))
            if child is None:
                break
            found.append(child)
            node = child
        return found

    def closest(self, node: Node, tokens: Sequence[int]) -> tuple[Node | None, int]:
        """The ready child of `node` that begins with most of `tokens`, and with how many."""
        best, length = None, 0
        for key, child in node.children.items():
            if child.ready and (common := _common_prefix(key, tokens)) > length:
                best, length = child, common
        return best, length

    def insert(self, parent: Node, key: Key, block: int) -> Node | None:
        """A new node below `parent`, or None if another block holds these tokens already."""
        if key in parent.children:
            return None
        node = Node(key, block, parent)
        parent.children[key] = self._nodes[block] = node
        return node

    def remove(self, block: int) -> None:
        """Forgets a block. Its children, if it has any, can no longer be found."""
        node = self._nodes.pop(block)
        if node.parent is not None:
            del node.parent.children[node.key]

    def __contains__(self, block: int) -> bool:
        return block in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))
