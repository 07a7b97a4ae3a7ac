"""Which code computes an op: the fastest backend for the tensor at hand, else the reference."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

REFERENCE = "reference"
_CPU_DTYPES = (torch.float32, torch.bfloat16)
_forced: str | None = None


def _cpu_ops() -> Any:
    from kernels import cpu

    return importlib.import_module("kernels.cpu.ops") if cpu.native else None


@cache
def _lookup(op: str, device: str, dtype: torch.dtype, forced: str | None) -> Callable[..., Any]:
    if forced != REFERENCE and device == "cpu" and dtype in _CPU_DTYPES:
        found = getattr(_cpu_ops(), op, None)
        if found is not None:
            return found
    return _reference(op)


def _reference(op: str) -> Callable[..., Any]:
    import kernels

    return getattr(kernels, f"{op}_reference")


def implementation(op: str, x: Tensor) -> Callable[..., Any]:
    """The function that computes `op` on tensors like `x` (its device type and dtype decide).

    Backends hold functions of the op's own name; where none has it, the answer is
    `kernels.<op>_reference`, the specification in plain torch.
    """
    return _lookup(op, x.device.type, x.dtype, _forced)


def has_backend(op: str, x: Tensor) -> bool:
    """Whether something other than the reference computes `op` on tensors like `x`."""
    return not implementation(op, x).__name__.endswith("_reference")


@contextmanager
def only(backend: str | None) -> Iterator[None]:
    """Within the block every op uses `backend` ("reference"), or the best one again (None)."""
    global _forced
    if backend not in (None, REFERENCE):
        raise ValueError(f"backend: expected 'reference' or None, got {backend!r}")
    before, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = before
