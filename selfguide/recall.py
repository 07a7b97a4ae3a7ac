"""The systems of an evaluation, ready to answer again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine import LLM
from selfguide.errors import UserError, nearest
from selfguide.folder.rows import read_candidates, read_object, read_objects
from selfguide.folder.run_folder import RunFolder
from selfguide.method import examples_only
from selfguide.method.expert import Expert, Unlabelled
from selfguide.method.systems import Answering, Contest, System, all_systems
from selfguide.tasks import EvalRow


def measured(folder: RunFolder) -> dict[str, Any]:
    """What metrics.json says; nothing if there is none.

    Raises:
        UserError: it is damaged.
    """
    return read_object(folder.metrics) or {}


def unlabelled(folder: RunFolder) -> Unlabelled:
    """Invented inputs that annotation has seen, for label biases; none without a ledger."""
    candidates = read_candidates(folder.candidates) if folder.candidates.exists() else []
    return [(each.input, each.asked) for each in candidates if each.output is not None]


def recall(key: str, folder: RunFolder, expert: Expert, llm: LLM) -> Answering:
    """How the system `key` of metrics.json answered, under the prompt template it did best with.

    Raises:
        UserError: the run is not evaluated, or has no such system.
        AdapterError: the system's adapter cannot be read.
    """
    entries = {each["key"]: each for each in measured(folder).get("systems", [])}
    if key not in entries:
        known = ", ".join(entries) or "none: the run is not evaluated yet"
        raise UserError(
            f"--system {key}: no such system{nearest(key, entries)}; there are: {known}"
        )
    systems = {each.key: each for each in all_systems(_contest(folder, expert))}
    if key.startswith(examples_only.ADAPTER):
        llm.adapters.load(folder.cache / examples_only.ADAPTER, examples_only.ADAPTER)
    return _best_variant(systems[key], entries[key])


def _contest(folder: RunFolder, expert: Expert) -> Contest:
    settings = folder.manifest().values.get("settings")
    if settings is None:
        raise UserError(
            f"{folder.path}: without its manifest.json only the expert can answer; leave out "
            "--system, or give the run's command again"
        )
    asking = expert.way.asking
    rows = [
        EvalRow(row["input"], tuple(row["outputs"])) for _, row in read_objects(folder.evaluation)
    ]
    return Contest(
        expert.task,
        asking.template,
        tuple(unlabelled(folder)),
        settings["seed"],
        rows,
        expert,
        replace(asking, adapter=examples_only.ADAPTER),
    )


def _best_variant(system: System, entry: dict[str, Any]) -> Answering:
    variants = system.variants()
    if system.spread != "best":
        return next(iter(variants.values()))
    scores: dict[str, float] = entry["spread"]["templates"]
    return variants[max(scores, key=scores.__getitem__)]
