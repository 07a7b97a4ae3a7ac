"""How much memory a device has left, and whether that was the trouble."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
_UNKNOWN_MEMORY = 4 << 30


def free_memory(device: torch.device) -> int:
    """Bytes that `device` has left: the accelerator's, or the process's own limit on the CPU."""
    if device.type == "cuda":
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reusable
    if device.type != "cpu":
        return _UNKNOWN_MEMORY
    limits = [_available_in_system(), _available_in_group()]
    return min((limit for limit in limits if limit is not None), default=_UNKNOWN_MEMORY)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, or came of one that does."""
    # torch's CPU allocator raises a bare RuntimeError that begins with its own name.
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    earlier = error.__context__  # a CUDA graph's capture ends with an error of its own
    return "DefaultCPUAllocator" in str(error) or (earlier is not None and out_of_memory(earlier))


def unless_out_of_memory(compute: Callable[[], T]) -> T | None:
    """`compute`'s result, or None where memory ran out. Nothing computed stays alive then."""
    try:
        return compute()
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return None


def give_back() -> None:
    """Gives memory that was freed back to the system; allocators keep it otherwise."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@cache
def _c_library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):
        return None


def _available_in_system() -> int | None:
    """Linux's own estimate of what can be allocated without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _available_in_group() -> int | None:
    """What a container's limit (cgroup v2) leaves."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    if limit == "max":
        return None
    stat = dict(line.split() for line in lines)
    reclaimable = sum(int(stat.get(name, 0)) for name in ("active_file", "inactive_file"))
    return max(0, int(limit) - used + reclaimable)
