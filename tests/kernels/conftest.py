"""Every op's tests run on each backend that this process can run, and on the reference.

That is each C++ build that this CPU can run, and Triton where there is a GPU. With
TRITON_INTERPRET=1 it is Triton alone, interpreted on the CPU; fp16 stands in for bf16, which the
interpreter gets wrong.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from kernels import cpu, dispatch, triton

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BUILDS = [] if INTERPRETED else cpu.candidates()
TRITON = ["triton"] if INTERPRETED or triton.available else []
BACKENDS = [*BUILDS, *TRITON, *([] if INTERPRETED else ["reference"])]
DTYPES = [torch.float32, torch.float16 if INTERPRETED else torch.bfloat16]


def _poisoned(*size: Any, dtype: torch.dtype | None = None, **options: Any) -> torch.Tensor:
    """torch.empty whose memory holds NaN: what an op leaves unwritten shows."""
    shape = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
    integer = {torch.int8: -128, torch.uint8: 255}.get(dtype, -(2**30))
    poison = torch.nan if (dtype or torch.float32).is_floating_point else integer
    return torch.full(shape, poison, dtype=dtype, **options)


def _poisoned_like(x: torch.Tensor, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
    return _poisoned(*x.shape, dtype=dtype or x.dtype, device=x.device)


@contextmanager
def _poison() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", _poisoned)
        patch.setattr(torch, "empty_like", _poisoned_like)
        yield patch


@contextmanager
def _using_build(build: str) -> Iterator[None]:
    """Ops run on this C++ build, with poisoned allocations; skips where it was not built."""
    module = pytest.importorskip(f"kernels.cpu.{build}")
    ops = importlib.import_module("kernels.cpu.ops")
    with _poison() as patch:
        patch.setattr(cpu, "native", module)
        importlib.reload(ops)
        dispatch._lookup.cache_clear()
        yield
    importlib.reload(ops)
    dispatch._lookup.cache_clear()


@contextmanager
def _using_triton() -> Iterator[None]:
    """Ops run on Triton, and tensors are made where it runs."""
    with torch.device("cpu" if INTERPRETED else "cuda"), dispatch.only("triton"), _poison():
        yield


@contextmanager
def _using(backend: str) -> Iterator[None]:
    chosen = {"triton": _using_triton, "reference": lambda: dispatch.only("reference")}
    with chosen.get(backend, lambda: _using_build(backend))():
        yield


@pytest.fixture(params=BUILDS)
def native(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on every C++ build that this CPU can run."""
    with _using(request.param):
        yield request.param


@pytest.fixture(params=[*BUILDS, *TRITON])
def invariant(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on every backend whose results do not depend on the batch."""
    with _using(request.param):
        yield request.param


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on every backend and, where Triton is not alone, on the reference."""
    with _using(request.param):
        yield request.param


@pytest.fixture(params=DTYPES, ids=[str(dtype)[6:] for dtype in DTYPES])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Interpreted, only tests that run on Triton say anything new."""
    if INTERPRETED:
        items[:] = [item for item in items if re.search(r"[\[-]triton[\]-]", item.name)]
