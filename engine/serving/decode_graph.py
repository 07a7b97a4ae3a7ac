"""Decode steps of few sequences, recorded once and replayed: Python's share was a third."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor

from engine.adapters.lora import InferenceLora
from engine.model import Llama
from engine.serving.kv_cache import KVCache
from engine.serving.paged import PagedAttention
from engine.serving.prefix_tree import BLOCK_SIZE
from engine.serving.scheduler import S, Step
from kernels.recording import can_record, record

_MOST_SEQUENCES = 4  # steps of more have enough to compute to hide Python's share
_MOST_GRAPHS = 8


class DecodeGraph:
    """One new token for each of S sequences, as recorded kernel calls.

    Its tensors have the names and meanings of `Step`'s; `load` overwrites them with a step's.

    Args:
        model: whose blocks are recorded.
        cache: whose present tensors they read and write.
        step: the first step, computed while it is recorded.
    """

    def __init__(self, model: Llama, cache: KVCache, step: Step[S]) -> None:
        self.model = model
        longest = -(-model.config.max_positions // BLOCK_SIZE)
        self.embedded = model.embed(step.tokens)
        self.positions, self.slots = step.positions.clone(), step.slots.clone()
        self.cu_seqlens, self.seq_lens = step.cu_seqlens.clone(), step.seq_lens.clone()
        self.block_table = step.block_table.new_zeros(len(step.block_table), longest)
        self._load(step)
        attend, lora = PagedAttention(model.config, cache, self), InferenceLora(step.adapters)
        lora.prepare(model.dtype)
        with record() as self._recording:
            self.hidden = model.blocks(self.embedded, self.positions, attend, lora)

    def replay(self, step: Step[S]) -> Tensor:
        """`hidden [S, W]` of a step; overwritten by the next one."""
        self._load(step)
        self._recording.replay()
        return self.hidden

    def _load(self, step: Step[S]) -> None:
        self.embedded.copy_(self.model.embed(step.tokens))
        self.positions.copy_(step.positions)
        self.slots.copy_(step.slots)
        self.seq_lens.copy_(step.seq_lens)
        self.block_table[:, : step.block_table.shape[1]].copy_(step.block_table)


class DecodeGraphs:
    """The recordings at hand, by the sequences' adapters; the one unused for longest goes first."""

    def __init__(self, model: Llama, cache: KVCache) -> None:
        self.model, self.cache = model, cache
        self._graphs: OrderedDict[tuple[object, ...], DecodeGraph] = OrderedDict()
        self._generation = cache.generation  # recordings hold addresses in its tensors

    def clear(self) -> None:
        """Forgets all recordings and frees their memory."""
        self._graphs.clear()

    def hidden(self, step: Step[S]) -> Tensor | None:
        """`[S, W]` of a step that a recording can compute, else None."""
        sequences = len(step.sequences)
        few = sequences <= _MOST_SEQUENCES and len(step.tokens) == sequences
        if not few or not can_record(self.model.embedding):
            return None
        if self._generation != self.cache.generation:
            self.clear()
            self._generation = self.cache.generation
        key = tuple(one.owner for one in step.sequences)
        graph = self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
            return graph.replay(step)
        graph = self._graphs[key] = DecodeGraph(self.model, self.cache, step)
        if len(self._graphs) > _MOST_GRAPHS:
            self._graphs.popitem(last=False)
        return graph.hidden
