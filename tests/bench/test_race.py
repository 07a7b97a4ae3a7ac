"""The races' orchestration: our side alone, on a tiny model, in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.race.client import RaceError, Worker
from bench.race.referee import Options, race
from bench.race.report import as_json, as_markdown, machine, write
from bench.race.works import WORKS, GenerateWork, Rival, TrainWork, Work, part, size, tokens
from tests.engine.tiny_models import make
from tests.engine.tiny_tokenizers import byte_level_folder

GENERATE = GenerateWork("g", "a few prompts", (Rival("llama.cpp", 1.0),), 4, 20, 5, 3, samples=2)
TRAIN = TrainWork("t", "a few examples", (), 16, 4, 8, 12, 0.25)


def letters(text: str) -> list[int]:
    """An encoding that needs no tokenizer."""
    return [3 + ord(letter) % 90 for letter in text]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make("smollm2", tmp_path_factory.mktemp("race"), vocab_size=640)
    return byte_level_folder(folder)


def test_our_side_runs_both_kinds_of_work_and_is_reported(model: Path, tmp_path: Path) -> None:
    options = Options({"ours": str(model)}, 1, 2, 1.0, 1.0)
    outcomes = [race(work, options, letters) for work in (GENERATE, TRAIN)]
    about = {"model": "tiny", "date": "2026-01-01", "machine": machine()}
    write(as_json(about, options, outcomes), tmp_path, "race")
    result = json.loads((tmp_path / "race.json").read_text())
    generate, train = result["works"]
    assert [len(work["sides"][0]["seconds"]) for work in (generate, train)] == [2, 2]
    assert generate["tokens"] == 4 * 2 * 3
    assert generate["absent"].keys() == {"llama.cpp"}
    assert len(train["sides"][0]["losses"]) == 1
    assert train["sides"][0]["peak_mib"] >= train["sides"][0]["load_peak_mib"] > 0
    assert (tmp_path / "race.md").read_text() == as_markdown(result)


def test_a_side_that_fails_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(RaceError, match="ours: its process ended"),
        Worker("ours", str(tmp_path), 1),
    ):
        pass


@pytest.mark.parametrize("work", [*WORKS, GENERATE, TRAIN], ids=lambda work: work.name)
def test_works_have_the_lengths_they_claim_and_new_text_every_time(work: Work) -> None:
    job, other = work.job(letters, "0"), work.job(letters, "1")
    assert job == work.job(letters, "0")
    assert job != other
    if isinstance(work, GenerateWork):
        assert {len(prompt) for prompt in job["prompts"]} == {work.shared + work.own}
        assert len({tuple(prompt[: work.shared]) for prompt in job["prompts"]}) == 1
    else:
        lengths = [len(prompt) + len(completion) for prompt, completion in job["examples"]]
        assert (min(lengths), max(lengths)) == (work.shortest, work.longest)
        assert len({tuple(prompt[: work.shared]) for prompt, _ in job["examples"]}) == 1


def test_a_part_of_a_work_is_whole_batches_or_steps() -> None:
    generate, train = (work.job(letters, "0") for work in (WORKS[0], WORKS[3]))
    assert [size(part(generate, f, 8)) for f in (0.01, 0.3, 1.0)] == [8, 16, 64]
    assert [size(part(train, f)) for f in (0.01, 0.5, 1.0)] == [16, 128, 256]
    assert tokens(part(train, 0.5)) == 128 * 320
    assert tokens(part(generate, 0.5)) == 32 * 10 * 32
