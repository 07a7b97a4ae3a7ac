"""The run in a sentence, and what a reader must know before believing it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from selfguide.report.figures import funnel
from selfguide.report.run_files import Row, Run

_COLLAPSED = 0.95  # share of one answer from which the annotator is called collapsed
_ENOUGH = 20  # answers, to judge by
_SOURCES = {
    "held_out_synthetic": (
        "Measured on synthetic data, not on a real test: there is no evaluation file, so the "
        "systems are held to pairs that the model made itself and that were kept from training."
    ),
    "leave_one_out": (
        "Measured on your own examples, each left out in turn: there is no evaluation file, and "
        "so few rows say little."
    ),
}


def verdict(run: Run) -> str:
    """What came of the run, in one sentence."""
    if run.metrics:
        return str(run.metrics["verdict"])
    if "finetune" in run.stages:
        return "The expert is trained, and not measured yet."
    if "synthesis" in run.stages and run.kept:
        return _too_few(run)
    return f"Unfinished: {_count(len(run.candidates), 'input')} tried so far."


def _too_few(run: Run) -> str:
    wanted = run.settings.get("pairs")
    goal = f" of {wanted} wanted" if wanted else ""
    sentence = (
        f"{_count(len(run.kept), 'pair')}{goal} came through; nothing was trained on them yet"
    )
    steps = funnel(run)
    if not steps:
        return sentence + "."
    worst = max(steps, key=lambda step: step.taken)
    return (
        f"{sentence}. The filter “{worst.name}” took most: {worst.taken} of {len(run.candidates)}."
    )


def notices(run: Run) -> list[str]:
    """Warnings, the gravest first."""
    found = []
    if run.metrics:
        found.append(_SOURCES.get(run.metrics["eval"]["source"], ""))
    found.append(collapse(run.candidates, run.labels))
    if run.manifest.get("dataset_edited"):
        found.append(
            "dataset.jsonl was edited by hand; the expert was trained on what it says now."
        )
    for stage in run.stages.values():
        found += stage.get("warnings", ())
    return [*dict.fromkeys(text for text in found if text)]


def collapse(candidates: Sequence[Row], labels: Sequence[str]) -> str:
    """What to say if the annotator gives everything the same answer; "" if it does not."""
    annotated = [row for row in candidates if row["output"]]
    if len(annotated) < _ENOUGH:
        return ""
    if labels:
        [(label, count)] = Counter(row["output"] for row in annotated).most_common(1)
        what = f"called {count} of {len(annotated)} inputs “{label}”"
    else:
        count = sum(row["output"].split() == row["input"].split() for row in annotated)
        what = f"copied its input in {count} of {len(annotated)} cases"
    if count < _COLLAPSED * len(annotated):
        return ""
    return f"The annotator collapsed: it {what}. What it taught cannot be trusted."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
