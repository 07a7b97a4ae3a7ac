"""The tests of `tests/kernels`, on this device, in a process of their own."""

from __future__ import annotations

import importlib.util
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


def run(bench: Workbench) -> Iterator[Note]:
    """Each test that fails, as soon as it does; then what pytest says last."""
    if importlib.util.find_spec("pytest") is None:
        raise Skipped("pytest is not installed")
    options = ["-k", "triton"] if bench.on_gpu else ["-k", "test_swiglu and reference"]
    if bench.on_gpu and importlib.util.find_spec("xdist"):
        options += ["-n", str(_PROCESSES)]
    return notes("tests/kernels", options)


def notes(tests: str, options: list[str]) -> Iterator[Note]:
    """Of pytest on these tests, with these options."""
    command = [sys.executable, "-m", "pytest", tests, *options]
    command += ["-p", "no:cacheprovider", "-p", "bench.gpu_race.failures", "-v", "-rN"]
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    last = "no output"
    with subprocess.Popen(command, cwd=_ROOT, text=True, **outputs) as process:
        for line in process.stdout or ():
            last = line.strip() or last
            if line.startswith("FAILED "):
                yield Note("pytest", last.removeprefix("FAILED "), True)
    yield Note(f"pytest {tests}", last.strip("= "), process.returncode != 0)
