"""What the card is, and what it reaches: the ceilings that every rate is held against."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from bench.gpu_race.results import Card
from bench.gpu_race.workbench import Job, Workbench

_PACKAGES = ("torch", "triton", "transformers", "peft", "liger-kernel", "numpy")


def jobs(bench: Workbench) -> Iterator[Job]:
    yield "card", lambda: Card(about(bench), ceilings(bench))


def ceilings(bench: Workbench) -> dict[str, float]:
    """GB/s of a large copy, bytes read plus bytes written; GFLOP/s of a large matrix product."""
    size = 256 if bench.tiny else 8192
    numbers = size * size if bench.tiny else int(min(2e9, bench.free / 8))
    a, b = bench.place.random(size, size), bench.place.random(size, size)
    multiplied = 2.0 * size**3 / bench.seconds([lambda: a @ b])
    source = bench.place.random(numbers)
    target = torch.empty_like(source)
    copied = 2.0 * source.nbytes / bench.seconds([lambda: target.copy_(source)])
    return {"GB/s": copied / 1e9, "GFLOP/s": multiplied / 1e9}


def about(bench: Workbench) -> dict[str, Any]:
    """Names and versions; the device's own numbers where it is a GPU."""
    found: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "dtype": str(bench.dtype).removeprefix("torch."),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }
    if bench.on_gpu:
        card = torch.cuda.get_device_properties(bench.device)
        found |= {
            "device": card.name,
            "capability": f"{card.major}.{card.minor}",
            "multiprocessors": card.multi_processor_count,
            "memory_gib": round(card.total_memory / 2**30, 1),
            "free_gib": round(bench.free / 2**30, 1),
            "cuda": torch.version.cuda,
            "driver": _driver(),
        }
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.split("\n")[0].strip()
