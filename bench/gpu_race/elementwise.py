"""The memory-bound ops, which should move their bytes as fast as a copy does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from bench import cases
from bench.case import Case, Run, Shapes
from bench.gpu_race.peers import LIGER, compiled, installed
from bench.gpu_race.results import Goal, Timing
from bench.gpu_race.workbench import Job, Workbench

_MOST_ROWS = 32768  # of the largest training pack; fewer would time the launch as well
_GOAL = Goal("ceiling", 0.9)
_Build = Callable[..., Case]


def jobs(bench: Workbench) -> Iterator[Job]:
    """Forward and backward of each, beside torch's own and torch.compile's."""
    shapes = bench.rows(_MOST_ROWS, 2 * 10 * bench.shapes.inner)
    builds: dict[str, _Build] = {
        "rms_norm": cases.rms_norm,
        "rms_norm backward": partial(cases.rms_norm, back=True),
        "add_rms_norm": cases.add_rms_norm,
        "add_rms_norm backward": partial(cases.add_rms_norm, back=True),
        "rope in place": cases.rope,
        "rope backward": partial(cases.rope, back=True),
        "swiglu": cases.swiglu,
        "swiglu backward": partial(cases.swiglu, back=True),
    }
    for name, build in builds.items():
        yield name, partial(_race, bench, name, build, shapes)


def _race(bench: Workbench, name: str, build: _Build, shapes: Shapes) -> Timing:
    build = partial(build, bench.place, shapes)
    peers: dict[str, Callable[[], Run]] = {}
    if bench.on_gpu:
        peers["torch.compile"] = lambda: build(through=compiled).torch
        liger = LIGER.get(name)
        if liger and installed("liger_kernel"):
            peers["liger"] = partial(liger, bench.place, shapes)
    return bench.race(name, build, peers, goals=[_GOAL])
