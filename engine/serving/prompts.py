"""Checks and evens out what callers hand to `generate` and `score`."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import TypeVar

from engine.errors import RequestError
from engine.text.tokenizer import Tokenizer

T = TypeVar("T")
Text = str | Sequence[int]


def encode_prompts(
    prompts: Sequence[Text], tokenizer: Tokenizer, vocab_size: int
) -> list[list[int]]:
    """Token ids of prompts given as text (with the tokenizer's BOS) or as ids (taken as they are).

    Raises:
        RequestError: a prompt is empty or names a token that the model does not have.
    """
    if isinstance(prompts, str):
        raise RequestError("prompts must be a list; put a single prompt into brackets")
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    encoded = iter(tokenizer.encode_batch(texts))
    rows: list[list[int]] = []
    for index, prompt in enumerate(prompts):
        ids = next(encoded) if isinstance(prompt, str) else prompt
        rows.append(check_ids(ids, vocab_size, f"prompts[{index}]"))
        if not rows[-1]:
            raise RequestError(f"prompts[{index}] has no tokens")
    return rows


def check_ids(ids: Iterable[int], vocab_size: int, name: str) -> list[int]:
    """The ids as plain ints (they may come as a numpy array or a tensor).

    Raises:
        RequestError: they are no whole numbers, or one lies outside the model's vocabulary.
    """
    try:
        row = [operator.index(token) for token in ids]
    except TypeError:
        raise RequestError(
            f"{name} must be a text or a list of token ids, not {ids!r:.60}"
        ) from None
    for token in row:
        if not 0 <= token < vocab_size:
            raise RequestError(
                f"{name}: the model has no token {token}, only 0 to {vocab_size - 1}"
            )
    return row


def one_per_prompt(name: str, value: T | Sequence[T], count: int) -> list[T]:
    """A value for each of `count` prompts, from one for all or a list of as many.

    Raises:
        RequestError: the list is of another length.
    """
    if not isinstance(value, list | tuple):
        return [value] * count  # type: ignore[list-item]
    if len(value) != count:
        raise RequestError(f"{name}: {len(value)} given for {count} prompts")
    return list(value)
