"""What a run leaves: a JSON file with everything, and tables for people, the goals last."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.gpu_race.referee import Outcome, every, timings
from bench.gpu_race.results import OURS, Card, Check, Note, Timing, as_json

_CASES = f"{'case':<52}{'ours ms':>10}{'rate':>15}{'of ceil.':>9}{'best peer ms':>26}{'x':>7}  MiB"
_GOALS = f"{'goal':<52}{'wanted':>34}{'reached':>10}"


def card_of(outcomes: Sequence[Outcome]) -> Card:
    """The device and its ceilings; an empty one where they were not measured."""
    return next(every(outcomes, Card), Card({}, {}))


def as_dict(date: str, outcomes: Sequence[Outcome], *, tiny: bool) -> dict[str, Any]:
    """Everything measured, and what follows from it."""
    card = card_of(outcomes)
    return {
        "date": date,
        "tiny": tiny,
        "card": card.about,
        "ceilings": card.ceilings,
        "sections": {outcome.name: round(outcome.seconds, 1) for outcome in outcomes},
        "timings": [_timing(each, card.ceilings) for each in timings(outcomes)],
        "checks": [_check(each) for each in every(outcomes, Check)],
        "notes": [asdict(each) for each in every(outcomes, Note)],
    }


def _check(check: Check) -> dict[str, Any]:
    """JSON has no number for an error that is none."""
    error = check.error if math.isfinite(check.error) else str(check.error)
    return asdict(check) | {"error": error, "passed": check.passed}


def _timing(timing: Timing, ceilings: dict[str, float]) -> dict[str, Any]:
    goals = [(goal, goal.reached(timing, ceilings)) for goal in timing.goals]
    fields = as_json(timing) | {
        "rates": {side: timing.rate(side) for side in timing.seconds},
        "of_ceiling": timing.share(ceilings),
        "tokens_per_second": {s: timing.tokens / t for s, t in timing.seconds.items()}
        if timing.tokens
        else {},
        "goals": [
            {**asdict(goal), "reached": value, "met": value is not None and goal.met(value)}
            for goal, value in goals
        ],
    }
    del fields["kind"]
    return fields


def write(result: dict[str, Any], out: Path) -> Path:
    """Writes the JSON: to `out` if it names a file, else into that folder under date and card."""
    if out.suffix != ".json":
        card = re.sub(r"[^a-z0-9]+", "-", str(result["card"].get("device", "none")).lower())
        out = out / f"gpu-{result['date']}-{card.strip('-')}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return out


def as_text(date: str, outcomes: Sequence[Outcome], *, tiny: bool) -> str:
    """Every case, what failed or was left out, and the goals."""
    card, cases = card_of(outcomes), timings(outcomes)
    lines = [_heading(date, card, tiny=tiny), "", _CASES]
    lines += [_case(each, card.ceilings) for each in cases]
    lines += ["", *_checks(list(every(outcomes, Check))), *_notes(outcomes, cases), "", _GOALS]
    lines += [line for each in cases for line in _goals(each, card.ceilings)]
    return "\n".join(lines)


def _heading(date: str, card: Card, *, tiny: bool) -> str:
    about, ceilings = card.about, card.ceilings
    versions = (about.get("versions") or {}).items()
    parts = [date, str(about.get("device", "unknown card"))]
    parts += [f"{name} {about[name]}" for name in ("driver", "cuda", "dtype") if about.get(name)]
    parts += [f"{name} {number}" for name, number in versions if number]
    parts += [f"{'copy' if unit == 'GB/s' else 'GEMM'} {_rate(rate, unit)}"
              for unit, rate in ceilings.items()]  # fmt: skip
    dry = ["A dry run of tiny shapes: the numbers mean nothing."] if tiny else []
    return "\n".join([", ".join(parts), *dry])


def _rate(rate: float, unit: str) -> str:
    return f"{rate / 1e3:.1f} TFLOP/s" if unit == "GFLOP/s" else f"{rate:.0f} GB/s"


def _case(timing: Timing, ceilings: dict[str, float]) -> str:
    peers = {side: t for side, t in timing.seconds.items() if side != OURS}
    ours, share = timing.seconds.get(OURS), timing.share(ceilings)
    best = min(peers, key=lambda side: peers[side], default=None)
    rate = "" if ours is None else _rate(timing.rate(), timing.unit)
    if ours is not None and timing.tokens:
        rate = f"{timing.tokens / ours:.0f} tok/s"
    peak = timing.peak_mib
    theirs = min((mib for side, mib in peak.items() if side != OURS), default=None)
    cells = [
        f"{timing.name:<52}",
        f"{'failed' if ours is None else f'{ours * 1e3:.3f}':>10}",
        f"{rate:>15}",
        f"{'' if share is None else f'{share:.0%}':>9}",
        f"{'' if best is None else f'{peers[best] * 1e3:.3f} {best}':>26}",
        f"{'' if best is None or ours is None else f'{peers[best] / ours:.2f}':>7}",
        f"  {peak[OURS]:.0f}" if OURS in peak else "",
        "" if theirs is None else f" / {theirs:.0f}",
    ]
    return "".join(cells).rstrip()


def _checks(checks: list[Check]) -> list[str]:
    wrong = [check for check in checks if not check.passed]
    lines = [f"checks: {len(checks) - len(wrong)} passed, {len(wrong)} failed"] if checks else []
    return lines + [f"  WRONG {c.name}: {c.error:.2g}, allowed {c.allowed:.0e}" for c in wrong]


def _notes(outcomes: Sequence[Outcome], cases: list[Timing]) -> list[str]:
    lines = [
        f"{'FAILED' if note.failed else 'note'} {outcome.name}: {note.name}: {note.text}"
        for outcome in outcomes
        for note in every([outcome], Note)
    ]
    return lines + [
        f"{'FAILED' if side == OURS else 'no peer'} {case.name}: {side}: {why}"
        for case in cases
        for side, why in case.failed.items()
    ]


def _goals(timing: Timing, ceilings: dict[str, float]) -> list[str]:
    lines = []
    for goal in timing.goals:
        value = goal.reached(timing, ceilings)
        reached = "-" if value is None else f"{value:.2f}"
        verdict = "" if value is None else "  met" if goal.met(value) else "  MISSED"
        lines.append(f"{timing.name:<52}{goal!s:>34}{reached:>10}{verdict}")
    return lines
