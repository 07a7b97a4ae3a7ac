"""Outputs first: what is asked for is kept as the output, and scored the usual way round."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine import Progress, Scored, TrainProgress
from selfguide.errors import Interrupted
from selfguide.method.annotate import Annotator
from selfguide.method.inputs import Inventor
from selfguide.method.pairs import Candidate
from selfguide.method.reverse import ADAPTER, EPOCHS, Writer
from selfguide.metrics.rouge import alike
from selfguide.prompts import Asking
from selfguide.settings import Settings
from tests.selfguide.method.mood import answerer
from tests.selfguide.method.test_synthesis import FREE, LOOSE, run

REVERSE = replace(LOOSE, generator="reverse")


def test_inputs_are_written_by_an_adapter_for_invented_outputs() -> None:
    asks = answerer(FREE)
    fresh = Inventor(asks, REVERSE).invent(0, 0, [None] * 8, [])
    whole = [each for each in fresh if each.filter is None]
    assert ADAPTER in asks.llm.adapters
    assert whole
    assert all(each.asked and each.input and each.source == "reverse" for each in whole)
    bare = Inventor(asks, LOOSE).invent(0, 0, [None] * 8, [])
    assert [each.input for each in bare] != [each.input for each in fresh]


def test_the_adapter_learns_to_write_the_examples_inputs() -> None:
    asks = answerer(FREE)
    first, second = FREE.examples
    prompt = asks.prompts.record([second], first.output)

    def likely(adapter: str | None) -> float:
        scored = asks.llm.score([prompt], [f" {first.input}"], adapter)[0]
        assert isinstance(scored, Scored)
        return scored.logprob

    before = likely(None)
    Writer(asks, Settings()).learn()
    assert likely(ADAPTER) > before + 0.1


def test_learning_may_be_stopped_and_is_done_once() -> None:
    inventor = Inventor(answerer(FREE), REVERSE)
    steps: list[int] = []

    def stop(progress: Progress | TrainProgress) -> None:
        raise Interrupted

    def count(progress: Progress | TrainProgress) -> None:
        assert isinstance(progress, TrainProgress)
        steps.append(progress.step)

    with pytest.raises(Interrupted):
        inventor.prepare(stop)
    inventor.prepare(count)
    assert steps == list(range(1, EPOCHS + 1))
    inventor.prepare(stop)


def test_an_invented_output_ends_where_the_next_would_begin() -> None:
    letters = tuple(replace(e, output=f"{e.output}\n\nbye") for e in FREE.examples)
    asks = answerer(replace(FREE, examples=letters))
    params = Writer(asks, REVERSE)._params(Candidate(0, 0, "reverse", "", None, 1))
    assert set(params.stop) >= {"\nOutput:", "\nInput:"}
    assert "\n\n" not in params.stop


def test_the_asked_output_is_kept_and_compared_with_the_models_answer() -> None:
    asks = answerer(FREE)
    answer = asks.greedy(["one two"], Asking())[0]
    rows = [
        Candidate(i, 0, "reverse", "one two", out, 1) for i, out in enumerate((answer, "three"))
    ]
    Annotator(asks, REVERSE).annotate(rows)
    assert [row.output for row in rows] == [answer, "three"]
    assert rows[0].agreement == 1.0
    assert rows[1].agreement == alike(answer, "three")


def test_going_on_after_a_round_ends_in_the_same_ledger() -> None:
    whole, saved = run(settings=REVERSE)
    assert run(settings=REVERSE, known=saved[0])[0].candidates == whole.candidates
