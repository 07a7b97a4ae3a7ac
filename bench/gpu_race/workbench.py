"""What every section measures with: device, dtype, shapes, clock and memory."""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch

from bench.case import LLAMA_8B, Case, Place, Run, Shapes
from bench.gpu_race.results import OURS, Goal, Result, Timing

Job = tuple[str, Callable[[], Result | Iterable[Result]]]
"""A name, and what to do; it is done by itself, so that its failure is its own."""

TINY = Shapes(width=64, inner=96, vocabulary=320, heads=4, kv_heads=2, head=16, rows=32)
_MOST_SETS = 8
_PEAK_ROUNDS = 2


class Skipped(Exception):  # noqa: N818 - no error: said in the report, and the rest goes on
    """This card or this installation cannot run a job; the message says why."""


def reason(error: BaseException) -> str:
    """One line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200]


@dataclass(frozen=True)
class Workbench:
    """Measures on one device.

    Attributes:
        device: a GPU, or the CPU for a dry run.
        tiny: shapes that run anywhere in no time; times then mean nothing.
    """

    device: torch.device
    tiny: bool

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @cached_property
    def dtype(self) -> torch.dtype:
        """bf16, or fp16 on cards without it."""
        if self.on_gpu and not torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.float16
        return torch.bfloat16

    @property
    def place(self) -> Place:
        return Place(self.device, self.dtype)

    @property
    def free(self) -> int:
        """Bytes that are free on the GPU, those that torch holds unused among them."""
        held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + held

    @property
    def shapes(self) -> Shapes:
        """An 8B model's, or tiny ones."""
        return TINY if self.tiny else LLAMA_8B

    def rows(self, most: int, bytes_per_row: float) -> Shapes:
        """`shapes` with as many rows, a power of two, as half of the free memory holds."""
        if self.tiny:
            return self.shapes
        fitting = max(1, int(self.free / 2 / bytes_per_row))
        return replace(self.shapes, rows=min(most, 1 << fitting.bit_length() - 1))

    def need(self, gigabytes: float) -> None:
        """Raises Skipped unless so much memory is free (never in a tiny run)."""
        if not self.tiny and self.free < gigabytes * 1e9:
            raise Skipped(f"needs {gigabytes:.0f} GB of memory, {self.free / 1e9:.0f} are free")

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def recover(self) -> None:
        """Frees what a job left; raises where the GPU no longer answers."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    def seconds(self, runs: Sequence[Run]) -> float:
        """Median time of a run; one run after the other of `runs`, which have inputs of their own.

        On a GPU between events, after 25 ms of warm-up, over at least 100 ms; the L2 cache is
        overwritten before each.
        """
        turns = itertools.cycle(runs)
        if self.on_gpu:
            from triton.testing import do_bench

            return float(do_bench(lambda: next(turns)(), return_mode="median")) / 1e3
        return statistics.median(self.wall(next(turns)) for _ in range(2 * len(runs)))

    def wall(self, run: Run) -> float:
        """Seconds of one run by the clock on the wall, until its results are there."""
        self.synchronize()
        start = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - start

    def peak_mib(self, run: Run) -> float:
        """GPU memory that a run takes at most, beside what is there before it."""
        peaks = []
        for _ in range(_PEAK_ROUNDS):  # the first may allocate workspaces that stay
            self.recover()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            run()
            self.synchronize()
            peaks.append(torch.cuda.max_memory_allocated(self.device) - before)
        return peaks[-1] / 2**20

    def sets(self, build: Callable[[], Case]) -> list[Case]:
        """As many cases, each with its inputs, as together exceed the L2 cache several times."""
        if not self.on_gpu:
            return [build() for _ in range(2)]
        before = torch.cuda.memory_allocated(self.device)
        first = build()
        size = max(1, torch.cuda.memory_allocated(self.device) - before)
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        count = min(_MOST_SETS, math.ceil(3 * cache / size))
        return [first, *(build() for _ in range(count - 1))]

    def race(
        self,
        name: str,
        build: Callable[[], Case],
        peers: Mapping[str, Callable[[], Run]] | None = None,
        *,
        goals: Sequence[Goal] = (),
        memory: bool = False,
    ) -> Timing:
        """Times both sides of a case, and further peers.

        Args:
            name: the case's.
            build: makes it, with new inputs each time.
            peers: each makes inputs and gives the run to time; see `measure` for its failure.
            goals: what is wanted.
            memory: measure each side's peak memory too.
        """
        cases = self.sets(build)
        timing = Timing(name, cases[0].amount, cases[0].unit, goals=list(goals))
        count = len(cases)
        runs = {OURS: [case.ours for case in cases], "torch": [case.torch for case in cases]}
        del cases
        for side, own in runs.items():
            self.measure(timing, side, partial(list, own), memory=memory)
        del runs, own
        for peer, make in (peers or {}).items():

            def made(make: Callable[[], Run] = make) -> list[Run]:
                return [make() for _ in range(count)]

            self.measure(timing, peer, made, memory=memory)
        return timing

    def measure(
        self,
        timing: Timing,
        side: str,
        make: Callable[[], Sequence[Run]],
        *,
        memory: bool = False,
    ) -> None:
        """Notes a side's median time, and its peak memory; or why there is none."""
        try:
            runs = make()
            if memory and self.on_gpu:
                timing.peak_mib[side] = self.peak_mib(runs[0])
            timing.seconds[side] = self.seconds(runs)
        except Exception as error:
            timing.failed[side] = reason(error)
            timing.peak_mib.pop(side, None)
        runs = []
        if side in timing.failed:
            self.recover()  # only now: the error held what its frames held
