"""Every Triton kernel, in its real configurations, compiles for the cards and fits them."""

from __future__ import annotations

import importlib
import os
import pkgutil
from typing import Any

import pytest
import torch

from tests.kernels import compile as calls

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from tests.kernels.ahead_of_time import Compiled, compiling

SHARED = {80: 166_912, 89: 101_376, 90: 232_448}
# fp16 takes as much of everything as bf16: once is enough.
TARGETS = [
    *((capability, dtype) for capability in SHARED for dtype in (torch.bfloat16, torch.float32)),
    (90, torch.float16),
]
MAY_BE_NARROW = ("cross_entropy.odd_vocabulary", "quantized.nf4")  # no row aligned; looked up


def _calls(group: str) -> dict[str, Any]:
    modules = [module.name for module in pkgutil.iter_modules(calls.__path__)]
    found = {name: importlib.import_module(f"{calls.__name__}.{name}") for name in modules}
    every = [(name, each) for name, module in found.items() for each in getattr(module, group, [])]
    return {_name(module, each): each for module, each in every}


def _name(module: str, call: Any) -> str:
    call, changes = call if isinstance(call, tuple) else (call, {})
    return "-".join([f"{module}.{call.__name__}", *(f"{k}={v}" for k, v in changes.items())])


CALLS, ONES, VARYING = map(_calls, ("CALLS", "ONES", "VARYING"))


def _faults(kernel: Compiled, capability: int, dtype: torch.dtype, wide: bool) -> list[str]:
    faults = []
    if wide and kernel.narrow and dtype.itemsize == 2:
        faults.append(f"moves single elements in {kernel.narrow} places")
    if kernel.shared > SHARED[capability]:
        faults.append(f"takes {kernel.shared} B of {SHARED[capability]} B shared memory")
    if kernel.spilled:
        faults.append(f"spills {kernel.spilled} B a thread")
    if kernel.dots == "fma" and dtype is not torch.float32:
        faults.append("has a dot that runs on no tensor core")
    return [f"{kernel}: {fault}" for fault in faults]


@pytest.mark.parametrize(
    ("capability", "dtype"), TARGETS, ids=[f"sm_{cc}-{str(dtype)[6:]}" for cc, dtype in TARGETS]
)
@pytest.mark.parametrize("name", CALLS)
def test_kernels_fit_the_card(name: str, capability: int, dtype: torch.dtype) -> None:
    with compiling(capability) as compiled:
        CALLS[name](dtype)
    assert compiled, "the call launched no kernel"
    print(*compiled, sep="\n")
    wide = name not in MAY_BE_NARROW
    faults = [each for one in compiled for each in _faults(one, capability, dtype, wide)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", ONES)
def test_sizes_of_one(name: str) -> None:
    """Triton compiles a 1 in as a constant, which is no tensor and has none of their methods."""
    with compiling(90) as compiled:
        ONES[name](torch.bfloat16)
    assert compiled, "the call launched no kernel"


@pytest.mark.parametrize("name", VARYING)
def test_what_varies_compiles_nothing_anew(name: str) -> None:
    """Each kernel that a size of the batch adds stalls the step that needs it first."""
    call, changes = VARYING[name]
    with compiling(90) as compiled:
        call(torch.bfloat16)
        before = len(compiled)
        call(torch.bfloat16, **changes)
    assert not compiled[before:]
