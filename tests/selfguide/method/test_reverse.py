"""Outputs first: what is asked for is kept as the output, and scored the usual way round."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine import Scored
from selfguide.method.annotate import Annotator
from selfguide.method.inputs import Inventor
from selfguide.method.pairs import Candidate
from selfguide.method.reverse import ADAPTER, Writer
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
    assert likely(Writer(asks, replace(Settings(), lr=1e-2)).adapter) > before + 1


def test_the_asked_output_is_kept_with_its_tokens_mean_probability() -> None:
    asks = answerer(FREE)
    candidate = Candidate(0, 0, "reverse", "one two", "three", 1)
    Annotator(asks, REVERSE).annotate([candidate])
    prompt = asks.prompts.answer("one two", Asking())
    scored = asks.llm.score([prompt], [" three"])[0]
    assert isinstance(scored, Scored)
    assert candidate.output == "three"
    probability = 2.718281828 ** (scored.logprob / len(scored.ids))
    assert candidate.agreement == pytest.approx(probability, rel=1e-4)


def test_going_on_after_a_round_ends_in_the_same_ledger() -> None:
    whole, saved = run(settings=REVERSE)
    assert run(settings=REVERSE, known=saved[0])[0].candidates == whole.candidates
