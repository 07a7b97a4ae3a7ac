"""The model's logits are transformers', whatever the family and however the tokens are fed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import kernels
from engine.adapters.lora import NoLora
from engine.checkpoint import open_checkpoint
from engine.model import Llama, load_model
from engine.training.packing import PackedAttention
from kernels import Segments
from tests.engine import tiny_models

LENGTHS = (37, 1, 20)


@pytest.fixture(params=tiny_models.FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Llama, PreTrainedModel]:
    """Our model and transformers', the same random weights in fp32."""
    folder = tiny_models.make(request.param, tmp_path)
    ours = load_model(open_checkpoint(folder), torch.float32, torch.device("cpu"))
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return ours, theirs


def sequences(vocab_size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocab_size, (length,), generator=generator) for length in LENGTHS]


def packed_logits(model: Llama, rows: list[Tensor], *, checkpoint: bool = False) -> Tensor:
    bounds = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0).int()
    segments = Segments(bounds, torch.full((len(rows),), -1, dtype=torch.int32))
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    attend = PackedAttention(segments, model.config)
    hidden = model.hidden(torch.cat(rows), positions, attend, NoLora(), checkpoint=checkpoint)
    return hidden @ model.head.T


def relative_rms(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@torch.no_grad()
@pytest.mark.parametrize("backend", [None, "reference"])
def test_packed_logits_equal_transformers(
    pair: tuple[Llama, PreTrainedModel], backend: str | None
) -> None:
    ours, theirs = pair
    rows = sequences(ours.config.vocab_size)
    expected = torch.cat([theirs(row[None]).logits[0] for row in rows])
    with kernels.dispatch.only(backend):
        assert relative_rms(packed_logits(ours, rows), expected) < 1e-5


def test_weights_are_held_once(pair: tuple[Llama, PreTrainedModel]) -> None:
    ours, theirs = pair
    assert ours.nbytes == sum(p.nbytes for p in theirs.parameters())
    assert (ours.head is ours.embedding) == ours.config.tie_word_embeddings


def test_loading_in_bf16_rounds_the_stored_weights(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_models.make("qwen2", tmp_path))
    exact = load_model(checkpoint, torch.float32, torch.device("cpu"))
    rounded = load_model(checkpoint, torch.bfloat16, torch.device("cpu"))
    assert torch.equal(rounded.layers[1].qkv, exact.layers[1].qkv.bfloat16())
    assert rounded.nbytes == exact.nbytes // 2
