"""Whether the engine's decode steps, recorded as graphs, compute what its prompts' passes do."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from bench.case import Shapes
from bench.gpu_race.models import NoText, model_config, random_model
from bench.gpu_race.results import Check
from bench.gpu_race.workbench import TINY, Job, Workbench
from engine.adapters.lora import LoraConfig, new_adapter
from engine.serving.generate import generate
from engine.serving.kv_cache import KVCache
from engine.serving.runner import Runner
from engine.serving.sample import Completion
from engine.serving.sampling_params import SamplingParams
from engine.serving.score import score
from engine.training.config import TrainConfig, TrainExample
from engine.training.train import train
from tests.kernels.oracle import FORWARD

_SMALL = Shapes(576, 1536, 49152, 9, 3, 64, 0)
_CACHE_BYTES = 1 << 28


def jobs(bench: Workbench) -> Iterator[Job]:
    yield "the engine: generate, train, generate", partial(_the_main_job, bench)


def _the_main_job(bench: Workbench) -> list[Check]:
    """Generates, trains an adapter and generates again, as a run does, with and without it."""
    config = model_config(TINY if bench.tiny else _SMALL, 4)
    text: Any = NoText()
    cache = KVCache(config, _CACHE_BYTES, bench.dtype, bench.device)
    runner = Runner(random_model(config, bench), text, cache)
    rng = random.Random(0)
    shared = rng.choices(range(config.vocab_size), k=150)
    given = [shared + rng.choices(range(config.vocab_size), k=5 + i) for i in range(11)]
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    first = generate(runner, given, params)
    checks = [_against_score(runner, given, first, "bare", bench)]

    adapter = new_adapter("check", LoraConfig(rank=8), config, bench.device)
    runner.release()
    examples = [TrainExample(row, list(each.ids)) for row, each in zip(given, first, strict=True)]
    train(runner.model, text, adapter, examples, TrainConfig(epochs=2, lr=1e-3))
    again = generate(runner, given, params)
    wrong = sum(a.ids != b.ids for a, b in zip(first, again, strict=True)) / len(given)
    checks.append(Check("generation after training: other tokens", wrong, 0.0))
    mixed = [adapter if i % 3 else None for i in range(len(given))]
    for name, adapters in (("one adapter", [adapter] * len(given)), ("some rows'", mixed)):
        found = generate(runner, given, params, adapters)
        checks.append(_against_score(runner, given, found, name, bench, adapters))
    return checks


def _against_score(
    runner: Runner,
    given: list[list[int]],
    found: list[Completion],
    name: str,
    bench: Workbench,
    adapters: Any = None,
) -> Check:
    """Log-probabilities of drawn tokens, and of the same as a prompt's continuation."""
    scored: Any = score(runner, given, [each.ids for each in found], adapters)
    drawn = torch.tensor([each.logprobs for each in found], dtype=torch.float64)
    exact = torch.tensor([each.token_logprobs for each in scored], dtype=torch.float64)
    error = ((drawn - exact).norm() / exact.norm()).item()
    return Check(f"decode steps against score, {name}", error, FORWARD[bench.dtype])
