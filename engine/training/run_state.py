"""A training run's state in one safetensors file, replaced as a whole.

Tensors are the run's vectors, exactly; everything else is JSON in the file's header. Being one
file, it is always of one step, whenever the process is killed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import TrainingError
from engine.files import write_atomic

FILE = "training.safetensors"


@dataclass
class RunState:
    """What a run has done so far, beside its tensors; fields as in `TrainResult`.

    `budget` is the micro-batch size in use, `best_loss` the best evaluation's, `waited` the
    evaluations since.
    """

    budget: int
    losses: list[float] = field(default_factory=list)
    eval_losses: list[tuple[int, float]] = field(default_factory=list)
    best_step: int | None = None
    best_loss: float | None = None
    waited: int = 0
    stopped_early: bool = False
    tokens: int = 0
    computed_tokens: int = 0
    target_tokens: int = 0
    seconds: float = 0.0


def save_run(
    folder: Path, run: Mapping[str, str], state: RunState, tensors: Mapping[str, Tensor]
) -> None:
    """Replaces the checkpoint in `folder`; `run` tells which run it is of (a hash per aspect)."""
    header = {"format": "pt", "run": json.dumps(run), "state": json.dumps(asdict(state))}
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(folder / FILE, safetensors.torch.save(stored, header))


def load_run(folder: Path, run: Mapping[str, str]) -> tuple[RunState, dict[str, Tensor]] | None:
    """The checkpoint in `folder`, or None if there is none.

    Raises:
        TrainingError: it is damaged, or of another run; the message says what differs.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        saved_run, values = json.loads(header["run"]), json.loads(header["state"])
        state = RunState(**values)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"{path}: not a training checkpoint ({error}); remove it, or set resume=False"
        ) from None
    different = [aspect for aspect, value in run.items() if saved_run.get(aspect) != value]
    if different:
        raise TrainingError(
            f"{path}: is of another run (different: {', '.join(different)}); "
            "remove it, choose another checkpoint_dir, or set resume=False"
        )
    evaluations = [(int(step), float(loss)) for step, loss in state.eval_losses]
    return replace(state, eval_losses=evaluations), tensors
