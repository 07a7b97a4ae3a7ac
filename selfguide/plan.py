"""Which stages a run has still to do: what shapes each of them, and what is there already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from selfguide.errors import UserError
from selfguide.folder.manifest import Shape, file_hash
from selfguide.folder.run_folder import RunFolder
from selfguide.method.answering import Answerer
from selfguide.method.finetune import begun
from selfguide.recall import unlabelled
from selfguide.settings import Settings, stage_settings

Action = Literal["reuse", "resume", "run"]

# These say how much is made, not what: candidates are the same whatever they are.
_LEDGER_INDEPENDENT = ("at_least", "max_candidates")


@dataclass(frozen=True)
class Step:
    """What a run does about one stage, and why, in words."""

    stage: str
    action: Action
    why: str


def anew() -> list[Step]:
    """What a run does where there is nothing to go on with."""
    return [Step(stage, "run", "started anew") for stage in ("synthesis", "finetune", "evaluate")]


class Shapes:
    """What shapes the stages of a run: each stage's own settings and what it builds on."""

    def __init__(self, answerer: Answerer, settings: Settings) -> None:
        self._answerer, self._settings = answerer, settings

    @cached_property
    def ledger(self) -> Shape:
        """Of the candidates: two runs that share it may share their rounds."""
        task, llm = self._answerer.task, self._answerer.llm
        values = stage_settings(self._settings, "synthesis")
        for name in ("model", *_LEDGER_INDEPENDENT):
            del values[name]
        facts = {
            "instruction": task.instruction,
            "examples": [asdict(example) for example in task.examples],
            "labels": list(task.labels.items()),
            "stop": task.stop,
            "inputs": task.inputs,
            "model": llm.checkpoint.fingerprint(),
            "precision": llm.model.precision,
            "device": llm.model.device.type,
            "templates": self._answerer.prompts.fingerprint,
        }
        return Shape({**facts, **values})

    @cached_property
    def synthesis(self) -> Shape:
        """Of the training pairs. An eval_file that comes later judges the expert that is there."""
        amounts = {name: getattr(self._settings, name) for name in _LEDGER_INDEPENDENT}
        stops = self._settings.patience is not None  # then pairs are held out for that
        return Shape({**self.ledger.aspects, **amounts, "patience": stops})

    def finetune(self, folder: RunFolder) -> Shape:
        """Of the expert, which is trained on the pairs that lie in the folder."""
        data: dict[str, Any] = {
            "dataset": file_hash(folder.dataset),
            "held_out": file_hash(folder.held_out),
        }
        values = stage_settings(self._settings, "finetune")
        if self._settings.decision == "bias_removed":
            data["bias_inputs"] = unlabelled(folder)
        return Shape({"synthesis": self.ledger.fingerprint, **data, **values})

    def evaluate(self, folder: RunFolder) -> Shape:
        """Of the scores."""
        rows = [asdict(row) for row in self._answerer.task.eval_rows]
        values = stage_settings(self._settings, "evaluate")
        facts = {
            "finetune": self.finetune(folder).fingerprint,
            "eval_file": rows,
            "metric": self._answerer.task.metric,
            "bias_inputs": unlabelled(folder) if self._answerer.task.is_classification else [],
        }
        return Shape({**facts, **values})


class Plan:
    """What a run in `folder` would do; looks at files, changes none.

    Each step is asked for when the stages before it are done, or all at once by `steps`.
    """

    def __init__(self, shapes: Shapes, folder: RunFolder) -> None:
        self.shapes, self.folder = shapes, folder

    def steps(self) -> list[Step]:
        """All steps, as far as they can be known now."""
        synthesis = self.synthesis()
        if synthesis.action != "reuse":
            after = "with the pairs of this synthesis"
            return [synthesis, Step("finetune", "run", after), Step("evaluate", "run", "after it")]
        finetune = self.finetune()
        if finetune.action != "reuse":
            return [synthesis, finetune, Step("evaluate", "run", "with the new expert")]
        return [synthesis, finetune, self.evaluate()]

    @property
    def edited(self) -> bool:
        """Whether the training pairs were written or edited by hand: synthesis left others."""
        record = self.folder.manifest().stage("synthesis") or {}
        written: Mapping[str, str] = record.get("files", {})
        return any(
            path.exists() and file_hash(path) != written.get(path.name)
            for path in (self.folder.dataset, self.folder.held_out)
        )

    def synthesis(self) -> Step:
        """Raises UserError if pairs that were edited by hand would be written anew."""
        record = self.folder.manifest().stage("synthesis") or {}
        if self.edited:
            if record.get("ledger") not in (None, self.shapes.ledger.fingerprint):
                self._refuse()
            return Step("synthesis", "reuse", "dataset.jsonl was made or edited by hand")
        place = self.folder.workplace("synthesis", self.shapes.ledger.fingerprint)
        same = record.get("ledger") == self.shapes.ledger.fingerprint
        ledger = self.folder.candidates
        partial = (place / ledger.name).exists() or (same and ledger.exists())
        return self._step("synthesis", self.shapes.synthesis, resumable=partial)

    def finetune(self) -> Step:
        shape = self.shapes.finetune(self.folder)
        place = self.folder.workplace("finetune", shape.fingerprint)
        return self._step("finetune", shape, resumable=begun(place))

    def evaluate(self) -> Step:
        shape = self.shapes.evaluate(self.folder)
        place = self.folder.workplace("evaluate", shape.fingerprint)
        return self._step("evaluate", shape, resumable=place.exists())

    def _step(self, stage: str, shape: Shape, *, resumable: bool) -> Step:
        record = self.folder.manifest().stage(stage)
        same = record is not None and record["fingerprint"] == shape.fingerprint
        if record is not None and same and self.folder.intact(record):
            return Step(stage, "reuse", "nothing changed")
        if resumable:
            return Step(stage, "resume", "part of it is done")
        if record is None or record["fingerprint"] is None:
            return Step(stage, "run", "not done yet")
        changed = self.folder.manifest().changes(stage, shape)
        why = f"changed: {', '.join(changed)}" if changed else "its files are gone or changed"
        return Step(stage, "run", why)

    def _refuse(self) -> None:
        changed = self._changed_for_ledger()
        raise UserError(
            f"{self.folder.dataset}: was edited by hand, and with what is changed "
            f"({', '.join(changed)}) it would be written anew: undo the change, rename the file, "
            "choose another --out, or start over with --resume never"
        )

    def _changed_for_ledger(self) -> list[str]:
        changed = self.folder.manifest().changes("synthesis", self.shapes.synthesis)
        return [name for name in changed if name in self.shapes.ledger.aspects]


def facts(answerer: Answerer, settings: Settings) -> dict[str, Any]:
    """What the manifest says of the task, the settings and the model."""
    task, llm = answerer.task, answerer.llm
    return {
        "task": {
            "name": task.name,
            "instruction": task.instruction,
            "examples": [asdict(example) for example in task.examples],
            "labels": dict(task.labels),
            "metric": task.metric,
            "stop": list(task.stop),
            "eval_rows": len(task.eval_rows),
            "inputs": len(task.inputs),
            "source": task.source,
        },
        "settings": asdict(settings),
        "model": {
            "source": settings.model,
            "fingerprint": llm.checkpoint.fingerprint(),
            "precision": llm.model.precision,
            "device": str(llm.model.device),
        },
    }
