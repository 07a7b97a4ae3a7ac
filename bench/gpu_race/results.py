"""What a section reports, as JSON lines between its process and the one that makes the table."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

OURS = "ours"


@dataclass(frozen=True)
class Goal:
    """What a timing should reach.

    Attributes:
        metric: "speed" (a peer's time over ours), "ceiling" (our rate over what the card reaches),
            or "memory" (our peak over a peer's).
        bound: the least of it; for memory the most.
        against: the peer; None for the best of them.
    """

    metric: str
    bound: float
    against: str | None = None

    def reached(self, timing: Timing, ceilings: dict[str, float]) -> float | None:
        """The metric's value, None where something for it is missing."""
        if self.metric == "ceiling":
            return timing.share(ceilings)
        values = timing.seconds if self.metric == "speed" else timing.peak_mib
        others = [v for side, v in values.items() if side != OURS]
        against = values.get(self.against) if self.against else min(others, default=None)
        if OURS not in values or not against:
            return None
        ours = values[OURS]
        return against / ours if self.metric == "speed" else ours / against

    def met(self, value: float) -> bool:
        return value <= self.bound if self.metric == "memory" else value >= self.bound

    def __str__(self) -> str:
        sign = "<=" if self.metric == "memory" else ">="
        whose = self.against or "best peer"
        what = {"speed": f"x {whose}", "ceiling": "of ceiling", "memory": f"of {whose}'s memory"}
        return f"{sign} {self.bound:.2f} {what[self.metric]}"


@dataclass
class Timing:
    """One case's times.

    Attributes:
        name: of the case.
        amount: FLOPs or bytes that a run cannot do without, in GFLOP or GB per second's `unit`.
        unit: "GFLOP/s" or "GB/s".
        seconds: median time of a run of each side, "ours" among them.
        peak_mib: memory that a run of each side takes at most beside its inputs (models: in all).
        failed: sides that could not be timed, and why.
        tokens: that a run makes or reads; 0 where that is no measure.
        goals: what is wanted.
    """

    name: str
    amount: float
    unit: str
    seconds: dict[str, float] = field(default_factory=dict)
    peak_mib: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    tokens: int = 0
    goals: list[Goal] = field(default_factory=list)

    def rate(self, side: str = OURS) -> float:
        """In `unit`; NaN where the side was not timed."""
        return self.amount / self.seconds[side] / 1e9 if side in self.seconds else math.nan

    def share(self, ceilings: dict[str, float]) -> float | None:
        """Our rate over the card's ceiling of that unit."""
        ceiling = ceilings.get(self.unit)
        return None if not ceiling or OURS not in self.seconds else self.rate() / ceiling


@dataclass
class Check:
    """One comparison with the reference: relative RMS error and what is allowed."""

    name: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # NaN fails


@dataclass
class Note:
    """Something that did not run: `failed`, or left out on purpose; or what a tool said."""

    name: str
    text: str
    failed: bool


@dataclass
class Card:
    """The device and its measured ceilings, by unit."""

    about: dict[str, Any]
    ceilings: dict[str, float]


Result = Timing | Check | Note | Card
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Timing, Check, Note, Card)}


def as_json(result: Result) -> dict[str, Any]:
    return {"kind": type(result).__name__, **asdict(result)}


def from_json(fields: dict[str, Any]) -> Result:
    """The inverse of `as_json`."""
    values = dict(fields)
    kind = _KINDS[values.pop("kind")]
    if "goals" in values:
        values["goals"] = [Goal(**goal) for goal in values["goals"]]
    result: Result = kind(**values)
    return result
