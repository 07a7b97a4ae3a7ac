"""What the stages tell whoever watches them, and where they let themselves be stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from engine import Progress, TrainProgress

Watch = Callable[[Progress | TrainProgress], None]


class Observer(Protocol):
    """The console of a run, or silence."""

    def say(self, text: str) -> None:
        """A line of news."""

    def warn(self, text: str) -> None:
        """A line that the report repeats."""

    def watch(self, title: str) -> Watch:
        """A callback that shows how far the work named `title` has come."""

    def pause_point(self) -> None:
        """Called where all that was done is on disk.

        Raises:
            Interrupted: the user asked to stop.
        """


def stoppable(observer: Observer, title: str) -> Watch:
    """Like `observer.watch`, for work that may also be stopped where it stands: it is done anew."""
    watch = observer.watch(title)

    def show(progress: Progress | TrainProgress) -> None:
        watch(progress)
        observer.pause_point()

    return show


class Silent:
    """Shows nothing; keeps the warnings.

    Args:
        stopping: the observer that may stop the work; None if nobody does.
    """

    def __init__(self, stopping: Observer | None = None) -> None:
        self.warnings: list[str] = []
        self._stopping = stopping

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def watch(self, title: str) -> Watch:
        return lambda progress: None

    def pause_point(self) -> None:
        if self._stopping is not None:
            self._stopping.pause_point()
