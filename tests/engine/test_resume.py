"""A run that was stopped anywhere, even killed, ends with the same weights to the last bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.adapters.lora import Adapter
from engine.errors import TrainingError
from engine.training.run_state import FILE
from engine.training.train import TrainConfig, TrainProgress, TrainResult, train
from tests.engine.training_setup import (
    Setup,
    examples_with_prefixes,
    tiny_setup,
    trained_values,
)

EXAMPLES = examples_with_prefixes()
UNSEEN = examples_with_prefixes(4)
SETTINGS: dict[str, Any] = {
    "epochs": 5,
    "batch_size": 2,
    "lr": 3e-3,
    "weight_decay": 0.01,
    "micro_batch_tokens": 60,
    "checkpoint_every": 3,
}


class StopError(Exception):
    """Raised by a progress callback, as a user's interrupt would be."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return tiny_setup(tmp_path_factory.mktemp("tiny"))


def new(tiny: Setup) -> Adapter:
    return tiny.adapter(dropout=0.1)


def run(
    tiny: Setup,
    adapter: Adapter,
    progress: Callable[[TrainProgress], None] | None = None,
    **changes: Any,
) -> TrainResult:
    config = TrainConfig(**{**SETTINGS, **changes})
    return train(
        tiny.model,
        tiny.tokenizer,
        adapter,
        EXAMPLES,
        config,
        eval_examples=UNSEEN,
        progress=progress,
    )


def stop_at(step: int) -> Callable[[TrainProgress], None]:
    def progress(now: TrainProgress) -> None:
        if now.step == step:
            raise StopError

    return progress


@pytest.mark.parametrize("patience", [None, 3])
@pytest.mark.parametrize("step", [1, 6, 17])
def test_an_interrupted_run_goes_on_exactly(
    tiny: Setup, tmp_path: Path, step: int, patience: int | None
) -> None:
    whole, resumed = new(tiny), new(tiny)
    expected = run(tiny, whole, patience=patience)
    before = trained_values(resumed.pairs)
    with pytest.raises(StopError):
        run(tiny, resumed, stop_at(step), patience=patience, checkpoint_dir=tmp_path)
    assert torch.equal(trained_values(resumed.pairs), before)
    result = run(tiny, resumed, patience=patience, checkpoint_dir=tmp_path)
    assert result.losses == expected.losses
    assert result.eval_losses == expected.eval_losses
    assert result.best_step == expected.best_step
    assert result.computed_tokens == expected.computed_tokens
    assert torch.equal(trained_values(resumed.pairs), trained_values(whole.pairs))


def test_a_finished_run_is_not_repeated(tiny: Setup, tmp_path: Path) -> None:
    once, again = new(tiny), new(tiny)
    first = run(tiny, once, checkpoint_dir=tmp_path)
    steps: list[TrainProgress] = []
    assert run(tiny, again, steps.append, checkpoint_dir=tmp_path) == first
    assert steps == []
    assert torch.equal(trained_values(again.pairs), trained_values(once.pairs))


KILLED = """
import sys, time
from pathlib import Path
from tests.engine import test_resume as t

folder, checkpoints = map(Path, sys.argv[1:])
tiny = t.tiny_setup(folder)
adapter = t.new(tiny)

def progress(now):
    print(now.step, flush=True)
    time.sleep(0.01)

t.run(tiny, adapter, progress, checkpoint_dir=checkpoints, checkpoint_every=1)
"""


def test_killed_in_the_middle_then_resumed(tiny: Setup, tmp_path: Path) -> None:
    whole, resumed = new(tiny), new(tiny)
    run(tiny, whole)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "model"), str(tmp_path / "state")]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=root, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "7":
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    steps: list[TrainProgress] = []
    run(tiny, resumed, steps.append, checkpoint_dir=tmp_path / "state")
    assert 7 <= steps[0].step < 25
    assert torch.equal(trained_values(resumed.pairs), trained_values(whole.pairs))


def test_a_checkpoint_of_another_run_is_refused(tiny: Setup, tmp_path: Path) -> None:
    def message(adapter: Adapter, **changes: Any) -> str:
        with pytest.raises(TrainingError) as caught:
            run(tiny, adapter, checkpoint_dir=tmp_path, **changes)
        return str(caught.value)

    run(tiny, new(tiny), epochs=1, checkpoint_dir=tmp_path)
    assert "is of another run (different: settings)" in message(new(tiny), epochs=1, lr=1.0)
    other = tiny.adapter(seed=5, dropout=0.1)
    assert "(different: adapter)" in message(other, epochs=1)
    assert str(tmp_path / FILE) in message(other, epochs=1)
    run(tiny, other, epochs=1, checkpoint_dir=tmp_path, resume=False)
    EXAMPLES.append(EXAMPLES[0])
    try:
        assert "examples" in message(tiny.adapter(seed=5, dropout=0.1), epochs=1)
    finally:
        EXAMPLES.pop()


def test_settings_that_change_no_result_may_change(tiny: Setup, tmp_path: Path) -> None:
    adapter = new(tiny)
    with pytest.raises(StopError):
        run(tiny, adapter, stop_at(6), checkpoint_dir=tmp_path)
    result = run(
        tiny, adapter, checkpoint_dir=tmp_path, micro_batch_tokens=None, share_prefix=False
    )
    assert result.steps == 25


def test_a_damaged_checkpoint_is_refused(tiny: Setup, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\x00" * 100)
    with pytest.raises(TrainingError, match=r"not a training checkpoint .* set resume=False"):
        run(tiny, new(tiny), checkpoint_dir=tmp_path)
