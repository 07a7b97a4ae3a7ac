"""What the launchers ask about the GPU they launch on, or are compiled for."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton

_SMS = {80: 108, 86: 84, 89: 128, 90: 132}  # where no card can be asked: compiling, interpreting
_SHARED = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}


def arch() -> int:
    """The compute capability times ten: 80 (A100), 89 (RTX 4090), 90 (H100, H200)...

    90 under the interpreter, so that it runs the same code as the newest card.
    """
    if triton.knobs.runtime.interpret:
        return 90
    driver = triton.runtime.driver.active
    return _capability(driver, driver.get_current_device())


@cache
def _capability(driver: Any, device: int) -> int:
    """Remembered, as launchers ask several times a call."""
    return int(driver.get_current_target().arch)


def shared_bytes() -> int:
    """Shared memory that one program may take."""
    capability = arch()
    known = [limit for oldest, limit in sorted(_SHARED.items()) if oldest <= capability]
    return known[-1] if known else _SHARED[86]


def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of `device`."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return _SMS.get(arch(), 128)
