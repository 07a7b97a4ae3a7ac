"""Annotators that answer without looking are caught; sound ones are not."""

from __future__ import annotations

from selfguide.method.collapse import at_chance, collapsed
from selfguide.method.pairs import Candidate
from selfguide.tasks import Example, Task

LABELS = Task("t", "Which?", (Example("a", "x"), Example("b", "y")), {"x": "x", "y": "y"})
TEXT = Task("t", "Rewrite.", (Example("a b", "b a"), Example("c d", "d c")))


def row(id: int, asked: str | None, output: str, input: str = "some input") -> Candidate:
    return Candidate(id, 0, "record", f"{input} {id}", asked, 0, output=output, agreement=0.9)


def test_one_label_for_everything() -> None:
    rows = [row(i, "xy"[i % 2], "x") for i in range(40)]
    assert "'x' for 40 of 40" in (collapsed(rows, LABELS) or "")


def test_labels_at_chance_are_a_warning_only() -> None:
    rows = [row(i, "xy"[i % 2], "xy"[i // 2 % 2]) for i in range(80)]
    assert collapsed(rows, LABELS) is None
    assert "50% of 80 cases" in (at_chance(rows) or "")


def test_labels_mostly_right_are_sound() -> None:
    rows = [row(i, "xy"[i % 2], "xy"[i % 2 if i % 4 else 1]) for i in range(80)]
    assert collapsed(rows, LABELS) is None
    assert at_chance(rows) is None


def test_copies() -> None:
    rows = [row(i, None, f"Some input {i}.") for i in range(40)]
    assert "copied" in (collapsed(rows, TEXT) or "")


def test_too_few_to_tell() -> None:
    assert collapsed([row(i, "x", "x") for i in range(8)], LABELS) is None
