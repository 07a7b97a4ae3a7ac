"""What an adapter is taught, and the teaching: LoRA on pairs, asked as it will be asked."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from engine import LoraConfig, TrainConfig, TrainExample, TrainProgress, TrainResult
from engine.errors import AdapterError
from engine.files import write_json
from engine.seeds import mix
from engine.training.config import Progress
from selfguide.method.answering import Answerer
from selfguide.method.pairs import Pair
from selfguide.observer import Observer
from selfguide.prompts import Asking
from selfguide.settings import Settings

# Steps between checkpoints: about ten seconds on a CPU, where a step takes one or two.
_CHECKPOINT_EVERY = {"cpu": 5}
_CHECKPOINT_EVERY_ELSEWHERE = 100

# Fixed where memory is plenty for it, so that what happens to be free never decides how a sum is
# rounded. More at a time is no faster on a CPU.
_MICRO_BATCH_TOKENS = {"cpu": 1024}

# The greatest width of models that need a higher learning rate. SmolLM2-135M (576) does,
# Qwen2.5-0.5B (896) is the worse for it (docs/LOG.md); none between them was measured.
_NARROW = 768

_MARK = "lesson.json"  # what the adapter beside it was taught, and how that went; written last


@dataclass(frozen=True)
class Lesson:
    """What an adapter is taught, and how.

    Args:
        name: of the adapter.
        asking: the prompts; its adapter is the one that is taught.
        pairs: to learn.
        held_out: to stop by; may be empty.
        epochs: passes over `pairs`, at most.
        draw: of initial weights and of the pairs' order; the run's seed decides each.
        title: what progress calls the adapter; None: by its name.
    """

    name: str
    asking: Asking
    pairs: Sequence[Pair]
    held_out: Sequence[Pair]
    epochs: int
    draw: int = 0
    title: str | None = None


def teach(
    answerer: Answerer,
    settings: Settings,
    lesson: Lesson,
    observer: Observer,
    checkpoint: Path | None = None,
) -> TrainResult:
    """Makes (or makes anew) an adapter and trains it.

    Args:
        answerer: the model and the task.
        settings: of the run.
        lesson: what to learn.
        observer: sees progress; may stop the training after a checkpoint.
        checkpoint: folder for the training's state; None for a training of seconds.
    """
    llm = answerer.llm
    config, lora = _config(answerer, settings, lesson), _lora(settings)
    if checkpoint is not None:
        place = checkpoint / lesson_fingerprint(answerer, settings, lesson)[:16]
        _forget_others(place)
        config = TrainConfig(**{**asdict(config), "checkpoint_dir": place})
    if lesson.name in llm.adapters:
        llm.adapters.drop(lesson.name)
    llm.adapters.new(lesson.name, lora, seed=config.seed)
    return llm.train(
        training_examples(answerer, settings, lesson.asking, lesson.pairs),
        config,
        adapter=lesson.name,
        eval_examples=training_examples(answerer, settings, lesson.asking, lesson.held_out),
        progress=_stoppable(
            observer, f"training {lesson.title or lesson.name}", config.checkpoint_every
        ),
    )


def taught(
    answerer: Answerer,
    settings: Settings,
    lesson: Lesson,
    folder: Path,
    observer: Observer,
    checkpoint: Path | None = None,
) -> TrainResult:
    """Puts a lesson's adapter into `llm.adapters`: from `folder`, or by `teach`, and then keeps it.

    Args:
        answerer, settings, lesson, observer, checkpoint: as of `teach`.
        folder: holds `NAME/`, the adapter, with a mark that says what it was taught.
    """
    place, adapters = folder / lesson.name, answerer.llm.adapters
    mark = place / _MARK
    fingerprint = lesson_fingerprint(answerer, settings, lesson)
    if result := _marked(mark, fingerprint):
        if lesson.name in adapters:
            adapters.drop(lesson.name)
        with suppress(AdapterError):  # damaged: it is taught anew
            adapters.load(place, lesson.name)
            return result
    mark.unlink(missing_ok=True)
    result = teach(answerer, settings, lesson, observer, checkpoint)
    adapters.save(lesson.name, place)
    write_json(mark, {"lesson": fingerprint, "training": asdict(result)})
    return result


def lesson_fingerprint(answerer: Answerer, settings: Settings, lesson: Lesson) -> str:
    """A hash (64 hex digits) of everything that shapes what an adapter learns."""
    llm = answerer.llm
    about = [
        asdict(_config(answerer, settings, lesson)),
        asdict(_lora(settings)),
        [
            [asdict(each) for each in training_examples(answerer, settings, lesson.asking, pairs)]
            for pairs in (lesson.pairs, lesson.held_out)
        ],
        [llm.checkpoint.fingerprint(), llm.model.precision, llm.model.device.type],
    ]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def training_examples(
    answerer: Answerer, settings: Settings, asking: Asking, pairs: Sequence[Pair]
) -> list[TrainExample]:
    """Pairs as the engine trains on them, with the prompts that the adapter will be asked by.

    A pair that is one of the task's examples is not shown in its own prompt: its output could be
    copied from there.
    """
    prompts, examples = answerer.prompts, answerer.task.examples
    return [
        TrainExample(
            prompts.answer(pair.input, asking, [e for e in examples if e.input != pair.input]),
            prompts.completion(pair.output, asking),
            settings.example_weight if pair.origin == "example" else 1.0,
        )
        for pair in pairs
    ]


def learning_rate(answerer: Answerer, settings: Settings) -> float:
    """The peak learning rate: the setting's, or what suits the model and the task."""
    if settings.lr is not None:
        return settings.lr
    if answerer.llm.model.config.hidden_size > _NARROW:
        return 2e-4
    return 1e-3 if answerer.task.is_classification else 5e-4


def _marked(mark: Path, fingerprint: str) -> TrainResult | None:
    """How the training went that made the adapter beside a mark, if that was this lesson's."""
    try:
        values = json.loads(mark.read_bytes())
        if values["lesson"] != fingerprint:
            return None
        result = TrainResult(**values["training"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it is taught anew
    evaluated = tuple((int(step), float(loss)) for step, loss in result.eval_losses)
    return replace(result, losses=tuple(result.losses), eval_losses=evaluated)


def _config(answerer: Answerer, settings: Settings, lesson: Lesson) -> TrainConfig:
    kind = answerer.llm.model.device.type
    return TrainConfig(
        epochs=lesson.epochs,
        batch_size=settings.batch_size,
        lr=learning_rate(answerer, settings),
        label_smoothing=settings.label_smoothing,
        patience=settings.patience if lesson.held_out else None,
        seed=mix(settings.seed, lesson.draw) if lesson.draw else settings.seed,
        micro_batch_tokens=_MICRO_BATCH_TOKENS.get(kind),
        checkpoint_every=_CHECKPOINT_EVERY.get(kind, _CHECKPOINT_EVERY_ELSEWHERE),
    )


def _lora(settings: Settings) -> LoraConfig:
    return LoraConfig(rank=settings.rank, alpha=settings.alpha)


def _forget_others(place: Path) -> None:
    """Removes the checkpoints of other lessons beside this one's."""
    for other in place.parent.glob("*"):
        if other != place:
            shutil.rmtree(other)


def _stoppable(observer: Observer, title: str, every: int) -> Progress:
    """Shows each step, and lets the observer stop where the engine has just saved a checkpoint."""
    watch = observer.watch(title)

    def progress(now: TrainProgress) -> None:
        watch(now)
        if now.step % every == 0:
            observer.pause_point()

    return progress
