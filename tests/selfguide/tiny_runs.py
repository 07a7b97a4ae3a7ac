"""Runs of the real commands on a tiny random model: a few seconds each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfguide.run import main
from tests.selfguide.method import tiny

# A random model invents little of use: the tasks bring inputs of their own, and filters are few.
_LENIENT = ("--filters", "duplicate", "--pairs", "8", "--at-least", "1", "--round-size", "8")
_SMALL = ("--max-candidates", "32", "--votes", "2", "--epochs", "2", "--batch-size", "4")
_TASK = {
    "name": "shout",
    "instruction": "Write it in capitals.",
    "examples": [
        {"input": "the red one", "output": "THE RED ONE"},
        {"input": "a blue one", "output": "A BLUE ONE"},
    ],
    "eval_file": "shout.eval.jsonl",
    "inputs_file": "inputs.txt",
}
COLOURS = ("green", "grey", "pink", "black", "white", "brown")
_THINGS = [
    *("lamp", "desk", "fork", "moon", "rain", "door", "shoe", "book", "tree", "fish", "road"),
    *("wind", "hill", "salt", "milk", "bird", "star", "rope", "boat", "leaf", "sand", "coat"),
    "ring",
]


def task_file(folder: Path, **changes: Any) -> Path:
    """A free-text task with 24 inputs and six evaluation rows; `changes` replace its keys."""
    rows = [{"input": f"one {c}", "output": f"ONE {c.upper()}"} for c in COLOURS]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "shout.eval.jsonl").write_text(lines, encoding="utf-8")
    _write_inputs(folder)
    path = folder / "shout.json"
    path.write_text(json.dumps({**_TASK, **changes}), encoding="utf-8")
    return path


def labelled_task_file(folder: Path) -> Path:
    """A task of two labels."""
    rows = [{"input": f"one {c}", "output": "long" if len(c) > 4 else "short"} for c in COLOURS]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "length.eval.jsonl").write_text(lines, encoding="utf-8")
    _write_inputs(folder)
    task = {
        "name": "length",
        "instruction": "Is the colour's name long or short?",
        "labels": ["long", "short"],
        "examples": [
            {"input": "one red", "output": "short"},
            {"input": "one purple", "output": "long"},
        ],
        "eval_file": "length.eval.jsonl",
        "inputs_file": "inputs.txt",
    }
    path = folder / "length.json"
    path.write_text(json.dumps(task), encoding="utf-8")
    return path


def _write_inputs(folder: Path) -> None:
    """The fifth is like the third, for the filter of duplicates."""
    inputs = [*_THINGS[:4], f"{_THINGS[2].upper()}!", *_THINGS[4:]]
    (folder / "inputs.txt").write_text("\n".join(inputs), encoding="utf-8")


def arguments(task: Path, out: Path, *more: str) -> list[str]:
    """A run's command line; what stands in `more` wins."""
    model = ("--model", str(tiny.folder()), "--device", "cpu", "--out", str(out))
    return [str(task), *model, *_LENIENT, *_SMALL, *more]


def run(task: Path, out: Path, *more: str) -> int:
    """A run in this process; returns the exit code."""
    return main(arguments(task, out, *more))


def start(task: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    command = [sys.executable, "-m", "selfguide.run", *arguments(task, out, *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def stages(out: Path) -> dict[str, Any]:
    """The manifest's records."""
    values = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    return dict(values["stages"])


def results(out: Path, names: Sequence[str] = ("dataset.jsonl", "held_out.jsonl")) -> list[bytes]:
    """The bytes of the pairs and of the adapter's weights."""
    return [(out / name).read_bytes() for name in (*names, "adapter/adapter_model.safetensors")]
