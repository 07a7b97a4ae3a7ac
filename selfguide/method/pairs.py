"""Candidates as the ledger keeps them, and the pairs that training reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass
class Candidate:
    """An invented (or the user's own) input and all that became of it: one row of the ledger.

    Args:
        id: its place in the ledger.
        round: of synthesis, counted from 0.
        source: the generator, or "user".
        input: its text, stripped.
        asked: the label, or in reverse the invented output, that it was asked for; else None.
        seed: of its sampling.
        output: what annotation gave; None if a filter took the input before.
        scores: log p(label | input) over the labels, as the annotator gave them, bias included.
        channel: the same from p(input | label), where the annotator weighs both.
        agreement: 0-1: the chosen label's probability, share of the votes, mean likeness of the
            chosen output to the others, or in reverse the likeness of the model's answer to the
            invented output. 0 where annotation had no answer; None where it was not asked.
        kept: whether it is trained on or held out.
        filter: name of the filter that took it.
        reason: why, in words.
    """

    id: int
    round: int
    source: Literal["record", "reverse", "meta", "user"]
    input: str
    asked: str | None
    seed: int
    output: str | None = None
    scores: dict[str, float] | None = None
    channel: dict[str, float] | None = None
    agreement: float | None = None
    kept: bool = False
    filter: str | None = None
    reason: str | None = None

    def drop(self, filter: str, reason: str) -> None:
        self.kept, self.filter, self.reason = False, filter, reason

    def row(self) -> dict[str, Any]:
        """As JSON; the field names are the keys."""
        return asdict(self)


def answered(ledger: Sequence[Candidate]) -> list[Candidate]:
    """Candidates that annotation had an answer for."""
    return [each for each in ledger if each.scores or each.output is not None]


def survivors(ledger: Sequence[Candidate]) -> list[Candidate]:
    """Those of them that no filter took."""
    return [each for each in answered(ledger) if each.filter is None]


@dataclass(frozen=True)
class Pair:
    """A training pair: one row of dataset.jsonl. `id` is its candidate's."""

    input: str
    output: str
    origin: Literal["example", "synthetic"]
    id: int | None = None

    def row(self) -> dict[str, Any]:
        """As JSON; the field names are the keys."""
        return asdict(self)
