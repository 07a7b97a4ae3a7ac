"""Runs as processes: killed, interrupted, two at once; and what a command line may say."""

from __future__ import annotations

import json
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from selfguide.options import parse_options, read_run_file
from selfguide.run import main
from tests.selfguide.tiny_runs import arguments, results, run, stages, start, task_file

_PATIENCE = 120.0  # seconds until a process must have come to where a test waits for it


def _wait(process: subprocess.Popen[str], until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not until() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _ends(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=_PATIENCE)
    return process.returncode, out, err


def test_killed_anywhere_and_started_again_it_ends_the_same(tmp_path: Path) -> None:
    task, whole, out = task_file(tmp_path), tmp_path / "whole", tmp_path / "killed"
    slow = ("--max-candidates", "48", "--pairs", "24", "--round-size", "4", "--epochs", "4")
    assert _ends(start(task, whole, *slow))[0] == 0
    moments = {
        "two rounds": lambda: len(_ledger(out)) >= 8,
        "training": lambda: any(out.glob("unfinished/finetune-*/checkpoint/*/*")),
        "evaluating": lambda: (out / "cache" / "few_shot.plain.json").exists(),
    }
    random.seed(0)
    for reached in moments.values():
        process = start(task, out, *slow)
        _wait(process, reached)
        time.sleep(random.uniform(0.0, 0.05))
        process.kill()
        assert _ends(process)[0] == -signal.SIGKILL
    code, _, err = _ends(start(task, out, *slow))
    assert code == 0, err
    names = ("candidates.jsonl", "dataset.jsonl", "held_out.jsonl", "expert.json")
    assert results(out, names) == results(whole, names)
    assert _scores(out) == _scores(whole)
    assert not list(out.rglob("*.tmp"))
    assert not (out / "unfinished").exists()


def _ledger(out: Path) -> list[str]:
    [*found] = out.glob("unfinished/synthesis-*/candidates.jsonl")
    return found[0].read_text().splitlines() if found else []


def _scores(out: Path) -> dict[str, float]:
    metrics = json.loads((out / "metrics.json").read_text())
    return {system["key"]: system["score"] for system in metrics["systems"]}


def test_a_second_run_is_refused_and_ctrl_c_stops_it_soon(tmp_path: Path) -> None:
    task, out = task_file(tmp_path), tmp_path / "run"
    long = ("--pairs", "2000", "--max-candidates", "4000")
    process = start(task, out, *long)
    _wait(process, (out / ".pid").exists)
    refused = _ends(start(task, out, *long))
    assert refused[0] == 2
    assert refused[2].count("\n") == 1
    assert f"another run (process {process.pid}) is at work" in refused[2]
    process.send_signal(signal.SIGINT)
    code, stdout, err = _ends(process)
    assert (code, stdout) == (130, "")
    assert "stopping in a moment: finished rounds" in err
    command = " ".join(["python", "-m", "selfguide.run", *arguments(task, out, *long)[:3]])
    assert err.splitlines()[-1].startswith(f"stopped; go on with: {command}")
    assert len(_ledger(out)) % 8 == 0


def test_without_standard_error_its_news_do_not_mix_with_the_result(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "selfguide.run"]
    command += arguments(task_file(tmp_path), tmp_path / "run", "--json")
    closed = f"exec 2>&-; exec {shlex.join(command)}"
    ended = subprocess.run(["sh", "-c", closed], stdout=subprocess.PIPE, text=True)
    assert ended.returncode == 0
    assert json.loads(ended.stdout)["metric"] == "rouge_l"


def test_ctrl_c_while_it_loads_is_no_traceback(tmp_path: Path) -> None:
    process = start(task_file(tmp_path), tmp_path / "run")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in err


def test_resume_never_keeps_the_old_run_and_always_insists(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task, out = task_file(tmp_path), tmp_path / "run"
    assert run(task, out, "--resume", "always") == 2
    assert "no such run to go on with" in capfd.readouterr().err
    assert run(task, out) == 0
    assert run(task, out, "--resume", "always", "--epochs", "1") == 0
    before = results(out)
    assert run(task, out, "--resume", "never") == 0
    assert results(tmp_path / "run.1") == before
    for more in ([], ["--dry-run"]):
        assert run(task, out, "--resume", "always", "--seed", "5", *more) == 2
        assert "nothing in it fits" in capfd.readouterr().err


def test_resume_never_with_a_mistake_leaves_the_old_run_in_its_place(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task, out = task_file(tmp_path), tmp_path / "run"
    assert run(task, out) == 0
    assert run(task, out, "--resume", "never", "--model", str(tmp_path / "none")) == 2
    assert run(task, out, "--resume", "never", "--decision", "direct") == 2
    assert "decision: direct needs a task with labels" in capfd.readouterr().err
    assert (out / "metrics.json").exists()
    assert not (tmp_path / "run.1").exists()


@pytest.mark.parametrize("more", [(), ("--resume", "never"), ("--dry-run",)])
def test_a_folder_that_is_no_run_is_refused_untouched(
    tmp_path: Path, more: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    task, out = task_file(tmp_path), tmp_path / "mine"
    (out / "adapter").mkdir(parents=True)
    (out / "dataset.jsonl").write_text("mine")
    assert run(task, out, *more) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {out}: has files but is no run folder (adapter, dataset.jsonl")
    assert sorted(each.name for each in out.iterdir()) == ["adapter", "dataset.jsonl"]
    assert (out / "dataset.jsonl").read_text() == "mine"
    assert not (tmp_path / "mine.1").exists()


@pytest.mark.parametrize("out", [".", "/", "/proc/x", "x" * 300])
def test_a_folder_that_cannot_be_written_to_is_one_line(
    tmp_path: Path,
    out: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    task = task_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(arguments(task, Path(out))) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "choose another --out" in error


def test_preview_and_dry_run_leave_no_trace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task, out = task_file(tmp_path), tmp_path / "run"
    assert run(task, out, "--preview", "3", "--json") == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [row["id"] for row in rows] == [0, 1, 2]
    assert run(task, out, "--preview", "2") == 0
    assert "candidate 1" in capfd.readouterr().out
    assert run(task, out, "--dry-run") == 0
    plan = capfd.readouterr().out
    assert [line.split()[:2] for line in plan.splitlines()[2:5]] == [
        ["synthesis", "do"], ["finetune", "do"], ["evaluate", "do"],
    ]  # fmt: skip
    assert not out.exists()


def test_dry_run_tells_what_would_be_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task, out = task_file(tmp_path), tmp_path / "run"
    assert run(task, out) == 0
    before = stages(out)
    capfd.readouterr()
    assert run(task, out, "--dry-run", "--lr", "1e-3") == 0
    plan = capfd.readouterr().out
    assert "nothing changed" in plan
    assert "changed: lr" in plan
    assert stages(out) == before


def test_what_wins_over_what(tmp_path: Path) -> None:
    task = task_file(tmp_path, epochs=5, rank=7, lr=0.01)
    run_file = tmp_path / "run.yaml"
    run_file.write_text("rank: 6\nlr: 0.02\n")
    given = ("-c", str(run_file), "--lr", "0.03", "--recipe", "paper", "--dry-run")
    assert run(task, tmp_path / "run", *given) == 0
    assert run(task, tmp_path / "run", "-c", str(run_file), "--lr", "0.03", "--epochs", "1") == 0
    settings = json.loads((tmp_path / "run" / "manifest.json").read_text())["settings"]
    assert (settings["epochs"], settings["rank"], settings["lr"]) == (1, 6, 0.03)


def test_a_task_file_and_a_run_file_may_name_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = task_file(tmp_path, recipe="paper")
    default = tmp_path / "default.yaml"
    default.write_text("recipe: default\n")
    runs = {"paper": (), "default": ("-c", str(default)), "again": ("--recipe", "paper")}
    for name, more in runs.items():
        assert run(task, tmp_path / name, *more, "--generator", "record") == 0
        settings = json.loads((tmp_path / name / "manifest.json").read_text())["settings"]
        assert settings["example_weight"] == (3.0 if name == "default" else 1.0)
    default.write_text("recipe: papper\n")
    assert run(task, tmp_path / "none", "-c", str(default)) == 2
    said = capsys.readouterr().err
    assert f"error: {default}: recipe: papper is none of default, paper" in said


def test_both_spellings_of_a_flag_and_their_values_are_understood() -> None:
    options = parse_options(
        ["t.yaml", "--round_size=4", "--top-p", "0.5", "--stop", "a_b", "--json"]
    )
    assert options.settings == {"round_size": "4", "top_p": "0.5"}
    assert options.overrides == {"stop": "a_b"}
    assert options.as_json


def test_empty_labels_on_the_command_line_ask_for_free_text() -> None:
    assert parse_options(["t.yaml", "--labels", ""]).overrides == {"labels": []}


def test_a_run_files_paths_are_relative_to_it(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("eval_file: rows.jsonl\nepochs: 2\nlabels: [a, b]\n")
    settings, overrides = read_run_file(path)
    assert settings == {"epochs": "2"}
    assert overrides == {"eval_file": str(tmp_path / "rows.jsonl"), "labels": ["a", "b"]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["t.yaml", "--epoch", "3"], "unknown option --epoch (did you mean --epochs?)"),
        (["t.yaml", "u.yaml"], "u.yaml: a run has one task, and t.yaml is given already"),
        (["t.yaml", "--preview", "0"], "expected a whole number above 0, got '0'"),
        (["t.yaml", "--resume", "perhaps"], "invalid choice: 'perhaps'"),
        ([], "required: task"),
        (["t.yaml", "--preview", "2", "--dry-run"], "--dry-run: not allowed with"),
        (["examples/order_json.yaml", "--out", "README.md"], "out: README.md is a file, not a"),
        (["examples/order_json.yaml", "--out", "~nobody-here/x"], "out: ~nobody-here/x: "),
        (["nowhere.yaml"], "nowhere.yaml: No such file or directory"),
        (["nowhere.yaml", "-c", "no.yaml"], "no.yaml: No such file or directory"),
    ],
)
def test_a_mistaken_command_is_one_line_and_exit_code_2(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_faulty_setting_names_where_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = task_file(tmp_path, epochs="many")
    assert main([str(task)]) == 2
    assert f"error: {task}: epochs: expected" in capsys.readouterr().err
