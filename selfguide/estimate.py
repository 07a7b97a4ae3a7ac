"""--dry-run: what a run would do, and what it would take, measured on a few rows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil

from rich.markup import escape
from rich.table import Table

from engine.training.memory import bytes_per_token, plan_micro_batch
from selfguide.console import duration
from selfguide.folder.run_folder import RunFolder
from selfguide.method import examples_only, reverse
from selfguide.method.answering import Answerer
from selfguide.method.choice import held_out_share
from selfguide.method.expert import BIAS_INPUTS, Expert, Way
from selfguide.method.finetune import choose_decision
from selfguide.method.lessons import Lesson, teach
from selfguide.method.pairs import Pair
from selfguide.method.synthesis import preview
from selfguide.method.systems import Answering, Both, Calibrated, Contest, System, all_systems
from selfguide.observer import Observer, Silent, stoppable
from selfguide.plan import Step
from selfguide.prompts import Asking
from selfguide.result import standard_output
from selfguide.settings import Settings
from selfguide.stopwatch import Stopwatch
from selfguide.tasks import EvalRow

_CANDIDATES = 16  # that are timed
_SAMPLE = 8  # inputs that are timed
_EPOCHS = 2  # that are timed: the first step takes longer than others
_TRIAL = "trial"  # name of the adapter that training is timed with


@dataclass(frozen=True)
class Estimate:
    """Times in seconds and memory in MiB, from a sample: right within a factor of two or so.

    Args:
        least: of synthesis, if every candidate survives; it makes whole rounds.
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


def estimate(answerer: Answerer, settings: Settings, stopping: Observer) -> Estimate:
    """Times a few rows of each kind of work, which takes seconds.

    Args:
        answerer: the model and the task.
        settings: of the run.
        stopping: may stop it; is shown nothing.

    Raises:
        Interrupted: it did.
    """
    quiet = Silent(stopping)
    examples = len(answerer.task.examples)
    least = _fewest_candidates(settings)
    with Stopwatch() as watch:
        candidate = _candidate(answerer, settings, quiet)
        evaluation = _evaluation(answerer, settings, min(least, BIAS_INPUTS), quiet)
    stopping.pause_point()
    pair = _pair(answerer, settings, quiet)
    writer = pair * examples * reverse.EPOCHS if _reverse(answerer, settings) else 0.0
    of_examples = pair * examples * examples_only.EPOCHS  # once, whichever stage does it
    early = of_examples if settings.examples_share else 0.0
    return Estimate(
        least=writer + candidate * least,
        most=writer + candidate * settings.max_candidates,
        finetune=pair * (settings.pairs + examples) * settings.epochs * settings.trainings + early,
        evaluate=evaluation + of_examples - early,
        loaded=watch.peak_mib,
        training=watch.peak_mib + _activations(answerer, settings),
    )


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _fewest_candidates(settings: Settings) -> int:
    """Candidates of the whole rounds that are needed if every one survives."""
    rounds = ceil(settings.pool * settings.pairs / settings.round_size)
    return min(rounds * settings.round_size, settings.max_candidates)


def _candidate(answerer: Answerer, settings: Settings, quiet: Observer) -> float:
    """Of one candidate, without the training of the adapter that writes inputs in reverse."""
    if _reverse(answerer, settings):  # three texts a candidate, like these, and no training
        settings = replace(settings, generator="record", votes=2)
    count = min(_CANDIDATES, settings.max_candidates)
    return _seconds(lambda: preview(answerer, settings, count, quiet)) / count


def _reverse(answerer: Answerer, settings: Settings) -> bool:
    return settings.generator == "reverse" and not answerer.task.is_classification


@dataclass(frozen=True)
class _Costs:
    """Seconds that a row takes: as text, by label scores, by the channel."""

    text: float
    direct: float
    channel: float

    @classmethod
    def measured(cls, answerer: Answerer, settings: Settings, quiet: Observer) -> _Costs:
        task, asking, watch = answerer.task, Asking(settings.template), stoppable(quiet, "timing")
        known = [*(row.input for row in task.eval_rows), *(each.input for each in task.examples)]
        inputs, others = known[:_SAMPLE], known[_SAMPLE : 2 * _SAMPLE] or known
        text = _seconds(lambda: answerer.greedy(inputs, asking, watch)) / len(inputs)
        if not task.is_classification:
            return cls(text, 0.0, 0.0)
        direct = _seconds(lambda: answerer.label_scores(others, asking, watch)) / len(others)
        channel = _seconds(lambda: answerer.channel_scores(inputs, None, watch)) / len(inputs)
        return cls(text, direct, channel)

    def of(self, ways: Sequence[Answering], rows: int, bias_rows: int) -> float:
        """Of ways to answer `rows`, after `bias_rows` where one removes a bias first.

        Scores that several want are computed once, as `Remembering` does.
        """
        wanted = dict.fromkeys(need for way in ways for need in _needs(way))
        return sum(
            getattr(self, kind) * (bias_rows if biases else rows) for kind, _, biases in wanted
        )


def _needs(way: Answering) -> list[tuple[str, object, bool]]:
    """The work of a way to answer: a field of `_Costs`, how it is asked, whether for biases."""
    if way.asking is None:
        return []
    direct, channel = ("direct", way.asking), ("channel", way.asking.adapter)
    if isinstance(way, Both):
        return [(*each, biases) for each in (direct, channel) for biases in (False, True)]
    if isinstance(way, Calibrated):
        return [(*direct, False), (*direct, True)]
    kinds = {"greedy": ("text", way.asking), "channel": channel}
    decision = way.decision if isinstance(way, Way) else "direct"
    return [(*kinds.get(decision, direct), False)]


def _evaluation(answerer: Answerer, settings: Settings, bias_rows: int, quiet: Observer) -> float:
    """Of all systems on all rows; without rows of the user's on the examples in turn as well."""
    task, costs = answerer.task, _Costs.measured(answerer, settings, quiet)
    rows = len(task.eval_rows) or round(held_out_share(task, settings) * settings.pairs)
    rows = rows if settings.limit is None else min(rows, settings.limit)
    systems = _systems(answerer, settings)
    total = costs.of(_ways(systems), rows, bias_rows)
    if task.eval_rows:
        return total
    untuned = _ways([system for system in systems if system.group == "untuned"])
    return total + len(task.examples) * costs.of(untuned, 1, bias_rows)


def _ways(systems: Sequence[System]) -> list[Answering]:
    return [way for system in systems for way in system.variants().values()]


def _systems(answerer: Answerer, settings: Settings) -> list[System]:
    """All that evaluation compares."""
    task = answerer.task
    asking = Asking(settings.template, settings.prompt == "few_shot", _TRIAL)
    expert = Expert.of(answerer, Way(asking, choose_decision(settings, task)), settings.model)
    rows = [EvalRow(each.input, (each.output,)) for each in task.examples]
    of_examples = replace(asking, adapter=examples_only.ADAPTER)
    contest = Contest(task, settings.template, (), settings.seed, rows, expert, of_examples)
    return all_systems(contest)


def _pair(answerer: Answerer, settings: Settings, quiet: Observer) -> float:
    """Of one pair in one epoch."""
    pairs = [Pair(each.input, each.output, "example") for each in answerer.task.examples]
    asking = Asking(settings.template, settings.prompt == "few_shot", _TRIAL)
    lesson = Lesson(_TRIAL, asking, pairs, (), _EPOCHS)
    seconds = _seconds(lambda: teach(answerer, settings, lesson, quiet))
    answerer.llm.adapters.drop(_TRIAL)
    return seconds / (_EPOCHS * len(pairs))


def _activations(answerer: Answerer, settings: Settings) -> float:
    """MiB that training keeps for the backward pass of as many tokens as it takes at a time."""
    model, asking = answerer.llm.model, Asking(settings.template, settings.prompt == "few_shot")
    texts = [answerer.prompts.answer(e.input, asking) for e in answerer.task.examples]
    longest = max(map(len, answerer.llm.tokenizer.encode_batch(texts)))
    tokens = min(settings.batch_size * longest, plan_micro_batch(model, checkpointing=False))
    return tokens * bytes_per_token(model, checkpointing=False) / 2**20


def show_plan(folder: RunFolder, steps: Sequence[Step], guess: Estimate, *, as_json: bool) -> None:
    """Prints each stage with what a run would do about it, and the estimate."""
    if as_json:
        stages = [asdict(step) for step in steps]
        print(json.dumps({"folder": str(folder.path), "stages": stages, **asdict(guess)}))
        return
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
