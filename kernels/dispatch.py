"""Which code computes an op: the fastest backend for the tensor at hand, else the reference."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor

REFERENCE, TRITON = "reference", "triton"
_CPU_DTYPES = (torch.float32, torch.bfloat16)
_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_forced: str | None = None


def _backend(device: str, dtype: torch.dtype, forced: str | None) -> Any:
    """The module that holds the ops for such tensors, or None for the reference."""
    from kernels import cpu, triton

    if forced == REFERENCE:
        return None
    if forced == TRITON or (device == "cuda" and triton.available):
        return importlib.import_module("kernels.triton.ops") if dtype in _TRITON_DTYPES else None
    if device == "cpu" and dtype in _CPU_DTYPES and cpu.native:
        return importlib.import_module("kernels.cpu.ops")
    return None


@cache
def _lookup(op: str, device: str, dtype: torch.dtype, forced: str | None) -> Callable[..., Any]:
    found = getattr(_backend(device, dtype, forced), op, None)
    return _reference(op) if found is None else found


def _reference(op: str) -> Callable[..., Any]:
    import kernels

    return getattr(kernels, f"{op}_reference")


def implementation(op: str, x: Tensor) -> Callable[..., Any]:
    """The function that computes `op` on tensors like `x` (its device type and dtype decide).

    Backends hold functions of the op's own name; where none has it, the answer is
    `kernels.<op>_reference`, the specification in plain torch.
    """
    found = _lookup(op, x.device.type, x.dtype, _forced)
    return _on(x.device, found) if x.device.type == "cuda" and _many_gpus() else found


@cache
def _on(device: torch.device, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with `device` as the current GPU, which is the one that Triton launches on."""

    @wraps(function)
    def there(*args: Any, **options: Any) -> Any:
        with torch.cuda.device(device):
            return function(*args, **options)

    return there


@cache
def _many_gpus() -> bool:
    return torch.cuda.device_count() > 1


def has_backend(op: str, x: Tensor) -> bool:
    """Whether something other than the reference computes `op` on tensors like `x`."""
    return not implementation(op, x).__name__.endswith("_reference")


@contextmanager
def only(backend: str | None) -> Iterator[None]:
    """Within the block every op uses `backend`, or the best one again (None).

    Args:
        backend: "reference"; "triton" (tensors must be where Triton runs: on a GPU, or on the CPU
            under its interpreter); or None.

    Raises:
        ValueError: another name.
    """
    global _forced
    if backend not in (None, REFERENCE, TRITON):
        raise ValueError(f"backend: expected 'reference', 'triton' or None, got {backend!r}")
    before, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = before
