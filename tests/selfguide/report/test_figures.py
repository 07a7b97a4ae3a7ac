"""The geometry of the report's pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfguide.report.answers import before_after
from selfguide.report.figures import funnel, label_counts, length_histogram, loss_curve
from selfguide.report.rows import probabilities
from selfguide.report.run_files import Run
from tests.selfguide.report import run_folders


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run.read(run_folders.classification(tmp_path_factory.mktemp("run")))


def test_funnel_accounts_for_every_candidate(run: Run) -> None:
    steps = funnel(run)
    assert [step.name for step in steps] == ["noise", "shape", "length", "duplicate", "round trip"]
    assert steps[0].left == len(run.candidates) - steps[0].taken
    assert steps[-1].left == len(run.kept)


def test_labels_are_counted(run: Run) -> None:
    counts = label_counts(run)
    assert [each.label for each in counts] == ["positive", "negative", "mixed"]
    assert sum(each.kept for each in counts) == len(run.kept)
    assert all(each.examples == 1 and each.asked == 80 for each in counts)


def test_histogram_holds_every_length(run: Run) -> None:
    histogram = length_histogram(run, "input")
    assert histogram is not None
    assert sum(bin.kept for bin in histogram.bins) == len(run.kept)
    assert sum(bin.kept + bin.dropped for bin in histogram.bins) == len(run.candidates)
    assert max(bin.kept_height + bin.dropped_height for bin in histogram.bins) == 100
    assert len(histogram.marks) == 3
    assert all(0 <= mark <= 100 for mark in histogram.marks)


def test_loss_curve_spans_its_axes() -> None:
    first = {"losses": [2.0, 1.0, 1.5, 0.5], "eval_losses": [[2, 1.0], [4, 0.75]], "best_step": 4}
    curve = loss_curve({"trainings": [first, {"losses": [9.0]}]})
    assert curve is not None
    assert curve.trainings == 2
    assert curve.steps == "25.0,0.0 50.0,50.0 75.0,25.0 100.0,75.0"
    assert curve.held_out == [(50.0, 50.0), (100.0, 62.5)]
    assert curve.best == 100.0
    assert [tick.text for tick in curve.y_ticks] == ["0", "0.5", "1", "1.5", "2"]
    assert [tick.text for tick in curve.x_ticks] == ["1", "2", "4"]


def test_loss_curve_of_a_run_that_diverged() -> None:
    first = {"losses": [1.0, float("nan"), float("inf")], "eval_losses": [], "best_step": None}
    stage = {"trainings": [first]}
    curve = loss_curve(stage)
    assert curve is not None
    assert curve.steps == "33.33,0.0 66.67,0.0 100.0,0.0"
    assert loss_curve({"trainings": [{"losses": []}]}) is None
    assert loss_curve(None) is None


def test_probabilities_from_raw_scores() -> None:
    shares = probabilities({"a": -1000.0, "b": -1000.0 + 1.0986123})
    assert [each.label for each in shares] == ["b", "a"]
    assert [each.share for each in shares] == pytest.approx([0.75, 0.25])


def test_answers_are_sorted_into_kinds(run: Run) -> None:
    found = before_after(run)
    assert found is not None
    assert [kind.key for kind in found.kinds] == ["fixed", "broken", "right", "wrong"]
    assert sum(kind.total for kind in found.kinds) == 120
    fixed, broken, right, wrong = found.kinds
    assert all(row.after == row.reference != row.before for row in fixed.shown)
    assert all(row.before == row.reference != row.after for row in broken.shown)
    assert all(row.before == row.after == row.reference for row in right.shown)
    assert all(row.reference not in (row.before, row.after) for row in wrong.shown)
    gain = sum(row.gain for kind in found.kinds for row in kind.shown)
    assert gain == 100 * (len(fixed.shown) - len(broken.shown))


def test_texts_are_better_or_worse_by_rouge(tmp_path: Path) -> None:
    found = before_after(Run.read(run_folders.free_text(tmp_path)))
    assert found is not None
    better, worse, same = found.kinds
    assert all(row.gain >= 10 for row in better.shown)
    assert all(row.gain <= -10 for row in worse.shown)
    assert all(abs(row.gain) < 10 for row in same.shown)
    gains = [row.gain for row in better.shown]
    assert gains == sorted(gains, reverse=True)
