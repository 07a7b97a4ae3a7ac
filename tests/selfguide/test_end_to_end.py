"""The main job on the real default model and an example task, with a small budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).parents[2]
TASK = HOME / "examples" / "support_topic.yaml"
BUDGET = ["--pairs", "24", "--at-least", "8", "--max-candidates", "128", "--limit", "40"]


def command(folder: Path, *arguments: str) -> str:
    """Runs a command of selfguide as a user would; its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(HOME)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_expert_beats_few_shot_prompting_and_answers(tmp_path: Path) -> None:
    """Few-shot, this model seldom even names a topic; tuned, it does, and mostly the right one."""
    run = ["selfguide.run", str(TASK), *BUDGET, "--json"]
    result = json.loads(command(tmp_path, *run))
    folder = tmp_path / "runs" / "support_topic"
    metrics = json.loads((folder / "metrics.json").read_text())
    systems = {each["key"]: each for each in metrics["systems"]}
    assert result["verdict"] == metrics["verdict"]
    assert systems["expert"]["score"] >= systems["few_shot"]["score"] + 15
    assert systems["expert"]["score"] >= systems["majority"]["score"] + 15
    assert systems["expert_greedy"]["valid_share"] >= 90
    assert systems["expert"]["prompt_tokens"] < systems["few_shot"]["prompt_tokens"]
    ledger = [json.loads(line) for line in (folder / "candidates.jsonl").open()]
    assert all(row["kept"] or (row["filter"] and row["reason"]) for row in ledger)
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")

    answer = command(
        tmp_path,
        "selfguide.predict",
        str(folder),
        "You charged my card twice this month.",
        "--json",
    )
    assert json.loads(answer)["probabilities"].keys() == {
        "billing",
        "delivery",
        "account",
        "product",
    }
    written = (folder / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    command(tmp_path, *run)
    assert (folder / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == written
