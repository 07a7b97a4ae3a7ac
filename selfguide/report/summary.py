"""The run in a sentence, and what a reader must know before believing it."""

from __future__ import annotations

from dataclasses import dataclass

from selfguide.report.figures import funnel
from selfguide.report.run_files import Run

_NO_TEST = {
    "held_out_synthetic": "Measured on synthetic data, not on a real test",
    "leave_one_out": "Measured on the task's own examples, not on a real test",
}


@dataclass(frozen=True)
class Verdict:
    """What came of the run: the headline, and the rest of the sentence."""

    headline: str
    detail: str


def verdict(run: Run) -> Verdict:
    """From metrics.json, or for a run that ended before, from how far it came."""
    if run.metrics:
        headline, _, detail = run.metrics["verdict"].partition(": ")
        return Verdict(headline, detail[:1].upper() + detail[1:])
    if "finetune" in run.stages:
        return Verdict("The expert is trained, and not measured yet", "")
    if "synthesis" in run.stages:
        return _too_few(run)
    return Verdict("Unfinished", f"{len(run.candidates)} inputs tried so far.")


def _too_few(run: Run) -> Verdict:
    kept, tried = len(run.kept), len(run.candidates)
    headline = f"{kept} of {run.settings['pairs']} pairs wanted, and nothing trained on them"
    steps = funnel(run)
    if not steps:
        return Verdict(headline, "")
    worst = max(steps, key=lambda step: step.taken)
    why = f": {worst.why}" if worst.why else ""
    return Verdict(headline, f"Most fell to “{worst.name}”, {worst.taken} of {tried}{why}.")


def notices(run: Run) -> list[str]:
    """Warnings, the gravest first."""
    found = []
    if run.metrics and run.metrics["eval"]["source"] in _NO_TEST:
        found.append(f"{_NO_TEST[run.metrics['eval']['source']]}: {run.metrics['eval']['note']}.")
    for stage in run.stages.values():
        found += stage.get("warnings", ())
    if run.manifest.get("dataset_edited"):
        found.append("The training pairs were edited by hand before the expert was trained.")
    return [*dict.fromkeys(found)]
