"""What a run folder holds, read for the report; a run that ended early lacks some of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from selfguide.errors import UserError
from selfguide.folder.manifest import Manifest
from selfguide.folder.rows import read_candidates, read_object, read_objects
from selfguide.method.pairs import Candidate

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The files of a run folder, as the stages left them.

    Args:
        manifest, metrics, expert: the JSON files; None where they are not there.
        candidates: the ledger.
        predictions: each system's answer to each evaluation row.
        evaluation: those rows, `{"input", "outputs"}`.
    """

    manifest: Row
    candidates: list[Candidate]
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
        manifest = folder / "manifest.json"
        if not manifest.exists():
            raise UserError(f"{folder}: no manifest.json in it; name the folder of a run")
        ledger = folder / "candidates.jsonl"
        return cls(
            manifest=Manifest(manifest).values,
            candidates=read_candidates(ledger) if ledger.exists() else [],
            metrics=read_object(folder / "metrics.json"),
            predictions=_lines(folder / "predictions.jsonl"),
            evaluation=_lines(folder / "evaluation.jsonl"),
            expert=read_object(folder / "expert.json"),
        )

    @property
    def task(self) -> Row:
        return dict(self.manifest["task"])

    @property
    def settings(self) -> Row:
        """The run's settings, with the learning rate that was chosen where none was set."""
        chosen = {"lr": lr} if (lr := self.stages.get("finetune", {}).get("lr")) else {}
        return {**self.manifest["settings"], **chosen}

    @property
    def stages(self) -> dict[str, Row]:
        """What is known of each stage that ran, in their order."""
        return dict(self.manifest["stages"])

    @property
    def labels(self) -> list[str]:
        """The labels of a classification task; empty for free text."""
        return list(self.task["labels"])

    @cached_property
    def kept(self) -> list[Candidate]:
        return [each for each in self.candidates if each.kept]

    @cached_property
    def systems(self) -> dict[str, Row]:
        """What was measured, by key."""
        return {each["key"]: each for each in self.metrics["systems"]} if self.metrics else {}


def _lines(path: Path) -> list[Row]:
    return [row for _, row in read_objects(path)] if path.exists() else []
