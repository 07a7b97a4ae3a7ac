"""The prefix tree finds full blocks, and the block that goes on most like the tokens asked for."""

from __future__ import annotations

from engine.serving.prefix_tree import BLOCK_SIZE, Node, PrefixTree

TOKENS = list(range(3 * BLOCK_SIZE))


def insert(tree: PrefixTree, owner: int | None, tokens: list[int], first_block: int) -> list[Node]:
    nodes, node = [], tree.root(owner)
    for start in range(0, len(tokens), BLOCK_SIZE):
        block = first_block + start // BLOCK_SIZE
        new = tree.insert(node, tuple(tokens[start : start + BLOCK_SIZE]), block)
        assert new is not None
        nodes.append(new)
        node = new
    return nodes


def blocks(nodes: list[Node]) -> list[int]:
    return [node.block for node in nodes]


def test_match_is_the_longest_prefix_in_full_blocks_within_the_limit() -> None:
    tree = PrefixTree()
    insert(tree, None, TOKENS, 10)
    root = tree.root(None)
    assert blocks(tree.match(root, TOKENS, len(TOKENS))) == [10, 11, 12]
    assert blocks(tree.match(root, TOKENS, len(TOKENS) - 1)) == [10, 11]
    assert blocks(tree.match(root, [*TOKENS[:20], 99, *TOKENS[21:]], 40)) == [10]
    assert tree.match(root, TOKENS[1:], 40) == []
    assert tree.match(root, TOKENS, 15) == []


def test_owners_share_nothing() -> None:
    tree = PrefixTree()
    insert(tree, None, TOKENS, 0)
    assert tree.match(tree.root(5), TOKENS, 48) == []
    insert(tree, 5, TOKENS, 20)
    assert blocks(tree.match(tree.root(5), TOKENS, 48)) == [20, 21, 22]


def test_the_first_to_publish_a_block_keeps_it() -> None:
    tree = PrefixTree()
    insert(tree, None, TOKENS, 0)
    assert tree.insert(tree.root(None), tuple(TOKENS[:BLOCK_SIZE]), 9) is None
    assert 9 not in tree
    assert len(tree) == 3


def test_closest_is_the_ready_child_with_most_in_common() -> None:
    tree = PrefixTree()
    root = tree.root(None)
    keys = [(1,) * 16, (1, 1, 1) + (2,) * 13, (3,) * 16]
    for block, key in enumerate(keys):
        tree.insert(root, key, block)
    wanted = [1, 1, 1, 2, 5, 6]
    assert tree.closest(root, wanted) == (None, 0)
    for child in root.children.values():
        child.ready = True
    best, length = tree.closest(root, wanted)
    assert best is root.children[keys[1]]
    assert length == 4
    assert tree.closest(root, [4]) == (None, 0)
    assert tree.closest(root, []) == (None, 0)


def test_a_removed_block_is_not_found() -> None:
    tree = PrefixTree()
    insert(tree, None, TOKENS, 0)
    tree.remove(2)
    assert blocks(tree.match(tree.root(None), TOKENS, 48)) == [0, 1]
    assert 2 not in tree
