"""The built-in model, against transformers on the same files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import engine
from engine import LLM, SamplingParams
from tests.engine.test_model import packed_logits, relative_rms

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
QUESTIONS = (
    "What is the capital of Portugal?",
    "Write a haiku about rain on a tin roof.",
    "List four prime numbers.",
    "Explain photosynthesis to a child.",
    "Translate 'good morning' into French.",
    "Summarise: the ship left at noon, and by evening the storm had turned it back.",
    "Is 17 greater than 23?",
    "Give me a name for a grey cat.",
    "Why is the sea salty?",
    "Write a Python function that reverses a list.",
)
TEXTS = (
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n: int) -> int:\n",
    "Review: the soup was cold and the waiter rude.\nSentiment:",
    "1, 1, 2, 3, 5, 8,",
    "Ingredients: flour, eggs, milk.\nSteps:\n1.",
    "Der schnelle braune Fuchs",
    "<html>\n<head>\n<title>",
    "Q: Who wrote Hamlet?\nA:",
    "The three laws of robotics are",
    "東京は",
)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return engine.load("smollm2-135m", dtype=torch.float32)


@pytest.fixture(scope="module")
def peer(llm: LLM) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(llm.checkpoint.path, dtype=torch.float32).eval()


def prompts(llm: LLM) -> list[list[int]]:
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [llm.tokenizer.encode(text) for text in (*map(llm.tokenizer.render_chat, chats), *TEXTS)]


@torch.no_grad()
def test_logits_equal_transformers(llm: LLM, peer: PreTrainedModel) -> None:
    rows = [torch.tensor(ids) for ids in prompts(llm)]
    expected = torch.cat([peer(row[None]).logits[0] for row in rows])
    assert relative_rms(packed_logits(llm.model, rows), expected) < 1e-4


@torch.no_grad()
def test_greedy_continuations_equal_transformers(llm: LLM, peer: PreTrainedModel) -> None:
    """Each token is transformers' choice for what stands before it, or within 1e-3 of it."""
    rows = prompts(llm)
    greedy = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    for row, completion in zip(rows, llm.generate(rows, greedy), strict=True):
        assert len(completion.ids) == 64
        logits = peer(torch.tensor([[*row, *completion.ids]])).logits[0, len(row) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
        assert (logits.amax(-1) - chosen).max() < 1e-3
        logprobs = logits.log_softmax(-1).gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
        assert torch.tensor(completion.logprobs) == pytest.approx(logprobs, abs=1e-3)


@torch.no_grad()
def test_bf16_is_as_close_as_transformers(llm: LLM) -> None:
    rows = [torch.tensor(ids) for ids in prompts(llm)]
    exact = packed_logits(llm.model, rows)
    ours = packed_logits(engine.load("smollm2-135m", dtype=torch.bfloat16).model, rows)
    rounded = AutoModelForCausalLM.from_pretrained(llm.checkpoint.path, dtype=torch.bfloat16)
    theirs = torch.cat([rounded(row[None]).logits[0] for row in rows])
    assert relative_rms(ours.float(), exact) < 1.1 * relative_rms(theirs.float(), exact)


def test_the_tour_learns() -> None:
    tour = subprocess.run(
        [sys.executable, "examples/engine_tour.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "capitals: Madrid!" in tour.stdout
