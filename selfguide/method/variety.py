"""Which texts of many have least in common."""

from __future__ import annotations

from collections.abc import Sequence

from selfguide.metrics.rouge import similarity


def most_varied(texts: Sequence[str], known: Sequence[str], count: int) -> list[int]:
    """Indices of `count` of the texts: again and again the one least like those chosen so far.

    Likeness is ROUGE-L to the most similar text that was chosen or is `known`; the first of equals
    wins. This is farthest-first traversal (Gonzalez 1985), which core-sets are chosen by
    (arXiv 1708.00489). It takes `count * len(texts)` comparisons of a few microseconds.
    """
    nearest = [max((similarity(text, each) for each in known), default=0.0) for text in texts]
    left, chosen = list(range(len(texts))), list[int]()
    while left and len(chosen) < count:
        pick = min(left, key=nearest.__getitem__)
        left.remove(pick)
        chosen.append(pick)
        for at in left:
            nearest[at] = max(nearest[at], similarity(texts[at], texts[pick]))
    return chosen
