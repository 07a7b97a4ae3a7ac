"""A model whose linears are held in 8 or 4 bits generates, scores and is finetuned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import engine
from engine import EngineError, LoraConfig, TrainConfig, TrainExample
from engine.model import Layer
from kernels import QuantizedWeight
from kernels.quantized import KINDS, Kind
from tests.engine.serving_setup import folder, greedy

LINEARS = ("qkv", "o", "gate_up", "down")
PROMPTS = [[5 + 7 * i % 600 for i in range(n)] for n in (40, 3, 17)]
EXAMPLES = [TrainExample([1, 2, 3, 4 + i], [9, 9, 9]) for i in range(8)]
FAR = {"int8": 0.1, "int4": 1.0, "nf4": 1.0}  # nats a token, of a model of random weights


def load(kind: Kind | None, family: str = "llama2") -> engine.LLM:
    return engine.load(
        folder(family), dtype=torch.float32, device="cpu", cache_bytes=16 << 20, quantize=kind
    )


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.mark.parametrize("family", ["llama2", "qwen2"])
def test_only_the_linears_are_rounded(kind: Kind, family: str) -> None:
    exact, rounded = load(None, family).model, load(kind, family).model
    assert torch.equal(rounded.embedding, exact.embedding)
    assert torch.equal(rounded.head, exact.head)
    saved = 0
    for ours, theirs in zip(rounded.layers, exact.layers, strict=True):
        for name in Layer.__slots__:
            weight, dense = getattr(ours, name), getattr(theirs, name)
            if name in LINEARS:
                assert isinstance(weight, QuantizedWeight)
                assert weight.shape == dense.shape
                saved += dense.nbytes - weight.nbytes
            elif isinstance(dense, Tensor):
                assert torch.equal(weight, dense)
    assert rounded.nbytes == exact.nbytes - saved
    assert (rounded.quantized, exact.quantized) == (kind, None)


def test_it_answers_much_as_the_exact_model(kind: Kind) -> None:
    exact, rounded = load(None), load(kind)
    completions = [[7, 8, 9, 10]] * len(PROMPTS)
    for ours, theirs in zip(
        rounded.score(PROMPTS, completions), exact.score(PROMPTS, completions), strict=True
    ):
        assert abs(ours.logprob - theirs.logprob) / 4 < FAR[kind]
    together = rounded.generate(PROMPTS, greedy())
    assert all(len(completion.ids) > 0 for completion in together)


def test_its_adapters_are_trained(kind: Kind) -> None:
    llm = load(kind)
    llm.adapters.new("nines", LoraConfig(rank=4))
    config = TrainConfig(epochs=6, batch_size=4, lr=2e-2)
    result = llm.train(EXAMPLES, config, adapter="nines")
    assert result.losses[-1] < result.losses[0] / 2
    assert llm.generate([[1, 2, 3, 5]], greedy(3), adapter="nines")[0].ids == (9, 9, 9)


def test_bad_arguments() -> None:
    with pytest.raises(EngineError, match=r"^quantize:"):
        engine.load(folder("llama2"), quantize="int3")  # type: ignore[arg-type]
