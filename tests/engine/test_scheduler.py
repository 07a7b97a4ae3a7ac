"""Steps keep to their budgets, share what is in flight, and survive a cache that is too small."""

from __future__ import annotations

import numpy as np
import pytest

from engine.adapters.lora import Adapter, LoraConfig, new_adapter
from engine.serving.prefix_tree import BLOCK_SIZE
from engine.serving.scheduler import Scheduler, Stats, Step
from engine.serving.sequence import Sequence
from tests.engine import serving_setup


def scheduler(blocks: int = 64, **limits: int) -> Scheduler[Sequence]:
    cache = serving_setup.cache(serving_setup.model().config, blocks)
    return Scheduler(cache, min(512, blocks * BLOCK_SIZE), Stats(), **limits)


def sequence(tokens: list[int], place: int = 0, adapter: Adapter | None = None) -> Sequence:
    return Sequence(tokens=tokens, adapter=adapter, place=(place, 0))


def next_step(plan: Scheduler[Sequence]) -> Step[Sequence]:
    step = plan.schedule()
    assert step is not None
    plan.complete(step)
    return step


def test_a_step_says_which_tokens_go_where() -> None:
    plan = scheduler()
    plan.add(sequence(list(range(20)), 0))
    plan.add(sequence([100, 101, 102], 1))
    step = next_step(plan)
    assert step.inputs.tokens.tolist() == [*range(20), 100, 101, 102]
    assert step.inputs.positions.tolist() == [*range(20), 0, 1, 2]
    assert step.inputs.cu_seqlens.tolist() == [0, 20, 23]
    assert step.inputs.seq_lens.tolist() == [20, 3]
    assert step.done.all()
    table, owner = step.inputs.block_table, np.repeat([0, 1], [20, 3])
    blocks = table[owner, step.inputs.positions // BLOCK_SIZE]
    slots = blocks * BLOCK_SIZE + step.inputs.positions % BLOCK_SIZE
    assert np.array_equal(step.inputs.slots, slots)
    assert len(set(step.inputs.slots.tolist())) == 23


def test_decoding_adds_one_token_of_each_sequence() -> None:
    plan = scheduler()
    both = [sequence(list(range(16)), 0), sequence([50, 51], 1)]
    for one in both:
        plan.add(one)
    next_step(plan)
    for one, token in zip(both, (7, 8), strict=True):
        plan.append(one, [token])
    step = next_step(plan)
    assert step.inputs.tokens.tolist() == [7, 8]
    assert step.inputs.positions.tolist() == [16, 2]
    assert step.inputs.seq_lens.tolist() == [17, 3]


def test_long_prompts_are_cut_to_the_budget_and_decodes_go_on_beside_them() -> None:
    plan = scheduler(step_tokens=10)
    short, long = sequence([1, 2, 3], 0), sequence(list(range(30)), 1)
    plan.add(short)
    plan.add(long)
    step = next_step(plan)
    assert step.counts.tolist() == [3, 7]
    assert step.done.tolist() == [True, False]
    plan.append(short, [4])
    step = next_step(plan)
    assert step.counts.tolist() == [1, 9]
    assert step.inputs.tokens.tolist() == [4, *range(7, 16)]
    assert step.inputs.positions.tolist() == [3, *range(7, 16)]


def test_no_more_than_max_sequences_run() -> None:
    plan = scheduler(max_sequences=2)
    rows = [sequence([i, i + 1], i) for i in range(5)]
    for one in rows:
        plan.add(one)
    assert next_step(plan).sequences == rows[:2]
    plan.finish(rows[0])
    plan.append(rows[1], [9])
    assert next_step(plan).sequences == rows[1:3]


def test_prompts_of_one_step_share_the_blocks_being_computed() -> None:
    plan = scheduler()
    prefix = list(range(32))
    for place in range(4):
        plan.add(sequence([*prefix, 100 + place, 200], place))
    step = next_step(plan)
    assert step.counts.tolist() == [34, 2, 2, 2]
    assert (step.inputs.block_table[:, :2] == step.inputs.block_table[0, :2]).all()
    assert len(set(step.inputs.block_table[:, 2].tolist())) == 4
    assert plan.stats.cached == 3 * 32


def test_a_step_counts_the_blocks_that_all_its_sequences_share() -> None:
    plan = scheduler()
    prefix = list(range(40))
    both = [sequence([*prefix, *range(100 * place, 100 * place + 20)], place) for place in (1, 2)]
    plan.add(both[0])
    assert next_step(plan).inputs.shared_blocks == 0
    plan.add(both[1])
    plan.append(both[0], [7])
    assert next_step(plan).inputs.shared_blocks == 2
    plan.append(both[0], [8])
    plan.add(sequence(prefix[:20], 0))  # its second block is partly filled, so a copy
    assert next_step(plan).inputs.shared_blocks == 1
    plan.finish(both[0])
    plan.add(sequence([9, *prefix], 3))
    assert next_step(plan).inputs.shared_blocks == 0


def test_part_of_a_computed_block_is_copied() -> None:
    plan = scheduler()
    one = sequence([*range(32), 1], 0)
    plan.add(one)
    next_step(plan)
    plan.append(one, [5])
    plan.add(sequence([*range(24), 77, 78], 1))
    step = next_step(plan)
    assert step.starts.tolist() == [33, 24]
    assert step.inputs.block_table[0, 0] == step.inputs.block_table[1, 0]
    assert step.inputs.block_table[0, 1] != step.inputs.block_table[1, 1]


def test_rows_of_one_adapter_stand_together() -> None:
    config = serving_setup.model().config
    adapters = [new_adapter(name, LoraConfig(rank=2), config, serving_setup.CPU) for name in "ab"]
    plan = scheduler()
    for place in range(6):
        plan.add(sequence([1, 2, 3 + place], place, [None, *adapters][place % 3]))
    step = next_step(plan)
    found = [(start, stop, adapter and adapter.name) for start, stop, adapter in step.adapters]
    assert found == [(0, 6, None), (6, 12, "a"), (12, 18, "b")]
    assert [one.place[0] for one in step.sequences] == [0, 3, 1, 4, 2, 5]


def test_the_youngest_gives_way_when_blocks_run_out() -> None:
    plan = scheduler(blocks=5)
    old, young = sequence(list(range(20)), 0), sequence(list(range(50, 65)), 1)
    plan.add(old)
    plan.add(young)
    next_step(plan)
    for token in range(40):
        for one in (old, young):
            if one.slot >= 0 and plan.slots.total[one.slot] == plan.slots.computed[one.slot]:
                plan.append(one, [token])
        next_step(plan)
    assert plan.stats.preemptions >= 1
    assert young in plan.waiting
    assert len(old.tokens) == 60
    plan.finish(old)
    step = next_step(plan)
    assert step.sequences == [young]
    assert plan.cache.pool.held == len(young.holding.blocks if young.holding else ())
    plan.abort()
    assert plan.cache.pool.held == 0


def test_a_failed_step_leaves_nothing_to_find() -> None:
    plan = scheduler()
    plan.add(sequence(list(range(40)), 0))
    assert plan.schedule() is not None
    plan.abort()
    assert plan.cache.pool.held == 0
    assert len(plan.cache.tree) == 0
    plan.add(sequence(list(range(40)), 0))
    assert next_step(plan).starts.tolist() == [0]


@pytest.mark.parametrize("free_slot", [True, False])
def test_a_fork_shares_full_blocks_or_waits(free_slot: bool) -> None:
    plan = scheduler(max_sequences=2 if free_slot else 1)
    parent = sequence(list(range(20)), 0)
    plan.add(parent)
    next_step(plan)
    child = sequence([*range(20), 5], 1)
    plan.fork(parent, child)
    plan.append(parent, [4])
    step = next_step(plan)
    if not free_slot:
        assert list(plan.waiting) == [child]
        return
    assert step.counts.tolist() == [1, 1]
    assert step.inputs.block_table[0, 0] == step.inputs.block_table[1, 0]
    assert step.inputs.block_table[0, 1] != step.inputs.block_table[1, 1]
