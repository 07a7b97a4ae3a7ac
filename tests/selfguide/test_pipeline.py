"""The whole loop on a tiny random model: what is made, kept, done again, refused."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest

import engine
import engine.llm
from selfguide.folder.rows import write_rows
from selfguide.folder.run_folder import RunFolder
from selfguide.method.evaluate import evaluate
from selfguide.method.pairs import Candidate
from selfguide.plan import Shapes
from tests.selfguide.method import tiny
from tests.selfguide.tiny_runs import labelled_task_file, results, run, stages, task_file

_ALL = ("synthesis", "finetune", "evaluate")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A task and the folder of its finished run."""
    folder = tmp_path_factory.mktemp("finished")
    task = task_file(folder)
    assert run(task, folder / "run") == 0
    return task, folder / "run"


def _redone(task: Path, out: Path, *more: str) -> list[str]:
    """The stages that a further run does again."""
    before = stages(out)
    assert run(task, out, *more) == 0
    after = stages(out)
    return [name for name in _ALL if after[name]["finished"] != before[name]["finished"]]


@pytest.fixture
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages finish at times that differ even if they take no second."""
    times = iter(range(10**6))
    monkeypatch.setattr(
        "selfguide.stopwatch.Stopwatch.values",
        property(lambda self: {"seconds": 0.0, "peak_mib": 0.0, "finished": str(next(times))}),
    )


def test_a_run_leaves_all_it_promises_and_reads_the_weights_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loads: list[str] = []
    load_model = engine.llm.load_model

    def counted(checkpoint, *args):  # type: ignore[no-untyped-def]
        loads.append(str(checkpoint.path))
        return load_model(checkpoint, *args)

    monkeypatch.setattr(engine.llm, "load_model", counted)
    out = tmp_path / "run"
    assert run(labelled_task_file(tmp_path), out, "--json") == 0
    assert len(loads) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["report"] == str(out / "report.html")
    names = {each.name for each in out.iterdir() if not each.name.startswith(".")}
    assert names == {
        "adapter", "cache", "candidates.jsonl", "dataset.jsonl", "evaluation.jsonl", "expert.json",
        "held_out.jsonl", "log.txt", "manifest.json", "metrics.json", "predictions.jsonl",
        "report.html",
    }  # fmt: skip
    for record in stages(out).values():
        assert record["seconds"] > 0
        assert 50 < record["peak_mib"] < 20_000
    ledger = [json.loads(line) for line in (out / "candidates.jsonl").read_text().splitlines()]
    dataset = [json.loads(line) for line in (out / "dataset.jsonl").read_text().splitlines()]
    kept = {row["id"]: row["input"] for row in ledger if row["kept"]}
    assert {row["id"]: row["input"] for row in dataset if row["origin"] == "synthetic"} == kept
    assert stages(out)["synthesis"]["candidates"] == len(ledger)


@pytest.mark.usefixtures("_clock")
def test_only_what_a_change_bears_on_is_done_again(tmp_path: Path) -> None:
    task, out = task_file(tmp_path), tmp_path / "run"
    assert run(task, out) == 0
    first = results(out)
    assert _redone(task, out) == []
    assert _redone(task, out, "--limit", "3") == ["evaluate"]
    assert _redone(task, out, "--epochs", "1") == ["finetune", "evaluate"]
    assert results(out)[:2] == first[:2]
    assert results(out)[2] != first[2]
    assert _redone(task, out, "--seed", "1") == list(_ALL)
    assert _redone(task, out, "--quantize", "int8") == list(_ALL)
    assert _redone(task, out) == list(_ALL)
    assert results(out) == first
    task_file(tmp_path, metric="exact_match")
    assert _redone(task, out) == ["evaluate"]


def test_a_changed_epoch_uses_the_untuned_answers_again(
    finished: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    task, out = finished
    capfd.readouterr()
    cache = out / "cache" / "few_shot.plain.json"
    before = cache.stat().st_mtime_ns, (out / "cache" / "expert.plain.json").stat().st_mtime_ns
    assert run(task, out, "--epochs", "1") == 0
    after = cache.stat().st_mtime_ns, (out / "cache" / "expert.plain.json").stat().st_mtime_ns
    assert after[0] == before[0]
    assert after[1] > before[1]
    said = capfd.readouterr().err
    assert "synthesis is kept (nothing changed)" in said
    assert "finetune begins (changed: epochs)" in said


def test_pairs_edited_by_hand_are_respected_and_recorded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task, out = task_file(tmp_path), tmp_path / "run"
    assert run(task, out) == 0
    mine = {"input": "my own", "output": "MY OWN"}
    kept = (out / "dataset.jsonl").read_text().splitlines()[:5]
    (out / "dataset.jsonl").write_text("\n".join([*kept, json.dumps(mine)]))
    assert run(task, out) == 0
    assert "dataset.jsonl was edited by hand" in (out / "log.txt").read_text()
    assert "edited by hand" in (out / "report.html").read_text()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["dataset_edited"] is True
    assert manifest["stages"]["finetune"]["pairs"] == 6
    capfd.readouterr()
    assert run(task, out, "--temperature", "0.5") == 2
    refused = capfd.readouterr().err
    assert f"{out}/dataset.jsonl: was edited by hand" in refused
    assert "(temperature)" in refused
    assert "MY OWN" in (out / "dataset.jsonl").read_text()
    (out / "dataset.jsonl").rename(out / "mine.jsonl")
    assert run(task, out, "--temperature", "0.5") == 0
    assert json.loads((out / "manifest.json").read_text())["dataset_edited"] is False


@pytest.mark.parametrize("gone", [("dataset.jsonl",), ("dataset.jsonl", "candidates.jsonl")])
def test_results_that_were_removed_are_made_again(tmp_path: Path, gone: tuple[str, ...]) -> None:
    task, out = task_file(tmp_path), tmp_path / "run"
    assert run(task, out) == 0
    before = results(out)
    for name in gone:
        (out / name).unlink()
    assert run(task, out) == 0
    assert results(out) == before


@pytest.mark.parametrize(
    ("slip", "message"),
    [
        ('{"input": "one teal", "output": "tiny"}', "output: 'tiny' is none of long, short"),
        (f'{{"input": {"1" * 5000}, "output": "long"}}', "not JSON: "),
        ("[" * 100_000, "not JSON: "),
    ],
)
def test_a_slip_in_edited_pairs_names_the_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], slip: str, message: str
) -> None:
    task, out = labelled_task_file(tmp_path), tmp_path / "run"
    assert run(task, out) == 0
    with (out / "dataset.jsonl").open("a") as file:
        file.write(f"{slip}\n")
    number = len((out / "dataset.jsonl").read_text().splitlines())
    assert run(task, out) == 2
    assert f"{out}/dataset.jsonl:{number}: {message}" in capfd.readouterr().err


def test_too_few_pairs_end_the_run_with_a_report_and_can_be_accepted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task, out = task_file(tmp_path), tmp_path / "run"
    few = ("--max-candidates", "8", "--at-least", "8")
    assert run(task, out, *few) == 3
    assert "at least 8 are needed" in capfd.readouterr().err
    assert "report.html" in {each.name for each in out.iterdir()}
    ledger = (out / "candidates.jsonl").read_text().splitlines()
    assert len(ledger) == 8
    assert run(task, out, *few[:2], "--at-least", "1") == 0
    said = capfd.readouterr().err
    assert "synthesis goes on (part of it is done)" in said
    assert "round" not in said
    assert json.loads(ledger[4])["filter"] == "duplicate"
    assert len((out / "candidates.jsonl").read_text().splitlines()) == 8


def test_pairs_written_by_hand_after_too_few_are_used_and_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task, out = task_file(tmp_path), tmp_path / "run"
    assert run(task, out, "--max-candidates", "8", "--at-least", "8") == 3
    rows = [{"input": f"my {word}", "output": f"MY {word.upper()}"} for word in ("own", "hat")]
    mine = "".join(json.dumps(row) + "\n" for row in rows)
    (out / "dataset.jsonl").write_text(mine)
    assert run(task, out, "--max-candidates", "8") == 0
    assert "synthesis is kept (dataset.jsonl was made or edited by hand)" in capfd.readouterr().err
    assert (out / "dataset.jsonl").read_text() == mine
    assert stages(out)["finetune"]["pairs"] == 2


def test_a_pair_too_long_to_train_on_is_named_by_its_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task, out = task_file(tmp_path), tmp_path / "run"
    assert run(task, out) == 0
    with (out / "dataset.jsonl").open("a") as file:
        file.write(json.dumps({"input": "long", "output": "WORD " * 2000}) + "\n")
    number = len((out / "dataset.jsonl").read_text().splitlines())
    assert run(task, out) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {out}/dataset.jsonl:{number}: with its prompt the pair takes ")
    assert "the model's context is 1024" in error


def test_inputs_for_label_biases_shape_the_scores(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    answerer = tiny.answerer(tiny.CLASSES)
    shapes = [Shapes(answerer, replace(tiny.QUICK, decision=d)) for d in ("auto", "bias_removed")]
    seen = set()
    for text in ("one", "two"):
        candidate = Candidate(0, 0, "record", text, "odd", 7, "odd")
        write_rows(folder.candidates, [candidate.row()])
        seen |= {each.evaluate(folder).fingerprint for each in shapes}
        seen |= {each.finetune(folder).fingerprint for each in shapes}
    assert len(seen) == 4 + 3  # training alone is the same whatever the inputs


def test_ctrl_c_at_the_end_of_evaluation_leaves_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, out = task_file(tmp_path), tmp_path / "run"

    def interrupted(*args):  # type: ignore[no-untyped-def]
        made = evaluate(*args)
        os.kill(os.getpid(), signal.SIGINT)
        return made

    monkeypatch.setattr("selfguide.pipeline.evaluate", interrupted)
    assert run(task, out) == 0
    assert (out / "report.html").exists()


def test_results_of_other_settings_outlive_a_run_with_too_few_pairs(tmp_path: Path) -> None:
    task, out = task_file(tmp_path), tmp_path / "run"
    assert run(task, out) == 0
    adapter = (out / "adapter" / "adapter_model.safetensors").read_bytes()
    few = ("--seed", "7", "--max-candidates", "8", "--at-least", "8")
    assert run(task, out, *few) == 3
    assert not (out / "metrics.json").exists()
    assert (out / "earlier.1" / "adapter" / "adapter_model.safetensors").read_bytes() == adapter


def test_a_full_disk_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    task, out = task_file(tmp_path), tmp_path / "run"
    assert run(task, tmp_path / "whole") == 0
    calls = 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("engine.files.os.fsync", full)
        assert run(task, out) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {out}: No space left on device; free some space")
    assert run(task, out) == 0
    assert results(out) == results(tmp_path / "whole")


def test_an_input_longer_than_the_context_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task = task_file(tmp_path)
    rows = [{"input": "x", "output": "X"}, {"input": "word " * 2000, "output": "Y"}]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run(task, tmp_path / "run", "--eval-file", str(tmp_path / "long.jsonl")) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith(f'error: {task}: eval_file, the input "word word')
    assert "the model's context is 1024" in error


def test_of_examples_that_are_too_long_the_longest_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    examples = [{"input": "a", "output": "A"}, {"input": "word " * 2000, "output": "B"}]
    assert run(task_file(tmp_path, examples=examples), tmp_path / "run") == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert 'examples, the input "word word word' in error


def test_the_report_of_a_finished_run_stands_alone(finished: tuple[Path, Path]) -> None:
    page = (finished[1] / "report.html").read_text(encoding="utf-8")
    assert "Write it in capitals." in page
    assert re.search(r"<dt>lr</dt>\s*<dd[^>]*>0.0005<", page)  # none was set
    assert "https://" not in page


_MANY = ("--pairs", "22", "--max-candidates", "64", "--trainings", "1")


def test_an_eval_file_that_comes_later_judges_the_expert_that_is_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task, out = labelled_task_file(tmp_path), tmp_path / "run"
    without = json.loads(task.read_text())
    rows = tmp_path / without.pop("eval_file")
    task.write_text(json.dumps(without))
    assert run(task, out, *_MANY) == 0
    before = results(out)
    assert "stay held out" not in capfd.readouterr().err
    assert run(task, out, *_MANY, "--eval-file", str(rows)) == 0
    assert "7 pairs stay held out, as before there was an eval_file" in capfd.readouterr().err
    assert results(out) == before
    assert json.loads((out / "metrics.json").read_text())["eval"]["source"] == "eval_file"


@pytest.mark.usefixtures("_clock")
def test_patience_has_pairs_held_out_of_the_same_candidates(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task, out = labelled_task_file(tmp_path), tmp_path / "run"
    assert run(task, out, *_MANY) == 0
    candidates = [json.loads(line)["input"] for line in (out / "candidates.jsonl").open()]
    assert (out / "held_out.jsonl").read_text() == ""
    assert _redone(task, out, *_MANY, "--patience", "1") == list(_ALL)
    assert len((out / "held_out.jsonl").read_text().splitlines()) == 2
    assert [json.loads(line)["input"] for line in (out / "candidates.jsonl").open()] == candidates
    assert _redone(task, out, *_MANY, "--patience", "2") == ["finetune", "evaluate"]
    warning = "patience: no pairs are held out to stop by"
    assert warning not in capfd.readouterr().err
    assert run(task, tmp_path / "few", "--patience", "1") == 0
    assert warning in capfd.readouterr().err
    assert warning in (tmp_path / "few" / "report.html").read_text(encoding="utf-8")


def test_another_task_of_the_same_name_sets_the_first_ones_run_aside(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task, out = task_file(tmp_path), tmp_path / "run"
    assert run(task, out) == 0
    before = results(out)
    capfd.readouterr()
    other = [{"input": "Red", "output": "red"}, {"input": "Blue", "output": "blue"}]
    task_file(tmp_path, instruction="Write it small.", examples=other)
    assert run(task, out, "--dry-run", "--json") == 0
    plan = json.loads(capfd.readouterr().out)
    assert [stage["action"] for stage in plan["stages"]] == ["run"] * 3
    assert results(out) == before
    assert run(task, out) == 0
    assert f"{out} is now {out}.1" in capfd.readouterr().err
    assert results(tmp_path / "run.1") == before
    assert results(out) != before


def test_a_label_without_pairs_is_told_in_the_report(tmp_path: Path) -> None:
    task, out = labelled_task_file(tmp_path), tmp_path / "run"
    assert run(task, out) == 0
    rows = (out / "dataset.jsonl").read_text().splitlines()
    (out / "dataset.jsonl").write_text("\n".join(row for row in rows if '"long"' not in row))
    assert run(task, out) == 0
    assert "has no pair with the label long" in (out / "report.html").read_text()
