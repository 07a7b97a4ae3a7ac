"""How far a long call has come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

_INTERVAL = 0.25  # seconds between reports


@dataclass(frozen=True, slots=True)
class Progress:
    """A request with n samples counts as n, a scored completion as one, its tokens as generated.

    `eta_seconds` is None until one is done.
    """

    done_requests: int
    total_requests: int
    generated_tokens: int
    tokens_per_second: float
    eta_seconds: float | None


class Meter:
    """Reports to `callback` (if there is one) a few times a second, and at the end."""

    def __init__(self, callback: Callable[[Progress], None] | None, total: int) -> None:
        self._callback, self._total = callback, total
        self._start = time.perf_counter()
        self._next = self._start + _INTERVAL

    def update(self, done: int, tokens: int) -> None:
        """`done` requests are finished, `tokens` were generated."""
        now = time.perf_counter()
        if self._callback is None or (now < self._next and done < self._total):
            return
        self._next = now + _INTERVAL
        seconds = max(now - self._start, 1e-9)
        eta = seconds / done * (self._total - done) if done else None
        self._callback(Progress(done, self._total, tokens, tokens / seconds, eta))
