"""Scores that several systems want are computed once, and are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine import LLM
from selfguide.method.ground import leave_one_out
from selfguide.method.remembering import Remembering
from selfguide.prompts import Asking
from tests.selfguide.method.tiny import CLASSES, answerer, sentence

FIRST = [sentence(n) for n in (70, 71, 70)]
SECOND = [sentence(n) for n in (72, 71)]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Completions of each call of `LLM.score`."""
    counts: list[int] = []
    score = LLM.score

    def counting(self: LLM, prompts: Any, completions: Any, *rest: Any) -> Any:
        counts.append(sum(map(len, completions)))
        return score(self, prompts, completions, *rest)

    monkeypatch.setattr(LLM, "score", counting)
    return counts


@pytest.mark.parametrize("channel", [False, True])
def test_each_input_is_scored_once(scored: list[int], channel: bool) -> None:
    plain = answerer(CLASSES)
    asked = Remembering(plain.llm, plain.task, plain.prompts)

    def scores(of: Any, texts: list[str]) -> Any:
        return of.channel_scores(texts) if channel else of.label_scores(texts, Asking())

    expected = [scores(plain, texts) for texts in (FIRST, SECOND)]
    scored.clear()
    for texts, exact in zip((FIRST, SECOND, SECOND), [*expected, expected[1]], strict=True):
        np.testing.assert_array_equal(scores(asked, texts), exact)
    assert sum(scored) == 3 * len(CLASSES.labels)
    assert scores(asked, []).shape == (0, 2)


def test_other_ways_to_ask_have_scores_of_their_own() -> None:
    plain = answerer(CLASSES)
    asked = Remembering(plain.llm, plain.task, plain.prompts)
    plain.llm.adapters.new("a", seed=1)
    for tensor in plain.llm.adapters["a"].tensors():
        tensor.fill_(0.05)
    ways = [Asking(), Asking(shots=False), Asking("titled"), Asking(adapter="a")]
    for _ in range(2):
        for way in ways:
            np.testing.assert_array_equal(
                asked.label_scores(FIRST, way), plain.label_scores(FIRST, way)
            )
        for adapter in (None, "a"):
            np.testing.assert_array_equal(
                asked.channel_scores(FIRST, adapter), plain.channel_scores(FIRST, adapter)
            )
    different = [asked.label_scores(FIRST, way).tobytes() for way in ways]
    assert len(set(different)) == len(ways)


def test_folds_remember_too_each_for_itself(scored: list[int]) -> None:
    plain = answerer(CLASSES)
    asked = Remembering(plain.llm, plain.task, plain.prompts)
    folds = [fold.answerer for fold in leave_one_out(asked)]
    expected = [fold.answerer.label_scores(FIRST, Asking()) for fold in leave_one_out(plain)]
    scored.clear()
    for _ in range(2):
        for fold, exact in zip(folds, expected, strict=True):
            np.testing.assert_array_equal(fold.label_scores(FIRST, Asking()), exact)
    assert sum(scored) == len(folds) * 2 * len(CLASSES.labels)
