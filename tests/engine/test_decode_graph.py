"""Replayed decode steps compute what ordinary ones do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.adapters.lora import Adapter, LoraConfig, new_adapter
from engine.serving import decode_graph
from engine.serving.generate import generate
from engine.serving.sample import Completion
from engine.serving.sampling_params import SamplingParams
from kernels import cpu
from tests.engine.serving_setup import CPU, greedy, model, results, runner

pytestmark = pytest.mark.skipif(cpu.native is None, reason="needs the C++ backend")

PROMPTS = [[5 + 7 * i % 600 for i in range(n)] for n in (40, 3, 17)]


def trained(seed: int) -> Adapter:
    """An adapter that changes the model."""
    adapter = new_adapter("a", LoraConfig(rank=4), model().config, CPU, seed)
    generator = torch.Generator().manual_seed(seed)
    for pair in adapter.pairs.values():
        pair.b.normal_(0, 0.3, generator=generator)
    return adapter


def both_ways(
    monkeypatch: pytest.MonkeyPatch, adapters: list[Adapter | None], params: SamplingParams
) -> tuple[list[Completion], list[Completion]]:
    replayed = generate(runner(), PROMPTS, params, adapters)
    monkeypatch.setitem(decode_graph.SIZES, "cpu", [])
    return replayed, generate(runner(), PROMPTS, params, adapters)


@pytest.mark.parametrize("family", ["llama2", "mistral", "qwen2", "qwen3"])
def test_every_family_decodes_the_same(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    replayed = generate(runner(family), PROMPTS, greedy(40))
    monkeypatch.setitem(decode_graph.SIZES, "cpu", [])
    assert replayed == generate(runner(family), PROMPTS, greedy(40))


def test_rows_of_several_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = [trained(1), None, trained(2)]
    replayed, ordinary = both_ways(monkeypatch, mixed, greedy(20))
    assert replayed == ordinary
    assert results(replayed) != results(generate(runner(), PROMPTS, greedy(20)))


@pytest.mark.parametrize("adapters", [[None] * 3, [trained(1)] * 3, [trained(1), None, None]])
def test_steps_are_filled_up_to_a_recorded_size(
    monkeypatch: pytest.MonkeyPatch, adapters: list[Adapter | None]
) -> None:
    monkeypatch.setitem(decode_graph.SIZES, "cpu", [8])
    sampled = SamplingParams(temperature=1.0, n=2, max_tokens=30, seed=5)
    replayed, ordinary = both_ways(monkeypatch, adapters, sampled)
    assert replayed == ordinary


def test_recorded_sizes_serve_all_steps_up_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(decode_graph.SIZES, "cpu", [2, 4])
    run = runner()
    for prompts in (PROMPTS[:1], PROMPTS[:2], PROMPTS):
        generate(run, prompts, SamplingParams(temperature=0, max_tokens=9, ignore_eos=True))
    assert len(run.graphs._graphs) == 2


def test_a_first_token_with_a_fresh_adapter() -> None:
    (completion,) = generate(runner(), [[7]], greedy(5), trained(3))
    (again,) = generate(runner(), [[7]], greedy(5), trained(3))
    assert completion == again


def test_sequences_that_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled = SamplingParams(temperature=1.0, n=3, max_tokens=30, seed=3)
    replayed, ordinary = both_ways(monkeypatch, [None] * 3, sampled)
    assert replayed == ordinary


def test_a_retrained_adapter_is_recorded_anew() -> None:
    run, adapter = runner(), trained(1)
    before = generate(run, PROMPTS[:1], greedy(20), adapter)
    adapter.assign(trained(2).pairs)
    after = generate(run, PROMPTS[:1], greedy(20), adapter)
    fresh = generate(runner(), PROMPTS[:1], greedy(20), trained(2))
    assert results(after) == results(fresh) != results(before)


def test_recordings_follow_the_cache_and_stay_few() -> None:
    run = runner()
    expected = results(generate(run, PROMPTS, greedy()))
    first = dict(run.graphs._graphs)
    run.cache.release()
    assert results(generate(run, PROMPTS, greedy())) == expected
    assert first
    assert not set(first.values()) & set(run.graphs._graphs.values())
    for seed in range(12):
        generate(run, PROMPTS[:1], replace(greedy(4), seed=seed), trained(seed))
    assert len(run.graphs._graphs) <= 8


def test_without_memory_for_recordings_steps_are_computed_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = results(generate(runner(), PROMPTS, greedy(20)))
    tried = []

    def refuse(*_: object) -> None:
        tried.append(1)
        try:
            raise MemoryError
        except MemoryError:
            raise RuntimeError("capture invalidated")  # noqa: B904 (as torch's capture does)

    monkeypatch.setattr(decode_graph, "DecodeGraph", refuse)
    run = runner()
    assert results(generate(run, PROMPTS, greedy(20))) == expected
    assert len(tried) == 1
    run.release()
    generate(run, PROMPTS, greedy(20))
    assert len(tried) == 2
