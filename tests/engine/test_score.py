"""Scores are the model's log-probabilities, and cost one pass over prompt and labels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.errors import RequestError
from engine.serving.generate import generate
from engine.serving.progress import Progress
from engine.serving.score import score
from tests.engine import serving_setup as setup
from tests.engine.serving_setup import greedy, runner

PROMPT = [5 + 7 * i % 600 for i in range(45)]
LABELS = [[9], [10, 11, 12], [10, 11, 13, 14], [20, 21]]


def transformers_logprobs(prompt: list[int], label: list[int]) -> list[float]:
    peer = AutoModelForCausalLM.from_pretrained(setup.folder("llama2"), dtype=torch.float32)
    with torch.no_grad():
        logits = peer(torch.tensor([[*prompt, *label]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(label)[:, None])[:, 0].tolist()


@pytest.mark.parametrize("limits", [{}, {"step_tokens": 4}, {"max_sequences": 1}, {"blocks": 4}])
def test_scores_are_transformers(limits: dict[str, int]) -> None:
    run = runner(**limits)
    (found,) = score(run, [PROMPT], [LABELS])
    assert isinstance(found, list)
    for label, scored in zip(LABELS, found, strict=True):
        expected = transformers_logprobs(PROMPT, label)
        assert scored.ids == tuple(label)
        assert scored.token_logprobs == pytest.approx(expected, abs=1e-3)
        assert scored.logprob == pytest.approx(sum(expected), abs=1e-3)
    assert run.cache.pool.held == 0


def test_labels_cost_one_prefill_and_their_own_tokens() -> None:
    run = runner()
    score(run, [PROMPT], [LABELS])
    own = sum(len(label) - 1 for label in LABELS)  # the last token of a label is only predicted
    assert run.stats.computed == len(PROMPT) + own
    score(run, [PROMPT], [[[1], [2], [3]]])
    # All but the prompt's last token are cached: a label has filled the prompt's last block.
    assert run.stats.computed == len(PROMPT) + own + 1


def test_long_continuations_span_steps() -> None:
    label = [3 + 5 * i % 600 for i in range(100)]
    (scored,) = score(runner(step_tokens=16), [[7]], [label])
    assert not isinstance(scored, list)
    assert scored.token_logprobs == pytest.approx(transformers_logprobs([7], label), abs=1e-3)


def test_scores_do_not_depend_on_the_batch_or_on_what_is_cached() -> None:
    prompts = [[*PROMPT[: 10 + 3 * i], 4] for i in range(9)]
    together = score(runner(), prompts, [LABELS] * 9)
    assert together == [score(runner(), [prompt], [LABELS])[0] for prompt in prompts]
    run = runner()
    score(run, prompts, [LABELS] * 9)
    assert score(run, prompts, [LABELS] * 9) == together


def test_scores_are_the_logprobs_of_generation() -> None:
    (made,) = generate(runner(), ["the cat"], greedy(9))
    (scored,) = score(runner(), ["the cat"], [made.ids])
    assert not isinstance(scored, list)
    assert scored.token_logprobs == pytest.approx(made.logprobs, abs=1e-4)


def test_texts_are_continuations() -> None:
    texts = score(runner(), ["the cat"], [[" is", " was"]])
    ids = [setup.tokenizer().encode_continuation(text) for text in (" is", " was")]
    assert texts == score(runner(), ["the cat"], [ids])


def test_an_empty_completion_is_certain() -> None:
    (alone,) = score(runner(), ["a"], [""])
    assert not isinstance(alone, list)
    assert (alone.ids, alone.logprob) == ((), 0.0)
    (found,) = score(runner(), [PROMPT], [[[], [9]]])
    assert isinstance(found, list)
    assert found[0].token_logprobs == ()
    assert found[1].token_logprobs == pytest.approx(transformers_logprobs(PROMPT, [9]), abs=1e-3)


def test_what_does_not_fit_says_so_and_the_rest_go_on() -> None:
    run = runner(blocks=4)
    (found,) = score(run, [PROMPT], [[[9], [8] * 40]])
    assert isinstance(found, list)
    assert found[0].error is None
    assert math.isnan(found[1].logprob)
    assert found[1].error == (
        "prompts[0] has 45 tokens and its completion 40, more than a context of 64"
    )


@pytest.mark.parametrize(
    ("prompts", "completions", "message"),
    [
        (["a"], [], "completions: 0 given for 1 prompts"),
        (["a", "b"], [["x"], "y"], r"completions\[1\] must be a list of completions"),
        (["a"], [[[9999]]], r"completions\[0\]: the model has no token 9999"),
        ([[]], ["x"], r"prompts\[0\] has no tokens"),
    ],
)
def test_senseless_requests_are_refused(prompts: Any, completions: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        score(runner(), prompts, completions)


def test_progress_ends_at_the_total() -> None:
    seen: list[Progress] = []
    score(runner(), [PROMPT, PROMPT], [LABELS, [[3], []]], progress=seen.append)
    assert (seen[-1].done_requests, seen[-1].total_requests) == (6, 6)
    assert seen[-1].generated_tokens == sum(map(len, LABELS)) + 1


def test_ids_may_come_as_arrays() -> None:
    array = score(runner(), [torch.tensor(PROMPT)], [[np.array(LABELS[1])]])
    assert array == score(runner(), [PROMPT], [[LABELS[1]]])
