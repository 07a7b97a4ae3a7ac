"""The GPU benchmark without a GPU: every section's code, on tiny shapes, and what it leaves."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu_race import huge, referee, suite
from bench.gpu_race.checker import poisoned
from bench.gpu_race.referee import Outcome, timings
from bench.gpu_race.report import as_dict, as_text
from bench.gpu_race.results import Card, Check, Goal, Note, Timing, as_json, from_json
from bench.gpu_race.sections import SECTIONS, Section
from bench.gpu_race.workbench import Job, Skipped, Workbench
from bench.gpu_race.worker import results

ROOT = Path(__file__).resolve().parents[2]
TINY = Workbench(torch.device("cpu"), tiny=True)
CEILINGS = {"GB/s": 4000.0, "GFLOP/s": 800e3}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors this small only wait for other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bench_gpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "bench/gpu.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", [name for name in SECTIONS if name != "tests"])
def test_every_section_runs(name: str) -> None:
    found = list(results(SECTIONS[name], name, TINY))
    assert found
    assert not [each for each in found if isinstance(each, Note)]
    assert not [each for each in found if isinstance(each, Check) and not each.passed]
    for timing in (each for each in found if isinstance(each, Timing)):
        assert not timing.failed
        assert all(seconds > 0 for seconds in timing.seconds.values())
        assert timing.amount > 0


def test_the_whole_command(tmp_path: Path) -> None:
    run = bench_gpu(
        "--device", "cpu", "--tiny", "--only", "sampling", "--seconds", "100", "--out", tmp_path
    )
    assert run.returncode == 0, run.stderr
    (file,) = tmp_path.iterdir()
    result = json.loads(file.read_text())
    assert file.name.startswith(f"gpu-{result['date']}-")
    assert result["tiny"]
    assert result["ceilings"].keys() == CEILINGS.keys()
    assert result["card"]["versions"]["torch"] == torch.__version__
    assert result["sections"].keys() == {"card", "sampling"}
    assert len(result["timings"]) == 7
    for timing in result["timings"]:
        assert timing["name"] in run.stdout
        assert timing["rates"].keys() == {"ours", "torch"}
        assert timing["of_ceiling"] > 0
    assert str(file) == run.stdout.splitlines()[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    run = bench_gpu()
    assert run.returncode == 2
    assert run.stdout.count("\n") == 1
    assert "torch sees no GPU" in run.stdout


def test_bad_options() -> None:
    assert "there are card" in bench_gpu("--device", "cpu", "--tiny", "--only", "nothing").stderr
    assert "needs --tiny" in bench_gpu("--device", "cpu").stderr


def test_the_sections_take_less_than_ten_minutes() -> None:
    assert sum(section.seconds for section in SECTIONS.values()) < 600


def test_a_job_that_fails_is_noted_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Check:
        raise RuntimeError("no such\nkernel")

    def skip() -> Check:
        raise Skipped("no bf16")

    def jobs(self: Section, bench: Workbench) -> Iterator[Job]:
        yield "first", fail
        yield "second", skip
        yield "third", lambda: [Check("sum", 0.1, 1.0)]
        raise RuntimeError("lost")

    monkeypatch.setattr(Section, "jobs", jobs)
    assert list(results(Section("", 1), "all", TINY)) == [
        Note("first", "RuntimeError: no such kernel", True),
        Note("second", "no bf16", False),
        Check("sum", 0.1, 1.0),
        Note("all", "RuntimeError: lost", True),
    ]


def test_a_check_that_does_not_fit_the_card_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def _rope(bench: Workbench) -> Check:
        raise torch.OutOfMemoryError("Tried to allocate 8 GiB")

    monkeypatch.setattr(huge, "_rope", _rope)
    found = [each for each in results(SECTIONS["checks"], "checks", TINY) if isinstance(each, Note)]
    assert found == [Note("huge_rope", "OutOfMemoryError: Tried to allocate 8 GiB", False)]


def test_a_failing_test_is_told_before_the_others_end(tmp_path: Path) -> None:
    """The second waits for what is written when the first has been told of."""
    file, told = tmp_path / "test_two.py", tmp_path / "told"
    file.write_text(
        "import pathlib, time\n"
        "def test_first():\n    assert 1 == 2, 'not so'\n"
        f"def test_second():\n    while not pathlib.Path({str(told)!r}).exists(): time.sleep(0.1)\n"
    )
    for options in (["-p", "no:xdist"], ["-n", "1"]):
        notes = suite.notes(str(file), options)
        first = next(notes)
        told.touch()
        (last,) = notes
        told.unlink()
        assert first.failed
        assert "test_two.py::test_first: AssertionError: not so" in first.text
        assert last.failed
        assert "1 failed, 1 passed" in last.text


def test_a_section_is_ended_after_its_time_and_what_it_said_stands() -> None:
    start = time.perf_counter()
    outcome = referee.run("card", "cpu", tiny=True, limit=0.5)
    assert time.perf_counter() - start < 30
    assert outcome.results[-1] == Note("card", "ended after its 0 seconds", True)


def test_a_section_whose_process_breaks_is_noted() -> None:
    outcome = referee.run("card", "no such device", tiny=True, limit=100)
    assert outcome.results == [Note("card", "its process ended with code 1", True)]


def example() -> list[Outcome]:
    """A card, a case from two processes, and a failed check."""
    ours = Timing(
        "decode",
        8e9,
        "GB/s",
        {"ours": 0.0025},
        tokens=64,
        goals=[Goal("ceiling", 0.85), Goal("speed", 1.5), Goal("memory", 0.25, "peer")],
        peak_mib={"ours": 10.0},
    )
    theirs = Timing("decode", 8e9, "GB/s", {"peer": 0.005}, peak_mib={"peer": 50.0})
    theirs.failed["other"] = "ImportError: none"
    return [
        Outcome("card", 1.0, [Card({"device": "A card", "versions": {"torch": "2"}}, CEILINGS)]),
        Outcome("decode", 2.0, [ours, Check("rope", math.nan, 1e-5), Note("x", "why", False)]),
        Outcome("peers", 3.0, [theirs]),
    ]


def test_results_survive_their_way_between_processes() -> None:
    for outcome in example():
        for each in outcome.results:
            copied = from_json(json.loads(json.dumps(as_json(each))))
            assert repr(copied) == repr(each)


def test_a_case_of_two_processes_is_one_and_its_goals_are_judged() -> None:
    (case,) = timings(example())
    assert case.seconds == {"ours": 0.0025, "peer": 0.005}
    result: dict[str, Any] = as_dict("2026-01-01", example(), tiny=False)
    (timing,) = result["timings"]
    assert timing["rates"]["ours"] == pytest.approx(3200)
    assert timing["tokens_per_second"]["ours"] == pytest.approx(64 / 0.0025)
    reached = {goal["metric"]: (goal["reached"], goal["met"]) for goal in timing["goals"]}
    assert reached == {
        "ceiling": (pytest.approx(0.8), False),
        "speed": (pytest.approx(2.0), True),
        "memory": (pytest.approx(0.2), True),
    }
    assert not result["checks"][0]["passed"]  # NaN


def test_the_table_says_everything() -> None:
    text = as_text("2026-01-01", example(), tiny=False)
    assert "copy 4000 GB/s" in text
    assert "GEMM 800.0 TFLOP/s" in text
    assert "25600 tok/s" in text
    assert "WRONG rope" in text
    assert "note decode: x: why" in text
    assert "no peer decode: other: ImportError: none" in text
    assert text.count("  met") == 2
    assert text.count("MISSED") == 1


def test_memory_that_is_not_written_shows() -> None:
    with poisoned():
        assert torch.empty(3).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()
