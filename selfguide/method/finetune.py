"""Step 4: LoRA on the surviving pairs and the user's own examples, which makes the expert."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine import TrainResult
from selfguide.errors import UserError
from selfguide.method import examples_only
from selfguide.method.answering import Answerer, Decision
from selfguide.method.expert import ADAPTER, Expert, Unlabelled, Way, estimate_bias
from selfguide.method.lessons import Lesson, teach
from selfguide.method.pairs import Pair
from selfguide.observer import Observer
from selfguide.prompts import Asking
from selfguide.settings import Settings
from selfguide.tasks import Task

_OF_PAIRS = "pairs"  # name of what the pairs taught, while it is blended


@dataclass(frozen=True)
class Finetuned:
    """The expert and how its training went."""

    expert: Expert
    training: TrainResult


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
        folder: gets `adapter/` and `expert.json`; meanwhile `checkpoint/`, from which the same call
            goes on exactly.
        cache: keeps the adapter of the examples alone.
        observer: sees progress, and may stop the training after a checkpoint.

    Raises:
        UserError: the decision does not suit the task.
        TrainingError: a pair is too long for the model, or a loss is not finite.
        Interrupted: the observer stopped it.
    """
    asking = Asking(settings.template, settings.prompt == "few_shot", ADAPTER)
    decision = choose_decision(settings, answerer.task)
    lesson = Lesson(ADAPTER, asking, training, held_out, settings.epochs)
    result = teach(answerer, settings, lesson, observer, folder / "checkpoint")
    if settings.examples_share:
        _blend(answerer, settings, cache, observer)
    answerer.llm.adapters.save(ADAPTER, folder / "adapter")
    bias: dict[str, float] = {}
    if decision == "bias_removed":
        watch = observer.watch("estimating the label bias")
        bias = estimate_bias(answerer, asking, unlabelled, settings.seed, watch)
    expert = Expert.of(answerer, Way(asking, decision, bias), settings.model)
    expert.save(folder)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    return Finetuned(expert, result)


def _blend(answerer: Answerer, settings: Settings, cache: Path, observer: Observer) -> None:
    """Makes the expert a mean of what the pairs and what the examples alone taught.

    The mean of updates that start from the same weights is often better than each (model soups,
    arXiv 2203.05482): what the pairs got wrong is not in the other.
    """
    adapters, share = answerer.llm.adapters, settings.examples_share
    examples_only.examples_only(answerer, settings, cache, observer)
    adapters.copy(ADAPTER, _OF_PAIRS)
    adapters.drop(ADAPTER)
    adapters.stack({_OF_PAIRS: 1 - share, examples_only.ADAPTER: share}, ADAPTER)
    adapters.drop(_OF_PAIRS)


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
