"""Seconds and memory of a stage, also over several sessions."""

from __future__ import annotations

import contextlib
import mmap
import time
from pathlib import Path

import pytest

from selfguide.stopwatch import Stopwatch


def _held() -> mmap.mmap:
    """256 MiB fresh from the system, all in use: an allocator might give what it still has."""
    memory = mmap.mmap(-1, 256 << 20)
    memory[:: mmap.PAGESIZE] = bytes(len(memory) // mmap.PAGESIZE)
    return memory


def test_memory_that_a_block_held_is_seen() -> None:
    with Stopwatch() as idle:  # at once before: what earlier tests freed may be given back later
        pass
    with Stopwatch() as busy, _held():
        time.sleep(0.1)
    assert busy.peak_mib - idle.peak_mib > 200
    assert 0.1 < busy.seconds < 60


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell")
def test_memory_of_an_earlier_block_is_not_counted() -> None:
    with Stopwatch() as busy, _held():
        time.sleep(0.1)
    with Stopwatch() as idle:
        time.sleep(0.1)
    assert busy.peak_mib - idle.peak_mib > 200


def test_an_interrupted_block_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "clock.json"
    first = Stopwatch(path)
    with contextlib.suppress(KeyboardInterrupt), first:
        time.sleep(0.05)
        raise KeyboardInterrupt
    with Stopwatch(path) as second:
        pass
    assert second.seconds >= first.seconds > 0.05
    assert second.peak_mib >= first.peak_mib
