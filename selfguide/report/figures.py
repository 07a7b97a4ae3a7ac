"""Numbers turned into the geometry of the report's pictures; all places are percentages."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from selfguide.report.run_files import Row, Run

_BINS = 24
UNDECIDED = "undecided"
_WHY = {
    "noise": "talk that is not the task's text",
    "shape": "not built like the examples",
    "length": "much shorter or longer than the examples",
    "duplicate": "like an example or an earlier input",
    "annotation": "no usable output",
    "copy": "the output repeats the input",
    "overlap": "shares more or fewer words with its output than the examples do",
    "agreement": "the votes disagree",
    "round_trip": "annotation did not give back what the input was asked for",
    "collapsed": "the annotator answered without looking",
    "balance": "more of their kind than needed",
    UNDECIDED: "the run ended before",
}


@dataclass(frozen=True)
class Step:
    """A filter in the funnel: what it took, and how many candidates it left."""

    name: str
    why: str
    taken: int
    left: int


def funnel(run: Run) -> list[Step]:
    """What each filter took, in the order that they ran."""
    taken = Counter(each.filter or UNDECIDED for each in run.candidates if not each.kept)
    names = [*(name for name in _WHY if name in taken), *sorted(taken.keys() - _WHY.keys())]
    left, steps = len(run.candidates), []
    for name in names:
        left -= taken[name]
        steps.append(Step(name.replace("_", " "), _WHY.get(name, ""), taken[name], left))
    return steps


@dataclass(frozen=True)
class LabelCount:
    """How often a label stands among the examples, was asked for, and was kept."""

    label: str
    meaning: str
    examples: int
    asked: int
    kept: int


def label_counts(run: Run) -> list[LabelCount]:
    """One entry for each label of the task."""
    examples = Counter(row["output"] for row in run.task["examples"])
    asked = Counter(each.asked for each in run.candidates)
    kept = Counter(each.output for each in run.kept)
    return [
        LabelCount(label, meaning, examples[label], asked[label], kept[label])
        for label, meaning in run.task["labels"].items()
    ]


@dataclass(frozen=True)
class Bin:
    """A bar of a histogram: its range in characters and the two counts, with their heights."""

    low: int
    high: int
    kept: int
    dropped: int
    kept_height: float
    dropped_height: float


@dataclass(frozen=True)
class Histogram:
    """Lengths in characters; what lies beyond `top` is counted in the last bar.

    Args:
        bins: from short to long.
        marks: places of the examples.
        top: the right end of the axis.
    """

    bins: list[Bin]
    marks: list[float]
    top: int


def length_histogram(run: Run, field: Literal["input", "output"]) -> Histogram | None:
    """Lengths of the candidates' inputs or outputs beside those of the examples."""
    examples = [len(row[field]) for row in run.task["examples"]]
    known = [(len(getattr(each, field) or ""), each.kept) for each in run.candidates]
    kept = [length for length, is_kept in known if length and is_kept]
    dropped = [length for length, is_kept in known if length and not is_kept]
    if not kept and not dropped:
        return None
    reach = 1.15 * max([*kept, *examples])
    width = max(1, math.ceil(reach / _BINS))
    tallies = [_tally(lengths, width) for lengths in (kept, dropped)]
    tallest = max(map(sum, zip(*tallies, strict=True)))
    bins = [
        Bin(i * width, (i + 1) * width, k, d, 100 * k / tallest, 100 * d / tallest)
        for i, (k, d) in enumerate(zip(*tallies, strict=True))
    ]
    top = _BINS * width
    return Histogram(bins, [100 * min(n / top, 1.0) for n in examples], top)


def _tally(lengths: Sequence[int], width: int) -> list[int]:
    counts = Counter(min(length // width, _BINS - 1) for length in lengths)
    return [counts[place] for place in range(_BINS)]


@dataclass(frozen=True)
class Tick:
    """A number on an axis."""

    place: float
    text: str


@dataclass(frozen=True)
class Curve:
    """The training's losses as points `x,y` in a square of 100 by 100, y downwards.

    Args:
        trainings: how many there were, of which this is the first.
        steps: each step's loss; `smooth`: its running mean; `held_out`: the evaluations.
        best: x of the step whose weights were kept.
        x_ticks, y_ticks: the axes.
    """

    trainings: int
    steps: str
    smooth: str
    held_out: list[tuple[float, float]]
    best: float | None
    best_step: int | None
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def loss_curve(stage: Row | None) -> Curve | None:
    """From the first of the finetune stage's `trainings`; None if there is nothing to show."""
    trainings = (stage or {}).get("trainings") or [stage or {}]
    first = trainings[0]
    losses = [float(loss) for loss in first.get("losses") or ()]
    if not losses:
        return None
    evaluated = [(int(step), float(loss)) for step, loss in first.get("eval_losses") or ()]
    finite = [loss for loss in (*losses, *(each for _, each in evaluated)) if math.isfinite(loss)]
    ticks = _round_ticks(max(finite, default=1.0))
    last, top = len(losses), ticks[-1]

    def point(step: float, loss: float) -> tuple[float, float]:
        shown = min(loss, top) if math.isfinite(loss) else top
        return round(100 * step / last, 2), round(100 - 100 * shown / top, 2)

    best = first.get("best_step")
    numbered = list(enumerate(losses, 1))
    return Curve(
        trainings=len(trainings),
        steps=_path([point(step, loss) for step, loss in numbered]),
        smooth=_path([point(step, loss) for step, loss in enumerate(_running_mean(losses), 1)]),
        held_out=[point(step, loss) for step, loss in evaluated],
        best=None if best is None else round(100 * best / last, 2),
        best_step=best,
        x_ticks=[Tick(100 * step / last, str(step)) for step in sorted({1, last // 2 or 1, last})],
        y_ticks=[Tick(100 - 100 * value / top, f"{value:g}") for value in ticks],
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)


def _running_mean(losses: Sequence[float]) -> list[float]:
    """Each step's mean with its neighbours, a tenth of the run in all."""
    reach = max(1, len(losses) // 20)
    windows = (losses[max(0, i - reach) : i + reach + 1] for i in range(len(losses)))
    return [sum(window) / len(window) for window in windows]


def _round_ticks(top: float) -> list[float]:
    """Four or five steps of 1, 2, 2.5 or 5 times a power of ten, from 0 to `top` or beyond."""
    raw = max(top, 1e-6) / 4.5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * k for k in (1, 2, 2.5, 5, 10) if unit * k >= raw * 0.999)
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]
