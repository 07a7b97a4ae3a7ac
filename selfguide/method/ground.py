"""What answers are held to: the evaluation file's rows, or what exists without one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from engine.seeds import mix
from selfguide.method.answering import Answerer
from selfguide.method.pairs import Pair
from selfguide.prompts import Prompts
from selfguide.settings import Settings
from selfguide.tasks import EvalRow

T = TypeVar("T")
Source = Literal["eval_file", "held_out_synthetic", "leave_one_out"]

_DRAWING = 3  # a salt


@dataclass(frozen=True)
class Fold:
    """Rows, and who answers them."""

    answerer: Answerer
    rows: tuple[EvalRow, ...]


@dataclass(frozen=True)
class Ground:
    """Where the evaluation rows come from; `note` says it to the reader."""

    source: Source
    folds: tuple[Fold, ...]
    note: str

    @property
    def rows(self) -> list[EvalRow]:
        return [row for fold in self.folds for row in fold.rows]


def choose_ground(answerer: Answerer, settings: Settings, held_out: Sequence[Pair]) -> Ground:
    """The evaluation rows if the task has any, else held-out pairs, else the examples in turn."""
    task = answerer.task
    if task.eval_rows:
        rows = drawn(task.eval_rows, settings)
        total = len(task.eval_rows)
        some = f"{len(rows)} of {total} rows, drawn by seed {settings.seed}"
        note = f"all {total} rows" if len(rows) == total else some
        return Ground("eval_file", (Fold(answerer, tuple(rows)),), note)
    if held_out:
        pairs = drawn(held_out, settings)
        rows = [EvalRow(pair.input, (pair.output,)) for pair in pairs]
        note = (
            f"no eval_file was given: agreement with the annotator on {len(rows)} synthetic pairs "
            "kept from training, which says nothing about whether the annotator is right"
        )
        return Ground("held_out_synthetic", (Fold(answerer, tuple(rows)),), note)
    note = (
        "no eval_file was given and no synthetic pairs were held out: the task's own examples, "
        "each answered with the others as its prompt; the tuned systems have seen them all"
    )
    return Ground("leave_one_out", leave_one_out(answerer), note)


def leave_one_out(answerer: Answerer) -> tuple[Fold, ...]:
    """Each of the task's examples as a row, for a model that is shown the others."""
    examples = answerer.task.examples
    folds = []
    for left in examples:
        others = tuple(each for each in examples if each is not left)
        task = replace(answerer.task, examples=others, stop=answerer.prompts.stop)
        asked = replace(answerer, task=task, prompts=Prompts(task, answerer.llm.tokenizer))
        folds.append(Fold(asked, (EvalRow(left.input, (left.output,)),)))
    return tuple(folds)


def drawn(rows: Sequence[T], settings: Settings) -> list[T]:
    """At most `settings.limit` of the rows, drawn by the seed, in their order."""
    if settings.limit is None or len(rows) <= settings.limit:
        return list(rows)
    generator = random.Random(mix(settings.seed, _DRAWING))
    return [rows[at] for at in sorted(generator.sample(range(len(rows)), settings.limit))]
