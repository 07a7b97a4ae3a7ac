"""What a training run is given, and what it reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from engine.errors import TrainingError
from engine.training.schedule import Schedule


@dataclass(frozen=True)
class TrainExample:
    """A prompt and what the model shall learn to continue it with.

    Args:
        prompt: text, which the tokenizer opens with its BOS if the model has one, or token ids,
            which are taken as they are. At least one token.
        completion: text or token ids; only these tokens are learnt. At least one.
        weight: factor on the loss of each of them, above 0.
    """

    prompt: str | Sequence[int]
    completion: str | Sequence[int]
    weight: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run. A step's loss is the sum over its completion tokens, each times its
    example's weight, divided by their number.

    Args:
        epochs: passes over the examples.
        batch_size: examples per optimizer step; an epoch's last step may have fewer.
        lr: peak learning rate; see `engine.training.schedule` for `schedule` and `warmup_ratio`.
        weight_decay, betas, eps: of AdamW.
        max_grad_norm: the gradient is scaled down to this norm; None for never.
        label_smoothing: share of the target mass spread over the vocabulary, in [0, 1).
        append_eos: end completions given as text with the model's end-of-sequence token.
        shuffle: a new order of the examples for every epoch.
        seed: decides order and dropout, together with the step: resuming changes neither.
        share_prefix: compute tokens that a micro-batch's prompts begin with only once (exact; with
            dropout the examples then share their prefix's mask).
        micro_batch_tokens: tokens computed at a time, which bounds memory; None plans it from the
            memory that is free. It is halved when memory runs out. Without dropout results do not
            depend on it but for rounding; with dropout it decides which masks are drawn.
        gradient_checkpointing: recompute each block's activations in the backward pass: a third
            more computation for a fraction of the memory.
        patience: stop after this many evaluations (one per epoch) without a better loss, and keep
            the best evaluation's weights; None to run to the end. Needs evaluation examples.
        checkpoint_dir: folder for the run's state, replaced atomically; None for no checkpoints.
        checkpoint_every: steps between two checkpoints.
        resume: go on from the checkpoint in `checkpoint_dir` if there is one.

    Raises:
        TrainingError: a value makes no sense.
    """

    epochs: int = 3
    batch_size: int = 16
    lr: float = 2e-4
    schedule: Schedule = "cosine"
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float | None = 1.0
    label_smoothing: float = 0.0
    append_eos: bool = True
    shuffle: bool = True
    seed: int = 0
    share_prefix: bool = True
    micro_batch_tokens: int | None = None
    gradient_checkpointing: bool = False
    patience: int | None = None
    checkpoint_dir: str | Path | None = None
    checkpoint_every: int = 50
    resume: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "checkpoint_every", "micro_batch_tokens", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TrainingError(f"{name} must be at least 1, not {value}")
        for name in ("lr", "eps", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise TrainingError(f"{name} must be a positive number, not {value}")
        shares = {"betas[0]": self.betas[0], "label_smoothing": self.label_smoothing}
        for name, value in {**shares, "betas[1]": self.betas[1]}.items():
            if not 0.0 <= value < 1.0:
                raise TrainingError(f"{name} must be in [0, 1), not {value}")
        if not 0.0 <= self.warmup_ratio <= 1.0:
            raise TrainingError(f"warmup_ratio must be in [0, 1], not {self.warmup_ratio}")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise TrainingError(f"weight_decay must be at least 0, not {self.weight_decay}")
        if self.schedule not in get_args(Schedule):
            raise TrainingError(
                f"schedule {self.schedule!r} is unknown; use one of {', '.join(get_args(Schedule))}"
            )


@dataclass(frozen=True)
class TrainProgress:
    """Where a run stands after a step.

    Args:
        step, total: steps done, and to do in all.
        loss: of this step, nats per completion token.
        lr: learning rate of this step.
        tokens_per_second: prompt and completion tokens trained on, shared ones counted each time.
        eta_seconds: estimated time left.
    """

    step: int
    total: int
    loss: float
    lr: float
    tokens_per_second: float
    eta_seconds: float


Progress = Callable[[TrainProgress], None]


@dataclass(frozen=True)
class TrainResult:
    """What a run did.

    Args:
        losses: each step's loss, nats per completion token.
        eval_losses: (steps done, loss) of each evaluation, without dropout and smoothing.
        best_step: steps done at the evaluation whose weights the adapter has; None for the last.
        stopped_early: whether `patience` ended the run.
        tokens: prompt and completion tokens of all examples in all steps.
        computed_tokens: those that the model had to read, shared prefixes counted once.
        target_tokens: completion tokens.
        seconds: time spent, over all the sessions of a resumed run.
    """

    losses: tuple[float, ...]
    eval_losses: tuple[tuple[int, float], ...]
    best_step: int | None
    stopped_early: bool
    tokens: int
    computed_tokens: int
    target_tokens: int
    seconds: float

    @property
    def steps(self) -> int:
        return len(self.losses)
