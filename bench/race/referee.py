"""Runs one work on every side in turn and keeps the times."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from bench.race.client import MissingSide, Worker
from bench.race.sides import OURS
from bench.race.works import Encode, Rival, Work, first, part, size, tokens

_WARM_UP = 1 / 16  # of the work, before the counted runs
_SEARCH_ROUNDS = 2


@dataclass(frozen=True)
class Options:
    """How to race.

    Attributes:
        models: what each side loads; a side without an entry is left out.
        threads: threads of each side.
        repeats: counted runs of each side, taken in turn.
        fraction: share of the work's requests or examples that every side runs.
        peer_fraction: share of those that the peers run; their times are scaled up by tokens.
        batch: the peers' batch size; None to search for the best.
    """

    models: dict[str, str]
    threads: int
    repeats: int
    fraction: float
    peer_fraction: float
    batch: int | None = None


@dataclass
class Entrant:
    """One side's part in one work. Times are in seconds, memory in MiB.

    Attributes:
        at_least: wanted ratio of its time to ours; None for our own side.
        batch: its batch size (prompts, or examples of a micro-batch); None if it plans its own.
        search: seconds per token of each batch size tried.
        scale: what its times were multiplied with because it ran only a part of the work.
        losses: training losses of the last run, by step.
    """

    side: str
    at_least: float | None
    batch: int | None = None
    search: dict[int, float] = field(default_factory=dict)
    scale: float = 1.0
    seconds: list[float] = field(default_factory=list)
    load_seconds: float = 0.0
    load_peak_mib: float = 0.0
    peak_mib: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """One work's result: its entrants (ours first) and why others did not start."""

    work: Work
    tokens: int
    entrants: list[Entrant]
    absent: dict[str, str]


def race(work: Work, options: Options, encode: Encode) -> Outcome:
    """Times `work` on our side and its rivals: A B A B ..., each in a process of its own.

    Raises:
        RaceError: a side failed.
    """
    runs = range(options.repeats + 1)  # the first to find batch sizes and warm up
    jobs = [part(work.job(encode, str(run)), options.fraction) for run in runs]
    absent: dict[str, str] = {}
    with ExitStack() as stack:
        racing: list[tuple[Entrant, Worker]] = []
        for entrant in _entrants(work.rivals):
            try:
                worker = _start(entrant, work, options, jobs[0], stack)
            except MissingSide as reason:
                absent[entrant.side] = str(reason)
                _say(f"{work.name}: {entrant.side} is left out: {reason}")
            else:
                racing.append((entrant, worker))
        for number, job in enumerate(jobs[1:], start=1):
            for entrant, worker in racing:
                _run(entrant, worker, job, options)
                of = f"{number} of {options.repeats}"
                _say(f"{work.name}: {entrant.side} {entrant.seconds[-1]:.2f} s ({of})")
    return Outcome(work, tokens(jobs[-1]), [entrant for entrant, _ in racing], absent)


def _entrants(rivals: Sequence[Rival]) -> list[Entrant]:
    return [Entrant(OURS, None), *(Entrant(rival.side, rival.at_least) for rival in rivals)]


def _start(
    entrant: Entrant, work: Work, options: Options, job: dict[str, Any], stack: ExitStack
) -> Worker:
    """Finds the entrant's batch size, loads it and warms it up."""
    model = options.models.get(entrant.side)
    if model is None:
        raise MissingSide("it has no model file to load")
    batches = next((r.batches for r in work.rivals if r.side == entrant.side), ())
    if batches and options.batch is not None:
        entrant.batch = options.batch
    elif batches:
        with Worker(entrant.side, model, options.threads) as worker:
            entrant.search = _search(worker, job, sorted({min(b, size(job)) for b in batches}))
        entrant.batch = min(entrant.search, key=lambda batch: entrant.search[batch])
        _say(f"{work.name}: {entrant.side} is fastest with a batch of {entrant.batch}")
    worker = stack.enter_context(Worker(entrant.side, model, options.threads))
    entrant.load_seconds, entrant.load_peak_mib = worker.load_seconds, worker.load_peak_mib
    entrant.versions = worker.versions
    worker.run(part(job, _WARM_UP, entrant.batch or 1), entrant.batch)
    return worker


def _search(worker: Worker, job: dict[str, Any], batches: Sequence[int]) -> dict[int, float]:
    """Seconds per token of each batch size: the best of some runs of one batch or one step."""
    step = job.get("step_examples")
    worker.run(first(job, step or batches[0]), batches[0])
    best: dict[int, float] = {}
    for _ in range(_SEARCH_ROUNDS):
        for batch in batches:
            slice_ = first(job, step or batch)
            seconds = worker.run(slice_, batch)["seconds"] / tokens(slice_)
            best[batch] = min(seconds, best.get(batch, seconds))
    return best


def _run(entrant: Entrant, worker: Worker, job: dict[str, Any], options: Options) -> None:
    mine = job if entrant.side == OURS else part(job, options.peer_fraction, entrant.batch or 1)
    entrant.scale = tokens(job) / tokens(mine)
    result = worker.run(mine, entrant.batch)
    entrant.seconds.append(result["seconds"] * entrant.scale)
    entrant.losses = result.get("losses", [])
    entrant.peak_mib = worker.peak_mib


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
