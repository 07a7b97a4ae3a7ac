"""Finetuning: what is trained on, exact resumption, and what a folder holds afterwards."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from selfguide.errors import Interrupted, UserError
from selfguide.method import examples_only
from selfguide.method.expert import ADAPTER
from selfguide.method.finetune import begun, choose_decision, finetune
from selfguide.method.lessons import learning_rate, training_examples
from selfguide.observer import Silent
from selfguide.prompts import Asking
from selfguide.settings import Settings
from selfguide.tasks import Task
from tests.selfguide.method.tiny import (
    CLASSES,
    FREE,
    QUICK,
    Stopping,
    answerer,
    pairs,
    synthetic,
    unlabelled,
    values,
)


def test_an_expert_is_made(tmp_path: Path) -> None:
    asked = answerer(CLASSES)
    settings = replace(QUICK, decision="bias_removed")
    done = finetune(
        asked, settings, pairs(CLASSES), [], unlabelled(), tmp_path, tmp_path / "cache", Silent()
    )
    assert done.trainings[0].steps == 2 * 6
    assert done.trainings[0].losses[-1] < done.trainings[0].losses[0]
    assert (tmp_path / "adapter" / "adapter_config.json").exists()
    assert set(done.expert.way.bias) == {"even", "odd"}
    assert sum(done.expert.way.bias.values()) == pytest.approx(0.0)
    assert json.loads((tmp_path / "expert.json").read_text())["decision"] == "bias_removed"


@pytest.mark.parametrize(
    ("task", "width", "expected"),
    [(CLASSES, 576, 1e-3), (FREE, 576, 5e-4), (CLASSES, 896, 2e-4), (FREE, 896, 2e-4)],
)
def test_the_learning_rate_suits_the_model_and_the_task(
    task: Task, width: int, expected: float
) -> None:
    asked = answerer(task)
    asked.llm.model.config = replace(asked.llm.model.config, hidden_size=width)
    assert learning_rate(asked, Settings()) == expected
    assert learning_rate(asked, Settings(lr=7e-5)) == 7e-5


def test_stopped_after_a_checkpoint_it_goes_on_exactly(tmp_path: Path) -> None:
    settings = replace(QUICK, epochs=3, patience=5)
    held_out = synthetic(CLASSES, 4, 60)
    whole, stopped, resumed = answerer(CLASSES), answerer(CLASSES), answerer(CLASSES)
    data = (settings, pairs(CLASSES), held_out, unlabelled())
    expected = finetune(whole, *data, tmp_path / "whole", tmp_path / "cache", Silent())
    with pytest.raises(Interrupted):
        finetune(stopped, *data, tmp_path / "parts", tmp_path / "cache", Stopping(2))
    assert list((tmp_path / "parts").iterdir()) == [tmp_path / "parts" / "checkpoint"]
    watched: list[int] = []
    observer = Silent()
    observer.watch = lambda title: lambda now: watched.append(getattr(now, "step", 0))  # type: ignore[method-assign]
    done = finetune(resumed, *data, tmp_path / "parts", tmp_path / "cache", observer)
    assert watched[0] == 11
    assert torch.equal(values(resumed.llm), values(whole.llm))
    assert done.trainings[0].losses == expected.trainings[0].losses
    assert done.expert == expected.expert
    for name in ("expert.json", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("stopped_at", [1, 4, 6])
def test_what_was_stopped_among_several_trainings_goes_on_exactly(
    stopped_at: int, tmp_path: Path
) -> None:
    """Each training has two pause points."""
    settings = replace(QUICK, trainings=3)
    data, cache = (settings, pairs(CLASSES), [], unlabelled()), tmp_path / "cache"
    whole, stopped, resumed = answerer(CLASSES), answerer(CLASSES), answerer(CLASSES)
    expected = finetune(whole, *data, tmp_path / "a", cache, Silent())
    with pytest.raises(Interrupted):
        finetune(stopped, *data, tmp_path / "b", cache, Stopping(stopped_at))
    assert begun(tmp_path / "b")
    observer = Stopping()
    done = finetune(resumed, *data, tmp_path / "b", cache, observer)
    left = [f"training expert, {draw} of 3" for draw in (1, 2, 3)][(stopped_at - 1) // 2 :]
    assert observer.watched == left
    assert torch.equal(values(resumed.llm), values(whole.llm))
    assert [each.losses for each in done.trainings] == [each.losses for each in expected.trainings]


def test_an_expert_is_the_mean_of_its_trainings(tmp_path: Path) -> None:
    asked, data = answerer(CLASSES), (pairs(CLASSES), [], unlabelled())
    cache, adapters = tmp_path / "cache", asked.llm.adapters
    finetune(asked, replace(QUICK, trainings=1), *data, tmp_path / "a", cache, Silent())
    first = adapters.copy(ADAPTER, "first").pairs
    done = finetune(asked, replace(QUICK, trainings=2), *data, tmp_path / "b", cache, Silent())
    assert done.trainings[0].losses != done.trainings[1].losses
    assert set(adapters) == {ADAPTER, "first"}
    for key, update in adapters[ADAPTER].pairs.items():
        rank = first[key].rank
        assert update.rank == 2 * rank
        whole = update.scale * update.b @ update.a
        other = update.scale * update.b[:, rank:] @ update.a[rank:]
        part = 0.5 * first[key].scale * first[key].b @ first[key].a
        torch.testing.assert_close(whole - other, part)
        assert not torch.allclose(other, part)


def test_a_checkpoint_of_other_settings_is_left_behind(tmp_path: Path) -> None:
    data = (pairs(CLASSES), [], unlabelled())
    with pytest.raises(Interrupted):
        finetune(answerer(CLASSES), QUICK, *data, tmp_path, tmp_path / "cache", Stopping(1))
    fresh = replace(QUICK, lr=1e-3)
    done = finetune(answerer(CLASSES), fresh, *data, tmp_path, tmp_path / "cache", Silent())
    shutil.rmtree(tmp_path)
    again = finetune(answerer(CLASSES), fresh, *data, tmp_path, tmp_path / "cache", Silent())
    assert done.trainings[0].losses == again.trainings[0].losses


def test_training_again_in_one_process_starts_anew(tmp_path: Path) -> None:
    asked = answerer(FREE)
    data = (QUICK, pairs(FREE, 4), [], [], tmp_path, tmp_path / "cache", Silent())
    first = finetune(asked, *data).trainings[0].losses
    assert finetune(asked, *data).trainings[0].losses == first


def test_an_example_is_not_shown_in_its_own_prompt() -> None:
    asked = answerer(CLASSES)
    made = pairs(CLASSES, 1)
    shown = training_examples(asked, replace(QUICK, example_weight=3.0), Asking(), made)
    assert [example.weight for example in shown] == [3.0, 3.0, 3.0, 1.0]
    for pair, example in zip(made, shown, strict=True):
        prompt = str(example.prompt)
        assert prompt.count(pair.input) == 1
        assert prompt.endswith(f"Input: {pair.input}\nOutput:")
        assert example.completion == f" {pair.output}"
    assert all(e.input in str(shown[3].prompt) for e in CLASSES.examples)
    bare = training_examples(asked, QUICK, Asking(shots=False), made)
    assert str(bare[3].prompt) == asked.prompts.answer(made[3].input, Asking(shots=False))


def test_it_stops_early_by_the_held_out_pairs(tmp_path: Path) -> None:
    settings = replace(QUICK, epochs=30, lr=3e-2, patience=1)
    held_out = [replace(p, output="odd") for p in synthetic(CLASSES, 4, 60)]
    wrong = [replace(p, output="even") for p in pairs(CLASSES, 2)]
    done = finetune(
        answerer(CLASSES), settings, wrong, held_out, [], tmp_path, tmp_path / "cache", Silent()
    )
    assert done.trainings[0].stopped_early
    assert done.trainings[0].steps < 30 * 3


def test_the_decision_suits_the_task() -> None:
    assert choose_decision(QUICK, CLASSES) == "direct"
    assert choose_decision(QUICK, FREE) == "greedy"
    assert choose_decision(replace(QUICK, decision="channel"), CLASSES) == "channel"
    with pytest.raises(UserError, match=r"shout.yaml: decision: direct needs a task with labels"):
        choose_decision(replace(QUICK, decision="direct"), FREE)


def test_an_expert_is_the_mean_of_what_pairs_and_examples_teach(tmp_path: Path) -> None:
    asked, data = answerer(FREE), (pairs(FREE), [], unlabelled())
    cache, alone, blended = tmp_path / "cache", replace(QUICK, examples_share=0.0), tmp_path / "b"
    finetune(asked, alone, *data, tmp_path / "a", cache, Silent())
    adapters = asked.llm.adapters
    of_pairs = adapters.copy("expert", "of pairs").pairs
    assert not cache.exists()
    finetune(asked, replace(QUICK, examples_share=0.25), *data, blended, cache, Silent())
    of_examples = adapters[examples_only.ADAPTER].pairs
    saved = adapters.load(blended / "adapter", "saved").pairs
    for key, update in saved.items():
        parts = [(0.75, of_pairs[key]), (0.25, of_examples[key])]
        expected = sum(share * each.scale * each.b @ each.a for share, each in parts)
        torch.testing.assert_close(update.scale * update.b @ update.a, expected)
        torch.testing.assert_close(update.b, adapters["expert"].pairs[key].b)
    assert "pairs" not in adapters
