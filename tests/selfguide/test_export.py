"""An expert taken elsewhere answers there, asked as its README says, as it does here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from selfguide import predict
from selfguide.export import main
from tests.selfguide.tiny_runs import labelled_task_file, run, task_file

_INPUTS = ("one teal", "one orange")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs in float32, as transformers computes, by what decides their answers."""
    folder = tmp_path_factory.mktemp("runs")
    labelled = labelled_task_file(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        assert run(task_file(folder, stop=["\n", "!"]), folder / "greedy") == 0
        assert run(labelled, folder / "direct") == 0
        assert run(labelled, folder / "bias", "--decision", "bias_removed") == 0
        assert run(task_file(folder), folder / "chat", "--template", "dialogue") == 0
    return {each.name: each for each in folder.iterdir() if each.is_dir()}


def _answers_elsewhere(folder: Path, text: str) -> str:
    """What the code of the README prints, in a process that knows nothing of selfguide."""
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code.replace('"YOUR INPUT"', repr(text))]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.rstrip("\n")


@pytest.mark.parametrize("kind", ["greedy", "direct", "bias", "chat"])
def test_transformers_gives_the_same_answers(
    runs: dict[str, Path],
    kind: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    folder = tmp_path / "elsewhere"
    assert main([str(runs[kind]), str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}\n"
    assert predict.main([str(runs[kind]), *_INPUTS, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for text, row in zip(_INPUTS, rows, strict=True):
        answer = _answers_elsewhere(folder, text)
        assert row["output"]
        if row["label"]:
            assert answer == row["output"]
        else:  # a random model does not end, and `predict` ends it sooner
            assert answer.startswith(row["output"].rstrip("\ufffd"))


def test_the_weights_are_stored_as_asked(runs: dict[str, Path], tmp_path: Path) -> None:
    assert main([str(runs["greedy"]), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_a_folder_that_is_there_is_left_alone(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(runs["greedy"]), str(tmp_path)]) == 2
    assert f"{tmp_path}: is there already; choose a name that is free" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_an_expert_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert f"{tmp_path / 'none'}: no such run folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_model_is_refused(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(runs["greedy"]), str(tmp_path / "first")]) == 0
    other = ["--model", str(tmp_path / "first")]
    assert main([str(runs["greedy"]), str(tmp_path / "second"), *other]) == 2
    assert "the expert belongs to the model" in capsys.readouterr().err
    assert not (tmp_path / "second").exists()
