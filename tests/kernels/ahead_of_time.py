"""Compiles Triton kernels with no GPU, exactly as their launchers would launch them on one."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from kernels import dispatch

_BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Compiled:
    """What one compiled kernel takes.

    Attributes:
        name: of the kernel function.
        constants: values that were compiled in.
        registers: per thread.
        spilled: bytes of local memory per thread.
        shared: bytes of shared memory per program.
        warps: per program.
        dots: "wgmma", "mma.sync", "none" where there is no `tl.dot`, or "fma" where any of them
            runs on no tensor core.
        narrow: accesses of global memory that move one 16-bit element, scalars aside.
    """

    name: str
    constants: str
    registers: int
    spilled: int
    shared: int
    warps: int
    dots: str
    narrow: int

    @classmethod
    def of(cls, kernel: Any, constants: str) -> Compiled:
        registers, spilled = _resources(kernel.asm["cubin"])
        ptx = kernel.asm["ptx"]
        return cls(
            kernel.metadata.name,
            constants,
            registers,
            spilled,
            kernel.metadata.shared,
            kernel.metadata.num_warps,
            _dots(ptx, kernel.asm["ttgir"]),
            _narrow(ptx, kernel.asm["ttgir"]),
        )

    def __str__(self) -> str:
        return (
            f"{self.name:<36} {self.registers:>4} regs {self.spilled:>4} B spilled "
            f"{self.shared:>7} B shared {self.warps:>2} warps {self.dots:<8} "
            f"{self.narrow:>3} narrow {self.constants}"
        )


class _NoDriver:
    """Stands where Triton asks for a GPU: names a target, and can launch nothing."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def is_active(self) -> bool:
        return True


@contextmanager
def compiling(capability: int) -> Iterator[list[Compiled]]:
    """Within the block ops on meta tensors go to Triton, and launches only compile.

    Args:
        capability: compute capability times ten, such as 90.

    Yields:
        A list that holds each compiled kernel once, in the order of their launches.
    """
    found: dict[str, Compiled] = {}
    compiled: list[Compiled] = []
    run = JITFunction.run
    touched: list[JITFunction[Any]] = []

    def compile_only(self: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kw: Any) -> Any:
        if not touched or self not in touched:
            self.device_caches.clear()
            touched.append(self)
        kernel = run(self, *args, grid=grid, warmup=True, **kw)
        constants = [f"{key}={kw[key]}" for key in sorted(kw) if key != "num_warps"]
        key = kernel.hash
        if key not in found:
            found[key] = Compiled.of(kernel, " ".join(constants))
            compiled.append(found[key])
        return kernel

    with pytest.MonkeyPatch.context() as patch, dispatch.only("triton"):
        patch.setattr(triton.runtime.driver, "_active", _NoDriver(capability))
        patch.setattr(JITFunction, "run", compile_only)
        try:
            yield compiled
        finally:
            for function in touched:
                function.device_caches.clear()


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers per thread and bytes of local memory, read by cuobjdump."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_BIN / "cuobjdump"), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", text)
    assert found, text
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def _dots(ptx: str, ttgir: str) -> str:
    """See `Compiled.dots`. A dot on tensor cores has a layout of theirs, others a blocked one."""
    if re.search(r"tt\.dot .*-> tensor<\S+, #blocked\d*>", ttgir):
        return "fma"
    return next((kind for kind in ("wgmma", "mma.sync") if kind in ptx), "none")


def _narrow(ptx: str, ttgir: str) -> int:
    """Loads and stores of 16 bits each, but for those of scalars."""
    alone = re.findall(r"\b(?:ld|st)\.global(?!\S*\.v\d)\S*\.\w16\b", ptx)
    scalars = re.findall(r"tt\.(?:load|store) [^:]*: !tt\.ptr<\w+16>", ttgir)
    return len(alone) - len(scalars)
