"""Reading a task: which format a file has, overrides, the search for labels, the checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfguide.errors import UserError
from selfguide.tasks import native, natural_instructions
from selfguide.tasks.check import checked
from selfguide.tasks.draft import Draft
from selfguide.tasks.labels import find_labels
from selfguide.tasks.reading import Rows, items, read_json, read_rows, read_yaml
from selfguide.tasks.rows import choose_examples, parse_row, shared_instruction, without_instruction
from selfguide.tasks.task import Example, Task


@dataclass(frozen=True)
class LoadedTask:
    """A task and what else its file says.

    Args:
        task: checked.
        settings: run settings that the file sets, as written; `build_settings` checks them.
        notes: what the user should know: labels found, rows left out; a line each.
    """

    task: Task
    settings: Mapping[str, Any]
    notes: tuple[str, ...]


def load_task(
    path: Path,
    overrides: Mapping[str, Any] | None = None,
    places: Mapping[str, str] | None = None,
) -> LoadedTask:
    """Reads a task file in any of its formats, which its content tells.

    Formats: native YAML or JSON; Natural Instructions; rows as a JSON list or JSON lines (Alpaca,
    `messages`, prompt and completion, input and output).

    Args:
        path: a .yaml, .yml, .json or .jsonl file.
        overrides: values for `selfguide.tasks.draft.OVERRIDES` (command line, run file), which
            win; file names are relative to the working folder.
        places: where overrides come from, if not from the command line, for messages.

    Raises:
        UserError: a file cannot be used; one line that says which, where and why.
    """
    draft = _read(path)
    for key, value in (overrides or {}).items():
        draft.set(key, value, (places or {}).get(key, "command line"), Path())
    _choose_examples(draft)
    if "eval_file" in draft.places:
        draft.eval_rows = without_instruction(draft.eval_rows, draft.instruction)
    _find_labels(draft)
    task = checked(draft)
    return LoadedTask(task, draft.settings, tuple(draft.notes))


def _read(path: Path) -> Draft:
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        document = read_yaml(path)
    elif suffix == ".json":
        document = read_json(path)
    elif suffix == ".jsonl":
        return _rows(path, read_rows(path))
    else:
        raise UserError(f"{path}: a task is a .yaml, .yml, .json or .jsonl file")
    if isinstance(document, list):
        return _rows(path, items(document, str(path)))
    if not isinstance(document, Mapping):
        raise UserError(f"{path}: expected a task's keys (instruction, examples, ...) or rows")
    if "Definition" in document:
        return natural_instructions.read(document, path)
    return native.read(document, path)


def _rows(path: Path, rows: Rows) -> Draft:
    if not rows:
        raise UserError(f"{path}: no row")
    parsed = [parse_row(value, where) for value, where in rows]
    return Draft(path, rows=parsed, eval_source="the other rows")


def _choose_examples(draft: Draft) -> None:
    """Takes examples and evaluation rows from data that does not tell them apart."""
    if not draft.rows:
        return
    draft.instruction, rows = shared_instruction(draft.rows, draft.instruction)
    labels = draft.labels
    if labels is None:
        first = [Example(row.input, row.outputs[0]) for row in rows[:3]]
        labels = find_labels(draft.instruction, first)
    draft.examples, others = choose_examples(rows, labels)
    use = "not used, as there is an eval_file"
    if not draft.eval_rows:
        draft.eval_rows, use = others, "used only to evaluate"
    draft.notes.append(
        f"{len(draft.examples)} of {len(rows)} rows are the examples; the others are {use}"
    )


def _find_labels(draft: Draft) -> None:
    """Looks for labels where nothing was said about them. Evaluation rows are not looked at."""
    if draft.labels is not None or draft.metric == "rouge_l":
        return
    found = find_labels(draft.instruction, draft.examples, draft.wrong_outputs)
    draft.labels, draft.strict = found, False
    if found:
        listed = ", ".join(found)
        draft.notes.append(f"labels found in the instruction and examples: {listed} (or: --labels)")
