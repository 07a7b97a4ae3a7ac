"""The estimate of --dry-run: what is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from selfguide import estimate as module
from selfguide.errors import Interrupted
from selfguide.estimate import Estimate, estimate
from selfguide.method import examples_only, reverse
from selfguide.observer import Silent
from selfguide.tasks import Task
from tests.selfguide.method import tiny

_SETTINGS = replace(
    tiny.QUICK, pairs=4, at_least=0, round_size=8, max_candidates=80, generator="reverse"
)


@pytest.fixture
def _one_second_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece of work takes a second, whatever it is."""

    def second(work):  # type: ignore[no-untyped-def]
        work()
        return 1.0

    monkeypatch.setattr(module, "_seconds", second)


def _of(task: Task, limit: int | None = None) -> Estimate:
    return estimate(tiny.answerer(task), replace(_SETTINGS, limit=limit), Silent())


@pytest.mark.usefixtures("_one_second_each")
def test_whole_rounds_biases_and_the_training_on_the_examples_are_counted() -> None:
    whole, limited = _of(tiny.CLASSES), _of(tiny.CLASSES, limit=6)
    candidate, row = 1 / 16, 1 / 8  # texts and channel; labels have the other four rows
    label = 1 / len([*tiny.CLASSES.eval_rows, *tiny.CLASSES.examples][8:16])
    assert whole.least == pytest.approx(8 * candidate)
    assert whole.most == pytest.approx(80 * candidate)
    epoch = 1 / 2  # two are timed
    assert whole.finetune == pytest.approx(epoch / 3 * (4 + 3) * _SETTINGS.epochs)
    # zero-shot, few-shot in three templates and the expert as text; label scores of the untuned
    # model, of the examples' and, in three templates, the expert's, which three ways less a bias
    # and the channel beside them read again.
    per_row = 5 * row + 5 * label + row
    biases = 8 * (3 * label + row)
    learning = epoch * examples_only.EPOCHS
    assert whole.evaluate == pytest.approx(12 * per_row + biases + learning)
    assert limited.evaluate == pytest.approx(6 * per_row + biases + learning)


@pytest.mark.usefixtures("_one_second_each")
def test_the_training_of_the_writer_is_counted_once() -> None:
    guess = _of(tiny.FREE)
    assert guess.least == pytest.approx(8 / 16 + reverse.EPOCHS / 2)
    assert guess.most == pytest.approx(80 / 16 + reverse.EPOCHS / 2)


@pytest.mark.usefixtures("_one_second_each")
def test_without_rows_the_examples_are_answered_in_turn() -> None:
    task = replace(tiny.FREE, eval_rows=())
    learning = examples_only.EPOCHS / 2
    systems = 1 + 3 + 1 + 3  # zero-shot, few-shot, examples only, expert; a second for two rows
    assert _of(task).evaluate == pytest.approx(systems / 2 + 2 * 4 / 2 + learning)


@pytest.mark.usefixtures("_one_second_each")
def test_a_pool_takes_more_rounds() -> None:
    guess = estimate(tiny.answerer(tiny.CLASSES), replace(_SETTINGS, pool=2.5), Silent())
    assert guess.least == pytest.approx(16 / 16)


def test_it_can_be_stopped() -> None:
    with pytest.raises(Interrupted):
        estimate(tiny.answerer(tiny.FREE), _SETTINGS, tiny.Stopping(1))
