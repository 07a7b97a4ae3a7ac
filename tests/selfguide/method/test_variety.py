"""The choice of texts that vary."""

from __future__ import annotations

import random

from selfguide.method.variety import most_varied
from selfguide.metrics.rouge import similarity

TEXTS = ["open the door", "open the door now", "close my window", "open that door", "sing"]


def test_each_is_the_one_least_like_those_before_it() -> None:
    assert most_varied(TEXTS, ["open the window"], 3) == [4, 2, 3]
    assert most_varied(TEXTS, [], 3) == [0, 2, 4]


def test_every_pick_is_least_like_the_known_and_the_picked() -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdefgh", k=draw.randint(1, 9))) for _ in range(40)]
    known = texts[:3]
    picked = most_varied(texts[3:], known, 12)
    assert len(set(picked)) == 12
    before = list(known)
    for at in picked:
        rest = [text for place, text in enumerate(texts[3:]) if texts[3 + place] not in before]
        likeness = [max(similarity(text, other) for other in before) for text in rest]
        chosen = texts[3 + at]
        assert max(similarity(chosen, other) for other in before) == min(likeness)
        before.append(chosen)


def test_fewer_texts_than_wanted_are_all_chosen() -> None:
    assert sorted(most_varied(TEXTS, TEXTS, 9)) == list(range(5))
    assert most_varied([], ["a"], 2) == []
    assert most_varied(TEXTS, [], 0) == []
