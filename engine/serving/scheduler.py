"""Continuous batching: which tokens of which sequences the next step computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, TypeVar

import numpy as np

from engine.adapters.lora import Adapter
from engine.serving.inputs import Inputs
from engine.serving.kv_cache import Holding, KVCache, blocks_for
from engine.serving.prefix_tree import BLOCK_SIZE
from engine.serving.sequence import Sequence, Slots

S = TypeVar("S", bound=Sequence)


@dataclass(slots=True)
class Stats:
    """Counts of work, in tokens; `computed` includes what a preemption made us compute again."""

    prompt: int = 0
    cached: int = 0
    computed: int = 0
    generated: int = 0
    steps: int = 0
    preemptions: int = 0


@dataclass(frozen=True, slots=True)
class Step(Generic[S]):
    """One forward pass: T tokens of S sequences, those of one adapter next to each other.

    sequences, rows: the S sequences and their slots.
    starts, counts: `[S]`; sequence s computes its tokens `starts[s]..starts[s] + counts[s]`.
    bounds: `[S+1]` int32; they are rows `bounds[s]..bounds[s + 1]` of the batch.
    done: `[S]` bool; with this step all known tokens of the sequence are computed.
    adapters: `(row_start, row_stop, adapter)`.
    inputs: what the model takes, on the host.
    """

    sequences: list[S]
    rows: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    bounds: np.ndarray
    done: np.ndarray
    adapters: list[tuple[int, int, Adapter | None]]
    inputs: Inputs[np.ndarray]


class Scheduler(Generic[S]):
    """Plans steps until no sequence is left.

    Every running sequence computes at least one token a step; what is left of the step's budget
    goes to prompts, the running ones' first, then to sequences that are waiting. One is admitted
    only if there are blocks for all its tokens and one more for each running sequence. If blocks
    run out nevertheless, the youngest sequence is preempted: it gives up its blocks and waits, to
    be computed again (mostly from the prefix cache).

    Args:
        cache: where keys and values go.
        context: the most tokens that a sequence will have; the cache must hold as many.
        stats: counters to add to.
        max_sequences: the most that run at once (at most `step_tokens`).
        step_tokens: the most tokens in a step.
    """

    def __init__(
        self,
        cache: KVCache,
        context: int,
        stats: Stats,
        max_sequences: int = 1024,
        step_tokens: int = 2048,
    ) -> None:
        self.cache, self.stats = cache, stats
        self.step_tokens = step_tokens
        self.slots = Slots(min(max_sequences, step_tokens), blocks_for(context))
        self.waiting: deque[S] = deque()
        self._running: dict[S, None] = {}  # oldest first
        self._batch: tuple[list[S], np.ndarray] | None = None

    def add(self, sequence: S) -> None:
        """Queues a sequence of at most `context` tokens."""
        self.waiting.append(sequence)
        self.stats.prompt += len(sequence.tokens)

    def schedule(self) -> Step[S] | None:
        """The next step, or None when there is nothing left to do."""
        left = self._share_out()
        self._grow()
        self._publish()
        self._admit(left)
        if not self._running:
            if self.waiting:
                raise RuntimeError(f"{len(self.waiting)} sequences wait for blocks nobody holds")
            return None
        self.cache.prepare()
        return self._step()

    def complete(self, step: Step[S]) -> None:
        """To be called when the step has been computed."""
        self.slots.computed[step.rows] += step.counts
        self.cache.commit()
        self.stats.steps += 1
        self.stats.computed += int(step.bounds[-1])

    def append(self, sequence: S, tokens: Iterable[int]) -> None:
        """Adds tokens to a running sequence whose own are all computed."""
        sequence.tokens.extend(tokens)
        self.slots.total[sequence.slot] = len(sequence.tokens)
        self.slots.last[sequence.slot] = sequence.tokens[-1]

    def fork(self, parent: S, child: S) -> None:
        """Starts `child`, whose tokens go on from those of `parent` that are computed so far.

        It shares the parent's blocks. Where no slot or block is free it waits instead.
        """
        length = int(self.slots.computed[parent.slot])
        child.cached = parent.cached
        holding = None
        if parent.holding is not None and not self.slots.full:
            holding = self.cache.fork(parent.holding, length)
        if holding is None:
            self.waiting.appendleft(child)
        else:
            self._start(child, holding, length)

    def finish(self, sequence: S) -> None:
        """Takes a sequence out; its full blocks stay cached."""
        self.cache.free(self.slots.remove(sequence))
        del self._running[sequence]
        self._batch = None

    def shrink(self, step: Step[S]) -> bool:
        """After a step that needed too much memory: starts again with steps of half its size.

        Returns:
            False if the step was of one token.
        """
        self.step_tokens = len(step.inputs.tokens) // 2
        self.cache.abort()
        for sequence in reversed(list(self._running)):
            self._preempt(sequence)
        return self.step_tokens > 0

    def abort(self) -> None:
        """Takes all sequences out, whatever became of the last step."""
        self.cache.abort()
        for sequence in list(self._running):
            self.finish(sequence)
        self.waiting.clear()

    def _start(self, sequence: S, holding: Holding, computed: int) -> None:
        self.slots.add(sequence, holding, computed)
        self._running[sequence] = None
        self._batch = None

    def _preempt(self, sequence: S) -> None:
        self.finish(sequence)
        self.waiting.appendleft(sequence)
        self.stats.preemptions += 1

    def _ordered(self) -> tuple[list[S], np.ndarray]:
        """The running sequences in the order of the batch, and their slots."""
        if self._batch is None:
            order = sorted(self._running, key=lambda s: (s.owner or 0, s.place))
            self._batch = order, np.array([s.slot for s in order], np.int64)
        return self._batch

    def _share_out(self) -> int:
        """Divides the step's tokens among the running sequences; returns how many are left."""
        _, rows = self._ordered()
        slots = self.slots
        left = self.step_tokens - len(rows)
        more = slots.total[rows] - slots.computed[rows] - 1
        extra = np.clip(left - (np.cumsum(more) - more), 0, more)
        slots.count[rows] = 1 + extra
        return left - int(extra.sum())

    def _grow(self) -> None:
        """Gives running sequences the blocks that the step's tokens go to."""
        order, rows = self._ordered()
        needed = -(-self.slots.after(rows) // BLOCK_SIZE)
        for index in np.flatnonzero(needed > self.slots.blocks[rows]):
            sequence = order[index]
            while (holding := sequence.holding) and len(holding.blocks) < needed[index]:
                if self.cache.grow(holding):
                    self.slots.append_block(sequence.slot, holding.blocks[-1])
                else:
                    self._preempt(next(reversed(self._running)))

    def _publish(self) -> None:
        """Offers the blocks that the step fills to the sequences admitted from now on."""
        order, rows = self._ordered()
        full = self.slots.after(rows) // BLOCK_SIZE
        for index in np.flatnonzero(full > self.slots.published[rows]):
            self._publish_one(order[index])

    def _publish_one(self, sequence: S) -> None:
        slot, holding = sequence.slot, sequence.holding
        if holding is not None:
            length = int(self.slots.after(slot))
            self.cache.publish(holding, sequence.tokens, length)
            self.slots.published[slot] = length // BLOCK_SIZE

    def _admit(self, left: int) -> None:
        """Starts waiting sequences with the step's `left` tokens."""
        while self.waiting and left > 0 and not self.slots.full:
            sequence, tokens = self.waiting[0], self.waiting[0].tokens
            spare = len(self._running) + sequence.width if self._running else 0
            got = self.cache.acquire(sequence.owner, tokens, sequence.first_needed, spare)
            if got is None:
                return
            self.waiting.popleft()
            holding, computed = got
            if sequence.cached < 0:
                sequence.cached = computed
                self.stats.cached += computed
            self._start(sequence, holding, computed)
            count = min(len(tokens) - computed, left)
            self.slots.count[sequence.slot] = count
            left -= count
            self._publish_one(sequence)

    def _step(self) -> Step[S]:
        """A step that computes `count` tokens of each running sequence."""
        order, rows = self._ordered()
        slots = self.slots
        starts, counts = slots.computed[rows], slots.count[rows]
        ends = starts + counts
        bounds = np.zeros(len(rows) + 1, np.int32)
        np.cumsum(counts, out=bounds[1:])
        owner = np.repeat(np.arange(len(rows)), counts)
        positions = (np.arange(bounds[-1]) + (starts - bounds[:-1])[owner]).astype(np.int32)
        blocks = slots.block_table[rows[owner], positions // BLOCK_SIZE]
        table = slots.block_table[rows, : slots.blocks[rows].max()]
        tokens = slots.last[rows][owner]
        for index in np.flatnonzero((counts > 1) | (ends < slots.total[rows])):
            known = order[index].tokens[starts[index] : ends[index]]
            tokens[bounds[index] : bounds[index + 1]] = known
        return Step(
            sequences=order,
            rows=rows,
            starts=starts,
            counts=counts,
            bounds=bounds,
            done=ends == slots.total[rows],
            adapters=_adapter_ranges(order, bounds),
            inputs=Inputs(
                tokens=tokens,
                positions=positions,
                slots=blocks * BLOCK_SIZE + positions % BLOCK_SIZE,
                cu_seqlens=bounds,
                seq_lens=ends,
                block_table=table,
                shared_blocks=_shared_blocks(table, int(slots.blocks[rows].min())),
            ),
        )


def _shared_blocks(table: np.ndarray, shortest: int) -> int:
    """How many of the first `shortest` entries all rows have in common; 0 for one row."""
    if len(table) < 2 or (table[:, 0] != table[0, 0]).any():
        return 0
    differ = (table[:, :shortest] != table[0, :shortest]).any(0)
    return int(differ.argmax()) if differ.any() else shortest


def _adapter_ranges(order: list[S], bounds: np.ndarray) -> list[tuple[int, int, Adapter | None]]:
    ranges, start = [], 0
    for _, group in groupby(order, key=lambda s: s.owner):
        members = list(group)
        stop = start + len(members)
        ranges.append((int(bounds[start]), int(bounds[stop]), members[0].adapter))
        start = stop
    return ranges
