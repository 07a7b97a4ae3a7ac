"""Word-level ROUGE-L (Lin 2004), and the same measure made fast for comparing many pairs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from selfguide.metrics.words import words


def rouge_l(answer: str, outputs: Sequence[str]) -> float:
    """ROUGE-L F of an answer, 0-100: the best over its references, by the `rouge-score` library.

    Words are those of `selfguide.metrics.words`, so that text in any script counts.
    """
    scores = _scorer().score_multi(list(outputs), answer)
    return 100.0 * float(scores["rougeL"].fmeasure)


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # brings nltk: a second

    return RougeScorer(["rougeL"], tokenizer=_Words())


class _Words:
    """`words` in the form that rouge-score calls."""

    def tokenize(self, text: str) -> tuple[str, ...]:
        return words(text)


def similarity(a: str, b: str) -> float:
    """ROUGE-L F of two texts, 0-1, symmetric; a few microseconds for texts of a sentence."""
    first, second = words(a), words(b)
    if not first or not second:
        return 0.0
    return 2.0 * _common_subsequence(first, second) / (len(first) + len(second))


def alike(a: str, b: str) -> float:
    """`similarity`, and 1 for equal texts even if they have no words."""
    return 1.0 if a == b else similarity(a, b)


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table in one integer's bits.

    Hyyrö, "Bit-parallel LCS-length computation revisited" (2004), figure 3.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    everywhere = (1 << len(first)) - 1
    unmatched = everywhere
    for word in second:
        if word in places:
            matches = unmatched & places[word]
            unmatched = (unmatched + matches) | (unmatched - matches)
    return (~unmatched & everywhere).bit_count()
