"""Packs hold every example once, within the budget, and share what can be shared."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.training.packing import MIN_PREFIX, Encoded, MicroBatch, pack, share
from kernels.cross_entropy import IGNORED

_BASE = tuple(random.Random(0).choices(range(50), k=80))


@st.composite
def encoded(draw: st.DrawFn, index: int = 0) -> Encoded:
    """Prompts are mostly cuts of one base text, so that they often share beginnings."""
    head = _BASE[: draw(st.integers(0, 80))]
    tail = tuple(draw(st.lists(st.integers(0, 3), min_size=1, max_size=5)))
    completion = tuple(draw(st.lists(st.integers(0, 99), min_size=1, max_size=6)))
    weight = draw(st.sampled_from([0.5, 1.0, 2.0]))
    return Encoded((*head, *tail, *completion), len(head) + len(tail), weight, index)


@st.composite
def batches(draw: st.DrawFn) -> list[Encoded]:
    count = draw(st.integers(1, 12))
    return [draw(encoded(index)) for index in range(count)]


def read_back(micro: MicroBatch) -> list[tuple[tuple[int, ...], tuple[int, ...], float]]:
    """(tokens read, targets, weight) of each example, from the tensors alone."""
    bounds, prefix = micro.segments.cu_seqlens.tolist(), micro.segments.prefix.tolist()
    users = {p for p in prefix if p >= 0}
    found = []
    assert torch.equal(micro.target_rows, (micro.targets != IGNORED).nonzero().squeeze(1))
    for s, p in enumerate(prefix):
        if s in users:
            continue
        rows = list(range(bounds[p], bounds[p + 1])) if p >= 0 else []
        rows += range(bounds[s], bounds[s + 1])
        assert micro.positions[rows].tolist() == list(range(len(rows)))
        targets = micro.targets[rows]
        weights = micro.weights[rows]
        assert (weights[targets == IGNORED] == 0).all()
        chosen = weights[targets != IGNORED].unique().tolist()
        assert len(chosen) == 1
        first = int((targets != IGNORED).nonzero()[0])
        assert (targets[first:] != IGNORED).all()
        tokens = tuple(micro.tokens[rows].tolist())
        found.append((tokens, tuple(targets[first:].tolist()), chosen[0]))
    return found


def expected(batch: list[Encoded]) -> list[tuple[tuple[int, ...], tuple[int, ...], float]]:
    return [(e.tokens[:-1], e.tokens[e.prompt_length :], e.weight) for e in batch]


@settings(max_examples=50, deadline=None)
@given(batches(), st.integers(1, 400), st.booleans())
def test_every_example_once_with_its_positions_targets_and_weight(
    batch: list[Encoded], budget: int, sharing: bool
) -> None:
    micros = pack(batch, budget, share_prefix=sharing)
    found = [example for micro in micros for example in read_back(micro)]
    assert sorted(found) == sorted(expected(batch))
    assert sorted(e.index for m in micros for e in m.examples) == list(range(len(batch)))


@settings(max_examples=50, deadline=None)
@given(batches(), st.integers(1, 400))
def test_the_budget_is_kept_unless_one_example_exceeds_it(
    batch: list[Encoded], budget: int
) -> None:
    for micro in pack(batch, budget):
        assert len(micro.tokens) <= budget or len(micro.examples) == 1


@settings(max_examples=50, deadline=None)
@given(batches(), st.integers(1, 400), st.randoms(use_true_random=False))
def test_the_order_of_examples_does_not_matter(
    batch: list[Encoded], budget: int, rng: random.Random
) -> None:
    shuffled = rng.sample(batch, len(batch))
    for one, other in zip(pack(batch, budget), pack(shuffled, budget), strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.weights, other.weights)
        assert torch.equal(one.segments.prefix, other.segments.prefix)


@settings(max_examples=50, deadline=None)
@given(batches())
def test_sharing_only_ever_saves(batch: list[Encoded]) -> None:
    groups = share(batch)
    assert sum(group.rows for group in groups) <= sum(example.rows for example in batch)
    for group in groups:
        assert group.prefix == 0 or (group.prefix >= MIN_PREFIX and len(group.examples) > 1)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.data())
def test_no_other_cut_into_groups_saves_more(count: int, data: st.DataObject) -> None:
    """Against every way to cut the sorted examples into runs, for up to seven examples."""
    batch = [data.draw(encoded(index)) for index in range(min(count, 7))]
    ordered = [example for group in share(batch) for example in group.examples]
    best = sum(group.rows for group in share(batch))
    for cuts in range(2 ** (len(ordered) - 1)):
        runs, run = [], [ordered[0]]
        for i, example in enumerate(ordered[1:]):
            if cuts >> i & 1:
                runs.append(run)
                run = []
            run.append(example)
        assert best <= sum(_cost(run) for run in [*runs, run])


def _cost(run: list[Encoded]) -> int:
    heads = [example.tokens[: example.prompt_length - 1] for example in run]
    prefix = 0
    while all(len(head) > prefix for head in heads) and len({h[prefix] for h in heads}) == 1:
        prefix += 1
    prefix = prefix if prefix >= MIN_PREFIX else 0
    return sum(example.rows for example in run) - (len(run) - 1) * prefix


def test_a_shared_prompt_is_computed_once() -> None:
    prompt = tuple(range(40))
    batch = [Encoded((*prompt, 50 + i, 60), 40, 1.0, i) for i in range(5)]
    (micro,) = pack(batch, 1000)
    assert len(micro.tokens) == 39 + 5 * 2
    assert micro.segments.prefix.tolist() == [-1, 0, 0, 0, 0, 0]


def test_two_tasks_in_one_batch_make_two_groups() -> None:
    one, other = tuple(range(30)), tuple(range(100, 140))
    batch = [
        Encoded((*(one if i % 2 else other), i, i), 31 + 10 * (1 - i % 2), 1.0, i) for i in range(6)
    ]
    assert [(g.prefix, len(g.examples)) for g in share(batch)] == [(30, 3), (40, 3)]


@pytest.mark.parametrize("budget", [60, 100, 10_000])
def test_a_large_group_is_cut_and_its_prefix_repeated(budget: int) -> None:
    prompt = tuple(range(40))
    batch = [Encoded((*prompt, 50 + i, 60, 61), 40, 1.0, i) for i in range(20)]
    micros = pack(batch, budget)
    own = 3  # the prompt's last token and two of the completion
    per_micro = (budget - 39) // own
    assert len(micros) == -(-20 // per_micro)
