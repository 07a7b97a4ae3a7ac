"""Runs the scheduler's steps through the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import RLock

import numpy as np
import torch
from torch import Tensor

import kernels
from engine.adapters.lora import InferenceLora
from engine.memory import give_back, out_of_memory
from engine.model import Llama
from engine.serving.decode_graph import DecodeGraphs
from engine.serving.inputs import send
from engine.serving.kv_cache import KVCache
from engine.serving.paged import PagedAttention
from engine.serving.prefix_tree import BLOCK_SIZE
from engine.serving.scheduler import S, Scheduler, Stats, Step
from engine.text.tokenizer import Tokenizer
from kernels.upload import upload

LOGITS_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}
"""Logits are made for as many rows at a time as fit in this: on a CPU, what stays near its caches;
on a GPU, what makes reading the head's weights, a gigabyte for 128k tokens, worth it."""


@dataclass(slots=True)
class Runner:
    """What generation and scoring share: model, tokenizer, cache, and limits of a step.

    `stats` counts over all calls. Calls from several threads run one after the other.
    """

    model: Llama
    tokenizer: Tokenizer
    cache: KVCache
    max_sequences: int = 1024
    step_tokens: int = 2048
    stats: Stats = field(default_factory=Stats)
    graphs: DecodeGraphs = field(init=False)
    _lock: RLock = field(default_factory=RLock, init=False)

    def __post_init__(self) -> None:
        self.graphs = DecodeGraphs(self.model, self.cache)

    @property
    def context(self) -> int:
        """The most tokens that a sequence may have."""
        return min(self.model.config.max_positions, self.cache.num_blocks * BLOCK_SIZE)

    def scheduler(self) -> Scheduler[S]:
        """A scheduler with nothing to do yet."""
        return Scheduler(self.cache, self.context, self.stats, self.max_sequences, self.step_tokens)

    def run(self, scheduler: Scheduler[S], use: Callable[[Step[S], Tensor], None]) -> None:
        """Computes steps until there are none, and calls `use(step, hidden [T, W])` after each.

        However it ends, no sequence holds blocks afterwards.
        """
        with self._lock, torch.inference_mode():
            try:
                while (step := scheduler.schedule()) is not None:
                    hidden = self._compute(step, scheduler)
                    if hidden is not None:
                        scheduler.complete(step)
                        use(step, hidden)
            finally:
                scheduler.abort()

    def release(self) -> None:
        """Frees the cache's memory, which the next call takes again; prefixes are forgotten."""
        with self._lock:
            self.graphs.clear()
            self.cache.release()
            give_back()

    def _compute(self, step: Step[S], scheduler: Scheduler[S]) -> Tensor | None:
        """The hidden states `[T, W]` of a step, or None if it must be planned anew, smaller."""
        try:
            hidden = self.graphs.hidden(step)
            if hidden is None:
                inputs = send(step.inputs, self.model.device)
                attend = PagedAttention(self.model.config, self.cache, inputs)
                lora = InferenceLora(step.adapters)
                hidden = self.model.hidden(inputs.tokens, inputs.positions, attend, lora)
            return hidden
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error) or not scheduler.shrink(step):
                raise
            self.step_tokens = scheduler.step_tokens
            return None

    def logits(
        self, hidden: Tensor, rows: np.ndarray
    ) -> Iterator[tuple[slice, Tensor, np.ndarray | None]]:
        """Logits of rows of the batch, a bounded number at a time.

        Args:
            hidden: `[T, W]`.
            rows: `[R]` int64, ascending; a row may be named more than once.

        Yields:
            A slice of 0..R; logits `[U, V]` fp32 of its distinct rows; `[slice]` int64, which of
            them each of the slice's rows is, or None where that is one each, in order.
        """
        size = max(1, LOGITS_BYTES[hidden.device.type] // (4 * len(self.model.head)))
        for start in range(0, len(rows), size):
            part = slice(start, min(start + size, len(rows)))
            distinct, which = np.unique(rows[part], return_inverse=True)
            first, last = int(distinct[0]), int(distinct[-1]) + 1
            if last - first == len(distinct):
                chosen = hidden[first:last]
            else:
                chosen = hidden[upload([distinct], hidden.device)[0]]
            logits = kernels.linear(chosen, self.model.head, out_dtype=torch.float32)
            yield part, logits, which if len(which) > len(distinct) else None
