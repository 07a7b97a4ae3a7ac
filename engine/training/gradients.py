"""A batch's loss and its gradient, in micro-batches that fit the memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.adapters.lora import Adapter, TrainingLora
from engine.errors import TrainingError
from engine.memory import unless_out_of_memory
from engine.model import Llama
from engine.seeds import mix
from engine.training.config import TrainConfig
from engine.training.optim import FlatTensors
from engine.training.packing import Encoded, MicroBatch, PackedAttention, pack
from kernels import linear_cross_entropy


@dataclass(frozen=True)
class BatchLoss:
    """Sums over a batch's micro-batches.

    Args:
        loss: weighted sum over the batch's completion tokens, divided by their number, nats.
        computed_tokens: tokens that the model read.
    """

    loss: float
    computed_tokens: int


class Gradients:
    """Computes losses and gradients of one adapter on one model.

    Args:
        model: the frozen model.
        adapter: its tensors give settings only; values come from `flat`.
        flat: the adapter's tensors, as trained.
        config: the run's settings.
        budget: tokens per micro-batch; halved here when memory runs out.
    """

    def __init__(
        self, model: Llama, adapter: Adapter, flat: FlatTensors, config: TrainConfig, budget: int
    ) -> None:
        pairs = adapter.with_tensors(flat.views)
        self.adapter = Adapter(adapter.name, adapter.config, adapter.model, pairs)
        self.model, self.flat, self.config, self.budget = model, flat, config, budget

    def train(self, batch: Sequence[Encoded], step: int) -> tuple[BatchLoss, Tensor]:
        """The loss of a step's batch and its gradient `[P]` in the layout of `flat`.

        Raises:
            TrainingError: a micro-batch's loss is not finite, or one example alone needs more
                memory than there is.
        """
        gradient = torch.zeros_like(self.flat.flat)
        share = 1.0 / count_targets(batch)

        def compute(micro: MicroBatch, number: int) -> Tensor:
            seed = mix(self.config.seed, step, number)
            lora = TrainingLora(self.adapter, self.adapter.config.dropout, seed)
            loss = self._loss(micro, lora, self.config.label_smoothing)
            # Of the sum, and only then divided: in fp16 a mean's gradients would be subnormal.
            parts = torch.autograd.grad(loss, self.flat.views)
            gradient.add_(torch.cat([part.reshape(-1) for part in parts]), alpha=share)
            return loss.detach() * share

        return self._sum(batch, compute, f"step {step + 1}"), gradient

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Encoded], step: int) -> float:
        """The loss without dropout and smoothing, nats per completion token."""
        share = 1.0 / count_targets(examples)
        lora = TrainingLora(self.adapter)

        def compute(micro: MicroBatch, number: int) -> Tensor:
            return self._loss(micro, lora, 0.0) * share

        return self._sum(examples, compute, f"evaluation after step {step}").loss

    def _loss(self, micro: MicroBatch, lora: TrainingLora, smoothing: float) -> Tensor:
        micro = micro.to(self.model.device)
        attend = PackedAttention(micro.segments, self.model.config)
        recompute = self.config.gradient_checkpointing and torch.is_grad_enabled()
        hidden = self.model.hidden(
            micro.tokens, micro.positions, attend, lora, checkpoint=recompute
        )
        head = self.model.head
        loss, _ = linear_cross_entropy(
            hidden, head, micro.targets, micro.weights, smoothing, rows=micro.target_rows
        )
        return loss.masked_fill(self._overflowed(micro.tokens, hidden.detach()), math.nan)

    def _overflowed(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Whether some row's residual outgrew the norm's fp32 squares (beyond 1e19), a scalar.

        Such a row does not become NaN: the norm makes zeros of it, and of no sound row but one that
        began as zeros (an untrained token's).
        """
        began = (F.embedding(tokens, self.model.embedding) != 0).any(dim=1)
        return (began & (hidden == 0).all(dim=1)).any()

    def _sum(
        self, batch: Sequence[Encoded], compute: Callable[[MicroBatch, int], Tensor], where: str
    ) -> BatchLoss:
        """Adds `compute(micro, number)` over the batch, with smaller micro-batches if need be."""
        pending = self._pack(batch)
        done: list[MicroBatch] = []
        losses: list[Tensor] = []
        while pending:
            loss = unless_out_of_memory(partial(compute, pending[0], len(done)))
            if loss is None:
                pending = self._smaller(pending, where)
            else:
                losses.append(loss)
                done.append(pending.pop(0))
        values = torch.stack(losses).tolist()  # the batch's only wait for the device
        for micro, value in zip(done, values, strict=True):
            if not math.isfinite(value):
                raise TrainingError(
                    f"{where}: the loss is {value}; {name_examples(micro.examples)}; "
                    "check them, or lower the learning rate"
                )
        return BatchLoss(sum(values), sum(len(micro.tokens) for micro in done))

    def _pack(self, batch: Sequence[Encoded]) -> list[MicroBatch]:
        return pack(batch, self.budget, share_prefix=self.config.share_prefix)

    def _smaller(self, pending: list[MicroBatch], where: str) -> list[MicroBatch]:
        """What is still to do, in micro-batches of half the size of the one that did not fit."""
        failed = pending[0]
        if len(failed.examples) == 1:
            only = failed.examples[0]
            raise TrainingError(
                f"{where}: example {only.index} ({len(only.tokens)} tokens) needs more memory than "
                "there is; shorten it, set gradient_checkpointing, or use a smaller model"
            )
        self.budget = max(1, len(failed.tokens) // 2)
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        return self._pack([example for micro in pending for example in micro.examples])


def count_targets(batch: Sequence[Encoded]) -> int:
    """Completion tokens in the batch: what its summed loss is divided by."""
    return sum(example.targets for example in batch)


def name_examples(batch: Sequence[Encoded]) -> str:
    """`examples 3, 7, 12`, for errors."""
    return f"examples {', '.join(str(i) for i in sorted(example.index for example in batch))}"
