"""The expert: its answers, and that its folder holds all that prediction needs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import engine
from selfguide.errors import UserError
from selfguide.method.answering import label_bias
from selfguide.method.expert import Expert, Way, estimate_bias
from selfguide.method.finetune import finetune
from selfguide.metrics.parse import parse_label
from selfguide.observer import Silent
from selfguide.prompts import Asking
from selfguide.tasks import Task
from tests.engine import tiny_models, tiny_tokenizers
from tests.selfguide.method.tiny import (
    CLASSES,
    FREE,
    QUICK,
    VOCAB,
    answerer,
    llm,
    pairs,
    sentence,
    unlabelled,
)

INPUTS = [sentence(n) for n in range(70, 76)]
LABELS = list(CLASSES.labels)


@pytest.mark.parametrize(
    ("task", "decision"), [(CLASSES, "auto"), (CLASSES, "channel"), (FREE, "auto")]
)
def test_a_loaded_expert_answers_as_the_trained_one(
    tmp_path: Path, task: Task, decision: str
) -> None:
    asked = answerer(task)
    settings = replace(QUICK, decision=decision)
    done = finetune(
        asked, settings, pairs(task, 4), [], unlabelled(), tmp_path, tmp_path / "cache", Silent()
    )
    expected = done.expert.answer(asked, INPUTS, Silent())
    expert = Expert.load(tmp_path)
    assert expert == done.expert
    fresh = expert.attach(llm(), tmp_path)
    assert expert.answer(fresh, INPUTS, Silent()) == expected
    assert expected != replace(expert.way, asking=replace(expert.way.asking, adapter=None)).answer(
        fresh, INPUTS
    )


def test_labels_are_decided_by_scores_less_bias() -> None:
    asked = answerer(CLASSES)
    scores = asked.label_scores(INPUTS, Asking())
    bias = {"even": 0.75, "odd": -0.75}
    direct = Way(Asking(), "direct").answer(asked, INPUTS)
    moved = Way(Asking(), "bias_removed", bias).answer(asked, INPUTS)
    for row, plain, less in zip(scores, direct, moved, strict=True):
        assert plain.label == plain.text == LABELS[int(row.argmax())]
        assert plain.probabilities is not None
        assert less.probabilities is not None
        assert plain.probabilities["odd"] == pytest.approx(math.exp(row[1]))
        odds = math.log(less.probabilities["odd"] / less.probabilities["even"])
        assert odds == pytest.approx(row[1] - row[0] + 1.5)
        assert less.label == max(less.probabilities, key=less.probabilities.__getitem__)


def test_greedy_text_is_parsed_for_labels() -> None:
    for task in (CLASSES, FREE):
        asked = answerer(task)
        answers = Way(Asking(), "greedy").answer(asked, INPUTS)
        assert [a.text for a in answers] == asked.greedy(INPUTS, Asking())
        assert [a.label for a in answers] == [
            parse_label(a.text, list(task.labels)) for a in answers
        ]
        assert all(a.probabilities is None for a in answers)


def test_an_input_too_long_gets_no_answer() -> None:
    asked = answerer(CLASSES)
    short, long = Way(Asking(), "direct").answer(asked, [INPUTS[0], "word " * 1000])
    assert short.label in LABELS
    assert (long.text, long.label, long.probabilities) == ("", None, None)


def test_the_bias_is_estimated_on_what_fits() -> None:
    asked = answerer(CLASSES)
    given = unlabelled(5)
    scores = asked.label_scores([text for text, _ in given], Asking())
    expected = label_bias(scores, [label for _, label in given])
    bias = estimate_bias(asked, Asking(), [*given, ("word " * 1000, "odd")], 0)
    assert list(bias.values()) == pytest.approx(list(expected), abs=1e-6)
    assert np.ptp(list(bias.values())) > 0
    assert estimate_bias(asked, Asking(), [], 0) == {}
    many = unlabelled(130)
    first = estimate_bias(asked, Asking(), many, 0)
    assert first == estimate_bias(asked, Asking(), many, 0)
    assert first != estimate_bias(asked, Asking(), many, 1)


def trained(folder: Path) -> Path:
    finetune(
        answerer(CLASSES),
        QUICK,
        pairs(CLASSES, 2),
        [],
        unlabelled(),
        folder,
        folder / "cache",
        Silent(),
    )
    return folder


def test_another_model_is_refused(tmp_path: Path) -> None:
    expert = Expert.load(trained(tmp_path / "run"))
    other = tiny_models.make("smollm2", tmp_path / "other", seed=1, vocab_size=VOCAB)
    tiny_tokenizers.byte_level_folder(other, vocab_size=VOCAB)
    with pytest.raises(UserError, match=r"expert.json: the expert belongs to the model smollm2"):
        expert.attach(engine.load(other), tmp_path / "run")


def test_an_expert_from_before_quantized_models_loads(tmp_path: Path) -> None:
    path = trained(tmp_path) / "expert.json"
    values = json.loads(path.read_text())
    del values["quantize"]
    path.write_text(json.dumps(values))
    assert Expert.load(tmp_path).quantize is None


def test_other_templates_are_refused(tmp_path: Path) -> None:
    path = trained(tmp_path) / "expert.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "sample_prompt": "Q: INPUT A:"}))
    with pytest.raises(UserError, match="other prompt templates"):
        Expert.load(tmp_path).attach(llm(), tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"expert.json: no such file; finish the run"),
        ("{", r"expert.json: damaged .*; train the expert again"),
        ("{}", r"expert.json: the key 'task' is missing"),
        ("[]", r"expert.json: damaged"),
    ],
)
def test_an_unreadable_expert_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "expert.json").write_text(text)
    with pytest.raises(UserError, match=message):
        Expert.load(tmp_path)
