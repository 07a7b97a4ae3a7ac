"""Which rows are evaluated on."""

from __future__ import annotations

from dataclasses import replace

from selfguide.method.ground import choose_ground, drawn, leave_one_out
from selfguide.tasks import EvalRow
from tests.selfguide.method.tiny import CLASSES, QUICK, answerer, synthetic


def test_an_eval_file_comes_first() -> None:
    asked = answerer(CLASSES)
    held_out = synthetic(CLASSES, 3, 60)
    assert choose_ground(asked, QUICK, held_out).rows == list(CLASSES.eval_rows)
    bare = replace(asked, task=replace(CLASSES, eval_rows=()))
    ground = choose_ground(bare, QUICK, held_out)
    assert ground.rows == [EvalRow(pair.input, (pair.output,)) for pair in held_out]


def test_rows_are_drawn_by_the_seed_in_their_order() -> None:
    rows = list(range(1000))
    some = drawn(rows, replace(QUICK, limit=50))
    assert some == sorted(set(some))
    assert len(some) == 50
    assert some == drawn(rows, replace(QUICK, limit=50))
    assert some != drawn(rows, replace(QUICK, limit=50, seed=1))
    assert (
        drawn(rows, replace(QUICK, limit=None)) == drawn(rows, replace(QUICK, limit=5000)) == rows
    )


def test_an_example_left_out_is_not_in_its_prompt() -> None:
    asked = answerer(CLASSES)
    folds = leave_one_out(asked)
    assert [fold.rows[0].input for fold in folds] == [e.input for e in CLASSES.examples]
    for fold, left in zip(folds, CLASSES.examples, strict=True):
        prompts = fold.answerer.prompts
        assert fold.answerer.task.examples == tuple(e for e in CLASSES.examples if e != left)
        assert prompts.task is fold.answerer.task
        assert prompts.stop == asked.prompts.stop
