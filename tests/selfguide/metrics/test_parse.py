"""The label parser on the forms that small models answer in."""

from __future__ import annotations

import pytest

from selfguide.metrics.parse import parse_label

YES_NO = ("yes", "no")
NLI = ("entailment", "contradiction", "neutral")
POLES = ("positive", "negative")


@pytest.mark.parametrize(
    ("answer", "labels", "label"),
    [
        ("No.", YES_NO, "no"),
        ('  "Yes"', YES_NO, "yes"),
        ("YES!", YES_NO, "yes"),
        ("yes\n\nInput: another\nOutput: no", YES_NO, "yes"),
        ("Yes, no doubt", YES_NO, "yes"),
        ("Neutral.\nThere is no contradiction in it", NLI, "neutral"),
        ("I think neutral, not entailment", NLI, "neutral"),
        ("world news", ("World", "Sports"), "World"),
    ],
)
def test_label_at_the_start_counts(answer: str, labels: tuple[str, ...], label: str) -> None:
    assert parse_label(answer, labels) == label


@pytest.mark.parametrize(
    ("answer", "labels", "label"),
    [
        ("Label: Neutral", NLI, "neutral"),
        ("**Answer:** Positive", POLES, "positive"),
        ("Answer: the label is Positive", POLES, "positive"),
        ("The answer is contradiction.", NLI, "contradiction"),
        ("The sentiment of this review is clearly negative.", POLES, "negative"),
        ("It may seem positive, but the label is negative.", POLES, "negative"),
        ("The answer is: 'not_sure'.", ("not sure", "sure"), "not sure"),
        ("It's entailment, clearly", NLI, "entailment"),
        ("This is true.", ("true", "false"), "true"),
    ],
)
def test_stated_label_is_found_within(answer: str, labels: tuple[str, ...], label: str) -> None:
    assert parse_label(answer, labels) == label


@pytest.mark.parametrize(
    ("answer", "labels"),
    [
        ("I know", YES_NO),
        ("nothing at all", ("not", "no")),
        ("untrue", ("true", "false")),
        ("non-toxic", ("toxic", "not toxic")),
        ("1.5 million", ("0", "1")),
        ("10", ("0", "1")),
        ("-1", ("0", "1")),
    ],
)
def test_part_of_a_word_is_no_label(answer: str, labels: tuple[str, ...]) -> None:
    assert parse_label(answer, labels) is None


@pytest.mark.parametrize(
    ("answer", "labels"),
    [
        ("", YES_NO),
        ("It depends.", YES_NO),
        ("this may be neutral, or maybe entailment", NLI),
        ("positive or negative", POLES),
        ("Positive/Negative", POLES),
        ("positive, negative", POLES),
        ("E, N, C", ("E", "N", "C")),
        ("The answer is yes. The answer is no.", YES_NO),
        ("It is not positive", POLES),
        ("It isn't positive.", POLES),
        ("neither positive nor negative", POLES),
        ("anything", ()),
    ],
)
def test_unclear_answer_has_none(answer: str, labels: tuple[str, ...]) -> None:
    assert parse_label(answer, labels) is None


@pytest.mark.parametrize(
    ("answer", "labels", "label"),
    [
        ("not sure about it", ("not", "not sure", "sure"), "not sure"),
        ("Not-Sure", ("sure", "not_sure"), "not_sure"),
        ("non-toxic", ("toxic", "non-toxic"), "non-toxic"),
        ("-1", ("-1", "0", "1"), "-1"),
        ("10", ("1", "10"), "10"),
        ("C++", ("C", "C++"), "C++"),
        ("c", ("C", "C++"), "C"),
        ("A", ("a", "A"), "A"),
    ],
)
def test_longest_label_wins(answer: str, labels: tuple[str, ...], label: str) -> None:
    assert parse_label(answer, labels) == label
    assert parse_label(answer, labels[::-1]) == label


@pytest.mark.parametrize(
    ("answer", "labels", "label"),
    [
        ("E", ("E", "N", "C"), "E"),
        ("(n) because the premise says nothing", ("E", "N", "C"), "N"),
        ("1", ("0", "1"), "1"),
        ("The correct option is (B).", ("A", "B"), "B"),
        ("The answer is B.", ("A", "B"), "B"),
        ("A man sleeps", ("A", "B"), None),
        ("The answer is a boat", ("A", "B"), None),
        ("I am on the N line", ("I", "N"), None),
        ("I'm happy", ("I", "N"), None),
        ("2 of the 3 claims", ("2", "3"), None),
    ],
)
def test_one_letter_labels_stand_alone(
    answer: str, labels: tuple[str, ...], label: str | None
) -> None:
    assert parse_label(answer, labels) == label


def test_any_script() -> None:
    assert parse_label("答案是正面。", ("正面", "负面")) == "正面"
    assert parse_label("Ответ: Да.", ("да", "нет")) == "да"
    assert parse_label("Ｐｏｓｉｔｉｖｅ", POLES) == "positive"
    assert parse_label("😀", ("😀", "😡")) == "😀"
    assert parse_label("It’s “négatif”", ("négatif", "positif")) == "négatif"
