"""Says at the head of each test run which kernels it tests."""

from __future__ import annotations

from pathlib import Path

import kernels
from kernels import cpu


def pytest_report_header() -> str:
    return f"kernels: {Path(kernels.__file__).parent}, C++ backend {cpu.status}"
