"""Whole models of random weights, made on the device: decoding and LoRA training by the engine."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bench.case import Shapes
from bench.gpu_race.results import OURS, Goal, Timing
from bench.gpu_race.workbench import TINY, Job, Skipped, Workbench
from engine.adapters.lora import LoraConfig, new_adapter
from engine.config import ModelConfig
from engine.model import Layer, Llama
from engine.serving.generate import generate
from engine.serving.kv_cache import KVCache
from engine.serving.runner import Runner
from engine.serving.sampling_params import SamplingParams
from engine.training.config import TrainConfig, TrainExample, TrainProgress
from engine.training.train import train

RANK, ALPHA, STEPS = 16, 32, 4  # the first two steps of a training are not timed


@dataclass(frozen=True)
class Plan:
    """What is run, of a model that fits the card."""

    name: str
    model: ModelConfig
    batches: tuple[int, ...]
    context: int
    shared: int
    new_tokens: int
    step_examples: int
    micro_examples: int

    @classmethod
    def of(cls, bench: Workbench) -> Plan:
        """The largest of a few models whose weights take two fifths of the free memory at most."""
        if bench.tiny:
            return cls("tiny", model_config(TINY, 2), (1, 3), 48, 32, 4, 2, 1)
        fitting = [
            (name, config)
            for name, config in _MODELS.items()
            if 2 * parameters(config) + 2 * config.vocab_size * config.hidden_size
            < 0.4 * bench.free
        ]
        name, config = fitting[0] if fitting else list(_MODELS.items())[-1]
        return cls(name, config, (1, 64, 256), 1024, 768, 64, 16, 4)

    def decode_name(self, batch: int, shared: int = 0) -> str:
        what = f", {shared} shared" if shared else ""
        return f"decode {self.name}, {batch} x {self.context}{what}"

    def train_name(self, at_once: int) -> str:
        return f"train {self.name}, {self.step_examples} x {self.context}, {at_once} at a time"

    def step_bytes(self, batch: int) -> float:
        """What a decode step reads: every weight once, and every sequence's keys and values."""
        cached = batch * (self.context + self.new_tokens / 2) * self.token_bytes
        return 2.0 * parameters(self.model) + cached

    @property
    def token_bytes(self) -> int:
        """Keys and values of a token in all layers."""
        c = self.model
        return 2 * c.num_layers * c.num_kv_heads * c.head_dim * 2

    @property
    def train_flops(self) -> float:
        """Of a step: forward and the gradient of the activations, the head on targets alone."""
        c, examples = self.model, self.step_examples
        rows, targets = self.context - 1, self.context - self.shared
        head = c.vocab_size * c.hidden_size
        attention = 7.0 * rows**2 * c.num_heads * c.head_dim * c.num_layers
        return examples * (4.0 * (parameters(c) - head) * rows + 4.0 * head * targets + attention)


def model_config(shapes: Shapes, layers: int) -> ModelConfig:
    return ModelConfig(
        architecture="llama",
        vocab_size=shapes.vocabulary,
        hidden_size=shapes.width,
        intermediate_size=shapes.inner,
        num_layers=layers,
        num_heads=shapes.heads,
        num_kv_heads=shapes.kv_heads,
        head_dim=shapes.head,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=None,
        max_positions=2048,
        tie_word_embeddings=False,
        attention_bias=False,
        output_bias=False,
        qk_norm=False,
        layer_windows=(None,) * layers,
        bos_token_id=None,
        eos_token_ids=(),
    )


_MODELS = {
    "8B": model_config(Shapes(4096, 14336, 128256, 32, 8, 128, 0), 32),
    "1B": model_config(Shapes(2048, 8192, 128256, 32, 8, 64, 0), 16),
    "135M": model_config(Shapes(576, 1536, 49152, 9, 3, 64, 0), 30),
}


def parameters(c: ModelConfig) -> int:
    """Weights that every token is multiplied with: all but the embedding."""
    qkv = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    block = qkv + c.num_heads * c.head_dim + 3 * c.intermediate_size
    return c.hidden_size * (c.num_layers * block + c.vocab_size)


def random_model(config: ModelConfig, bench: Workbench) -> Llama:
    """Weights as an untrained model's."""

    def matrix(*shape: int) -> Tensor:
        return torch.empty(shape, device=bench.device, dtype=bench.dtype).normal_(std=0.02)

    def ones() -> Tensor:
        return torch.ones(config.hidden_size, device=bench.device, dtype=bench.dtype)

    width, inner = config.hidden_size, config.intermediate_size
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layers = [
        Layer(
            attn_norm=ones(),
            qkv=matrix(heads + 2 * kv_heads, width),
            qkv_bias=None,
            q_norm=None,
            k_norm=None,
            o=matrix(width, heads),
            o_bias=None,
            mlp_norm=ones(),
            gate_up=matrix(2 * inner, width),
            down=matrix(width, inner),
        )
        for _ in range(config.num_layers)
    ]
    embedding, head = matrix(config.vocab_size, width), matrix(config.vocab_size, width)
    return Llama(config, embedding, layers, ones(), head)


class NoText:
    """Stands where a tokenizer does: prompts are ids, and nobody reads what is generated."""

    eos_ids: tuple[int, ...] = ()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return []

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    encode_continuation = encode

    def decode_continuation(self, ids: Sequence[int]) -> str:
        return ""


def prompts(plan: Plan, count: int, shared: int) -> list[list[int]]:
    """Random ids, the first `shared` of each the same; fewer are the beginning of more."""
    rng = random.Random(shared)
    ids = range(plan.model.vocab_size)
    prefix = rng.choices(ids, k=shared)
    return [prefix + rng.choices(ids, k=plan.context - shared) for _ in range(count)]


class _Decoder:
    """The model behind a KV cache that holds the largest batch."""

    def __init__(self, bench: Workbench) -> None:
        self.bench, self.plan = bench, Plan.of(bench)

    @cached_property
    def runner(self) -> Runner:
        model = random_model(self.plan.model, self.bench)
        wanted = int(1.15 * self._cache_bytes(max(self.plan.batches)))
        budget = wanted if self.bench.tiny else min(wanted, int(0.85 * self.bench.free))
        cache = KVCache(self.plan.model, budget, self.bench.dtype, self.bench.device)
        text: Any = NoText()
        return Runner(model, text, cache)

    def _cache_bytes(self, batch: int) -> int:
        length = self.plan.context + self.plan.new_tokens + 16
        return batch * length * self.plan.token_bytes

    def decode(self, batch: int, shared: int) -> Timing:
        """New tokens behind prompts that are in the cache, by the clock on the wall."""
        plan, runner = self.plan, self.runner
        held, wanted = runner.cache.num_blocks * runner.cache.block_bytes, self._cache_bytes(batch)
        if held < wanted:
            raise Skipped(f"needs {wanted / 1e9:.0f} GB for keys and values, has {held / 1e9:.0f}")
        given = prompts(plan, batch, shared)
        params = SamplingParams(max_tokens=plan.new_tokens, ignore_eos=True)
        run = partial(generate, runner, given, params)
        run()  # computes the prompts, compiles, records
        bound = {(1, 0): 0.85, (256, plan.shared): 2.0}.get((batch, shared))
        return Timing(
            plan.decode_name(batch, shared),
            plan.step_bytes(batch) * plan.new_tokens,
            "GB/s",
            {OURS: min(self.bench.wall(run) for _ in range(2))},
            tokens=batch * plan.new_tokens,
            goals=[Goal("ceiling", bound)] if bound else [],
        )


def decoding(bench: Workbench) -> Iterator[Job]:
    """Tokens a second; the bytes of sequences that share a prefix count as if they did not."""
    decoder = _Decoder(bench)
    for batch in decoder.plan.batches:
        for shared in (0, decoder.plan.shared):
            name = decoder.plan.decode_name(batch, shared)
            yield name, partial(decoder.decode, batch, shared)


class _Trainer:
    """The model with a fresh adapter for each run."""

    def __init__(self, bench: Workbench) -> None:
        self.bench, self.plan = bench, Plan.of(bench)

    @cached_property
    def model(self) -> Llama:
        return random_model(self.plan.model, self.bench)

    def train(self, name: str, shared: int, micro_batch_tokens: int | None) -> Timing:
        """A few steps; the first ones, which compile, are not counted."""
        plan, bench = self.plan, self.bench
        rows = prompts(plan, plan.step_examples * STEPS, shared)
        examples = [TrainExample(row[: plan.shared], row[plan.shared :]) for row in rows]
        config = TrainConfig(
            epochs=1,
            batch_size=plan.step_examples,
            shuffle=False,
            micro_batch_tokens=micro_batch_tokens,
        )
        adapter = new_adapter("race", LoraConfig(RANK, ALPHA), plan.model, bench.device)
        ends: list[float] = []

        def note(progress: TrainProgress) -> None:
            bench.synchronize()
            ends.append(time.perf_counter())

        text: Any = NoText()
        model = self.model
        if bench.on_gpu:
            torch.cuda.reset_peak_memory_stats(bench.device)
        train(model, text, adapter, examples, config, progress=note)
        return step_timing(bench, plan, name, OURS, ends)


def step_timing(
    bench: Workbench, plan: Plan, name: str, side: str, ends: Sequence[float]
) -> Timing:
    """A step's median time between the `ends`, and the process's peak of GPU memory."""
    seconds = statistics.median(b - a for a, b in pairwise(ends[1:]))
    timing = Timing(
        name,
        plan.train_flops,
        "GFLOP/s",
        {side: seconds},
        tokens=plan.step_examples * plan.context,
    )
    if bench.on_gpu:
        timing.peak_mib[side] = torch.cuda.max_memory_allocated(bench.device) / 2**20
    return timing


def training(bench: Workbench) -> Iterator[Job]:
    """LoRA on all linears: as planned by the engine, within a peer's micro-batch, and sharing."""
    trainer = _Trainer(bench)
    plan, micro = trainer.plan, trainer.plan.micro_examples
    runs: dict[str, tuple[int, int | None]] = {
        plan.train_name(micro): (0, micro * plan.context),
        plan.train_name(2 * micro): (0, 2 * micro * plan.context),
        f"train {plan.name}, {plan.step_examples} x {plan.context}, as planned": (0, None),
        f"train {plan.name}, {plan.step_examples} x {plan.context}, {plan.shared} shared": (
            plan.shared,
            None,
        ),
    }
    for name, (shared, tokens) in runs.items():
        yield name, partial(trainer.train, name, shared, tokens)
