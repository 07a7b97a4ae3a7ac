"""Votes, medoids and label bias."""

from __future__ import annotations

import numpy as np
import pytest

from engine import LoraConfig
from selfguide.errors import UserError
from selfguide.method.annotate import Annotator, check_annotator, elect
from selfguide.method.answering import Answerer, label_bias, log_softmax
from selfguide.method.pairs import Candidate
from selfguide.prompts import Asking, Prompts
from selfguide.settings import Settings
from selfguide.tasks import Example, Task
from tests.selfguide.method import tiny
from tests.selfguide.method.mood import MOOD, answerer


def test_the_most_frequent_answer_wins_with_its_share_of_all_votes() -> None:
    assert elect(["a", "b", "a", ""], exact=True) == ("a", 0.5)


def test_the_shortest_wins_a_tie() -> None:
    assert elect(["longer", "short"], exact=True)[0] == "short"


def test_long_answers_that_differ_by_a_word_support_each_other() -> None:
    texts = ["the cat sat on the mat", "a cat sat on the mat", "the cat sat on a mat", "no idea"]
    output, agreement = elect(texts, exact=False)
    assert output == "the cat sat on the mat"
    assert 0.6 < agreement < 0.9


def test_nothing_said_wins_nothing() -> None:
    assert elect(["", ""], exact=False) == (None, 0.0)


def test_label_bias_is_the_mean_score_and_asked_for_labels_count_alike() -> None:
    scores = log_softmax(np.array([[2.0, 0.0]] * 3 + [[0.0, 2.0]]))
    assert label_bias(scores)[0] > 0
    assert label_bias(scores, ["x"] * 3 + ["y"]) == pytest.approx([0.0, 0.0])


def test_removing_the_bias_ranks_inputs_against_each_other() -> None:
    """A model that always prefers "good" still says which input is the least good."""
    rows = [
        Candidate(i, 0, "record", f"text {i}", asked, 0, scores={"good": high, "bad": low})
        for i, (asked, high, low) in enumerate([("good", -0.1, -3.0), ("bad", -0.4, -1.0)])
    ]
    Annotator(answerer(), Settings(annotator="bias_removed")).decide(rows)
    assert [row.output for row in rows] == ["good", "bad"]
    Annotator(answerer(), Settings(annotator="direct")).decide(rows)
    assert [row.output for row in rows] == ["good", "good"]


def test_label_scores_are_normalised_and_those_of_the_engine() -> None:
    asker = answerer()
    scores = asker.label_scores(["It was fine."], Asking("plain"))
    assert np.exp(scores).sum() == pytest.approx(1.0)
    prompt = asker.prompts.answer("It was fine.", Asking("plain"))
    raw = [each.logprob for each in asker.llm.score([prompt], [[" good", " bad"]])[0]]  # type: ignore[union-attr]
    assert scores[0, 0] - scores[0, 1] == pytest.approx(raw[0] - raw[1], abs=1e-4)


def test_a_label_that_begins_like_another_is_scored_with_its_end() -> None:
    task = Task("t", "Do.", MOOD.examples, {"go": "go", "go on": "go on"})
    model = answerer().llm
    asker = Answerer(model, task, Prompts(task, model.tokenizer))
    scores = asker.label_scores(["x"], Asking("plain"))
    prompt = asker.prompts.answer("x", Asking("plain"))
    texts = [f" {label}\n\nInput:" for label in task.labels]
    assert all(text in prompt.replace("good", "go").replace("bad", "go on") for text in texts)
    raw = [each.logprob for each in model.score([prompt], [texts])[0]]  # type: ignore[union-attr]
    assert scores[0, 0] - scores[0, 1] == pytest.approx(raw[0] - raw[1], abs=1e-4)


def test_an_adapter_ends_such_a_label_with_the_end_token_that_it_learnt() -> None:
    task = Task("t", "Do.", MOOD.examples, {"go": "go", "go on": "go on"})
    model = tiny.llm()
    model.adapters.new("expert", LoraConfig(rank=2), seed=0)
    asker, asking = tiny.answerer(task, model), Asking("plain", False, "expert")
    scores = asker.label_scores(["x"], asking)
    eos, encode = model.tokenizer.eos_ids[0], model.tokenizer.encode_continuation
    ids = [[*encode(f" {label}"), eos] for label in task.labels]
    prompt = asker.prompts.answer("x", asking)
    raw = [each.logprob for each in model.score([prompt], [ids], "expert")[0]]  # type: ignore[union-attr]
    assert scores[0, 0] - scores[0, 1] == pytest.approx(raw[0] - raw[1], abs=1e-4)


def test_channel_scores_weigh_the_input_under_each_label() -> None:
    scores = answerer().channel_scores(["It was fine.", "Cold soup."])
    assert scores.shape == (2, 2)
    assert np.exp(scores).sum(axis=1) == pytest.approx([1.0, 1.0])


def test_direct_and_channel_are_weighed_on_one_scale() -> None:
    asker = answerer()
    rows = [Candidate(i, 0, "record", text, None, 0) for i, text in enumerate(("Fine.", "Cold."))]
    annotator = Annotator(asker, Settings())
    annotator.annotate(rows)
    assert list((rows[0].channel or {}).values()) == pytest.approx(
        list(asker.channel_scores(["Fine."])[0]), abs=1e-5
    )
    for row, direct, channel in zip(rows, (0.1, -0.1), (-90.0, 90.0), strict=True):
        row.scores, row.channel = {"good": direct, "bad": 0.0}, {"good": channel, "bad": 0.0}
    annotator.decide(rows)
    assert [row.output for row in rows] == ["good", "bad"]


@pytest.mark.parametrize("annotator", ["bias_removed", "channel", "both"])
def test_an_input_beyond_the_context_is_dropped_and_spoils_no_other(annotator: str) -> None:
    rows = [
        Candidate(i, 0, "record", text, None, 0)
        for i, text in enumerate(("Fine.", "cold " * 2000, "Cold."))
    ]
    kind = Annotator(answerer(), Settings(annotator=annotator))  # type: ignore[arg-type]
    kind.annotate(rows)
    long = rows.pop(1)
    assert (long.filter, long.scores, long.output) == ("length", None, None)
    kind.decide([*rows, long])
    assert [row.output for row in rows] != [None, None]
    assert all(np.isfinite(row.agreement or 0.0) and row.filter is None for row in rows)
    assert len({row.output for row in rows}) == 2


@pytest.mark.parametrize("text", ["Fine.", "cold " * 2000])
def test_votes_that_never_end_say_so(text: str) -> None:
    free = Task("t", "Go on.", MOOD.examples, stop=("never",))
    row = Candidate(0, 0, "record", text, None, 0)
    asker = answerer(free)
    Annotator(asker, Settings(votes=2)).annotate([row])
    assert (row.output, row.agreement) == (None, 0.0)
    if len(text) < 10:
        assert (row.filter, row.reason) == (
            "annotation",
            f"no sample ended within {asker.budget(text)} tokens",
        )
    else:
        assert row.filter == "length"
        assert row.reason


def test_annotators_that_score_labels_are_refused_without_any() -> None:
    free = Task("t", "Go on.", MOOD.examples, source="t.yaml")
    check_annotator(Settings(annotator="vote"), free)
    check_annotator(Settings(annotator="direct"), MOOD)
    with pytest.raises(UserError, match=r"t.yaml: annotator: both needs a task with labels"):
        check_annotator(Settings(annotator="both"), free)


def test_greedy_answers_end_at_the_stop() -> None:
    free = Task("t", "Go on.", (Example("a", "b"), Example("c", "d")))
    model = answerer().llm
    texts = Answerer(model, free, Prompts(free, model.tokenizer)).greedy(["x"], Asking("plain"))
    assert "\n" not in texts[0]
