"""ROUGE-L against the rouge-score library's own tokenizer, and the fast measure against ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer, tokenize

from selfguide.metrics.rouge import rouge_l, similarity
from selfguide.metrics.words import words

ASCII = st.text(st.characters(min_codepoint=9, max_codepoint=126), max_size=60)
SENTENCES = st.lists(st.sampled_from(["a", "b", "c", "d", "é"]), max_size=90).map(" ".join)


@given(ASCII)
def test_words_of_ascii_are_the_librarys(text: str) -> None:
    expected = tokenize.tokenize(text, None)
    assert list(words(text)) == (expected or text.lower().split())


@given(SENTENCES, SENTENCES)
def test_similarity_is_rouge_l(a: str, b: str) -> None:
    assert 100 * similarity(a, b) == pytest.approx(rouge_l(a, [b]))
    assert similarity(a, b) == similarity(b, a)


def test_plain_english_scores_as_by_default() -> None:
    default = rouge_scorer.RougeScorer(["rougeL"])
    answer = "The quick brown fox doesn't jump over the lazy dog's 2 kennels."
    outputs = ["A quick fox jumps over a lazy dog", "The brown fox does not jump: the dog is lazy"]
    expected = default.score_multi(outputs, answer)["rougeL"].fmeasure
    assert rouge_l(answer, outputs) == pytest.approx(100 * expected)


def test_best_reference_counts() -> None:
    assert rouge_l("a b", ["x y", "a b", "a"]) == 100.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Żółw idzie", ("żółw", "idzie")),
        ("हिन्दी भाषा", ("हिन्दी", "भाषा")),
        ("我爱北京 2024", ("我", "爱", "北", "京", "2024")),
        ("snake_case", ("snake", "case")),
        ("!!! ??", ("!!!", "??")),
        ("  ", ()),
    ],
)
def test_words_of_any_script(text: str, expected: tuple[str, ...]) -> None:
    assert words(text) == expected


def test_other_scripts_score() -> None:
    assert rouge_l("добрый день", ["добрый вечер"]) == pytest.approx(50.0)
    assert rouge_l("😀", ["😀"]) == 100.0
    assert rouge_l("", ["a"]) == 0.0
