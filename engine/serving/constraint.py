"""A closed set of strings, as a tree of the tokens that spell them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.errors import RequestError
from engine.text.tokenizer import Tokenizer


@dataclass(slots=True)
class TrieNode:
    """A place in the tree: the tokens that may follow, and the string that ends here, if any.

    Where a string ends that others go on from, the model chooses: an end-of-text token or more.
    """

    next: dict[int, TrieNode] = field(default_factory=dict)
    text: str | None = None
    ids: list[int] = field(default_factory=list)  # what may be drawn here

    @property
    def complete(self) -> bool:
        """Whether a string ends here and none goes on."""
        return self.text is not None and not self.next


def token_trie(
    strings: Sequence[str], tokenizer: Tokenizer, eos_ids: Sequence[int], vocab_size: int
) -> TrieNode:
    """The tree of the strings' tokens, each tokenized as a continuation of a text.

    Raises:
        RequestError: a token lies outside the model's vocabulary, or one string begins another
            while the model has no end-of-text token to choose between them.
    """
    root = TrieNode()
    for text in strings:
        node = root
        for token in tokenizer.encode_continuation(text):
            if token >= vocab_size:
                raise RequestError(f"allowed: the model has no token {token}, part of {text!r}")
            node = node.next.setdefault(token, TrieNode())
        node.text = text
    _list_ids(root, list(eos_ids))
    return root


def _list_ids(root: TrieNode, eos_ids: list[int]) -> None:
    stack = [root]
    while stack:
        node = stack.pop()
        stack += node.next.values()
        node.ids = list(node.next)
        if node.text is None or not node.next:
            continue
        if not eos_ids:
            raise RequestError(
                f"allowed: {node.text!r} begins another string, "
                "and the model has no end-of-text token to tell them apart"
            )
        node.ids += eos_ids
