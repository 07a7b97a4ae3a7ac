"""Every Triton kernel, in its real configurations, compiles for the cards and fits them."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable

import pytest
import torch

from tests.kernels import compile as calls

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from tests.kernels.ahead_of_time import Compiled, compiling

SHARED = {80: 166_912, 89: 101_376, 90: 232_448}
DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


def _calls() -> list[tuple[str, Callable[[torch.dtype], None]]]:
    modules = [module.name for module in pkgutil.iter_modules(calls.__path__)]
    found = [importlib.import_module(f"{calls.__name__}.{name}") for name in modules]
    return [
        (f"{name}.{call.__name__}", call)
        for name, module in zip(modules, found, strict=True)
        for call in module.CALLS
    ]


CALLS = _calls()


def _faults(kernel: Compiled, capability: int, dtype: torch.dtype) -> list[str]:
    faults = []
    if kernel.shared > SHARED[capability]:
        faults.append(f"takes {kernel.shared} B of {SHARED[capability]} B shared memory")
    if kernel.spilled:
        faults.append(f"spills {kernel.spilled} B a thread")
    if kernel.dots == "fma" and dtype is not torch.float32:
        faults.append("has a dot that runs on no tensor core")
    return [f"{kernel}: {fault}" for fault in faults]


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())
@pytest.mark.parametrize("capability", SHARED, ids=[f"sm_{number}" for number in SHARED])
@pytest.mark.parametrize("call", [call for _, call in CALLS], ids=[name for name, _ in CALLS])
def test_kernels_fit_the_card(
    call: Callable[[torch.dtype], None], capability: int, dtype: torch.dtype
) -> None:
    with compiling(capability) as compiled:
        call(dtype)
    assert compiled, "the call launched no kernel"
    print(*compiled, sep="\n")
    assert not (faults := [each for one in compiled for each in _faults(one, capability, dtype)]), (
        "\n".join(faults)
    )
