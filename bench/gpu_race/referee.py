"""Runs sections one after the other, each in its own process and within its time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from bench.gpu_race.results import Note, Result, Timing, from_json

_ROOT = Path(__file__).resolve().parents[2]
_Kind = TypeVar("_Kind", bound=Result)


@dataclass
class Outcome:
    """A section's results and the seconds that it took."""

    name: str
    seconds: float = 0.0
    results: list[Result] = field(default_factory=list)


def run(name: str, device: str, *, tiny: bool, limit: float) -> Outcome:
    """One section, as far as it gets within `limit` seconds."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "bench.gpu_race.worker", name, device]
    process = subprocess.Popen(
        [*command, "tiny" if tiny else "full"],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that what it starts ends with it
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        _kill(process)

    timer = threading.Timer(limit, end)
    timer.start()
    outcome = Outcome(name)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith("\n"):  # a killed process may leave half a line
                outcome.results.append(from_json(json.loads(line)))
        code = process.wait()
    finally:
        timer.cancel()
        _kill(process)
        process.wait()
    outcome.seconds = time.perf_counter() - start
    if late.is_set():
        outcome.results.append(Note(name, f"ended after its {limit:.0f} seconds", True))
    elif code:
        outcome.results.append(Note(name, f"its process ended with code {code}", True))
    return outcome


def _kill(process: subprocess.Popen[str]) -> None:
    """Ends the process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def every(outcomes: list[Outcome], kind: type[_Kind]) -> Iterator[_Kind]:
    """All results of one kind."""
    for outcome in outcomes:
        yield from (result for result in outcome.results if isinstance(result, kind))


def timings(outcomes: list[Outcome]) -> list[Timing]:
    """All cases, those of one name (ours and a peer's, from two processes) made one."""
    found: dict[str, Timing] = {}
    for timing in every(outcomes, Timing):
        first = found.setdefault(timing.name, timing)
        if first is not timing:
            first.seconds |= timing.seconds
            first.peak_mib |= timing.peak_mib
            first.failed |= timing.failed
    return list(found.values())
