"""Natural Instructions' form (arXiv 2204.07705): Definition, Positive Examples, Instances."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfguide.errors import UserError
from selfguide.tasks.draft import Draft
from selfguide.tasks.reading import mapping, text, texts
from selfguide.tasks.rows import MAX_EXAMPLES, Row
from selfguide.tasks.task import Example


def read(document: Mapping[str, Any], path: Path) -> Draft:
    """The draft: Positive Examples are the demonstrations, Instances only evaluate.

    An input counts once among the examples; instances without an output are left out.

    Raises:
        UserError: a part is missing or makes no sense.
    """
    instruction = "\n".join(texts(document["Definition"], f"{path}: Definition"))
    draft = Draft(path, instruction=instruction, eval_source="Instances")
    draft.examples = _examples(_items(document, "Positive Examples", path), draft.notes)
    draft.wrong_outputs = tuple(
        output
        for value, where in _items(document, "Negative Examples", path)
        for output in texts(mapping(value, where).get("output"), f"{where}: output")
    )
    instances = _items(document, "Instances", path)
    draft.eval_rows = [row for value, where in instances if (row := _instance(value, where))]
    unanswered = len(instances) - len(draft.eval_rows)
    if unanswered:
        draft.notes.append(f"{unanswered} instances have no output and are left out")
    return draft


def _items(document: Mapping[str, Any], key: str, path: Path) -> list[tuple[Any, str]]:
    """A list's values, each with its place for messages."""
    values = document.get(key, [])
    if not isinstance(values, list):
        raise UserError(f"{path}: {key}: expected a list")
    return [(value, f"{path}: {key}, item {i}") for i, value in enumerate(values, start=1)]


def _examples(items: list[tuple[Any, str]], notes: list[str]) -> list[Example]:
    examples: dict[str, Example] = {}
    for value, where in items:
        row = mapping(value, where)
        input = text(row.get("input"), f"{where}: input")
        output = texts(row.get("output"), f"{where}: output")[0]
        examples.setdefault(input, Example(input, output))
    kept = list(examples.values())[:MAX_EXAMPLES]
    if len(kept) < len(items):
        notes.append(
            f"{len(kept)} of {len(items)} Positive Examples are used: "
            f"each input once, at most {MAX_EXAMPLES}"
        )
    return kept


def _instance(value: Any, where: str) -> Row | None:
    row = mapping(value, where)
    given = row.get("output")
    outputs = given if isinstance(given, list) else [given]
    answers = [each for each in outputs if not (isinstance(each, str) and not each.strip())]
    if not answers:
        return None
    return Row(text(row.get("input"), f"{where}: input"), texts(answers, f"{where}: output"), where)
