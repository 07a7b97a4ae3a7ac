"""What selfguide finds on this machine: python -m selfguide.doctor [--json]

Which backends are active and why, the devices, threads, dtype and memory that a run would use, and
where models are cached.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

import torch

from selfguide.neighbours import conflicts
from selfguide.streams import silence_output

DEFAULT_MODEL = "smollm2-135m"
_HOME = Path(__file__).resolve().parents[1]


def examine() -> dict[str, Any]:
    """The report: names of what was looked at, and findings that JSON can hold."""
    report: dict[str, Any] = {
        "selfguide": f"{version_of('selfguide')}, from {_HOME}",
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": torch.__version__,
        "conflicts": conflicts(_HOME),
    }
    if not report["conflicts"]:
        report |= {"devices": _devices(), "backends": _backends(), "threads": _threads()}
        report |= {"dtype": _dtypes(), "memory": _memory(), "models": _models()}
    return report


def version_of(name: str) -> str:
    """An installed distribution's version, or "not installed"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    found = [f"cpu ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gib = properties.total_memory / 2**30
        found.append(f"cuda:{index} ({properties.name}, {gib:.0f} GiB)")
    return found


def _backends() -> dict[str, str]:
    from kernels import triton

    return {"cpu": cpu_backend(), "triton": triton.status, "reference": "active, plain torch"}


def cpu_backend() -> str:
    """Which CPU kernels are active, and what would bring better ones."""
    from kernels import cpu

    if cpu.native is None:
        return f"{cpu.status}{_built_elsewhere()}"
    if cpu.candidates()[0] not in ("_amx", "_avx512"):
        return f"{cpu.status} (this CPU lacks AVX512-BF16)"
    return cpu.status


def _built_elsewhere() -> str:
    """A hint where an installed copy has the kernels, but the current folder hides it."""
    from kernels import cpu

    try:
        installed = Path(str(distribution("selfguide").locate_file("kernels/cpu"))).resolve()
    except PackageNotFoundError:
        return ""
    if installed == Path(cpu.__file__).resolve().parent or not any(installed.glob("_portable*")):
        return ""
    return f" (the copy in {installed} has them: leave this folder, or `pip install -e .` in it)"


def _threads() -> str:
    return f"{torch.get_num_threads()} (OMP_NUM_THREADS sets it)"


def _dtypes() -> dict[str, str]:
    from engine.llm import default_dtype

    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return {kind: str(default_dtype(torch.device(kind)))[6:] for kind in kinds}


def _memory() -> dict[str, str]:
    from engine.memory import free_memory

    kinds = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    return {kind: f"{free_memory(torch.device(kind)) / 2**30:.1f} GiB free" for kind in kinds}


def _models() -> str:
    from engine.checkpoint.builtin import cache_folder

    folder = cache_folder()
    state = "is cached" if (folder / DEFAULT_MODEL).is_dir() else "will be fetched on first use"
    return f"{folder} ({DEFAULT_MODEL} {state})"


def _lines(report: dict[str, Any]) -> list[str]:
    lines = []
    for name, finding in report.items():
        if isinstance(finding, dict):
            finding = [f"{key}: {value}" for key, value in finding.items()]
        for row in [finding] if isinstance(finding, str) else finding:
            lines.append(f"{name:<10} {row}")
            name = ""
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the report; 1 if another distribution's packages stand in the way."""
    parser = argparse.ArgumentParser(prog="python -m selfguide.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    options = parser.parse_args(arguments)
    report = examine()
    try:
        print(json.dumps(report, indent=2) if options.json else "\n".join(_lines(report)))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has seen enough
        silence_output()
    return 1 if report["conflicts"] else 0


if __name__ == "__main__":
    sys.exit(main())
