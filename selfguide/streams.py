"""Standard output and standard error that were closed by whoever started or reads this process."""

from __future__ import annotations

import os
import sys


def open_closed() -> None:
    """Puts something that takes everything where a stream is missing: nobody reads it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process lives


def silence_output() -> None:
    """For a reader that has gone: nothing more is written to standard output, not even at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
