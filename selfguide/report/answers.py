"""Answers before and after, side by side, with what the reference says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfguide.metrics.exact import exact_match
from selfguide.metrics.rouge import rouge_l
from selfguide.report.rows import clip
from selfguide.report.run_files import Row, Run

_CAP = 1200
_MOVED = 10.0  # points of ROUGE-L from which a text counts as better or worse
_EACH = 6


@dataclass(frozen=True)
class Comparison:
    """One evaluation row: its input, what was right, and both answers with their scores."""

    input: str
    reference: str
    before: str
    after: str
    before_score: float
    after_score: float

    @property
    def gain(self) -> float:
        return self.after_score - self.before_score


@dataclass(frozen=True)
class Kind:
    """Rows that fared alike: their number, and some of them."""

    key: str
    title: str
    total: int
    shown: list[Comparison]


@dataclass(frozen=True)
class BeforeAfter:
    """Few-shot prompting beside the expert.

    Args:
        before, after: the systems' titles.
        kinds: fixed, broken, and those that stayed right or wrong.
        exact: whether a row is right or wrong, or has a score from 0 to 100.
    """

    before: str
    after: str
    kinds: list[Kind]
    exact: bool


def before_after(run: Run) -> BeforeAfter | None:
    """None where the run has no answers of both systems, or no rows to hold them to."""
    keys = ("few_shot", "expert")
    if run.metrics is None or not run.evaluation or not run.systems.keys() >= set(keys):
        return None
    before, after = (_answers(run, key) for key in keys)
    rows = sorted(before.keys() & after.keys())
    if not rows:
        return None
    exact = run.metrics["metric"] == "exact_match"
    compared = [_compare(run.evaluation[i], before[i], after[i], exact) for i in rows]
    titles = [run.systems[key]["title"] for key in keys]
    return BeforeAfter(titles[0], titles[1], _kinds(compared, exact), exact)


def _answers(run: Run, key: str) -> dict[int, str]:
    given = (row for row in run.predictions if row["system"] == key)
    return {row["row"]: row["label"] or row["text"] for row in given}


def _compare(row: Row, before: str, after: str, exact: bool) -> Comparison:
    outputs = row["outputs"]
    score = exact_match if exact else rouge_l
    return Comparison(
        clip(row["input"], _CAP),
        clip(" · ".join(outputs[:3]), _CAP),
        clip(before, _CAP),
        clip(after, _CAP),
        score(before, outputs),
        score(after, outputs),
    )


def _kinds(compared: Sequence[Comparison], exact: bool) -> list[Kind]:
    moved = 50.0 if exact else _MOVED
    by_gain = sorted(compared, key=lambda c: -c.gain)
    fixed = [c for c in by_gain if c.gain >= moved]
    broken = [c for c in sorted(compared, key=lambda c: c.gain) if c.gain <= -moved]
    same = [c for c in compared if abs(c.gain) < moved]
    if not exact:
        return [
            _kind("fixed", "Better", fixed),
            _kind("broken", "Worse", broken),
            _kind("same", "About the same", same),
        ]
    return [
        _kind("fixed", "Fixed", fixed),
        _kind("broken", "Broken", broken),
        _kind("right", "Right before and after", [c for c in same if c.after_score == 100.0]),
        _kind("wrong", "Wrong before and after", [c for c in same if c.after_score < 100.0]),
    ]


def _kind(key: str, title: str, rows: Sequence[Comparison]) -> Kind:
    return Kind(key, title, len(rows), list(rows[:_EACH]))
