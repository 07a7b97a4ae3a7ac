"""What a run folder holds, read for the report; a run that ended early lacks some of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from selfguide.errors import UserError

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The files of a run folder; see the README for their fields."""

    manifest: Row
    candidates: list[Row]
    dataset: list[Row]
    metrics: Row | None
    predictions: list[Row]
    evaluation: list[Row]
    expert: Row | None

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Reads what is there.

        Raises:
            UserError: the folder has no manifest, or a file in it cannot be read.
        """
        manifest = _json(folder / "manifest.json")
        if manifest is None:
            raise UserError(f"{folder}: no manifest.json in it; name the folder of a run")
        return cls(
            manifest=manifest,
            candidates=_lines(folder / "candidates.jsonl"),
            dataset=_lines(folder / "dataset.jsonl"),
            metrics=_json(folder / "metrics.json"),
            predictions=_lines(folder / "predictions.jsonl"),
            evaluation=_lines(folder / "evaluation.jsonl"),
            expert=_json(folder / "expert.json"),
        )

    @property
    def task(self) -> Row:
        return dict(self.manifest.get("task", {}))

    @property
    def settings(self) -> Row:
        return dict(self.manifest.get("settings", {}))

    @property
    def stages(self) -> dict[str, Row]:
        """What is known of each finished stage, in the order they ran."""
        return dict(self.manifest.get("stages", {}))

    @property
    def labels(self) -> list[str]:
        """The labels of a classification task; empty for free text."""
        return list(self.task.get("labels") or ())

    @cached_property
    def kept(self) -> list[Row]:
        return [row for row in self.candidates if row["kept"]]

    @property
    def systems(self) -> dict[str, Row]:
        """What was measured, by key."""
        return {each["key"]: each for each in self.metrics["systems"]} if self.metrics else {}


def _json(path: Path) -> Row | None:
    if not path.exists():
        return None
    return _parsed(path, path.read_text(encoding="utf-8"), "")


def _lines(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        numbered = enumerate(file, 1)
        return [_parsed(path, line, f", line {n}") for n, line in numbered if line.strip()]


def _parsed(path: Path, text: str, place: str) -> Row:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}{place}: not JSON ({error}); mend or delete it") from error
    if not isinstance(row, dict):
        raise UserError(f"{path}{place}: holds no JSON object; mend or delete it")
    return row
