"""Exact match, macro-F1 (against scikit's definition by hand) and the share of valid answers."""

from __future__ import annotations

import pytest

from selfguide.metrics.exact import exact_match, gold_label, macro_f1, normalise, valid_share


@pytest.mark.parametrize(
    ("answer", "output"),
    [
        ("  Paris.\n", "paris"),
        ("“Paris”", "Paris"),
        ("**Paris**", "Paris"),
        ("new\n york", "New York"),
        ("Ｐａｒｉｓ。", "Paris"),
        ("STRASSE", "Straße"),
    ],
)
def test_same_answer(answer: str, output: str) -> None:
    assert exact_match(answer, ["Rome", output]) == 100.0


@pytest.mark.parametrize(
    ("answer", "output"),
    [
        ("-5", "5"),
        ("$5", "5"),
        ("5%", "5"),
        ("C++", "C"),
        ("?", "!"),
        (".5", "5"),
        ("Paris, France", "Paris"),
        ("", "Paris"),
    ],
)
def test_other_answer(answer: str, output: str) -> None:
    assert exact_match(answer, [output]) == 0.0


def test_normalise_leaves_marks_alone() -> None:
    assert normalise(" ?! ") == "?!"


def test_macro_f1_is_the_mean_over_labels() -> None:
    predicted = ["a", "a", "b", None, "c"]
    gold = ["a", "b", "b", "a", "c"]
    # a: 1 hit of 2 named and 2 right; b: 1 of 1 and 2; c: 1 of 1 and 1
    expected = 100 * (2 / 4 + 2 / 3 + 2 / 2) / 3
    assert macro_f1(predicted, gold, ["a", "b", "c"]) == pytest.approx(expected)


def test_macro_f1_counts_only_labels_that_occur() -> None:
    assert macro_f1(["a", "a"], ["a", "a"], ["a", "b"]) == 100.0
    assert macro_f1(["a", "a"], ["a", "b"], ["a", "b"]) == pytest.approx(100 / 3)
    assert macro_f1([None], ["a"], ["a", "b"]) == 0.0


def test_gold_label_follows_a_right_prediction() -> None:
    assert gold_label("b", ["a", "b"]) == "b"
    assert gold_label("c", ["a", "b"]) == "a"
    assert gold_label(None, ["a", "b"]) == "a"


def test_valid_share() -> None:
    assert valid_share(["a", None, "b", None]) == 50.0
    assert valid_share([]) == 0.0
