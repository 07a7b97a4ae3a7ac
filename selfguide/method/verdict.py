"""What the scores say, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from selfguide.method.ground import Source
from selfguide.metrics.intervals import Difference, paired_difference

_SURE = 0.05
_ENOUGH = 12  # rows from which an expert that is no better than the floor has learnt nothing
_UNITS = {"exact_match": "exact match", "rouge_l": "ROUGE-L"}

Entry = Mapping[str, Any]


def judge(
    entries: Sequence[Entry],
    points: Mapping[str, Sequence[float]],
    metric: str,
    source: Source,
    seed: int,
) -> dict[str, Any]:
    """Compares the expert with the best of all that needs no synthetic data.

    Args:
        entries: the systems' rows of metrics.json.
        points: each system's scores of single rows, by its key.
        metric: that they are scores of.
        source: of the rows.
        seed: of the test.

    Returns:
        The keys best_baseline, expert, recommended, difference and verdict of metrics.json. expert
        and difference are None where nothing can judge the expert; recommended is None where the
        rows cannot tell which system is best.
    """
    baselines = [each for each in entries if not each["key"].startswith("expert")]
    best = max(baselines, key=lambda each: each["score"])
    expert = next((each for each in entries if each["key"] == "expert"), None)
    if expert is None:
        return {
            "best_baseline": best["key"],
            "expert": None,
            "recommended": None,
            "difference": None,
            "verdict": _unjudged(best, metric),
        }
    ours = points["expert"]
    gain = paired_difference(ours, points[best["key"]], seed)
    if source == "held_out_synthetic":
        floor = next(each for each in baselines if each["group"] == "floor")
        learnt = _has_learnt(paired_difference(ours, points[floor["key"]], seed), len(ours))
        verdict = _agreement(expert, floor, metric, len(ours), learnt)
        recommended = "expert" if learnt else None
    else:
        verdict = _comparison(expert, best, gain, metric, len(ours))
        recommended = "expert" if gain.points > 0 else best["key"]
    return {
        "best_baseline": best["key"],
        "expert": "expert",
        "recommended": recommended,
        "difference": asdict(gain),
        "verdict": verdict,
    }


def _comparison(expert: Entry, best: Entry, gain: Difference, metric: str, rows: int) -> str:
    unit = _UNITS[metric]
    scores = (
        f"{expert['score']:.1f} {unit} against {best['score']:.1f} of the best baseline "
        f"({best['title']}) on {rows} rows: {gain.points:+.1f} points, 95 % interval "
        f"{gain.low:+.1f} to {gain.high:+.1f}, {_p(gain.p_value)}"
    )
    if gain.points <= 0 and best["group"] == "floor":
        return (
            f"Nothing here works: {scores}. Neither prompting nor tuning beats an answer that "
            f"{best['how']}; try a larger model, or an instruction and examples that say more."
        )
    if gain.points <= 0:
        return (
            f"Tuning did not win: {scores}. Use {best['title']} instead (--system {best['key']} of "
            f"selfguide.predict): {best['how']}."
        )
    if gain.low <= 0 or gain.p_value >= _SURE:
        return f"The expert is ahead, but within noise: {scores}{_cost(expert, best)}."
    return f"The expert wins: {scores}{_cost(expert, best)}."


def _cost(expert: Entry, best: Entry) -> str:
    ours, theirs = expert["prompt_tokens"], best["prompt_tokens"]
    if theirs is None or ours >= theirs:
        return ""
    return f"; a query takes {ours} prompt tokens instead of {theirs}"


def _has_learnt(over_floor: Difference, rows: int) -> bool | None:
    """Whether the expert beats an answer that needs no model; None where that cannot be told."""
    if over_floor.points > 0:
        return True if over_floor.p_value < _SURE else None
    return False if rows >= _ENOUGH else None


def _agreement(expert: Entry, floor: Entry, metric: str, rows: int, learnt: bool | None) -> str:
    what = {
        True: "The expert has learnt what it was taught",
        False: "The expert has not learnt what it was taught",
        None: "Too few held-out pairs to tell whether the expert has learnt what it was taught",
    }[learnt]
    return (
        f"{what}: {expert['score']:.1f} {_UNITS[metric]} with the annotator on {rows} "
        f"held-out synthetic pairs ({floor['title']}: {floor['score']:.1f}). Whether it beats "
        "prompting cannot be told without an eval_file."
    )


def _unjudged(best: Entry, metric: str) -> str:
    return (
        "Nothing here can judge the expert: there is no eval_file and no synthetic pair was held "
        f"out. Of the untuned ways {best['title']} does best on the examples themselves "
        f"({best['score']:.1f} {_UNITS[metric]}); give an eval_file to compare."
    )


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
