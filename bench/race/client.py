"""The racing side's process as the referee sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]


class RaceError(Exception):
    """A side failed; the message says which."""


class MissingSide(Exception):  # noqa: N818 - not an error: the race goes on without this side
    """A side's library is not installed."""


class Worker:
    """A process of its own for one side, so that its peak memory is its own.

    Attributes:
        load_seconds: time to import the library and load the model.
        load_peak_mib: peak memory after that.
        versions: the library's versions.
        peak_mib: peak memory after the latest run.

    Raises:
        MissingSide: the side's library is not installed.
        RaceError: the process ended early; its own words are on stderr.
    """

    def __init__(self, side: str, model: str, threads: int) -> None:
        count = str(threads)
        self.side = side
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.race.worker", side, model, count],
            cwd=_ROOT,
            env=os.environ
            | {
                "OMP_NUM_THREADS": count,
                "HF_HUB_OFFLINE": "1",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "TRANSFORMERS_VERBOSITY": "error",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            ready = self._answer()
            if "missing" in ready:
                raise MissingSide(ready["missing"])
        except BaseException:
            self.close()
            raise
        self.load_seconds: float = ready["seconds"]
        self.load_peak_mib: float = ready["peak_mib"]
        self.peak_mib = self.load_peak_mib
        self.versions: dict[str, str] = ready["versions"]

    def run(self, job: dict[str, Any], batch: int | None = None) -> dict[str, Any]:
        """Runs a job: `seconds`, and for training `losses`."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # reading its answer says how it ended
            self.process.stdin.write(json.dumps({"job": job, "batch": batch}) + "\n")
            self.process.stdin.flush()
        result = self._answer()
        self.peak_mib = result["peak_mib"]
        return result

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RaceError(f"{self.side}: its process ended with code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the process."""
        self.process.terminate()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
