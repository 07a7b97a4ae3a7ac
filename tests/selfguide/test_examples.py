"""The example tasks: their evaluation files follow from the script, and are worth measuring on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from selfguide.tasks import Task
from selfguide.tasks.load import load_task

FOLDER = Path(__file__).parents[2] / "examples"
TASKS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
CLASSIFICATIONS = ["claim_check", "review_sentiment", "support_topic"]


def task(name: str) -> Task:
    return load_task(FOLDER / f"{name}.yaml").task


def rows(name: str) -> list[dict[str, Any]]:
    lines = (FOLDER / f"{name}.eval.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def answers(row: dict[str, Any]) -> list[str]:
    return row["outputs"] if "outputs" in row else [row["output"]]


def test_the_script_makes_the_files(tmp_path: Path) -> None:
    subprocess.run([sys.executable, FOLDER / "make_eval.py", tmp_path], check=True)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {f"{n}.eval.jsonl": (FOLDER / f"{n}.eval.jsonl").read_bytes() for n in TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_rows_are_many_and_none_is_an_example(name: str) -> None:
    inputs = [row["input"] for row in rows(name)]
    assert len(inputs) == len(set(inputs)) >= 100
    assert inputs == [row.input for row in task(name).eval_rows]
    assert not set(inputs) & {example.input for example in task(name).examples}
    for text in inputs:
        assert text == " ".join(text.split())
        assert "{" not in text


@pytest.mark.parametrize("name", CLASSIFICATIONS)
def test_labels_are_balanced(name: str) -> None:
    labels = task(name).labels
    counts = Counter(row["output"] for row in rows(name))
    assert set(counts) == set(labels)
    assert len(set(counts.values())) == 1
    assert {example.output for example in task(name).examples} == set(labels)


def test_only_the_classifications_have_labels() -> None:
    assert [name for name in TASKS if task(name).is_classification] == CLASSIFICATIONS


def test_a_claim_alone_does_not_give_its_label_away() -> None:
    labels: dict[str, list[str]] = {}
    for row in rows("claim_check"):
        labels.setdefault(row["input"].split(" Claim: ")[1], []).append(row["output"])
    assert {tuple(sorted(each)) for each in labels.values()} == {("false", "true", "unknown")}


def test_polite_requests_keep_the_order() -> None:
    for row in rows("polite_request"):
        assert row["output"].startswith("Could you please ")
        assert row["output"].endswith("? Thank you!")
        ask = row["output"].removeprefix("Could you please ").removesuffix("? Thank you!")
        assert ask.lower() in row["input"].lower()


def test_appointments_are_in_the_words_of_the_message() -> None:
    for row in rows("appointment"):
        for answer in answers(row):
            slots = dict(slot.split(": ", 1) for slot in answer.split(" | "))
            assert list(slots) == ["who", "when", "where"]
            assert all(text.lower() in row["input"].lower() for text in slots.values())


def test_orders_are_json_with_the_quantity_of_the_message() -> None:
    numbers = yaml.safe_load((FOLDER / "phrases" / "order_json.yaml").read_text())["numbers"]
    for row in rows("order_json"):
        order = json.loads(row["output"])
        assert list(order) == ["item", "quantity", "unit"]
        words = row["input"].lower().replace(".", " ").split()
        assert str(order["quantity"]) in words or numbers[order["quantity"]] in words
        assert order["item"] in row["input"]
        assert order["unit"] in row["input"]
