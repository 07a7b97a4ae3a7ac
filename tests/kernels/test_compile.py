"""Every Triton kernel, in its real configurations, compiles for the cards and fits them."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.kernels import compile as calls

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

import triton
import triton.language as tl

from tests.kernels.ahead_of_time import Compiled, compiling

SHARED = {80: 166_912, 89: 101_376, 90: 232_448}
# fp16 takes as much of everything as bf16: once is enough.
TARGETS = [
    *((capability, dtype) for capability in SHARED for dtype in (torch.bfloat16, torch.float32)),
    (90, torch.float16),
]
MAY_BE_NARROW = (
    "cross_entropy.odd_vocabulary",  # no row aligned
    *("quantized.nf4", "quantized.nf4_of_many"),  # looked up
)


def _calls(group: str) -> dict[str, Any]:
    modules = [module.name for module in pkgutil.iter_modules(calls.__path__)]
    found = {name: importlib.import_module(f"{calls.__name__}.{name}") for name in modules}
    every = [(name, each) for name, module in found.items() for each in getattr(module, group, [])]
    return {_name(module, each): each for module, each in every}


def _name(module: str, call: Any) -> str:
    call, changes = call if isinstance(call, tuple) else (call, {})
    return "-".join([f"{module}.{call.__name__}", *(f"{k}={v}" for k, v in changes.items())])


CALLS, BF16_CALLS, ONES, VARYING = map(_calls, ("CALLS", "BF16_CALLS", "ONES", "VARYING"))
CASES = [
    *((name, *target) for name in CALLS for target in TARGETS),
    *((name, capability, torch.bfloat16) for name in BF16_CALLS for capability in SHARED),
]


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


@triton.jit
def _half_kernel(p_x, p_y, BLOCK: tl.constexpr):  # noqa: N803
    """Squares `[BLOCK, BLOCK]` on tensor cores, then in fp32 on none."""
    o = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    b_x = tl.load(p_x + o)
    b_y = tl.dot(b_x, b_x)
    tl.store(p_y + o, tl.dot(b_y, b_y, input_precision="ieee"))


def test_one_dot_without_tensor_cores_shows() -> None:
    x, y = (torch.empty(16, 16, dtype=t, device="meta") for t in (torch.bfloat16, torch.float32))
    for capability in SHARED:
        with compiling(capability) as compiled:
            _half_kernel[(1,)](x, y, BLOCK=16)
        faults = _faults(compiled[0], capability, torch.bfloat16, wide=False)
        assert [fault.split(": ")[-1] for fault in faults] == [
            "has a dot that runs on no tensor core"
        ]


@pytest.mark.parametrize(
    ("name", "capability", "dtype"),
    CASES,
    ids=[f"{name}-sm_{capability}-{str(dtype)[6:]}" for name, capability, dtype in CASES],
)
def test_kernels_fit_the_card(
    name: str, capability: int, dtype: torch.dtype, record_property: Callable[[str, object], None]
) -> None:
    with compiling(capability) as compiled:
        (CALLS | BF16_CALLS)[name](dtype)
    assert compiled, "the call launched no kernel"
    print(*compiled, sep="\n")
    for one in compiled:
        record_property("compiled", [one.name, f"sm_{capability}", one.registers, one.shared])
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
