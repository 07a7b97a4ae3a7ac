"""Every op's tests run on each C++ build that this CPU can run, and on the reference."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from kernels import cpu, dispatch

BUILDS = cpu.candidates()
DTYPES = [torch.float32, torch.bfloat16]


def _poisoned(*size: Any, dtype: torch.dtype | None = None, **options: Any) -> torch.Tensor:
    """torch.empty whose memory holds NaN: what an op leaves unwritten shows."""
    shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
    poison = torch.nan if (dtype or torch.float32).is_floating_point else -(2**30)
    return torch.full(shape, poison, dtype=dtype, **options)


@contextmanager
def _using(build: str) -> Iterator[None]:
    """Ops run on this build, with poisoned allocations; skips where it was not built."""
    module = pytest.importorskip(f"kernels.cpu.{build}")
    ops = importlib.import_module("kernels.cpu.ops")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "native", module)
        patch.setattr(torch, "empty", _poisoned)
        patch.setattr(torch, "empty_like", lambda x, **_: _poisoned(*x.shape, dtype=x.dtype))
        importlib.reload(ops)
        dispatch._lookup.cache_clear()
        yield
    importlib.reload(ops)
    dispatch._lookup.cache_clear()


@pytest.fixture(params=BUILDS)
def native(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on every build that this CPU can run."""
    with _using(request.param):
        yield request.param


@pytest.fixture(params=[*BUILDS, "reference"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on every build that this CPU can run, and on the reference."""
    chosen = dispatch.only("reference") if request.param == "reference" else _using(request.param)
    with chosen:
        yield request.param


@pytest.fixture(params=DTYPES, ids=["fp32", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
