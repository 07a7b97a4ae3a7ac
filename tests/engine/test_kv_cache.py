"""The allocator under random use: nothing leaks, nothing is freed twice, every copy is right."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.errors import RequestError
from engine.serving.block_pool import BlockPool
from engine.serving.kv_cache import Holding, KVCache, blocks_for
from engine.serving.prefix_tree import BLOCK_SIZE
from tests.engine import serving_setup

BLOCKS = 10
LONGEST = 4 * BLOCK_SIZE


@dataclass
class Running:
    tokens: list[int]
    owner: int | None
    holding: Holding
    computed: int


def content(running: Running, position: int) -> float:
    """Stands for a key: it depends on the owner and on all tokens up to its own."""
    return float(hash((running.owner, *running.tokens[: position + 1])) % (1 << 20))


class CacheMachine(RuleBasedStateMachine):
    """Does to a small cache what the scheduler may do, and writes what a model would."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = serving_setup.cache(serving_setup.model().config, BLOCKS)
        self.running: list[Running] = []

    def _computed(self) -> list[Running]:
        return [r for r in self.running if r.computed == len(r.tokens)]

    @rule(
        pieces=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 20)), min_size=1, max_size=4),
        owner=st.sampled_from([None, 7]),
        spare=st.integers(0, 2),
    )
    def admit(self, pieces: list[tuple[int, int]], owner: int | None, spare: int) -> None:
        tokens = [token for token, count in pieces for _ in range(count)][:LONGEST]
        before = self.cache.pool.available
        got = self.cache.acquire(owner, tokens, len(tokens) - 1, spare)
        if got is None:
            assert self.cache.pool.available == before < blocks_for(len(tokens)) + spare
            return
        holding, computed = got
        assert computed < len(tokens)
        assert self.cache.pool.available >= spare
        self.cache.publish(holding, tokens, len(tokens))
        self.running.append(Running(tokens, owner, holding, computed))

    @precondition(_computed)
    @rule(data=st.data(), token=st.integers(0, 2))
    def fork(self, data: st.DataObject, token: int) -> None:
        parent = data.draw(st.sampled_from(self._computed()))
        holding = self.cache.fork(parent.holding, parent.computed)
        if holding is not None:
            tokens = [*parent.tokens, token]
            self.running.append(Running(tokens, parent.owner, holding, parent.computed))

    @precondition(_computed)
    @rule(data=st.data(), token=st.integers(0, 2))
    def append(self, data: st.DataObject, token: int) -> None:
        one = data.draw(st.sampled_from(self._computed()))
        if len(one.tokens) < LONGEST:
            one.tokens.append(token)

    @precondition(_computed)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self._computed()))
        self.cache.free(one.holding)
        self.running.remove(one)

    @rule()
    def step(self) -> None:
        for one in list(self.running):
            if len(one.holding.blocks) < blocks_for(len(one.tokens)):
                if not self.cache.grow(one.holding):
                    self.cache.free(one.holding)
                    self.running.remove(one)
                    continue
                self.cache.publish(one.holding, one.tokens, len(one.tokens))
        self.cache.prepare()
        for one in self.running:
            for position in range(one.computed, len(one.tokens)):
                block = one.holding.blocks[position // BLOCK_SIZE]
                self.cache.keys[0][block, position % BLOCK_SIZE] = content(one, position)
            one.computed = len(one.tokens)
        self.cache.commit()

    @rule()
    def interrupt(self) -> None:
        self.cache.abort()
        for one in self.running:
            self.cache.free(one.holding)
        self.running = []

    @invariant()
    def every_reference_is_a_holder(self) -> None:
        held = Counter(block for one in self.running for block in one.holding.blocks)
        pool = self.cache.pool
        assert pool.references == [held[block] for block in range(BLOCKS)]
        assert pool.held == len(held)

    @invariant()
    def contents_are_the_sequences_own(self) -> None:
        if self.cache.keys and not self.cache._copies:
            for one in self._computed():
                blocks = self.cache.keys[0][one.holding.blocks, :, 0, 0].flatten()
                expected = [content(one, position) for position in range(one.computed)]
                assert blocks[: one.computed].tolist() == expected

    @invariant()
    def no_cached_block_is_out_of_reach(self) -> None:
        nodes = [self.cache.tree.root(None), self.cache.tree.root(7)]
        for node in nodes:
            nodes += node.children.values()
        assert len(nodes) - 2 == len(self.cache.tree)

    def teardown(self) -> None:
        self.step()
        self.contents_are_the_sequences_own()
        for one in self.running:
            self.cache.free(one.holding)
        assert self.cache.pool.available == BLOCKS


CacheMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestCacheMachine = CacheMachine.TestCase


def test_freeing_twice_is_a_fault() -> None:
    pool = BlockPool(2, evict=lambda block: None)
    assert pool.allocate(1) == [0]
    pool.release(0)
    with pytest.raises(RuntimeError, match="block 0 was freed twice"):
        pool.release(0)
    with pytest.raises(RuntimeError, match="block 0 is free"):
        pool.share(0)


def test_the_longest_idle_block_is_evicted_first() -> None:
    evicted: list[int] = []
    pool = BlockPool(3, evicted.append)
    assert pool.allocate(3) == [0, 1, 2]
    for block in (2, 0, 1):
        pool.publish(block)
        pool.release(block)
    pool.share(2)
    pool.release(2)
    assert pool.allocate(2) == [0, 1]
    assert evicted == [0, 1]
    assert pool.allocate(2) is None
    assert pool.available == 1


def test_untouched_blocks_are_spared_beyond_the_roomy_part() -> None:
    evicted: list[int] = []
    pool = BlockPool(10, evicted.append, roomy=2)
    for expected in (0, 1, 0):
        assert pool.allocate(1) == [expected]
        pool.publish(expected)
        pool.release(expected)
    assert evicted == [0]


def test_memory_is_taken_on_first_use_and_given_back() -> None:
    cache = serving_setup.cache(serving_setup.model().config, 4)
    assert cache.keys == []
    holding, _ = cache.acquire(None, list(range(40)), 39) or (None, 0)
    assert holding is not None
    cache.prepare()
    assert [tuple(k.shape) for k in cache.keys] == [(4, BLOCK_SIZE, 4, 16)] * 2
    cache.free(holding)
    cache.release()
    assert cache.keys == cache.values == []
    assert cache.pool.available == 4


def test_a_budget_below_one_block_is_refused() -> None:
    with pytest.raises(RequestError, match="budget of 10 bytes"):
        KVCache(serving_setup.model().config, 10, torch.float32, serving_setup.CPU)
