"""Learning rates over a run."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate(
    schedule: Schedule, peak: float, step: int, total: int, warmup_ratio: float
) -> float:
    """The rate of step `step` (from 0) of `total`.

    It rises linearly over the first `ceil(warmup_ratio * total)` steps, the first of which already
    trains at `peak / warm-up steps`; then it stays, or falls towards 0, which it would reach one
    step after the last, in a straight line or along half a cosine.
    """
    warmup = math.ceil(warmup_ratio * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    passed = (step - warmup) / max(1, total - warmup)
    factors = {
        "constant": 1.0,
        "linear": 1.0 - passed,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * passed)),
    }
    return peak * factors[schedule]
