"""Evaluation: scores, what is reused, interruption, and what happens without an eval_file."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from engine import AdapterError
from selfguide.errors import Interrupted
from selfguide.method.answering import Answerer
from selfguide.method.evaluate import evaluate
from selfguide.method.expert import Expert
from selfguide.method.finetune import finetune
from selfguide.metrics.exact import macro_f1
from selfguide.metrics.rouge import rouge_l
from selfguide.observer import Observer, Silent
from selfguide.settings import Settings
from selfguide.tasks import EvalRow, Task
from tests.selfguide.method.tiny import (
    CLASSES,
    FREE,
    QUICK,
    Stopping,
    answerer,
    pairs,
    synthetic,
    unlabelled,
)

BARE = replace(CLASSES, eval_rows=())


@lru_cache
def trained(free: bool) -> tuple[Answerer, Expert]:
    task = FREE if free else CLASSES
    asked = answerer(task)
    data = (pairs(task), [], unlabelled())
    return asked, finetune(asked, QUICK, *data, Path(mkdtemp()), Path(mkdtemp()), Silent()).expert


def run(
    folder: Path,
    task: Task = CLASSES,
    observer: Observer | None = None,
    settings: Settings = QUICK,
    held_out: int = 0,
) -> dict[str, Any]:
    asked, expert = trained(task.name == FREE.name)
    return evaluate(
        replace(asked, task=task),
        settings,
        expert,
        synthetic(task, held_out, 60),
        unlabelled(),
        folder,
        folder / "systems",
        observer or Stopping(),
    )


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which an evaluation has ended; not to be changed."""
    folder = tmp_path_factory.mktemp("evaluated")
    run(folder)
    return folder


@pytest.fixture
def copied(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(evaluated, tmp_path, dirs_exist_ok=True)
    return tmp_path


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


def predictions(folder: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for line in (folder / "predictions.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["row"] == len(found.setdefault(row["system"], []))
        found[row["system"]].append(row)
    return found


def without_times(metrics: dict[str, Any]) -> dict[str, Any]:
    systems = [{**each, "seconds": 0.0} for each in metrics["systems"]]
    return {**metrics, "systems": systems}


def test_scores_are_those_of_the_predictions(evaluated: Path) -> None:
    metrics = read(evaluated)
    assert metrics["metric"] == "exact_match"
    assert metrics["eval"] == {"source": "eval_file", "rows": 12, "note": "all 12 rows"}
    gold = [row.outputs[0] for row in CLASSES.eval_rows]
    answers = predictions(evaluated)
    assert list(answers) == [each["key"] for each in metrics["systems"]]
    for each in metrics["systems"]:
        labels = [row["label"] for row in answers[each["key"]]]
        right = 100 * sum(a == b for a, b in zip(labels, gold, strict=True)) / 12
        assert each["score"] == each["exact_match"] == pytest.approx(right)
        assert each["low"] <= each["score"] <= each["high"]
        assert each["macro_f1"] == pytest.approx(macro_f1(labels, gold, list(CLASSES.labels)))
        assert each["macro_f1_low"] <= each["macro_f1"] <= each["macro_f1_high"]
        assert each["valid_share"] == 100 * sum(label is not None for label in labels) / 12
    majority = metrics["systems"][0]
    assert (majority["score"], majority["prompt_tokens"]) == (pytest.approx(200 / 3), None)
    expert = answers["expert"][0]
    assert expert["text"] == expert["label"]
    assert sum(expert["probabilities"].values()) == pytest.approx(1.0)


def test_few_shot_is_the_best_of_its_templates_and_the_expert_its_own(evaluated: Path) -> None:
    systems = {each["key"]: each for each in read(evaluated)["systems"]}
    spread = systems["few_shot"]["spread"]["templates"]
    assert systems["few_shot"]["score"] == max(spread.values())
    spread = systems["expert"]["spread"]["templates"]
    assert systems["expert"]["score"] == spread["plain"]
    assert set(spread) == {"plain", "titled", "dialogue"}
    assert systems["zero_shot"]["spread"] is None


def test_free_text_is_scored_by_its_metric(tmp_path: Path) -> None:
    rows = FREE.eval_rows
    systems = {each["key"]: each for each in run(tmp_path, FREE)["systems"]}
    copied = [rouge_l(row.input, row.outputs) for row in rows]
    assert systems["copy"]["score"] == pytest.approx(sum(copied) / len(copied))
    assert systems["copy"]["macro_f1"] is systems["copy"]["macro_f1_low"] is None
    exact = run(tmp_path, replace(FREE, metric="exact_match"))
    entry = exact["systems"][0]
    assert exact["metric"] == "exact_match"
    assert entry["score"] == entry["exact_match"]


def test_what_was_answered_is_not_asked_again(copied: Path) -> None:
    first = read(copied)
    files = {path: path.stat().st_mtime_ns for path in (copied / "systems").glob("*.json")}
    observer = Stopping()
    assert run(copied, observer=observer) == first
    assert observer.watched == []
    asked, expert = trained(False)
    other = replace(expert, way=replace(expert.way, bias={"even": 2.0, "odd": -2.0}))
    data = ([], unlabelled(), copied, copied / "systems", observer)
    evaluate(asked, QUICK, other, *data)
    assert observer.watched == [f"Expert, {name}" for name in ("plain", "titled", "dialogue")]
    changed = [path.name for path, time in files.items() if path.stat().st_mtime_ns != time]
    assert sorted(changed) == ["expert.dialogue.json", "expert.plain.json", "expert.titled.json"]


def test_other_rows_are_answered_anew_and_a_damaged_file_too(copied: Path) -> None:
    (copied / "systems" / "few_shot_labels.own.json").write_text('{"fingerprint": ')
    observer = Stopping()
    run(copied, observer=observer)
    assert observer.watched == ["Few-shot, label scores"]
    fewer = run(copied, settings=replace(QUICK, limit=5), observer=observer)
    assert fewer["eval"]["note"] == "5 of 12 rows, drawn by seed 0"
    assert {len(rows) for rows in predictions(copied).values()} == {5}
    assert "Zero-shot" in observer.watched


@pytest.mark.parametrize("pause", [1, 12])
def test_an_interrupted_evaluation_goes_on(evaluated: Path, tmp_path: Path, pause: int) -> None:
    with pytest.raises(Interrupted):
        run(tmp_path, observer=Stopping(pause))
    done = {path.stem for path in (tmp_path / "systems").glob("*.json")}
    observer = Stopping()
    parts = run(tmp_path, observer=observer)
    assert without_times(parts) == without_times(read(evaluated))
    assert len(observer.watched) == len(set(observer.watched))
    if pause == 12:
        assert {"majority.own", "zero_shot.own"} <= done
        assert not {"Majority label", "Zero-shot", "training examples_only"} & {*observer.watched}


def test_the_verdict_compares_with_the_best_baseline(evaluated: Path) -> None:
    metrics = read(evaluated)
    systems = {each["key"]: each for each in metrics["systems"]}
    baselines = {key: each["score"] for key, each in systems.items() if "expert" not in key}
    best = metrics["best_baseline"]
    assert baselines[best] == max(baselines.values())
    gain = metrics["difference"]
    assert gain["points"] == pytest.approx(systems["expert"]["score"] - baselines[best])
    assert metrics["recommended"] == ("expert" if gain["points"] > 0 else best)


def test_several_right_answers_count(copied: Path) -> None:
    rows = tuple(EvalRow(row.input, ("even", "odd")) for row in CLASSES.eval_rows)
    systems = run(copied, replace(CLASSES, eval_rows=rows))["systems"]
    scores = {each["key"]: each["score"] for each in systems}
    assert scores["expert"] == scores["majority"] == scores["few_shot_channel"] == 100.0


def test_without_rows_held_out_pairs_tell_what_was_learnt(tmp_path: Path) -> None:
    metrics = run(tmp_path, BARE, held_out=6)
    assert metrics["eval"]["source"] == "held_out_synthetic"
    assert metrics["eval"]["rows"] == 6
    note = metrics["eval"]["note"]
    assert "agreement with the annotator" in note
    assert "on the 3 examples, left out one at a time: Zero-shot " in note
    assert "without an eval_file" in metrics["verdict"]
    assert metrics["expert"] == "expert"
    observer = Stopping()
    assert run(tmp_path, BARE, observer, held_out=6) == metrics
    assert observer.watched == []


def test_without_rows_and_pairs_only_the_untuned_are_judged(tmp_path: Path) -> None:
    metrics = run(tmp_path, BARE)
    assert metrics["eval"]["source"] == "leave_one_out"
    assert metrics["eval"]["rows"] == 3
    assert {each["group"] for each in metrics["systems"]} == {"floor", "untuned"}
    assert metrics["expert"] is metrics["difference"] is None
    assert metrics["recommended"] is None
    assert metrics["verdict"].startswith("Nothing here can judge the expert")


def test_the_expert_must_be_at_hand(tmp_path: Path) -> None:
    _, expert = trained(False)
    fresh = answerer(CLASSES)
    with pytest.raises(AdapterError, match="there is no adapter 'expert'"):
        evaluate(fresh, QUICK, expert, [], unlabelled(), tmp_path, tmp_path, Silent())
