"""Prints a table of rates and ratios after the microbenchmarks."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch

_HEADER = f"{'op':<40}{'ours us':>12}{'torch us':>12}{'torch/ours':>12}  rate of ours"


def pytest_configure() -> None:
    """Two threads, as in the races."""
    torch.set_num_threads(2)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One line per op: medians of both sides, their ratio, GFLOP/s or GB/s of ours."""
    session = getattr(config, "_benchmarksession", None)
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for bench in session.benchmarks if session else ():
        groups[bench.group][bench.extra_info["side"]] = bench
    if not groups:
        return
    terminalreporter.section("operations")
    terminalreporter.write_line(_HEADER)
    for op, sides in groups.items():
        terminalreporter.write_line(_line(op, sides))


def _line(op: str, sides: dict[str, Any]) -> str:
    micro = {side: f"{bench.stats.median * 1e6:.1f}" for side, bench in sides.items()}
    ratio = rate = ""
    if "ours" in sides:
        info = sides["ours"].extra_info
        rate = f"{info['rate']:.1f} {info['unit']}"
    if len(sides) == 2:
        ratio = f"{sides['torch'].stats.median / sides['ours'].stats.median:.2f}"
    ours, torch_ = micro.get("ours", ""), micro.get("torch", "")
    return f"{op:<40}{ours:>12}{torch_:>12}{ratio:>12}  {rate}"
