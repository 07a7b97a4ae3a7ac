"""Says at the head of each test run which kernels it tests, and at its end what they take."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import kernels
from kernels import cpu


def pytest_report_header() -> str:
    return f"kernels: {Path(kernels.__file__).parent}, C++ backend {cpu.status}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What kernels compiled ahead of time take: the most of all their configurations on a card."""
    most: dict[str, dict[str, tuple[int, int]]] = defaultdict(dict)
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    found = [
        value for each in reports for name, value in each.user_properties if name == "compiled"
    ]
    for kernel, card, registers, shared in found:
        before = most[kernel].get(card, (0, 0))
        most[kernel][card] = max(before[0], registers), max(before[1], shared)
    cards = sorted({card for taken in most.values() for card in taken})
    if not cards:
        return
    terminalreporter.section("most registers a thread / KiB of shared memory a program")
    terminalreporter.write_line(f"{'kernel':<24}" + "".join(f"{card:>14}" for card in cards))
    for kernel, taken in sorted(most.items()):
        cells = (taken.get(card) for card in cards)
        shown = ("" if cell is None else f"{cell[0]} / {cell[1] / 1024:.1f}" for cell in cells)
        terminalreporter.write_line(f"{kernel:<24}" + "".join(f"{cell:>14}" for cell in shown))
