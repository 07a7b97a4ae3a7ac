"""Trains an adapter on examples: batches, gradients, optimizer, evaluation, exact resumption."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from engine.adapters.lora import Adapter
from engine.errors import TrainingError
from engine.model import Llama
from engine.text.tokenizer import Tokenizer
from engine.training.config import Progress, TrainConfig, TrainExample, TrainProgress, TrainResult
from engine.training.examples import encode_examples, step_batch, steps_per_epoch
from engine.training.gradients import Gradients, name_examples
from engine.training.memory import plan_micro_batch
from engine.training.optim import AdamW, FlatTensors, clip_
from engine.training.packing import Encoded
from engine.training.run_state import RunState, load_run, save_run
from engine.training.schedule import learning_rate

__all__ = ["TrainConfig", "TrainExample", "TrainProgress", "TrainResult", "train"]

# Settings that change how fast or how safely a run goes, but not what it learns.
_FREE_SETTINGS = (
    "checkpoint_dir",
    "checkpoint_every",
    "resume",
    "micro_batch_tokens",
    "gradient_checkpointing",
    "share_prefix",
)


def train(
    model: Llama,
    tokenizer: Tokenizer,
    adapter: Adapter,
    examples: Sequence[TrainExample],
    config: TrainConfig,
    *,
    eval_examples: Sequence[TrainExample] = (),
    progress: Progress | None = None,
    fingerprint: str = "",
) -> TrainResult:
    """Trains `adapter`, which changes only when the run has ended well.

    Args:
        model: stays as it is.
        tokenizer: for prompts and completions given as text.
        adapter: starts from its present values (fp32, as are gradients and optimizer).
        examples: see `TrainExample`; all are checked before the first step.
        config: see `TrainConfig`.
        eval_examples: their loss is measured after each epoch.
        progress: called after every step.
        fingerprint: the base model's, so that a checkpoint is not resumed on another model.

    Raises:
        TrainingError: examples, settings or checkpoint are unfit; a loss or gradient is not finite
            (named by step and examples); one example alone does not fit into memory.
    """
    encoded, evaluated = (
        encode_examples(given, tokenizer, model.config, append_eos=config.append_eos, what=what)
        for given, what in ((examples, "example"), (eval_examples, "evaluation example"))
    )
    if not encoded:
        raise TrainingError("there are no examples to train on")
    if config.patience is not None and not evaluated:
        raise TrainingError("patience needs evaluation examples; give some or leave it out")
    run = _Run(model, adapter, encoded, evaluated, config, fingerprint)
    run.resume()
    run.go(progress)
    return run.finish()


class _Run:
    """One training run's tensors and state, from its start or a checkpoint to its end."""

    def __init__(
        self,
        model: Llama,
        adapter: Adapter,
        examples: list[Encoded],
        evaluated: list[Encoded],
        config: TrainConfig,
        fingerprint: str,
    ) -> None:
        self.adapter, self.config = adapter, config
        self.examples, self.evaluated = examples, evaluated
        self.steps_per_epoch = steps_per_epoch(len(examples), config)
        self.total = config.epochs * self.steps_per_epoch
        self.flat = FlatTensors(adapter.tensors())
        self.best = self.flat.flat.clone() if config.patience is not None else None
        self.optimizer = AdamW(self.flat.flat, config.betas, config.eps, config.weight_decay)
        budget = config.micro_batch_tokens or plan_micro_batch(
            model, checkpointing=config.gradient_checkpointing
        )
        self.state = RunState(budget)
        self.gradients = Gradients(model, adapter, self.flat, config, budget)
        self.identity = self._identify(model, fingerprint)

    @property
    def folder(self) -> Path | None:
        folder = self.config.checkpoint_dir
        return None if folder is None else Path(folder).expanduser()

    @property
    def done(self) -> int:
        """Steps done."""
        return len(self.state.losses)

    def resume(self) -> None:
        """Takes over the checkpoint, if there is one and the settings say so."""
        if self.folder is None or not self.config.resume:
            return
        found = load_run(self.folder, self.identity)
        if found is None:
            return
        self.state, tensors = found
        for name, tensor in self._tensors().items():
            tensor.copy_(tensors[name])
        self.optimizer.steps = self.done
        if self.config.micro_batch_tokens is None:
            self.gradients.budget = self.state.budget

    def go(self, progress: Progress | None) -> None:
        """Trains until the last step, or until evaluations stop improving."""
        earlier, start = self.state.seconds, time.perf_counter()
        while self.done < self.total and not self.state.stopped_early:
            rate = self._step()
            if self.evaluated and self.done % self.steps_per_epoch == 0:
                self._evaluate()
            self.state.seconds = earlier + time.perf_counter() - start
            if self.done % self.config.checkpoint_every == 0:
                self._save()
            if progress is not None:
                progress(self._progress(rate))
        self._save()

    def finish(self) -> TrainResult:
        """Gives the adapter its new values."""
        state = self.state
        if self.best is not None and state.best_step is not None:
            self.flat.flat.copy_(self.best)
        self.adapter.assign(self.adapter.with_tensors(self.flat.copies()))
        return TrainResult(
            losses=tuple(state.losses),
            eval_losses=tuple(state.eval_losses),
            best_step=state.best_step,
            stopped_early=state.stopped_early,
            tokens=state.tokens,
            computed_tokens=state.computed_tokens,
            target_tokens=state.target_tokens,
            seconds=state.seconds,
        )

    def _step(self) -> float:
        """One optimizer step; returns its learning rate."""
        config, state, step = self.config, self.state, self.done
        batch = step_batch(self.examples, config, step)
        loss, gradient = self.gradients.train(batch, step)
        norm = float(clip_(gradient, config.max_grad_norm))
        if not math.isfinite(norm):
            raise TrainingError(
                f"step {step + 1}: the gradient's norm is {norm}; {name_examples(batch)}; "
                "check them, or lower the learning rate"
            )
        rate = learning_rate(config.schedule, config.lr, step, self.total, config.warmup_ratio)
        self.optimizer.step(gradient, rate)
        state.losses.append(loss.loss)
        state.tokens += sum(len(example.tokens) for example in batch)
        state.target_tokens += sum(example.targets for example in batch)
        state.computed_tokens += loss.computed_tokens
        state.budget = self.gradients.budget
        return rate

    def _evaluate(self) -> None:
        state, loss = self.state, self.gradients.evaluate(self.evaluated, self.done)
        state.eval_losses.append((self.done, loss))
        if self.best is None:
            return
        if state.best_loss is None or loss < state.best_loss:
            state.best_step, state.best_loss, state.waited = self.done, loss, 0
            self.best.copy_(self.flat.flat)
        else:
            state.waited += 1
            state.stopped_early = state.waited == self.config.patience

    def _progress(self, rate: float) -> TrainProgress:
        state = self.state
        return TrainProgress(
            step=self.done,
            total=self.total,
            loss=state.losses[-1],
            lr=rate,
            tokens_per_second=state.tokens / state.seconds,
            eta_seconds=state.seconds / self.done * (self.total - self.done),
        )

    def _tensors(self) -> dict[str, torch.Tensor]:
        optimizer = self.optimizer
        tensors = {
            "parameters": self.flat.flat,
            "mean": optimizer.mean,
            "square": optimizer.square,
        }
        return tensors if self.best is None else {**tensors, "best": self.best}

    def _save(self) -> None:
        if self.folder is not None:
            save_run(self.folder, self.identity, self.state, self._tensors())

    def _identify(self, model: Llama, fingerprint: str) -> dict[str, str]:
        """A hash of each aspect that decides what a run learns."""
        settings = asdict(self.config)
        for name in _FREE_SETTINGS:
            del settings[name]
        start = hashlib.sha256(self.flat.flat.cpu().numpy().data).hexdigest()
        lora = [(pair.rank, pair.scale) for pair in self.adapter.pairs.values()]
        aspects = {
            "settings": settings,
            "examples": [(e.tokens, e.prompt_length, e.weight) for e in self.examples],
            "evaluation examples": [(e.tokens, e.prompt_length, e.weight) for e in self.evaluated],
            "adapter": [list(self.adapter.pairs), lora, self.adapter.config.dropout, start],
            "model": [fingerprint, repr(model.config), model.precision],
        }
        return {
            name: hashlib.sha256(json.dumps(aspect).encode()).hexdigest()
            for name, aspect in aspects.items()
        }
