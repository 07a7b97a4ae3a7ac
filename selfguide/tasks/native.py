"""The project's own form: YAML or JSON with a task's keys and any run setting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from selfguide.errors import UserError, nearest
from selfguide.settings import Settings
from selfguide.tasks.draft import TASK_KEYS, Draft
from selfguide.tasks.reading import items, mapping, text
from selfguide.tasks.task import Example

SETTING_KEYS = ("recipe", *(each.name for each in fields(Settings)))


def read(document: Mapping[str, Any], path: Path) -> Draft:
    """The draft of a native task file.

    Raises:
        UserError: a key is missing or unknown, or its value makes no sense.
    """
    draft = Draft(path, strict=True)
    for key, value in document.items():
        if key in SETTING_KEYS:
            draft.settings[key] = value
        elif key == "examples":
            draft.examples = _examples(value, f"{path}: examples")
        elif key in TASK_KEYS:
            if value is not None:
                draft.set(key, value, str(path), path.parent)
        else:
            raise UserError(f"{path}: unknown key {key}{nearest(key, (*TASK_KEYS, *SETTING_KEYS))}")
    for key in ("instruction", "examples"):
        if document.get(key) is None:
            raise UserError(f"{path}: {key} is missing")
    return draft


def _examples(value: Any, where: str) -> list[Example]:
    return [_example(each, place) for each, place in items(value, where)]


def _example(value: Any, where: str) -> Example:
    row = mapping(value, where)
    for key in row:
        if key not in ("input", "output"):
            raise UserError(f"{where}: unknown key {key}{nearest(key, ('input', 'output'))}")
    return Example(
        text(row.get("input"), f"{where}: input"), text(row.get("output"), f"{where}: output")
    )
