"""The form that inputs share."""

from __future__ import annotations

import pytest

from selfguide.method.shape import Shape

PAIRS = ["Claim: taxes rise.\nReply: so do wages.", "Claim: cats purr. \nReply: not all: some."]


def test_fields_are_what_every_input_has_once_before_a_colon() -> None:
    shape = Shape.of(PAIRS)
    assert shape.fields == ("Claim:", "Reply:")
    assert shape.start == "Claim:"
    assert shape.lines == "several"


def test_field_names_have_several_words_and_may_stand_within_a_line() -> None:
    shape = Shape.of(["Sentence 1: It rains. Sentence 2: It pours", "Sentence 1: a Sentence 2: b"])
    assert shape.fields == ("Sentence 1:", "Sentence 2:")


@pytest.mark.parametrize(
    ("examples", "fields"),
    [
        (['{"who": {"name": "Bob"}, "age": 5}', '{"who": {"name": "Ann"}, "age": 7}'], 2),
        (['{"type": "order", "item": "tea"}', '{"type": "order", "item": "cat food"}'], 2),
        (['{"items": [{"name": "tea"}]}', '{"items": [{"name": "cat food"}]}'], 1),
        (["Lang: en Text: hello you", "Lang: en Text: good day"], 2),
        (["Name: Bob Age:", "Name: Ann Age:"], 1),
    ],
)
def test_examples_fit_their_own_shape(examples: list[str], fields: int) -> None:
    shape = Shape.of(examples)
    assert len(shape.fields) == fields
    assert [shape.misfit(each) for each in examples] == [None] * len(examples)


def test_texts_without_fields_have_none() -> None:
    shape = Shape.of(["The bus was late: again.", "I paid twice at 10:30."])
    assert shape == Shape((), "", "one")
    assert shape.misfit("anything: goes") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Claim: dogs bark.", "'Reply:' 0 times"),
        ("Reply: yes.\nClaim: dogs bark.", "out of order"),
        ("Claim: Reply: yes.", "empty"),
        ("Claim: dogs bark.\nReply:", "'Reply:' is empty"),
        ("Claim: a\nReply: b\nClaim: c", "2 times"),
    ],
)
def test_misfits_are_told_why(text: str, reason: str) -> None:
    assert reason in (Shape.of(PAIRS).misfit(text) or "")


def test_a_text_of_the_same_shape_fits() -> None:
    assert Shape.of(PAIRS).misfit("Claim: it snows.\nReply: hardly.") is None


def test_several_lines_are_a_misfit_where_the_examples_have_one() -> None:
    assert Shape.of(["one", "two"]).misfit("three\nfour") is not None
