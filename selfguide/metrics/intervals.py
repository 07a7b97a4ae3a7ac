"""How sure a score is: bootstrap intervals and a paired test, from scores of single rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
_CELLS = 2_000_000  # of a block of resamples, at most

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """A system's mean minus another's on the same rows, in points.

    Args:
        points: the difference of the means.
        low, high: its 95 % bootstrap interval, rows resampled in pairs.
        p_value: two-sided, of "both systems are equally good" (`sign_flip_p`).
    """

    points: float
    low: float
    high: float
    p_value: float


def mean_interval(scores: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean of row scores (Efron & Tibshirani 1993).

    Raises:
        ValueError: there are no scores.
    """
    values = np.asarray(scores, np.float64)
    means = [counts @ values / len(values) for counts in _resamples(len(values), seed)]
    return _middle(np.concatenate(means))


def macro_f1_interval(
    predicted: Sequence[str | None], gold: Sequence[str], labels: Sequence[str], seed: int = 0
) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of `selfguide.metrics.exact.macro_f1`."""
    named = np.array([[p == label for label in labels] for p in predicted], np.float64)
    right = np.array([[g == label for label in labels] for g in gold], np.float64)
    scores = []
    for counts in _resamples(len(gold), seed):
        hits, total = 2.0 * counts @ (named * right), counts @ (named + right)
        f1 = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
        scores.append(100.0 * f1.sum(1) / np.maximum((total > 0).sum(1), 1))
    return _middle(np.concatenate(scores))


def paired_difference(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Difference:
    """Compares two systems by their scores on the same rows.

    Raises:
        ValueError: the systems have different numbers of rows, or none.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} scores are not of the same rows")
    differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    low, high = mean_interval(differences.tolist(), seed)
    return Difference(float(differences.mean()), low, high, sign_flip_p(differences, seed))


def sign_flip_p(differences: Numbers, seed: int = 0) -> float:
    """The two-sided p-value of a mean difference, by flipping the signs of paired differences.

    If the systems are equally good, each difference is as likely as its negative (Fisher 1935).
    Where all that differ do so by the same amount (right or wrong answers) this is McNemar's exact
    test (1947), computed as such; else signs are drawn (Phipson & Smyth 2010, equation 2).
    """
    moved = differences[differences != 0]
    if len(moved) == 0:
        return 1.0
    sizes = np.abs(moved)
    if np.all(sizes == sizes[0]):
        return _binomial_p(int((moved > 0).sum()), len(moved))
    observed = abs(moved.sum())
    rng = np.random.default_rng(seed)
    draws = max(_CELLS // len(moved) // 10, 1)
    extreme, done = 0, 0
    while done < 10_000:
        signs = rng.integers(0, 2, (draws, len(moved))) * 2.0 - 1.0
        extreme += int((np.abs(signs @ moved) >= observed * (1 - 1e-12)).sum())
        done += draws
    return (extreme + 1) / (done + 1)


def _binomial_p(wins: int, trials: int) -> float:
    """The two-sided probability of a split at least as uneven in fair coin tosses."""
    fewer = min(wins, trials - wins)
    ways = sum(math.comb(trials, k) for k in range(fewer + 1))
    return min(1.0, 2 * ways / 2**trials)


def _resamples(rows: int, seed: int) -> Iterator[Numbers]:
    """How often each row is drawn, [resamples, rows], in blocks that fit in memory."""
    if rows == 0:
        raise ValueError("there are no scores")
    rng = np.random.default_rng(seed)
    block = max(_CELLS // rows, 1)
    for start in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - start)
        yield rng.multinomial(rows, np.full(rows, 1.0 / rows), size).astype(np.float64)


def _middle(values: Numbers) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
