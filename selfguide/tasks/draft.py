"""What a file says about a task, before overrides, the search for labels and the checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfguide.errors import UserError, nearest
from selfguide.tasks.reading import read_inputs, read_rows, text, user_file
from selfguide.tasks.rows import Row, parse_row
from selfguide.tasks.task import Example

TASK_KEYS = (
    "name",
    "instruction",
    "examples",
    "labels",
    "metric",
    "eval_file",
    "inputs_file",
    "stop",
)
OVERRIDES = tuple(key for key in TASK_KEYS if key != "examples")
"""Keys of a task that the command line or a run file may set."""


@dataclass
class Draft:
    """A task in the making.

    Args:
        source: the task file.
        labels: label to its meaning; empty for free text, None to look for labels.
        strict: whether an evaluation output that is no label is a mistake of the user.
        rows: data in which examples and evaluation rows are not told apart.
        wrong_outputs: outputs given as examples of mistakes.
        eval_source: what `eval_rows` came from, for messages.
        settings: the file's run settings, unchecked.
        notes: what the user should know.
        places: where keys were set, for messages, if not in `source`.
    """

    source: Path
    name: str | None = None
    instruction: str = ""
    examples: list[Example] = field(default_factory=list)
    labels: Mapping[str, str] | None = None
    strict: bool = False
    metric: str | None = None
    stop: tuple[str, ...] = ()
    inputs: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    eval_rows: list[Row] = field(default_factory=list)
    eval_source: str = ""
    wrong_outputs: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)

    def set(self, key: str, value: Any, where: str, folder: Path) -> None:
        """Sets one of `OVERRIDES`; file names are relative to `folder`.

        Raises:
            UserError: the key is unknown or its value makes no sense.
        """
        self.places[key] = where
        place = self.place(key)
        if key == "name":
            self.name = text(value, place)
        elif key == "instruction":
            self.instruction = text(value, place)
        elif key == "labels":
            self.labels = parse_labels(value, place)
        elif key == "metric":
            self.metric = text(value, place)
        elif key == "stop":
            self.stop = parse_stop(value, place)
        elif key == "eval_file":
            self.eval_rows = read_eval_file(user_file(value, place, folder))
            self.eval_source = text(value, place)
        elif key == "inputs_file":
            self.inputs = [each for _, each in read_inputs(user_file(value, place, folder))]
        else:
            raise UserError(f"{where}: unknown key {key}{nearest(key, OVERRIDES)}")

    def place(self, key: str) -> str:
        """Where a key was set, and the key, for messages."""
        return f"{self.places.get(key, self.source)}: {key}"


def parse_labels(value: Any, where: str) -> dict[str, str]:
    """Labels from a list (empty for free text), a map to their meanings, or text with commas."""
    if isinstance(value, Mapping):
        pairs = [(text(k, where), text(v, f"{where}.{k}")) for k, v in value.items()]
    else:
        written = isinstance(value, str)
        items = [part for part in value.split(",") if part.strip()] if written else value
        if written and not items:
            raise UserError(f"{where}: empty; list them, or write [] for a task without labels")
        if not isinstance(items, list | tuple):
            raise UserError(f"{where}: expected a list, or a map from label to meaning")
        pairs = [(label, label) for label in (text(item, where) for item in items)]
    labels = dict(pairs)
    if len(labels) < len(pairs):
        raise UserError(f"{where}: a label stands twice")
    return labels


def parse_stop(value: Any, where: str) -> tuple[str, ...]:
    """Stop strings, white space kept; `\\n` written out stands for a line end."""
    values = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(each, str) and each for each in values):
        raise UserError(f"{where}: expected text or a list of texts, none empty")
    return tuple(each.replace("\\n", "\n") for each in values)


def read_eval_file(path: Path) -> list[Row]:
    """Evaluation rows of a JSONL file (or a `.json` list), in any form that `parse_row` knows."""
    rows = [parse_row(value, where) for value, where in read_rows(path)]
    if not rows:
        raise UserError(f"{path}: no row")
    return rows
