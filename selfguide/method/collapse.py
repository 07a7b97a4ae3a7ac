"""Catching an annotator that answers without looking, and inputs that ignore what was asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import sqrt

from selfguide.method.pairs import Candidate
from selfguide.metrics.words import words
from selfguide.tasks import Task

_LEAST = 24  # annotated candidates before anything is said
_SAME = 0.95  # share of one answer from which an annotator counts as collapsed
_COPIES = 0.8  # share of outputs that repeat their inputs
_Z = 1.645  # one-sided 5 %


def collapsed(candidates: Sequence[Candidate], task: Task) -> str | None:
    """Why these annotations teach nothing, in one line; None if they are sound.

    Args:
        candidates: those that annotation answered.
        task: tells whether its examples copy or repeat themselves too.
    """
    answered = [each for each in candidates if each.output]
    if len(answered) < _LEAST:
        return None
    return _one_answer(answered, task) or _copies(answered, task)


def _one_answer(answered: Sequence[Candidate], task: Task) -> str | None:
    output, count = Counter(each.output for each in answered).most_common(1)[0]
    if count < _SAME * len(answered) or len({e.output for e in task.examples}) == 1:
        return None
    return f"the annotator gave {output!r:.60} for {count} of {len(answered)} inputs"


def _copies(answered: Sequence[Candidate], task: Task) -> str | None:
    count = sum(words(each.input) == words(each.output or "") for each in answered)
    usual = any(words(example.input) == words(example.output) for example in task.examples)
    if usual or count < _COPIES * len(answered):
        return None
    return f"the annotator copied its input in {count} of {len(answered)} cases"


def at_chance(candidates: Sequence[Candidate]) -> str | None:
    """A warning if annotation finds the asked-for labels no more often than blind guessing would.

    That alone is no reason to stop: a small model may ignore which label it is asked to write for
    and still tell labels apart (a review task: 51 % here, and an expert 7 points above the best
    baseline).
    """
    asked = [each for each in candidates if each.output and each.asked is not None]
    if len(asked) < _LEAST:
        return None
    wanted, given = Counter(e.asked for e in asked), Counter(e.output for e in asked)
    chance = sum(wanted[label] * given[label] for label in wanted) / len(asked) ** 2
    share = sum(each.output == each.asked for each in asked) / len(asked)
    if share > chance + _Z * sqrt(chance * (1 - chance) / len(asked)):
        return None
    return (
        f"annotation gives the asked-for label back in {share:.0%} of {len(asked)} cases, and "
        f"guessing would in {chance:.0%}: inputs ignore what was asked, or this model cannot tell "
        "the labels apart; the scores will show it"
    )
