"""Rounds of inventing, annotating and filtering, on a tiny random model."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from dataclasses import replace

import pytest

from selfguide.errors import Interrupted, TooFewPairs
from selfguide.method.choice import Choice
from selfguide.method.pairs import Candidate
from selfguide.method.synthesis import Synthesised, preview, synthesise
from selfguide.observer import Silent
from selfguide.settings import Settings
from selfguide.tasks import EvalRow, Example, Task
from tests.selfguide.method.mood import MOOD, answerer

FREE = Task("free", "Go on.", (Example("one two", "three"), Example("four five six", "seven")))
LOOSE = Settings(filters=(), pairs=8, pool=1, at_least=0, round_size=8, max_candidates=64, votes=2)
EAGER = replace(LOOSE, pairs=40)


def run(
    task: Task = FREE,
    settings: Settings = LOOSE,
    known: list[Candidate] | None = None,
    observer: Silent | None = None,
) -> tuple[Synthesised, list[list[Candidate]]]:
    saved: list[list[Candidate]] = []
    made = synthesise(
        answerer(task),
        settings,
        deepcopy(known or []),
        lambda rows: saved.append(deepcopy(rows)),
        observer or Silent(),
    )
    return made, saved


def test_every_candidate_has_a_row_with_its_verdict() -> None:
    made, _ = run()
    assert [each.id for each in made.candidates] == list(range(len(made.candidates)))
    for each in made.candidates:
        assert each.kept == (each.filter is None)
        assert (each.reason is None) == (each.filter is None)


def test_kept_candidates_are_the_pairs_that_are_trained_on_or_held_out() -> None:
    settings = replace(LOOSE, pairs=20, round_size=32, max_candidates=160)
    made, _ = run(settings=settings)
    kept = {each.id for each in made.candidates if each.kept}
    pairs = [*made.training, *made.held_out]
    assert {pair.id for pair in pairs if pair.origin == "synthetic"} == kept
    assert [p.input for p in made.training[:2]] == [e.input for e in FREE.examples]
    assert len(kept) == settings.pairs
    assert len(made.held_out) == 6  # a third, as they have to judge the expert


def test_where_evaluation_rows_judge_pairs_are_held_out_to_end_the_training_or_not_at_all() -> None:
    settings = replace(LOOSE, pairs=20, round_size=32, max_candidates=160)
    judged = replace(FREE, eval_rows=(EvalRow("x", ("y",)),))
    assert run(judged, settings)[0].held_out == []
    assert len(run(judged, replace(settings, patience=1))[0].held_out) == 2


def test_each_label_gives_as_large_a_share_to_the_held_out_pairs() -> None:
    def kept(good: int, bad: int) -> list[Candidate]:
        outputs = ["good"] * good + ["bad"] * bad
        return [Candidate(i, 0, "record", f"{i}", o, i, o) for i, o in enumerate(outputs)]

    for good, bad, expected in ((32, 32, (8, 8)), (40, 24, (10, 6))):
        for seed in range(5):
            choice = Choice([], MOOD, replace(LOOSE, seed=seed), Silent())
            held_out = choice.held_out(kept(good, bad))
            assert held_out == sorted(held_out)
            assert (
                sum(id < good for id in held_out),
                sum(id >= good for id in held_out),
            ) == expected


def test_the_same_seed_makes_the_same_ledger_and_another_seed_another() -> None:
    first, _ = run()
    assert run()[0].candidates == first.candidates
    other, _ = run(settings=replace(LOOSE, seed=1))
    assert [c.input for c in other.candidates] != [c.input for c in first.candidates]


@pytest.mark.parametrize("task", [FREE, MOOD], ids=["free", "labels"])
def test_going_on_after_any_round_ends_in_the_same_ledger(task: Task) -> None:
    whole, saved = run(task)
    for known in saved[:2]:
        assert run(task, known=known)[0].candidates == whole.candidates


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_stopping_within_a_round_keeps_those_before_it(rounds: int) -> None:
    saved: list[list[Candidate]] = []

    class Stopping(Silent):
        def pause_point(self) -> None:
            if len(saved) == rounds:
                raise Interrupted("enough")

    with pytest.raises(Interrupted):
        synthesise(answerer(FREE), EAGER, [], lambda r: saved.append(deepcopy(r)), Stopping())
    known = saved[-1] if saved else []
    assert len(known) == rounds * EAGER.round_size
    assert run(FREE, EAGER, known)[0].candidates == run(FREE, EAGER)[0].candidates


def test_labels_are_asked_for_in_turn_and_what_is_missing_more_often() -> None:
    made, saved = run(MOOD)
    first = Counter(each.asked for each in saved[0])
    assert first == {"good": 4, "bad": 4}
    assert all(each.asked in MOOD.labels for each in made.candidates)


def test_the_users_inputs_are_used_before_any_are_invented() -> None:
    own = ("alpha beta", "gamma", "delta")
    made, saved = run(replace(FREE, inputs=own))
    assert [(each.input, each.source) for each in saved[0]] == [(text, "user") for text in own]
    assert all(each.source == "record" for each in made.candidates[len(own) :])


def test_too_few_pairs_end_the_run_with_what_took_them() -> None:
    strict = replace(LOOSE, filters=("shape", "length"), at_least=12, length_sigmas=0.01)
    saved: list[list[Candidate]] = []
    with pytest.raises(TooFewPairs, match="dropped by length") as raised:
        synthesise(answerer(FREE), strict, [], lambda r: saved.append(deepcopy(r)), Silent())
    assert "--at-least" in str(raised.value)
    assert all(each.filter for each in saved[-1])


def test_an_annotator_that_guesses_is_said_so() -> None:
    observer = Silent()
    settings = replace(LOOSE, filters=("round_trip",), pairs=160, max_candidates=160)
    run(MOOD, settings, observer=observer)
    assert any("guessing would" in line or "annotator gave" in line for line in observer.warnings)


@pytest.mark.parametrize("count", [5, 11])
@pytest.mark.parametrize("task", [FREE, MOOD, replace(FREE, inputs=("own", "my own"))])
def test_preview_shows_the_first_candidates_of_the_run(task: Task, count: int) -> None:
    shown = preview(answerer(task), EAGER, count, Silent())
    made, _ = run(task, EAGER)
    expected = [(each.input, each.asked, each.source) for each in made.candidates[:count]]
    assert [(each.input, each.asked, each.source) for each in shown] == expected
    if task.labels:
        assert {each.asked for each in shown[:2]} == set(task.labels)


def kept_by_label(good: int, bad: int, dropped: int = 0) -> list[Candidate]:
    """A finished ledger whose annotations say so many of each label."""
    outputs = ["good"] * good + ["bad"] * bad + ["good"] * dropped
    return [
        Candidate(
            i,
            0,
            "record",
            f"text {i}",
            "bad" if i >= good + bad else output,
            i,
            scores={"good": -0.1, "bad": -3.0} if output == "good" else {"good": -3.0, "bad": -0.1},
        )
        for i, output in enumerate(outputs)
    ]


DIRECT = replace(LOOSE, annotator="direct", at_least=1, pairs=20, max_candidates=9)


def test_a_label_without_any_pair_is_named() -> None:
    observer = Silent()
    known = kept_by_label(9, 0)
    with pytest.raises(TooFewPairs) as raised:
        run(MOOD, DIRECT, known, observer)
    assert "(dropped by balance 9); no pair of 'bad' survived; at least 1" in str(raised.value)
    assert "--max-candidates 18" in str(raised.value)


def test_nothing_dropped_is_not_told() -> None:
    observer = Silent()
    made, _ = run(MOOD, DIRECT, kept_by_label(5, 4), observer)
    assert observer.warnings == ["9 of the 20 pairs wanted survived of 9 candidates"]
    assert len(made.training) == 2 + 9


def test_a_round_tells_what_each_label_lacks() -> None:
    said: list[str] = []

    class Saying(Silent):
        def say(self, line: str) -> None:
            said.append(line)

    settings = replace(DIRECT, max_candidates=8, at_least=0)
    made, _ = run(MOOD, settings, kept_by_label(6, 1), Saying())
    count = Counter(each.output for each in made.candidates if each.scores)
    lacks = [f"{label} {10 - count[label]}" for label in MOOD.labels]
    assert len(said) == 1
    assert said[0].endswith(
        f" {count.total()} pairs so far, {20 - count.total()} still wanted ({', '.join(lacks)})"
    )


@pytest.mark.parametrize("generator", ["record", "reverse", "meta"])
def test_every_generator_writes_inputs(generator: str) -> None:
    made, _ = run(settings=replace(LOOSE, generator=generator))  # type: ignore[arg-type]
    assert {each.source for each in made.candidates} == {generator}
    assert any(each.input for each in made.candidates)


@pytest.mark.parametrize("pool", [1, 1.5, 2])
def test_pairs_are_chosen_from_a_pool_for_their_variety(pool: float) -> None:
    """Ten survivors, twins among them, are enough up to a pool of nine."""
    texts = ["a b c d", "a b c e", "f g h", "f g i", "j k", "j l m", "n o", "n p q", "r s", "t u v"]
    known = [
        Candidate(at, 0, "record", text, None, at, output=f"{at} {at}", agreement=1.0)
        for at, text in enumerate(texts)
    ]
    settings = replace(LOOSE, pairs=6, pool=pool, round_size=10, max_candidates=30)
    made, _ = run(FREE, settings, known)
    kept = [each for each in made.candidates if each.kept]
    assert len(kept) == 6
    assert (len(made.candidates) > 10) == (pool == 2)
    if pool == 1:
        assert [each.id for each in kept] == list(range(6))
    if pool == 1.5:
        assert {each.input for each in kept} >= {"j k", "n o", "r s", "t u v"}
        assert {each.reason for each in made.candidates if not each.kept} == {
            "6 other pairs of its kind were kept"
        }


@pytest.mark.parametrize(("unsure", "kept"), [(False, {0, 2, 4, 6}), (True, {0, 2, 4, 7})])
def test_the_surest_pairs_come_before_the_most_varied(unsure: bool, kept: set[int]) -> None:
    """Twins as long as they are sure; with too few sure ones those that come next."""
    texts = ["a b c", "x y", "a b d", "o p", "a b e", "u v", "a b f", "m n"]
    sure = [1.0, 0.92, 1.0, 0.92, 1.0, 0.92, 0.91 if unsure else 1.0, 0.95]
    known = [
        Candidate(at, 0, "record", text, None, at, output=f"{at} {at}", agreement=sure[at])
        for at, text in enumerate(texts)
    ]
    settings = replace(LOOSE, pairs=4, pool=2, max_candidates=8)
    made, _ = run(FREE, settings, known)
    assert {each.id for each in made.candidates if each.kept} == kept


def test_each_labels_pairs_are_chosen_among_its_own() -> None:
    known = kept_by_label(8, 6)
    for candidate in known:
        candidate.input = f"same words {'again' if candidate.id % 2 else candidate.input}"
    settings = replace(DIRECT, pairs=8, pool=1.5, max_candidates=14)
    kept = [each for each in run(MOOD, settings, known)[0].candidates if each.kept]
    assert Counter(each.output for each in kept) == {"good": 4, "bad": 4}
    assert sum("again" in each.input for each in kept) < 4
