"""The C++ backend: the best build for this machine's instruction set, or why there is none."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch  # its OpenMP runtime must be loaded before ours, so that both share one thread pool


def candidates() -> list[str]:
    """Module names of the builds this CPU can run, fastest first."""
    capability = torch.backends.cpu.get_cpu_capability()
    names = ["_portable"]
    if capability in ("AVX2", "AVX512"):
        names.insert(0, "_avx2")
    if capability == "AVX512" and torch.cpu._is_avx512_bf16_supported():
        names.insert(0, "_avx512")
        if _amx_allowed():
            names.insert(0, "_amx")
    return names


def _amx_allowed() -> bool:
    """Whether the CPU has AMX tiles and the system lets this process use them."""
    try:
        return torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx()
    except AttributeError:  # an older torch
        return False


def _load() -> tuple[ModuleType | None, str]:
    missing = "not built: install a C++ compiler (GCC or Clang), then reinstall selfguide"
    for name in candidates():
        try:
            return importlib.import_module(f"{__name__}.{name}"), f"active, {name[1:]} build"
        except ModuleNotFoundError:
            continue
        except ImportError as error:
            missing = f"built, but cannot be loaded: {error}"
    return None, missing


native, status = _load()
