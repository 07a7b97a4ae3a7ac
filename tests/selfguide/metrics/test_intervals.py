"""Intervals that cover what they should, and p-values against scipy's exact tests."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from selfguide.metrics.exact import macro_f1
from selfguide.metrics.intervals import (
    macro_f1_interval,
    mean_interval,
    paired_difference,
    sign_flip_p,
)


def test_interval_agrees_with_theory() -> None:
    scores = [100.0] * 130 + [0.0] * 70
    low, high = mean_interval(scores)
    error = 1.96 * 100 * np.sqrt(0.65 * 0.35 / 200)
    assert low == pytest.approx(65 - error, abs=0.7)
    assert high == pytest.approx(65 + error, abs=0.7)
    assert mean_interval(scores) == (low, high)
    assert mean_interval(scores, seed=1) != (low, high)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        low, high = mean_interval((100 * rng.random(60)).tolist(), seed)
        covered += low <= 50 <= high
    assert 88 <= covered <= 100


def test_interval_of_macro_f1_holds_it() -> None:
    rng = np.random.default_rng(3)
    labels = ["a", "b", "c"]
    gold = rng.choice(labels, 150).tolist()
    guesses = [g if keep else "a" for g, keep in zip(gold, rng.random(150) < 0.6, strict=True)]
    predicted = [
        None if lost else g for g, lost in zip(guesses, rng.random(150) < 0.1, strict=True)
    ]
    low, high = macro_f1_interval(predicted, gold, labels)
    drawn = []
    for _ in range(300):
        rows = rng.integers(150, size=150)
        drawn.append(macro_f1([predicted[i] for i in rows], [gold[i] for i in rows], labels))
    assert low == pytest.approx(np.percentile(drawn, 2.5), abs=2.5)
    assert high == pytest.approx(np.percentile(drawn, 97.5), abs=2.5)


def test_many_rows_fit_in_blocks() -> None:
    low, high = mean_interval([0.0, 100.0] * 10_000)
    assert 49 < low < 50 < high < 51


def test_right_and_wrong_answers_get_mcnemars_exact_test() -> None:
    differences = np.array([100.0] * 14 + [-100.0] * 4 + [0.0] * 80)
    expected = stats.binomtest(14, 18).pvalue
    assert sign_flip_p(differences) == pytest.approx(expected)
    assert sign_flip_p(-differences) == pytest.approx(expected)
    assert sign_flip_p(np.zeros(5)) == 1.0


def test_uneven_differences_get_the_permutation_test() -> None:
    differences = np.array([3.0, -1.0, 4.0, 1.5, -0.5, 2.0, 6.0, 0.0, 2.5])
    signs = np.array(list(itertools.product([1, -1], repeat=len(differences))))
    sums = np.abs(signs @ differences)
    expected = (sums >= abs(differences.sum()) - 1e-9).mean()
    assert sign_flip_p(differences) == pytest.approx(expected, abs=0.01)


def test_paired_difference() -> None:
    ours = [100.0] * 60 + [0.0] * 40
    theirs = [100.0] * 45 + [0.0] * 55
    found = paired_difference(ours, theirs)
    assert found.points == pytest.approx(15.0)
    assert found.low < 15 < found.high
    assert found.p_value == pytest.approx(2 / 2**15)  # all 15 rows that differ are won
    assert paired_difference(ours, ours).p_value == 1.0


def test_rows_must_pair() -> None:
    with pytest.raises(ValueError, match="not of the same rows"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="no scores"):
        mean_interval([])
