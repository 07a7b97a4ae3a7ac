"""The tests of `tests/kernels`, on this device, in a process of their own."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.gpu_race.results import Note
from bench.gpu_race.workbench import Job, Skipped, Workbench

_ROOT = Path(__file__).resolve().parents[2]
_PROCESSES = 8  # each compiles kernels on a core of its own


def jobs(bench: Workbench) -> Iterator[Job]:
    yield "pytest tests/kernels", lambda: run(bench)


def run(bench: Workbench) -> Note:
    """What pytest says last; the tests that failed before it."""
    if importlib.util.find_spec("pytest") is None:
        raise Skipped("pytest is not installed")
    command = [sys.executable, "-m", "pytest", "tests/kernels", "-p", "no:cacheprovider"]
    command += ["-k", "triton"] if bench.on_gpu else ["-k", "test_swiglu and reference"]
    if bench.on_gpu and importlib.util.find_spec("xdist"):
        command += ["-n", str(_PROCESSES)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"]
    failed = [line for line in lines if re.match(r"(FAILED|ERROR) ", line)]
    return Note("pytest tests/kernels", "\n".join([lines[-1], *failed]), done.returncode != 0)
