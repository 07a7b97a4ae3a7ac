"""Seconds and memory of a stage, also over several sessions."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path

import pytest

from selfguide.stopwatch import Stopwatch

# In a process of its own: what other tests leave may be given back to the system at any time. The
# 256 MiB are fresh from the system and all in use: an allocator might give what it still has.
_BLOCKS = """
import json, mmap, time
from selfguide.stopwatch import Stopwatch

def held():
    memory = mmap.mmap(-1, 256 << 20)
    memory[:: mmap.PAGESIZE] = bytes(len(memory) // mmap.PAGESIZE)
    return memory

with Stopwatch() as before:
    time.sleep(0.1)
with Stopwatch() as busy, held():
    time.sleep(0.1)
with Stopwatch() as after:
    time.sleep(0.1)
print(json.dumps([[each.seconds, each.peak_mib] for each in (before, busy, after)]))
"""


@lru_cache
def _blocks() -> list[tuple[float, float]]:
    """Seconds and MiB of a block before, while, and after 256 MiB were held."""
    command = [sys.executable, "-c", _BLOCKS]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [(seconds, mib) for seconds, mib in json.loads(printed)]


def test_memory_that_a_block_held_is_seen() -> None:
    (_, idle), (seconds, busy), _ = _blocks()
    assert busy - idle > 200
    assert 0.1 < seconds < 60


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell")
def test_memory_of_an_earlier_block_is_not_counted() -> None:
    _, (_, busy), (_, idle) = _blocks()
    assert busy - idle > 200


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
