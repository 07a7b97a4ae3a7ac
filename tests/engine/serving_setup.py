"""A tiny model that generates and scores, for the tests of everything around it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import torch

from engine.checkpoint import open_checkpoint
from engine.config import ModelConfig
from engine.model import Llama, load_model
from engine.serving.generate import generate
from engine.serving.kv_cache import KVCache
from engine.serving.runner import Runner
from engine.serving.sample import Completion
from engine.serving.sampling_params import SamplingParams
from engine.text.tokenizer import Tokenizer
from tests.engine import tiny_models, tiny_tokenizers

CPU = torch.device("cpu")
VOCAB = 640


@lru_cache
def folder(family: str) -> Path:
    path = Path(mkdtemp())
    tiny_models.make(family, path, vocab_size=VOCAB)
    return tiny_tokenizers.byte_level_folder(path, vocab_size=VOCAB)


@lru_cache
def model(family: str = "llama2") -> Llama:
    return load_model(open_checkpoint(folder(family)), torch.float32, CPU)


@lru_cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(folder("llama2"))


def cache(config: ModelConfig, blocks: int) -> KVCache:
    block = KVCache(config, 1 << 30, torch.float32, CPU).block_bytes
    return KVCache(config, blocks * block, torch.float32, CPU)


def runner(family: str = "llama2", *, blocks: int = 512, **limits: int) -> Runner:
    weights = model(family)
    return Runner(weights, tokenizer(), cache(weights.config, blocks), **limits)


def results(completions: list[Completion]) -> list[tuple[tuple[int, ...], str, str]]:
    """What must not depend on anything but the request."""
    return [(c.ids, c.text, c.finish_reason) for c in completions]


def greedy(max_tokens: int = 12) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)


def first(run: Runner, prompt: str | list[int], params: SamplingParams) -> Completion:
    return generate(run, [prompt], params)[0]
