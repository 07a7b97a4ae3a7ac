"""The Triton backend for GPUs of compute capability 8.0 and newer, or why there is none."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

# Triton 3.10 stops joining products and sums by default, which costs our kernels their speed.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

OLDEST = (3, 6)
"""The oldest Triton that the kernels are written for."""


def _status() -> str:
    if find_spec("triton") is None:
        return "inactive: triton is not installed (pip install 'selfguide[gpu]', Linux)"
    try:
        found = version("triton")
    except PackageNotFoundError:
        found = "0"
    oldest = ".".join(map(str, OLDEST))
    if tuple(int(part) for part in found.split(".")[:2] if part.isdigit()) < OLDEST:
        return f"inactive: triton {found} is older than {oldest} (pip install -U triton)"
    if not torch.cuda.is_available():
        return "inactive: torch sees no CUDA device"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"inactive: the GPU's compute capability {major}.{minor} is below 8.0"
    return f"active, triton {found}"


status = _status()
available = status.startswith("active")
