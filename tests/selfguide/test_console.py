"""The console: a live bar on a terminal, few plain lines elsewhere, and two steps to stop."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from engine import Progress, TrainProgress
from selfguide.console import Console, duration
from selfguide.errors import Interrupted


def _at(done: int, total: int = 10) -> Progress:
    return Progress(done, total, 3 * done, 12.4, None if done == 0 else 75.0)


@contextmanager
def _terminal() -> Iterator[tuple[TextIO, Callable[[], str]]]:
    """The writing end of a terminal, and a function that tells what it showed."""
    reader, writer = pty.openpty()
    stream = os.fdopen(writer, "w")

    def shown() -> str:
        stream.flush()
        return os.read(reader, 1 << 20).decode()

    try:
        yield stream, shown
    finally:
        stream.close()
        os.close(reader)


def test_without_a_terminal_progress_is_a_plain_line_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("selfguide.console.time.monotonic", lambda: now)
    stream = io.StringIO()
    show = Console(stream).watch("inventing [inputs]")
    for step in range(10):
        show(_at(step))
        now += 1.0
    assert stream.getvalue().splitlines() == [
        "inventing [inputs]: 0/10, 12 tokens/s",
        "inventing [inputs]: 5/10, 12 tokens/s, 1 min 15 s left",
    ]


def test_training_shows_its_loss() -> None:
    stream = io.StringIO()
    Console(stream).watch("training")(TrainProgress(2, 9, 0.51234, 1e-4, 99.6, 3.2))
    assert stream.getvalue() == "training: 2/9, loss 0.512, 100 tokens/s, 3 s left\n"


def test_a_terminal_gets_a_bar_that_vanishes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with _terminal() as (stream, shown):
        console = Console(stream)
        with console.listening():
            show = console.watch("inventing")
            show(_at(4))
            console.say("half [done]")
            show(_at(10))
        text = shown()
    assert "10/10" in text
    assert "half [done]" in text
    assert text.rstrip().endswith("\x1b[2K")  # the bar's line is erased


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for no_color in ("", "1"):
        monkeypatch.setenv("NO_COLOR", no_color)
        with _terminal() as (stream, shown):
            Console(stream).warn("mind [this]")
            text = shown()
        assert bool(re.search(r"\x1b\[3\dm", text)) == (not no_color)
        assert re.sub(r"\x1b\[[\d;]*m", "", text).strip() == "warning: mind [this]"


def test_news_and_warnings_are_logged_with_the_time(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(stream)
    console.say("one")
    with console.logging(tmp_path / "log.txt"):
        console.warn("two")
        console.watch("progress")(_at(1))
    console.say("three")
    assert stream.getvalue().splitlines()[:2] == ["one", "warning: two"]
    assert console.warnings == ["two"]
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[20:] for line in lines] == ["one", "warning: two"]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", lines[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_waits_for_a_pause_and_the_second_does_not(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    console = Console(io.StringIO())
    with console.listening():
        console.pause_point()
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted):
            console.pause_point()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    said = capfd.readouterr().err
    assert said.startswith("\nstopping in a moment: finished rounds, checkpoints")
    assert said.endswith("kept; Ctrl-C again stops at once\n")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (125.0, "2 min 5 s"), (4800.0, "1 h 20 min")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
