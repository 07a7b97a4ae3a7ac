"""Candidates as rows of the report's table, within a budget of bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from selfguide.method.pairs import Candidate
from selfguide.report.figures import UNDECIDED
from selfguide.report.run_files import Run

MOST_ROWS = 6000
_BUDGET = 1_400_000  # bytes of escaped text in all rows
_CAPS = (4000, 2000, 1000, 600, 400, 250, 160, 100, 60, 30)


@dataclass(frozen=True)
class Share:
    """A label's probability."""

    label: str
    share: float


@dataclass(frozen=True)
class TableRow:
    """A candidate with its texts cut; `fate` is "kept" or the filter that took it."""

    id: int
    input: str
    output: str
    asked: str
    shares: list[Share]
    agreement: float | None
    fate: str
    reason: str


@dataclass(frozen=True)
class Table:
    """The rows shown, how many there are in all, and where texts were cut (None: nowhere)."""

    rows: list[TableRow]
    total: int
    cut_at: int | None


def candidate_table(run: Run) -> Table:
    """Every candidate, or of very many the kept and the first of the others, in ledger order."""
    chosen = run.candidates
    if len(chosen) > MOST_ROWS:
        first = sorted(chosen, key=lambda each: not each.kept)[:MOST_ROWS]
        chosen = sorted(first, key=lambda each: each.id)
    texts = [text or "" for each in chosen for text in (each.input, each.output, each.reason)]
    cap = _cap(texts)
    cut = max(map(len, texts), default=0) > cap
    rows = [_table_row(each, cap) for each in chosen]
    return Table(rows, len(run.candidates), cap if cut else None)


def probabilities(scores: dict[str, float]) -> list[Share]:
    """Log-probabilities as shares of 1, the largest first."""
    top = max(scores.values())
    weights = {label: math.exp(score - top) for label, score in scores.items()}
    total = sum(weights.values())
    ordered = sorted(weights.items(), key=lambda item: -item[1])
    return [Share(label, weight / total) for label, weight in ordered]


def clip(text: str, cap: int) -> str:
    """`text`, or its first `cap` characters and an ellipsis."""
    return text if len(text) <= cap else text[:cap].rstrip() + " …"


def _cap(texts: Sequence[str]) -> int:
    """The most characters of a text such that all of them stay within the budget."""
    for cap in _CAPS:
        if sum(len(escape(text[:cap]).encode("utf-8", "replace")) for text in texts) <= _BUDGET:
            return cap
    return _CAPS[-1]


def _table_row(candidate: Candidate, cap: int) -> TableRow:
    return TableRow(
        id=candidate.id,
        input=clip(candidate.input, cap),
        output=clip(candidate.output or "", cap),
        asked=candidate.asked or "",
        shares=probabilities(candidate.scores)[:3] if candidate.scores else [],
        agreement=candidate.agreement,
        fate="kept" if candidate.kept else candidate.filter or UNDECIDED,
        reason=clip(candidate.reason or "", cap),
    )
