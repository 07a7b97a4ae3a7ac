"""Natural Instructions' form (arXiv 2204.07705): Definition, Positive Examples, Instances."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfguide.tasks.draft import Draft
from selfguide.tasks.reading import Rows, items, mapping, text, texts
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
    positive, negative, instances = (
        items(document.get(key, []), f"{path}: {key}")
        for key in ("Positive Examples", "Negative Examples", "Instances")
    )
    draft.examples = _examples(positive, draft.notes)
    draft.wrong_outputs = tuple(
        output for value, where in negative for output in _outputs(mapping(value, where), where)
    )
    draft.eval_rows = [row for value, where in instances if (row := _instance(value, where))]
    unanswered = len(instances) - len(draft.eval_rows)
    if unanswered:
        draft.notes.append(f"{unanswered} instances have no output and are left out")
    return draft


def _examples(rows: Rows, notes: list[str]) -> list[Example]:
    examples: dict[str, Example] = {}
    for value, where in rows:
        row = mapping(value, where)
        input = text(row.get("input"), f"{where}: input")
        output = texts(row.get("output"), f"{where}: output")[0]
        examples.setdefault(input, Example(input, output))
    kept = list(examples.values())[:MAX_EXAMPLES]
    if len(kept) < len(rows):
        notes.append(
            f"{len(kept)} of {len(rows)} Positive Examples are used: "
            f"each input once, at most {MAX_EXAMPLES}"
        )
    return kept


def _instance(value: Any, where: str) -> Row | None:
    row = mapping(value, where)
    outputs = _outputs(row, where)
    return Row(text(row.get("input"), f"{where}: input"), outputs, where) if outputs else None


def _outputs(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """All outputs of a row but blank ones."""
    given = row.get("output")
    outputs = given if isinstance(given, list) else [given]
    answers = [each for each in outputs if not (isinstance(each, str) and not each.strip())]
    return texts(answers, f"{where}: output") if answers else ()
