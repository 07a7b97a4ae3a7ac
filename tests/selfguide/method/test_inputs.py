"""What a new input's prompt shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest

from selfguide.method.inputs import Inventor
from selfguide.method.pairs import Candidate
from selfguide.tasks import Task
from tests.selfguide.method.mood import MOOD, answerer
from tests.selfguide.method.test_synthesis import FREE, LOOSE

LABELS = ("good", "bad")
EARLIER = [
    Candidate(i, 0, "record", f"Review {i}.", LABELS[i % 2], i, LABELS[i % 2]) for i in range(40)
]


def shown(asked: list[str | None], inventor: Inventor) -> list[list[int]]:
    """Ids of the earlier candidates in each prompt."""
    fresh = [Candidate(100 + at, 1, "record", "", each, at) for at, each in enumerate(asked)]
    return [[each.id for each in seen] for seen in inventor._shown(fresh, EARLIER)]


def test_four_candidates_of_a_label_share_a_prompt() -> None:
    seen = shown(["good", "bad"] * 12, Inventor(answerer(), LOOSE))
    for label in (0, 1):
        groups = [seen[label::2][start : start + 4] for start in (0, 4, 8)]
        assert all(group == [group[0]] * 4 for group in groups)
        assert groups[0] != groups[1] != groups[2]
    assert seen[0] != seen[1]
    assert shown(["good", "bad", "good"], Inventor(answerer(), LOOSE)) == seen[:3]


@pytest.mark.parametrize(
    ("task", "generator"), [(FREE, "record"), (FREE, "reverse"), (MOOD, "meta")]
)
def test_without_labels_and_by_the_papers_prompt_each_candidate_sees_its_own(
    task: Task, generator: Literal["record", "reverse", "meta"]
) -> None:
    seen = shown([None] * 8, Inventor(answerer(task), replace(LOOSE, generator=generator)))
    assert len({tuple(each) for each in seen}) > 4


def test_a_shared_prompt_is_read_once() -> None:
    asks = answerer()
    before = replace(asks.llm.stats)
    Inventor(asks, LOOSE).invent(100, 1, ["good"] * 4, EARLIER)
    after = asks.llm.stats
    share = (after.cached - before.cached) / (after.prompt - before.prompt)
    assert share > 0.6  # three of four prompts, but for their last blocks
