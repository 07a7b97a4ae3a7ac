"""Decode steps, recorded once and replayed: between their kernel calls Python takes too long."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict

import numpy as np
from torch import Tensor

from engine.adapters.lora import Adapter, InferenceLora
from engine.memory import give_back, unless_out_of_memory
from engine.model import Llama
from engine.serving.inputs import Inputs
from engine.serving.kv_cache import KVCache, blocks_for
from engine.serving.paged import PagedAttention
from engine.serving.scheduler import S, Step
from kernels.recording import can_record, record
from kernels.upload import pack, unpack

SIZES = {"cpu": [1, 2, 3, 4], "cuda": [1, 2, 4, 8, 16, 32, 48, 64, *range(96, 513, 32)]}
"""Sequences for which steps are recorded; fewer are filled up to the next number. From 5 on
a CPU has enough to compute to hide Python's share."""
_MIXED = 4  # sequences; above, steps of several adapters differ too often to be recorded
_SHARING = 8  # sequences from which a shared prefix, in whole multiples of as many blocks, is known
_MOST_GRAPHS = {"cpu": 8, "cuda": 64}


class DecodeGraph:
    """One new token for each of R sequences, as recorded kernel calls.

    Its inputs stay where they are, and `replay` overwrites them with a step's. A step of fewer
    sequences is filled up with copies of its last row, which compute and store the same once more.

    Args:
        model: whose blocks are recorded.
        cache: whose present tensors they read and write.
        step: the first step, computed while it is recorded.
        rows: R, at least the step's sequences.
        width: blocks in a row of the block table, at least the step's.
        shared_blocks: leading blocks that all sequences share, at most the step's, in replays too.
    """

    def __init__(
        self,
        model: Llama,
        cache: KVCache,
        step: Step[S],
        rows: int,
        width: int,
        shared_blocks: int,
    ) -> None:
        self.model, self.rows, self.width = model, rows, width
        first = self._filled(step).arrays
        self._buffer = pack(first, model.device).to(model.device)
        self._inputs = Inputs(*unpack(self._buffer, first), shared_blocks=shared_blocks)
        self._embedded = model.embed(self._inputs.tokens)
        self._lora = InferenceLora(_filled_ranges(step.adapters, rows))  # replays read its tables
        self._lora.prepare(model.dtype)
        attend = PagedAttention(model.config, cache, self._inputs)
        self._recording = record(
            lambda: model.blocks(self._embedded, self._inputs.positions, attend, self._lora),
            self._embedded,
        )

    def replay(self, step: Step[S]) -> Tensor:
        """`hidden [S, W]` of a step; overwritten by the next one."""
        self._buffer.copy_(pack(self._filled(step).arrays, self.model.device), non_blocking=True)
        self._embedded.copy_(self.model.embed(self._inputs.tokens))
        self._recording.replay()
        return self.hidden(step)

    def hidden(self, step: Step[S]) -> Tensor:
        """`[S, W]` of the step that was computed last."""
        return self._recording.result[: len(step.sequences)]

    def _filled(self, step: Step[S]) -> Inputs[np.ndarray]:
        """The step's inputs with R rows, and `width` columns of the block table."""
        inputs = step.inputs
        more = self.rows - len(step.sequences)
        table = np.pad(inputs.block_table, ((0, 0), (0, self.width - inputs.block_table.shape[1])))
        rows = [inputs.tokens, inputs.positions, inputs.slots, inputs.seq_lens, table]
        tokens, positions, slots, seq_lens, table = (
            np.concatenate([each, np.repeat(each[-1:], more, axis=0)]) for each in rows
        )
        bounds = np.arange(self.rows + 1, dtype=np.int32)
        return Inputs(
            tokens, positions, slots, bounds, seq_lens, table, shared_blocks=inputs.shared_blocks
        )


def _filled_ranges(
    adapters: list[tuple[int, int, Adapter | None]], rows: int
) -> list[tuple[int, int, Adapter | None]]:
    """The ranges, the last one up to `rows`."""
    start, _, adapter = adapters[-1]
    return [*adapters[:-1], (start, rows, adapter)]


class DecodeGraphs:
    """The recordings at hand, by the sequences' adapters; the one unused for longest goes first."""

    def __init__(self, model: Llama, cache: KVCache) -> None:
        self.model, self.cache = model, cache
        self._graphs: OrderedDict[tuple[object, ...], DecodeGraph] = OrderedDict()
        self._seen: set[tuple[object, ...]] = set()
        self._generation = cache.generation  # recordings hold addresses in its tensors
        self.clear()

    def clear(self) -> None:
        """Forgets all recordings and frees their memory."""
        self._graphs.clear()
        self._seen.clear()
        self.sizes = SIZES.get(self.model.device.type, [])

    def hidden(self, step: Step[S]) -> Tensor | None:
        """`[S, W]` of a step that a recording can compute, else None."""
        rows = self._rows(step)
        model = self.model
        if rows is None or not can_record(model.embedding, model.layers[0].qkv):
            return None
        if self._generation != self.cache.generation:
            self.clear()
            self._generation = self.cache.generation
        shape = rows, self._width(step), self._shared_blocks(step)
        key = *shape, *_owners(step)
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
            return graph.replay(step)
        return self._record(key, step, shape) if self._worth_recording(key) else None

    def _record(
        self, key: tuple[object, ...], step: Step[S], shape: tuple[int, int, int]
    ) -> Tensor | None:
        """Computes the step and keeps its recording; None where there is no memory for that."""
        graph = unless_out_of_memory(lambda: DecodeGraph(self.model, self.cache, step, *shape))
        if graph is None:
            self.clear()
            self.sizes = []  # until memory is given back
            give_back()
            return None
        self._graphs[key] = graph
        if len(self._graphs) > _MOST_GRAPHS[self.model.device.type]:
            self._graphs.popitem(last=False)
        return graph.hidden(step)

    def _worth_recording(self, key: tuple[object, ...]) -> bool:
        """On a GPU a recording costs some steps' time, and a batch that drains passes many sizes:
        it is made when a step of the kind comes again."""
        if self.model.device.type == "cpu" or key in self._seen:
            return True
        self._seen.add(key)
        return False

    def _rows(self, step: Step[S]) -> int | None:
        """The number of sequences to record for, or None where the step is not to be recorded."""
        sequences = len(step.sequences)
        if len(step.inputs.tokens) != sequences or not self.sizes or sequences > self.sizes[-1]:
            return None
        if sequences > _MIXED and len(step.adapters) > 1:
            return None
        return self.sizes[bisect_left(self.sizes, sequences)]

    def _width(self, step: Step[S]) -> int:
        """Columns of the block table: on the CPU the most there can be; unused ones cost nothing.

        On a GPU each stands for programs that find nothing to do, so it is a power of two.
        """
        longest = blocks_for(self.model.config.max_positions)
        if self.model.device.type == "cpu":
            return longest
        return min(longest, 1 << (step.inputs.block_table.shape[1] - 1).bit_length())

    def _shared_blocks(self, step: Step[S]) -> int:
        """What a recording may take for shared: rounded down, so that few are made. On the CPU the
        kernel finds out by itself."""
        if self.model.device.type == "cpu" or len(step.sequences) < _SHARING:
            return 0
        return step.inputs.shared_blocks // _SHARING * _SHARING


def _owners(step: Step[S]) -> list[int | None]:
    """What tells the adapters of the step's rows apart."""
    owners = [one.owner for one in step.sequences]
    return owners[:1] if len(step.adapters) == 1 else owners
