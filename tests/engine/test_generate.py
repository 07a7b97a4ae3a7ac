"""Generation: right, reproducible, and never more work than needed."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import AutoModelForCausalLM

from engine.adapters.lora import LoraConfig, new_adapter
from engine.errors import RequestError
from engine.model import Llama
from engine.serving.generate import generate
from engine.serving.progress import Progress
from engine.serving.sampling_params import SamplingParams
from engine.serving.stop import StopStrings
from engine.text.tokenizer import Tokenizer
from tests.engine import serving_setup as setup
from tests.engine import tiny_models, tiny_tokenizers
from tests.engine.serving_setup import VOCAB, first, greedy, results, runner

SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=10, n=2, ignore_eos=True)


def prompts(count: int, shared: int = 20) -> list[list[int]]:
    """Prompts of 1 to 60 tokens; every other one begins with the same `shared` tokens."""
    draw = random.Random(0)

    def ids(length: int) -> list[int]:
        return [draw.randrange(3, VOCAB) for _ in range(length)]

    prefix = ids(shared)
    return [(prefix if i % 2 else []) + ids(draw.randint(1, 40)) for i in range(count)]


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_greedy_is_transformers_greedy(family: str) -> None:
    rows = prompts(6)
    out = generate(runner(family), rows, greedy(24))
    peer = AutoModelForCausalLM.from_pretrained(setup.folder(family), dtype=torch.float32).eval()
    for row, completion in zip(rows, out, strict=True):
        ids = torch.tensor([[*row, *completion.ids]])
        with torch.no_grad():
            logits = peer(ids).logits[0, len(row) - 1 : -1]
        chosen = torch.tensor(completion.ids)[:, None]
        best, given = logits.amax(-1), logits.gather(1, chosen)[:, 0]
        assert (best - given).max() < 1e-3
        logprobs = logits.log_softmax(-1).gather(1, chosen)[:, 0]
        assert torch.allclose(torch.tensor(completion.logprobs), logprobs, atol=1e-3)


@pytest.mark.parametrize(
    "params", [greedy(8), replace(SAMPLED, max_tokens=6)], ids=["greedy", "sampled"]
)
def test_a_request_does_not_depend_on_its_batch(params: SamplingParams) -> None:
    rows = prompts(33)
    alone = [results(generate(runner(), [row], params)) for row in rows]
    order = random.Random(1).sample(range(33), 33)
    for chosen in (range(33), range(7), order, order[:7]):
        together = results(generate(runner(), [rows[i] for i in chosen], params))
        assert together == [one for i in chosen for one in alone[i]]


@pytest.mark.parametrize(
    "limits",
    [{"blocks": 9}, {"step_tokens": 7}, {"max_sequences": 3}, {"blocks": 6, "step_tokens": 50}],
)
def test_a_cramped_engine_gives_the_same_tokens(limits: dict[str, int]) -> None:
    rows = prompts(12)
    params = replace(SAMPLED, n=3, max_tokens=20)
    cramped = runner(**limits)
    assert results(generate(cramped, rows, params)) == results(generate(runner(), rows, params))
    assert cramped.cache.pool.held == 0
    if "blocks" in limits:
        assert cramped.stats.preemptions > 0


def test_samples_of_a_prompt_differ_and_seeds_repeat_them() -> None:
    params = SamplingParams(n=20, max_tokens=12, ignore_eos=True)
    first_call = generate(runner(), ["the cat"], params)
    assert len({one.ids for one in first_call}) == 20
    assert results(generate(runner(), ["the cat"], params)) == results(first_call)
    fewer = generate(runner(), ["the cat"], replace(params, n=5))
    assert results(fewer) == results(first_call)[:5]
    other = generate(runner(), ["the cat"], replace(params, seed=1))
    assert not set(results(other)) & set(results(first_call))


def test_samples_share_their_prompt() -> None:
    run = runner()
    row = prompts(1)[0] * 3
    generate(run, [row], SamplingParams(n=8, max_tokens=5, ignore_eos=True))
    assert run.stats.computed == len(row) + 8 * 4


def test_the_cache_serves_later_calls_and_other_prompts_of_the_same_call() -> None:
    run = runner()
    prefix = prompts(1, shared=0)[0] * 4
    rows = [[*prefix[:48], 5 + i, 6] for i in range(8)]
    generate(run, rows, greedy(1))
    assert run.stats.computed == 48 + 8 * 2
    assert run.stats.cached == 7 * 48
    again = generate(run, rows, greedy(1))
    assert run.stats.computed == 48 + 8 * 2 + 8 * 2
    assert [one.cached_tokens for one in again] == [48] * 8
    assert [one.prompt_tokens for one in again] == [50] * 8


def test_a_conversation_continues_from_the_cache() -> None:
    run = runner()
    row = prompts(1)[0]
    reply = first(run, row, greedy(40)).ids
    before = run.stats.computed
    second = first(run, [*row, *reply, 9], greedy(1))
    assert second.cached_tokens >= (len(row) + 39) // 16 * 16
    assert run.stats.computed - before == len(row) + 41 - second.cached_tokens


def test_adapters_mix_in_a_batch_and_share_no_cache() -> None:
    run = runner()
    adapter = new_adapter("a", LoraConfig(rank=4), run.model.config, setup.CPU)
    for pair in adapter.pairs.values():
        pair.b.normal_(generator=torch.Generator().manual_seed(1))
    rows = [prompts(1)[0] * 2] * 3
    mixed = generate(run, rows, greedy(), [None, adapter, None])
    assert mixed[0].ids == mixed[2].ids != mixed[1].ids
    assert mixed[1].cached_tokens == 0
    apart = generate(runner(), rows[:1], greedy(), adapter)
    assert results(apart) == results(mixed[1:2])


def test_one_token_follows_the_models_distribution() -> None:
    """2000 samples in one call, against the probabilities of the same call's top_logprobs."""
    params = SamplingParams(n=2000, max_tokens=1, logprobs=VOCAB, temperature=1.0)
    out = generate(runner(), ["the cat"], params)
    top = out[0].top_logprobs
    assert top is not None
    probability = torch.zeros(VOCAB, dtype=torch.float64)
    probability[list(top[0])] = torch.tensor(list(top[0].values()), dtype=torch.float64).exp()
    counts = torch.zeros(VOCAB, dtype=torch.float64)
    for one in out:
        counts[one.ids[0]] += 1
    expected = probability / probability.sum() * 2000
    common = expected >= 5
    observed = [*counts[common].tolist(), counts[~common].sum().item()]
    wanted = [*expected[common].tolist(), expected[~common].sum().item()]
    assert len(wanted) > 20
    assert chisquare(observed, wanted).pvalue > 1e-3


def test_logprobs_are_those_of_the_tokens() -> None:
    one = first(runner(), "the cat", replace(greedy(6), logprobs=3))
    assert one.top_logprobs is not None
    for token, logprob, top in zip(one.ids, one.logprobs, one.top_logprobs, strict=True):
        assert len(top) == 3
        assert top[token] == pytest.approx(logprob, abs=1e-5)
        assert max(top, key=lambda key: top[key]) == token


def test_stop_strings_are_found_across_tokens() -> None:
    free = first(runner(), "the cat", greedy(40))
    pieces = [setup.tokenizer().decode([token]) for token in free.ids]
    at = next(i for i in range(5, 39) if all("\ufffd" not in p and p for p in pieces[i : i + 2]))
    stop = pieces[at][-1] + pieces[at + 1][0]
    one = first(runner(), "the cat", replace(greedy(40), stop=("never met", stop)))
    assert one.finish_reason == "stop"
    assert one.stop == stop
    assert one.text == free.text[: free.text.index(stop)]
    assert one.ids == free.ids[: len(one.ids)]
    assert len(one.ids) == len(one.logprobs) <= at + 2


def test_the_earliest_stop_string_wins_and_half_characters_count_at_the_end() -> None:
    tokenizer = setup.tokenizer()
    stops = StopStrings(tokenizer, ("world", "lo w"))
    for token in tokenizer.encode("hello world", bos=False):
        stops.put(token)
    assert (stops.text, stops.found) == ("hel", "lo w")
    half = StopStrings(tokenizer, ("\ufffd",))
    half.put(tokenizer.encode("鿿", bos=False)[0])
    half.finish()
    assert (half.text, half.found) == ("", "\ufffd")


def test_a_stop_string_of_byte_tokens_is_met_at_once(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(tiny_tokenizers.sentencepiece_folder(tmp_path, "bpe"))
    stops = StopStrings(tokenizer, ("\n",))
    for token in tokenizer.encode_continuation(" the cat\n"):
        assert stops.found is None
        stops.put(token)
    assert (stops.text, stops.found) == (" the cat", "\n")


def test_allowed_strings_end_by_themselves() -> None:
    params = SamplingParams(max_tokens=20, allowed=("the\ncat",), stop=("\n",))
    (one,) = generate(runner(), ["so"], params)
    assert (one.text, one.stop, one.finish_reason) == ("the\ncat", "the\ncat", "stop")


def test_stop_ids_and_eos_end_the_text() -> None:
    free = first(runner(), "the cat", greedy(20))
    token = free.ids[4]
    length = free.ids.index(token) + 1
    one = first(runner(), "the cat", replace(greedy(20), stop_ids=(token,)))
    assert (one.finish_reason, one.stop, one.ids) == ("stop", token, free.ids[:length])
    assert one.text == setup.tokenizer().decode(free.ids[: length - 1])
    eos = setup.tokenizer().eos_ids[0]
    pushed = replace(greedy(5), logit_bias={eos: 1e3})
    assert first(runner(), "the cat", replace(pushed, ignore_eos=False)).ids == (eos,)
    assert first(runner(), "the cat", pushed).ids == (eos,) * 5


def test_max_tokens_and_the_context_end_with_length() -> None:
    one = first(runner(), "the cat", greedy(3))
    assert (one.finish_reason, len(one.ids)) == ("length", 3)
    context = runner().context
    row = [5] * (context - 4)
    long = first(runner(), row, greedy(50))
    assert (long.finish_reason, len(long.ids)) == ("length", 4)


@pytest.mark.parametrize("blocks", [512, 4])
def test_a_prompt_that_cannot_fit_says_so_and_the_rest_go_on(blocks: int) -> None:
    run = runner(blocks=blocks)
    rows = [[5, 6, 7], [5] * run.context, [8, 9]]
    params = replace(greedy(4), n=2)
    out = generate(run, rows, params)
    assert [one.finish_reason for one in out] == ["length"] * 2 + ["error"] * 2 + ["length"] * 2
    assert out[2].error == (
        f"prompts[1] has {run.context} tokens, which leaves no room in a context of {run.context}"
    )
    alone = generate(runner(), [rows[0], rows[2]], params)
    assert results(out[:2] + out[4:]) == results(alone)


def test_logit_bias_and_repetition_penalty_act() -> None:
    assert first(runner(), "the cat", replace(greedy(4), logit_bias={77: 1e3})).ids == (77,) * 4
    free = first(runner(), "the cat", greedy(8))
    banned = first(runner(), "the cat", replace(greedy(8), logit_bias={free.ids[0]: -1e3}))
    assert free.ids[0] not in banned.ids
    params = replace(greedy(60), repetition_penalty=1e6)
    row = prompts(1)[0]
    assert len({*row, *first(runner(), row, params).ids}) == len(set(row)) + 60


@pytest.mark.parametrize(("frequency", "presence"), [(0.4, 0.0), (0.0, 1.5), (0.2, -0.3)])
def test_frequency_and_presence_penalty_count_generated_tokens(
    frequency: float, presence: float
) -> None:
    row = prompts(1)[0]
    params = replace(greedy(40), frequency_penalty=frequency, presence_penalty=presence)
    penalised = first(runner(), row, params)
    assert penalised.ids != first(runner(), row, greedy(40)).ids
    peer = AutoModelForCausalLM.from_pretrained(setup.folder("llama2"), dtype=torch.float32).eval()
    with torch.no_grad():
        every = peer(torch.tensor([[*row, *penalised.ids]])).logits[0, len(row) - 1 : -1]
    counts = torch.zeros(VOCAB)
    for token, logprob, logits in zip(penalised.ids, penalised.logprobs, every, strict=True):
        scores = logits - frequency * counts - presence * (counts > 0)
        assert scores.amax() - scores[token] < 1e-3
        assert logprob == pytest.approx(logits.log_softmax(-1)[token].item(), abs=1e-3)
        counts[token] += 1


def test_penalties_do_not_depend_on_the_batch() -> None:
    rows = prompts(9)
    each = [
        replace(SAMPLED, frequency_penalty=0.3 * (i % 3), presence_penalty=0.5 - 0.5 * (i % 2))
        for i in range(9)
    ]
    together = results(generate(runner(), rows, each))
    apart = [generate(runner(), [row], params) for row, params in zip(rows, each, strict=True)]
    assert together == results([one for some in apart for one in some])
    plain = [i for i, one in enumerate(each) if one == SAMPLED]
    alone = results(generate(runner(), [rows[i] for i in plain], SAMPLED))
    assert alone == [one for i in plain for one in together[2 * i : 2 * i + 2]]


def test_allowed_strings_are_the_only_texts() -> None:
    labels = ("positive", "negative", "pos", "neither of them")
    params = SamplingParams(n=40, allowed=labels, temperature=3.0, max_tokens=30)
    out = generate(runner(), ["the cat is"], params)
    assert {one.text for one in out} <= set(labels)
    assert len({one.text for one in out}) >= 2
    assert {one.finish_reason for one in out} == {"stop"}
    assert all(one.stop == one.text for one in out)


@pytest.mark.parametrize(("bias", "text"), [(1e3, "the"), (-1e3, "the cat")])
def test_the_model_chooses_between_a_string_and_its_continuation(bias: float, text: str) -> None:
    eos = setup.tokenizer().eos_ids[0]
    params = SamplingParams(allowed=("the cat", "the"), logit_bias={eos: bias}, seed=3)
    begun = setup.tokenizer().encode_continuation("the")
    whole = setup.tokenizer().encode_continuation("the cat")
    assert whole[: len(begun)] == begun
    assert first(runner(), "say", params).text == text


def test_each_prompt_may_have_its_own_params() -> None:
    rows = prompts(3)
    each = [greedy(4), SAMPLED, replace(greedy(7), logprobs=2)]
    together = generate(runner(), rows, each)
    apart = [generate(runner(), [row], params) for row, params in zip(rows, each, strict=True)]
    assert results(together) == results([one for some in apart for one in some])


def test_memory_that_runs_out_makes_steps_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = results(generate(runner(), prompts(9), SAMPLED))
    hidden = Llama.hidden

    def cramped(model: Llama, tokens: Tensor, *rest: Any, **options: Any) -> Tensor:
        if len(tokens) > 11:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return hidden(model, tokens, *rest, **options)

    monkeypatch.setattr(Llama, "hidden", cramped)
    run = runner()
    assert results(generate(run, prompts(9), SAMPLED)) == expected
    assert run.step_tokens <= 11
    assert run.cache.pool.held == 0


def test_progress_ends_at_the_total() -> None:
    seen: list[Progress] = []
    generate(runner(), prompts(3), replace(SAMPLED, max_tokens=5), progress=seen.append)
    last = seen[-1]
    assert (last.done_requests, last.total_requests, last.generated_tokens) == (6, 6, 30)
    assert last.tokens_per_second > 0
    assert last.eta_seconds == 0


def test_an_interrupt_leaves_the_cache_as_it_should_be() -> None:
    run, rows = runner(), prompts(9)
    hidden, calls = run.model.hidden, 0

    def interrupted(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls in (1, 5):
            raise KeyboardInterrupt
        return hidden(*args, **kwargs)

    try:
        run.model.hidden = interrupted  # type: ignore[method-assign]
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                generate(run, rows, SAMPLED)
            assert run.cache.pool.held == 0
    finally:
        del run.model.hidden  # type: ignore[attr-defined]
    assert results(generate(run, rows, SAMPLED)) == results(generate(runner(), rows, SAMPLED))


def test_logits_that_are_not_numbers_end_a_request_with_an_error() -> None:
    run = runner()
    adapter = new_adapter("broken", LoraConfig(rank=2), run.model.config, setup.CPU)
    for pair in adapter.pairs.values():
        pair.b.fill_(float("nan"))
    out = generate(run, prompts(2), SAMPLED, [adapter, None])
    assert [one.finish_reason for one in out] == ["error", "error", "length", "length"]
    assert out[0].error == (
        "no token can be drawn at position 0: "
        "the logits are not finite, or the knobs leave no token"
    )


@pytest.mark.parametrize(
    ("rows", "params", "message"),
    [
        ("a text", greedy(), "prompts must be a list"),
        ([[]], greedy(), r"prompts\[0\] has no tokens"),
        ([[5], [5, VOCAB]], greedy(), r"prompts\[1\]: the model has no token 640, only 0"),
        (["a"], SamplingParams(stop_ids=(9999,)), "stop_ids: the model has no token 9999"),
        (["a"], SamplingParams(logit_bias={9999: 1.0}), "logit_bias: the model has no token 9999"),
        (["a"], SamplingParams(logprobs=9999), "logprobs must be at most"),
        (["a", "b"], [greedy()], "params: 1 given for 2 prompts"),
    ],
)
def test_senseless_requests_are_refused(rows: Any, params: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        generate(runner(), rows, params)


def test_nothing_asked_nothing_done() -> None:
    assert generate(runner(), [], greedy()) == []
