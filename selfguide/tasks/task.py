"""A task: an instruction, a few examples, and what is known about its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Metric = Literal["exact_match", "rouge_l"]


@dataclass(frozen=True)
class Example:
    """An input and its right output, both without white space around them."""

    input: str
    output: str


@dataclass(frozen=True)
class EvalRow:
    """An input and every output that counts as right for it (at least one)."""

    input: str
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """What shall be learnt. Made and checked by `selfguide.tasks.load.load_task`.

    Args:
        name: of the run folder; letters, digits, "-", "_" and ".".
        instruction: what to do, in words.
        examples: 2 to 10, all different.
        labels: for classification, each label and the word or phrase that says what it means (the
            label itself where the user gave none); empty for free text.
        metric: what counts: "exact_match" or "rouge_l".
        eval_rows: used only to evaluate; may be empty.
        inputs: the user's own unlabelled inputs, used before any are invented.
        stop: strings that end an output, the first of which also stands after every output that the
            model is shown; empty: the end of its line, or of its paragraph where an example's
            output has several lines.
        source: the file the task came from, for messages.
    """

    name: str
    instruction: str
    examples: tuple[Example, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    metric: Metric = "rouge_l"
    eval_rows: tuple[EvalRow, ...] = ()
    inputs: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    source: str = ""

    @property
    def is_classification(self) -> bool:
        return bool(self.labels)
