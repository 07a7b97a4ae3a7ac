"""Step 4: LoRA on the surviving pairs and the user's own examples, which makes the expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine import TrainResult
from engine.adapters.collection import Adapters
from selfguide.errors import UserError
from selfguide.method import examples_only
from selfguide.method.answering import Answerer, Decision
from selfguide.method.expert import ADAPTER, Expert, Unlabelled, Way, estimate_bias
from selfguide.method.lessons import Lesson, taught
from selfguide.method.pairs import Pair
from selfguide.observer import Observer
from selfguide.prompts import Asking
from selfguide.settings import Settings
from selfguide.tasks import Task

_CHECKPOINT, _PARTS = "checkpoint", "parts"  # folders that trainings go on from


@dataclass(frozen=True)
class Finetuned:
    """The expert, and how each training on the pairs went."""

    expert: Expert
    trainings: list[TrainResult]


def finetune(
    answerer: Answerer,
    settings: Settings,
    training: Sequence[Pair],
    held_out: Sequence[Pair],
    unlabelled: Unlabelled,
    folder: Path,
    cache: Path,
    observer: Observer,
) -> Finetuned:
    """Trains the adapter "expert" and leaves it in `llm.adapters`.

    Args:
        answerer: the model and the task.
        settings: of the run.
        training: pairs to learn, the user's examples among them.
        held_out: pairs that tell when to stop; without any, all epochs are run.
        unlabelled: inputs for the label bias.
        folder: gets `adapter/` and `expert.json`, and what the same call goes on from exactly.
        cache: keeps the adapter of the examples alone.
        observer: sees progress, and may stop the training after a checkpoint.

    Raises:
        UserError: the decision does not suit the task.
        TrainingError: a pair is too long for the model, or a loss is not finite.
        Interrupted: the observer stopped it.
    """
    asking = Asking(settings.template, settings.prompt == "few_shot", ADAPTER)
    decision = choose_decision(settings, answerer.task)
    adapters, count = answerer.llm.adapters, settings.trainings
    shares: dict[str, float] = {}
    trainings = []
    for draw in range(count):
        name = f"{ADAPTER}-{draw + 1}"
        lesson = Lesson(
            name,
            replace(asking, adapter=name),
            training,
            held_out,
            settings.epochs,
            draw,
            title=f"{ADAPTER}, {draw + 1} of {count}" if count > 1 else ADAPTER,
        )
        parts, checkpoint = folder / _PARTS, folder / _CHECKPOINT
        trainings.append(taught(answerer, settings, lesson, parts, observer, checkpoint))
        shares[name] = (1 - settings.examples_share) / count
    if settings.examples_share:
        examples_only.examples_only(answerer, settings, cache, observer)
        shares[examples_only.ADAPTER] = settings.examples_share
    _blend(adapters, shares)
    adapters.save(ADAPTER, folder / "adapter")
    bias: dict[str, float] = {}
    if decision == "bias_removed":
        watch = observer.watch("estimating the label bias")
        bias = estimate_bias(answerer, asking, unlabelled, settings.seed, watch)
    expert = Expert.of(answerer, Way(asking, decision, bias), settings.model)
    expert.save(folder)
    return Finetuned(expert, trainings)


def begun(folder: Path) -> bool:
    """Whether a training in that folder was cut short, and can go on."""
    return any((folder / name).exists() for name in (_CHECKPOINT, _PARTS))


def _blend(adapters: Adapters, shares: Mapping[str, float]) -> None:
    """Makes the expert a weighted mean of adapters, of which all but the examples' are dropped.

    The mean of updates that start from the same weights is often better than each (model soups,
    arXiv 2203.05482): what one got wrong by chance is not in the others.
    """
    if ADAPTER in adapters:
        adapters.drop(ADAPTER)
    adapters.stack(shares, ADAPTER)
    for name in shares.keys() - {examples_only.ADAPTER}:
        adapters.drop(name)


def choose_decision(settings: Settings, task: Task) -> Decision:
    """How the expert answers.

    Raises:
        UserError: it would need labels, and the task has none.
    """
    if settings.decision == "auto":
        return "direct" if task.is_classification else "greedy"
    if settings.decision != "greedy" and not task.is_classification:
        raise UserError(
            f"{task.source}: decision: {settings.decision} needs a task with labels; use greedy"
        )
    return settings.decision
