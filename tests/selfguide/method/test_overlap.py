"""Pairs share as many words as the examples do."""

from __future__ import annotations

import pytest

from selfguide.method.overlap import Overlap
from selfguide.tasks import Example

TIDY = Overlap.of(
    [
        Example("When was, no, where was the treaty signed?", "Where was the treaty signed?"),
        Example("Who built I mean who paid for the bridge?", "Who paid for the bridge?"),
    ]
)


@pytest.mark.parametrize(
    ("input", "output", "what"),
    [
        ("How many, sorry, how old are the trees?", "How old are the trees?", None),
        ("How old are the trees?", "When does the last bus leave?", "of the output's words"),
        ("How old are the trees?", "How old are the trees?", "of the input's words"),
    ],
)
def test_pairs_unlike_the_examples_are_named(input: str, output: str, what: str | None) -> None:
    reason = TIDY.misfit(input, output)
    assert reason is None if what is None else what in (reason or "")


def test_examples_fit_themselves() -> None:
    assert (
        TIDY.misfit("When was, no, where was the treaty signed?", "Where was the treaty signed?")
        is None
    )
