"""--dry-run: what a run would do, and what it would take, measured on a few rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from engine.training.memory import bytes_per_token, plan_micro_batch
from selfguide.console import duration
from selfguide.folder.run_folder import RunFolder
from selfguide.method.answering import Answerer
from selfguide.method.expert import Expert, Way
from selfguide.method.finetune import Lesson, choose_decision, teach
from selfguide.method.pairs import Pair
from selfguide.method.synthesis import preview
from selfguide.method.systems import Contest, all_systems
from selfguide.observer import Silent
from selfguide.plan import Plan, Shapes
from selfguide.prompts import Asking
from selfguide.result import standard_output
from selfguide.settings import Settings
from selfguide.stopwatch import Stopwatch
from selfguide.tasks import EvalRow

_SAMPLE = 8  # candidates, and inputs, that are timed
_SYNTHETIC_ROWS = 0.1  # share of the pairs that is evaluated on where there are no rows
_TRIAL = "trial"  # name of the adapter that training is timed with


@dataclass(frozen=True)
class Estimate:
    """Times in seconds and memory in MiB, from a sample: right within a factor of two or so.

    Args:
        least: of synthesis, if every candidate survives.
        most: of synthesis, if it needs all candidates that it may try.
        finetune, evaluate: of these stages.
        loaded: memory with the model and what answering a few rows needs.
        training: memory while training.
    """

    least: float
    most: float
    finetune: float
    evaluate: float
    loaded: float
    training: float


def estimate(answerer: Answerer, settings: Settings) -> Estimate:
    """Times a few rows of each kind of work, which takes seconds."""
    with Stopwatch() as watch:
        candidate = _seconds(lambda: preview(answerer, settings, _SAMPLE, Silent())) / _SAMPLE
        evaluation = _evaluation(answerer, settings)
    pair = _pair(answerer, settings)
    pairs = settings.pairs + len(answerer.task.examples)
    return Estimate(
        least=candidate * min(settings.pairs, settings.max_candidates),
        most=candidate * settings.max_candidates,
        finetune=pair * pairs * settings.epochs,
        evaluate=evaluation,
        loaded=watch.peak_mib,
        training=watch.peak_mib + _activations(answerer, settings),
    )


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _evaluation(answerer: Answerer, settings: Settings) -> float:
    """Of all systems, each on all rows: those that write text, and those that score labels."""
    task = answerer.task
    inputs = [row.input for row in task.eval_rows] or [each.input for each in task.examples]
    inputs = inputs[:_SAMPLE]
    asking = Asking(settings.template)
    text = _seconds(lambda: answerer.greedy(inputs, asking)) / len(inputs)
    scored = 0.0
    if task.is_classification:
        scored = _seconds(lambda: answerer.label_scores(inputs, asking)) / len(inputs)
    ways = _ways(answerer, settings)
    texts = sum(way.decision == "greedy" for way in ways)
    rows = len(task.eval_rows) or round(_SYNTHETIC_ROWS * settings.pairs)
    rows = rows if settings.limit is None else min(rows, settings.limit)
    return rows * (texts * text + (len(ways) - texts) * scored)


def _ways(answerer: Answerer, settings: Settings) -> list[Way]:
    """Every way of answering that evaluation tries."""
    task = answerer.task
    asking = Asking(settings.template, settings.prompt == "few_shot", _TRIAL)
    expert = Expert.of(answerer, Way(asking, choose_decision(settings, task)), settings.model)
    rows = [EvalRow(each.input, (each.output,)) for each in task.examples]
    contest = Contest(task, settings.template, (), settings.seed, rows, expert, asking)
    ways = [way for each in all_systems(contest) for way in each.variants().values()]
    return [way for way in ways if isinstance(way, Way)]


def _pair(answerer: Answerer, settings: Settings) -> float:
    """Of one pair in one epoch."""
    pairs = [Pair(each.input, each.output, "example") for each in answerer.task.examples]
    asking = Asking(settings.template, settings.prompt == "few_shot", _TRIAL)
    lesson = Lesson(_TRIAL, asking, pairs, (), 1)
    seconds = _seconds(lambda: teach(answerer, settings, lesson, Silent()))
    answerer.llm.adapters.drop(_TRIAL)
    return seconds / len(pairs)


def _activations(answerer: Answerer, settings: Settings) -> float:
    """MiB that training keeps for the backward pass of as many tokens as it takes at a time."""
    model, asking = answerer.llm.model, Asking(settings.template, settings.prompt == "few_shot")
    texts = [answerer.prompts.answer(e.input, asking) for e in answerer.task.examples]
    longest = max(answerer.count(text) for text in texts)
    tokens = min(settings.batch_size * longest, plan_micro_batch(model, checkpointing=False))
    return tokens * bytes_per_token(model, checkpointing=False) / 2**20


def show_plan(answerer: Answerer, settings: Settings, folder: RunFolder) -> None:
    """Prints each stage with what a run would do about it, and the estimate."""
    steps = Plan(Shapes(answerer, settings), folder).steps()
    guess = estimate(answerer, settings)
    span = f"{duration(guess.least)} to {duration(guess.most)}"
    times = {
        "synthesis": f"{span}, as many candidates survive or few",
        "finetune": duration(guess.finetune),
        "evaluate": duration(guess.evaluate),
    }
    words = {"reuse": "keep", "resume": "go on", "run": "do"}
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("stage", "what", "why", "estimated time"):
        table.add_column(name)
    for step in steps:
        time_left = "" if step.action == "reuse" else times[step.stage]
        table.add_row(step.stage, words[step.action], escape(step.why), time_left)
    terminal = standard_output()
    terminal.print(f"run folder: {escape(str(folder.path))}")
    terminal.print(table)
    terminal.print(
        f"memory: about {guess.loaded:.0f} MiB for answering, up to {guess.training:.0f} MiB for "
        "training; measured on a few rows, so times may be off by a factor of two"
    )
