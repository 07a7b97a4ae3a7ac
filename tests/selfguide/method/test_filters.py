"""What each filter takes, and what it must leave alone."""

from __future__ import annotations

import pytest

from selfguide.method.filters import INPUT_FILTERS, OUTPUT_FILTERS, Context, sift
from selfguide.method.pairs import Candidate
from selfguide.settings import Settings
from selfguide.tasks import Example, Task

REVIEWS = Task(
    "reviews",
    "Say if the review is good.",
    (Example("The soup was lovely and warm.", "good"), Example("The bread was stale.", "bad")),
    {"good": "good", "bad": "bad"},
)
POLITE = Task(
    "polite",
    "Say it politely.",
    (
        Example("Send the file now.", "Could you please send the file?"),
        Example("Stop calling me so late.", "Could you please stop calling me so late?"),
    ),
)


def candidate(input: str, **fields: object) -> Candidate:
    return Candidate(id=7, round=0, source="record", input=input, asked=None, seed=1, **fields)  # type: ignore[arg-type]


def taken(input: str, task: Task = REVIEWS) -> str | None:
    one = candidate(input)
    sift([one], INPUT_FILTERS, Context(task, Settings()))
    return one.filter


@pytest.mark.parametrize(
    ("input", "filter"),
    [
        ("", "noise"),
        ("Sure, here is one: nice soup.", "noise"),
        ("As an AI, I eat nothing.", "noise"),
        ("Output: hello", "noise"),
        ("Therefore, the soup is good.", "noise"),
        ("The waiter\nwas slow.", "shape"),
        ("Ok " * 200, "length"),
        ("The soup was lovely and warm!", "duplicate"),
    ],
)
def test_bad_inputs_are_taken(input: str, filter: str) -> None:
    assert taken(input) == filter


@pytest.mark.parametrize(
    "input", ["I asked for input, the output was tea.", "The service is slow.", "Bland noodles."]
)
def test_sound_inputs_pass(input: str) -> None:
    assert taken(input) is None


def test_noise_words_say_nothing_where_the_task_talks_like_that() -> None:
    task = Task("chat", "Is it a greeting?", (Example("Hello", "yes"), Example("Go on then", "no")))
    assert taken("Hello you", task) is None


def test_equal_lengths_of_the_examples_do_not_reject_everything() -> None:
    task = Task("t", "Do.", (Example("abcde fghi", "x"), Example("klmno pqrs", "y")))
    assert taken("some seven", task) is None
    assert taken("rather longer", task) is None


def test_what_is_shorter_than_a_third_of_the_shortest_example_is_too_short() -> None:
    task = Task("t", "Do.", (Example("k" * 30, "x"), Example("k" * 60, "y")))
    short, longer = candidate("m" * 9), candidate("n" * 10)
    sift([short, longer], INPUT_FILTERS, Context(task, Settings()))
    assert (short.filter, longer.filter) == ("length", None)
    assert "suggest 10 to" in (short.reason or "")


def test_no_text_is_said_to_be_too_short_for_a_negative_length() -> None:
    task = Task("t", "Do.", (Example("ab", "x"), Example("k" * 60, "y")))
    one = candidate("m" * 900)
    sift([one], INPUT_FILTERS, Context(task, Settings()))
    assert "suggest 1 to" in (one.reason or "")


def test_later_inputs_like_earlier_ones_are_duplicates_and_say_of_which() -> None:
    context = Context(REVIEWS, Settings())
    context.remember("A friendly waiter brought us tea.", 3)
    one = candidate("A friendly waiter brought us the tea.")
    assert sift([one], INPUT_FILTERS, context) == []
    assert (one.filter, one.reason, one.kept) == ("duplicate", "like candidate 3", False)


def test_only_the_filters_asked_for_are_used() -> None:
    one = candidate("The soup was lovely and warm.")
    assert sift([one], INPUT_FILTERS, Context(REVIEWS, Settings(filters=("noise",)))) == [one]


def verdict(task: Task, one: Candidate) -> str | None:
    sift([one], OUTPUT_FILTERS, Context(task, Settings()))
    return one.filter


def test_the_round_trip_keeps_what_was_asked_for() -> None:
    kept = candidate("Bland noodles.", output="bad", scores={"good": -2.0, "bad": -0.1})
    kept.asked = "bad"
    assert verdict(REVIEWS, kept) is None
    lost = candidate("Bland noodles.", output="bad", scores={"good": -2.0, "bad": -0.1})
    lost.asked = "good"
    assert verdict(REVIEWS, lost) == "round_trip"
    assert "asked for 'good'" in (lost.reason or "")


def test_votes_need_agreement() -> None:
    text = "Could you please go away?"
    assert verdict(POLITE, candidate("Go away.", output=text, agreement=0.1)) == "agreement"
    assert verdict(POLITE, candidate("Go away.", output=text, agreement=0.9)) is None


def test_copies_are_taken_where_no_example_copies() -> None:
    one = candidate("Please go away.", output="please go away", agreement=1.0)
    assert verdict(POLITE, one) == "copy"
    copying = Task("fix", "Fix it.", (*POLITE.examples, Example("All is fine.", "All is fine.")))
    one = candidate("Please go away.", output="please go away", agreement=1.0)
    assert verdict(copying, one) is None
