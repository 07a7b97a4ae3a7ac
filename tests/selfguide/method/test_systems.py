"""The list of systems, what each answers, and what a query costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from selfguide.method.answering import Decision
from selfguide.method.examples_only import ADAPTER as EXAMPLES_ONLY
from selfguide.method.examples_only import examples_only
from selfguide.method.expert import ADAPTER, Expert, Way, estimate_bias
from selfguide.method.systems import (
    Calibrated,
    Constant,
    Contest,
    Copy,
    System,
    all_systems,
    prompt_tokens,
)
from selfguide.observer import Silent
from selfguide.prompts import TEMPLATES, Asking
from selfguide.tasks import EvalRow, Task
from tests.selfguide.method.tiny import (
    CLASSES,
    FREE,
    QUICK,
    Stopping,
    answerer,
    sentence,
    unlabelled,
    values,
)

INPUTS = [sentence(n) for n in range(70, 76)]


def contest(task: Task, decision: Decision) -> Contest:
    asked = answerer(task)
    expert = Expert.of(asked, Way(Asking("titled", False, ADAPTER), decision), "tiny")
    tuned = Asking("titled", False, EXAMPLES_ONLY)
    return Contest(task, "titled", tuple(unlabelled()), 0, task.eval_rows, expert, tuned)


@pytest.mark.parametrize(
    ("decision", "others"),
    [
        ("bias_removed", ["expert_greedy", "expert_direct"]),
        ("direct", ["expert_greedy", "expert_bias_removed"]),
        ("greedy", ["expert_direct", "expert_bias_removed"]),
        ("channel", ["expert_greedy", "expert_direct", "expert_bias_removed"]),
    ],
)
def test_systems_of_a_classification_task(decision: Decision, others: list[str]) -> None:
    systems = all_systems(contest(CLASSES, decision))
    assert [each.key for each in systems] == [
        "majority",
        "zero_shot",
        "few_shot",
        "few_shot_labels",
        "few_shot_bias_removed",
        "few_shot_channel",
        "few_shot_both",
        "examples_only",
        "examples_only_bias_removed",
        *others,
        "expert",
    ]
    assert systems[0].way == Constant("odd")
    assert all(each.how and each.title for each in systems)


def test_systems_of_a_free_text_task() -> None:
    keys = [each.key for each in all_systems(contest(FREE, "greedy"))]
    assert keys == ["copy", "zero_shot", "few_shot", "examples_only", "expert"]
    alone = replace(contest(FREE, "greedy"), expert=None, examples_only=None)
    assert [each.key for each in all_systems(alone)] == keys[:3]


def test_templates_a_system_runs_under() -> None:
    systems = {each.key: each for each in all_systems(contest(CLASSES, "bias_removed"))}
    for key in ("few_shot", "expert"):
        variants = systems[key].variants()
        assert list(variants) == ["titled", "plain", "dialogue"]
        assert next(iter(variants.values())) == systems[key].way
        assert {way.asking.template for way in variants.values()} == set(TEMPLATES)  # type: ignore[attr-defined]
    assert list(systems["zero_shot"].variants()) == ["own"]
    assert list(System("x", "X", "floor", "copies", Copy(), "best").variants()) == ["own"]


def test_floors_answer() -> None:
    asked = answerer(FREE)
    assert [a.text for a in Copy().answer(asked, INPUTS)] == INPUTS
    assert {(a.text, a.label) for a in Constant("odd").answer(asked, INPUTS)} == {("odd", "odd")}


def test_the_majority_label_is_the_one_that_is_right_most_often() -> None:
    outputs = [("odd", "even"), ("even",), ("even",), ("odd",)]
    rows = [EvalRow(text, each) for text, each in zip(INPUTS, outputs, strict=False)]
    judged = replace(contest(CLASSES, "direct"), rows=rows)
    [floor] = [system for system in all_systems(judged) if system.group == "floor"]
    assert floor.way == Constant("even")


def test_calibration_is_by_other_inputs_than_those_answered() -> None:
    asked = answerer(CLASSES)
    bias = estimate_bias(asked, Asking(), unlabelled(), 0)
    calibrated = Calibrated(Asking(), tuple(unlabelled()), 0)
    expected = Way(Asking(), "bias_removed", bias).answer(asked, INPUTS)
    assert calibrated.answer(asked, INPUTS) == expected
    assert calibrated.answer(asked, INPUTS[:1]) == expected[:1]


def test_what_a_query_costs() -> None:
    asked = answerer(CLASSES)
    tokenizer, prompts = asked.llm.tokenizer, asked.prompts
    lengths = [len(tokenizer.encode(prompts.answer(text, Asking()))) for text in INPUTS]
    mean = round(sum(lengths) / len(lengths))
    assert prompt_tokens(asked, Way(Asking(), "greedy"), INPUTS) == mean
    assert prompt_tokens(asked, Calibrated(Asking(), (), 0), INPUTS) == mean
    short = prompt_tokens(asked, Way(Asking(shots=False), "greedy"), INPUTS)
    assert short is not None
    assert short < mean
    assert prompt_tokens(asked, Copy(), INPUTS) is None
    records = [prompts.record(CLASSES.examples, label) for label in CLASSES.labels]
    read = sum(len(tokenizer.encode(text)) for text in records)
    read += 2 * asked.count(prompts.input(INPUTS[0]))
    assert prompt_tokens(asked, Way(Asking(), "channel"), INPUTS[:1]) == read


def test_the_adapter_of_the_examples_alone_is_trained_once(tmp_path: Path) -> None:
    first = answerer(CLASSES)
    assert examples_only(first, QUICK, tmp_path, Silent()) == Asking("plain", False, EXAMPLES_ONLY)
    again, observer = answerer(CLASSES), Stopping()
    examples_only(again, QUICK, tmp_path, observer)
    assert observer.watched == []
    assert values(again.llm, EXAMPLES_ONLY).equal(values(first.llm, EXAMPLES_ONLY))
    examples_only(again, replace(QUICK, lr=1e-3), tmp_path, observer)
    assert observer.watched == ["training examples_only"]
    assert not values(again.llm, EXAMPLES_ONLY).equal(values(first.llm, EXAMPLES_ONLY))
