"""A task of two labels, and the tiny model shared by tests that leave it as it is."""

from __future__ import annotations

from functools import lru_cache

from engine import LLM
from selfguide.method.answering import Answerer
from selfguide.tasks import Example, Task
from tests.selfguide.method import tiny

MOOD = Task(
    name="mood",
    instruction="Say if the review is good or bad.",
    examples=(Example("Lovely soup.", "good"), Example("Cold soup again.", "bad")),
    labels={"good": "happy", "bad": "unhappy"},
    metric="exact_match",
)


@lru_cache
def _model() -> LLM:
    return tiny.llm()


def answerer(task: Task = MOOD) -> Answerer:
    return tiny.answerer(task, _model())
