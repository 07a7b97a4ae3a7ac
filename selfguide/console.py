"""What a person sees of a run while it goes, and how they stop it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

from rich.console import Console as Terminal
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from engine import Progress as Requests
from engine import TrainProgress
from selfguide.errors import Interrupted
from selfguide.observer import Watch

_PLAIN_INTERVAL = 5.0  # seconds between lines of progress where there is no terminal
_STOPPING = (
    "stopping in a moment: finished rounds, checkpoints of the training and evaluated systems are "
    "kept; Ctrl-C again stops at once"
)


class Console:
    """An observer that shows a live bar on a terminal and plain lines elsewhere.

    News and warnings go to standard error and, with the time, to the log; progress to standard
    error alone. As a context manager it also answers Ctrl-C and SIGTERM: the first one makes the
    next `pause_point` raise Interrupted, the second raises KeyboardInterrupt where the work stands.

    Args:
        stream: where to write; NO_COLOR and whether it is a terminal are respected.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.warnings: list[str] = []
        self._terminal = Terminal(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._live = self._terminal.is_terminal and not self._terminal.is_dumb_terminal
        self._bar: Progress | None = None
        self._log: TextIO | None = None
        self._unlogged: list[str] = []
        self._stopping = False
        self._next_line = 0.0

    def say(self, text: str) -> None:
        """A line of news."""
        self._terminal.print(escape(text))
        self._note(text)

    def warn(self, text: str) -> None:
        """A line that the report repeats."""
        self.warnings.append(text)
        self._terminal.print(f"[yellow]warning:[/] {escape(text)}")
        self._note(f"warning: {text}")

    def watch(self, title: str) -> Watch:
        """A callback that shows how far the work named `title` has come."""
        return self._bar_of(title) if self._live else self._lines_of(title)

    def pause_point(self) -> None:
        """Raises Interrupted if the user asked to stop."""
        if self._stopping:
            raise Interrupted

    @contextmanager
    def logging(self, path: Path) -> Iterator[None]:
        """Appends everything said so far, and until the end of the block, to the file `path`."""
        with path.open("a", encoding="utf-8") as self._log:
            self._log.writelines(self._unlogged)
            self._unlogged.clear()
            try:
                yield
            finally:
                self._log = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Answers Ctrl-C and SIGTERM until the end of the block, and clears the bar there."""
        signals = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(each, self._interrupt) for each in signals]
        try:
            yield
        finally:
            for each, handler in zip(signals, before, strict=True):
                signal.signal(each, handler)
            self._clear()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:
            raise KeyboardInterrupt
        self._stopping = True
        # Not through rich or a buffer: the signal may have come in the middle of a print.
        if sys.__stderr__ is not None:  # else the number may be another file's
            os.write(2, f"\n{_STOPPING}\n".encode())

    def _bar_of(self, title: str) -> Watch:
        self._clear()
        bar = self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", style="dim"),
            console=self._terminal,
            transient=True,
            refresh_per_second=4,
        )
        task = bar.add_task(escape(title), total=None, rate="")
        bar.start()

        def show(progress: Requests | TrainProgress) -> None:
            done, total = _count(progress)
            bar.update(task, completed=done, total=total, rate=escape(_rate(progress)))
            if done >= total and self._bar is bar:
                self._clear()

        return show

    def _lines_of(self, title: str) -> Watch:
        def show(progress: Requests | TrainProgress) -> None:
            now = time.monotonic()
            if now >= self._next_line:
                self._next_line = now + _PLAIN_INTERVAL
                done, total = _count(progress)
                self._terminal.print(escape(f"{title}: {done}/{total}, {_rate(progress)}"))

        return show

    def _clear(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _note(self, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n"
        if self._log is None:
            self._unlogged.append(line)
        else:
            self._log.write(line)
            self._log.flush()


def duration(seconds: float) -> str:
    """Seconds as a person says them: `8 s`, `2 min 5 s`, `1 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _count(progress: Requests | TrainProgress) -> tuple[int, int]:
    if isinstance(progress, TrainProgress):
        return progress.step, progress.total
    return progress.done_requests, progress.total_requests


def _rate(progress: Requests | TrainProgress) -> str:
    parts = [f"{progress.tokens_per_second:.0f} tokens/s"]
    if isinstance(progress, TrainProgress):
        parts.insert(0, f"loss {progress.loss:.3f}")
    if progress.eta_seconds is not None:
        parts.append(f"{duration(progress.eta_seconds)} left")
    return ", ".join(parts)
