"""What the launchers ask about the GPU they launch on, or are compiled for."""

from __future__ import annotations

import torch
import triton

_SMS = {80: 108, 86: 84, 89: 128, 90: 132}  # where no card can be asked: compiling, interpreting
_SHARED = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448}


def arch() -> int:
    """The compute capability times ten: 80 (A100), 86, 89 (RTX 4090, L4), 90 (H100, H200)...

    90 under the interpreter, so that it runs the same code as the newest card.
    """
    if triton.knobs.runtime.interpret:
        return 90
    return int(triton.runtime.driver.active.get_current_target().arch)


def shared_bytes() -> int:
    """Shared memory that one program may take."""
    known = [limit for capability, limit in sorted(_SHARED.items()) if capability <= arch()]
    return known[-1] if known else _SHARED[86]


def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of `device`."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return _SMS.get(arch(), 128)
