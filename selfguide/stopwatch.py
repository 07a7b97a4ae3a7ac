"""How long a stage took and how much memory it needed."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from engine.files import write_json

_INTERVAL = 0.05  # seconds between looks at the memory
_STATM = Path("/proc/self/statm")


class Stopwatch:
    """Measures the block it stands around.

    Args:
        path: where an interrupted block leaves what it measured, for the next one to go on from;
            its folder may be gone by then. None to begin at zero.

    Attributes:
        seconds: the block's time.
        peak_mib: the most memory that this process had resident during the block. Where the system
            does not tell the present size (it does on Linux), the most so far.
        peak_gpu_mib: the most that torch had allocated on the GPU; None without one.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._earlier = {"seconds": 0.0, "peak_mib": 0.0}
        if path is not None and path.exists():
            self._earlier = json.loads(path.read_bytes())
        self.seconds, self.peak_mib = 0.0, 0.0
        self.peak_gpu_mib: float | None = None
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Stopwatch:
        self._start = time.perf_counter()
        self._before = _highest()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._watcher.join()
        self._measure()
        if error is not None and self._path is not None and self._path.parent.is_dir():
            write_json(self._path, {"seconds": self.seconds, "peak_mib": self.peak_mib})

    @property
    def values(self) -> dict[str, Any]:
        """For the manifest: what was measured, and when it was over."""
        gpu = {} if self.peak_gpu_mib is None else {"peak_gpu_mib": round(self.peak_gpu_mib, 1)}
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        measured = {"seconds": round(self.seconds, 2), "peak_mib": round(self.peak_mib, 1)}
        return {**measured, **gpu, "finished": now}

    def _measure(self) -> None:
        self.seconds = self._earlier["seconds"] + time.perf_counter() - self._start
        highest = _highest()  # exact, if this block is what raised it
        peak = highest if highest > self._before else self.peak_mib or highest
        self.peak_mib = max(peak, self._earlier["peak_mib"])
        if torch.cuda.is_available():
            self.peak_gpu_mib = torch.cuda.max_memory_allocated() / 2**20

    def _watch(self) -> None:
        while True:
            self.peak_mib = max(self.peak_mib, _resident())
            if self._done.wait(_INTERVAL):
                return


def _resident() -> float:
    """MiB that this process has resident now; 0 where the system does not tell."""
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _highest() -> float:
    """MiB that this process has had resident at most; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
