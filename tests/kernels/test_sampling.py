"""The sampler: random numbers, each backend against the reference, and the drawn distributions."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

import kernels
from kernels import Biases, IdLists, SampleParams, cpu, sample, top_logprobs
from kernels.philox import philox4x32, uniform
from tests.kernels.conftest import INTERPRETED

ROWS, VOCABULARIES = (4, [1, 5003]) if INTERPRETED else (61, [1, 17, 1024, 5003])


def params(rows: int, **knobs: Any) -> SampleParams:
    """Equal knobs in every row, row r drawing with seed r; lists and tensors are per row."""
    neutral = SampleParams.neutral(rows)
    values: dict[str, Any] = {"seed": torch.arange(rows)}
    for name, value in knobs.items():
        if isinstance(value, (Tensor, IdLists, Biases)):
            values[name] = value
        else:
            values[name] = torch.full_like(getattr(neutral, name), value)
    return replace(neutral, **values)


def random_logits(rows: int, vocab: int, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(rows * 100_003 + vocab)
    logits = torch.randn(rows, vocab, generator=generator, device="cpu") * spread
    return logits.to(torch.get_default_device())


KNOBS: dict[str, dict[str, Any]] = {
    "neutral": {},
    "greedy": {"temperature": 0.0},
    "cold": {"temperature": 0.6},
    "hot": {"temperature": 2.5},
    "top_k": {"top_k": 7},
    "top_k of one": {"top_k": 1},
    "top_k beyond the vocabulary": {"top_k": 10**6},
    "top_p": {"top_p": 0.8},
    "top_p of almost all": {"top_p": 0.9999},
    "top_p of none": {"top_p": 0.0},
    "min_p": {"min_p": 0.1},
    "all filters": {"temperature": 1.4, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
    "top_k and min_p": {"top_k": 30, "min_p": 0.05},
    "top_p and min_p": {"top_p": 0.95, "min_p": 0.05},
}


def list_knobs(rows: int, vocab: int) -> dict[str, Any]:
    """Bias, penalties and allowed ids, different in each row, some rows without."""
    generator = torch.Generator().manual_seed(vocab)

    def some(most: int) -> list[list[int]]:
        return [
            torch.randint(vocab, (row % most,), generator=generator, device="cpu").tolist()
            for row in range(rows)
        ]

    bias = [{token: (-1.0) ** token * 2 for token in row} for row in some(5)]
    return {
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.7,
        "presence_penalty": -0.4,
        "bias": Biases.of(bias),
        "seen": IdLists.of([row + row[:2] for row in some(9)]),
        "generated": IdLists.of([2 * row + row[:2] for row in some(8)]),
        "allowed": IdLists.of(some(7)),
    }


# ---- random numbers


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # kat_vectors of Random123 1.14
        ("00000000 00000000 00000000 00000000", "00000000 00000000",
         "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
         "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)  # fmt: skip
def test_philox_known_answers(counter: str, key: str, expected: str) -> None:
    def words(text: str) -> Tensor:
        return torch.tensor([int(word, 16) for word in text.split()])

    assert torch.equal(philox4x32(words(counter), words(key)), words(expected))


def test_uniform_uses_all_of_seed_and_position_and_is_uniform() -> None:
    seed = torch.tensor([0, 1, 1 << 32, -1, 0, 0])
    position = torch.tensor([0, 0, 0, 0, 1, 1 << 32])
    assert len(set(uniform(seed, position).tolist())) == 6
    # 0x6627e8d5 * 4.6566127342e-10, and a word above 2^31 folds to its complement
    assert uniform(seed, position)[0].item() == pytest.approx(0x6627E8D5 / 2**31, rel=1e-6)
    many = uniform(torch.full((20_000,), 3), torch.arange(20_000))
    assert many.min() >= 0
    assert many.max() < 1
    assert stats.kstest(many.cpu().numpy(), "uniform").pvalue > 1e-3


def test_drawn_number_is_the_reference_number(backend: str) -> None:
    """With equal logits token id = floor(u V), which shows u to 14 bits."""
    rows, vocab = 10 if INTERPRETED else 100, 1 << 14
    seed = torch.arange(rows) * 0x9E3779B97F4A7C15 % (1 << 62) - (1 << 61)
    position = torch.arange(rows) * (1 << 33) + torch.arange(rows)
    tokens, _ = sample(
        torch.zeros(1, vocab).expand(rows, -1), params(rows, seed=seed, position=position)
    )
    expected = uniform(seed, position).double() * vocab
    assert torch.equal(tokens, expected.long())


# ---- every backend equals the reference


@cache
def reference_case(
    name: str, vocab: int, lists: bool, device: torch.device
) -> tuple[Tensor, SampleParams, Tensor, Tensor]:
    """Logits, settings, and what the reference draws from them in float64."""
    logits = random_logits(ROWS, vocab)
    knobs = params(ROWS, **KNOBS[name], **(list_knobs(ROWS, vocab) if lists else {}))
    return logits, knobs, *kernels.sample_reference(logits.double(), knobs)


@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("name", KNOBS)
@pytest.mark.parametrize("lists", [False, True], ids=["plain", "lists"])
def test_equals_reference(backend: str, name: str, vocab: int, lists: bool) -> None:
    if INTERPRETED and vocab == 1 and not lists:
        pytest.skip("with lists the first row has none")
    logits, knobs, want_tokens, want_logprobs = reference_case(
        name, vocab, lists, torch.get_default_device()
    )
    before = logits.clone()
    tokens, logprobs = sample(logits, knobs)
    assert torch.equal(tokens, want_tokens)
    torch.testing.assert_close(logprobs, want_logprobs, rtol=1e-5, atol=2e-6)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("spread", [3.0, 0.3], ids=["peaked", "flat"])
def test_large_vocabulary(backend: str, spread: float) -> None:
    """Many blocks, and more groups than one step takes; flat, the filters keep most of them."""
    vocab = 150_001
    if INTERPRETED:
        vocab = 33_001 if spread > 1 else 9_001
    logits = random_logits(6, vocab, spread)
    knobs = params(
        6,
        temperature=torch.tensor([1.0, 0.0, 1.0, 0.7, 0.2 if spread > 1 else 1.5, 1.0]),
        top_k=torch.tensor([0, 0, 50, vocab // 200, 0, 0], dtype=torch.int32),
        top_p=torch.tensor([1.0, 1.0, 1.0, 0.9, 0.95, 1.0]),
        min_p=torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.02]),
        allowed=IdLists.of([[], [], [], [], [], range(1000, vocab - 1000, 7)]),
    )
    want_tokens, want_logprobs = kernels.sample_reference(logits.double(), knobs)
    tokens, logprobs = sample(logits, knobs)
    assert torch.equal(tokens, want_tokens)
    torch.testing.assert_close(logprobs, want_logprobs, rtol=1e-5, atol=2e-6)
    want_values, want_ids = kernels.top_logprobs_reference(logits[:2].double(), 50)
    values, ids = top_logprobs(logits[:2], 50)
    assert torch.equal(ids, want_ids)
    torch.testing.assert_close(values, want_values, rtol=1e-5, atol=2e-6)


def test_top_logprobs_of_rows_with_few_finite_logits(backend: str) -> None:
    logits = torch.full((2, 300), -torch.inf)
    logits[0, 299], logits[1, ::2] = 1.0, -0.0
    logits[1, 1::2] = 0.0
    values, ids = top_logprobs(logits, 4)
    assert ids.tolist() == [[299, 0, 1, 2], [0, 1, 2, 3]]
    want, _ = kernels.top_logprobs_reference(logits.double(), 4)
    torch.testing.assert_close(values, want, rtol=1e-5, atol=2e-6)


def test_ties_are_kept_by_the_filters_and_broken_by_id_when_greedy(backend: str) -> None:
    rows = 4 if INTERPRETED else 400  # whose first four already draw all three
    logits = torch.tensor([0.0, 2.0, 2.0, 1.0, 2.0]).expand(rows, -1)
    for knobs in ({"top_k": 1}, {"top_k": 2}, {"top_p": 0.1}, {"top_p": 0.5}, {"min_p": 1.0}):
        tokens, _ = sample(logits, params(rows, **knobs))
        assert set(tokens.tolist()) == {1, 2, 4}, knobs
    assert sample(logits, params(rows, temperature=0.0))[0].eq(1).all()
    allowed = IdLists.of([[4, 2, 0]] * rows)
    assert sample(logits, params(rows, temperature=0.0, allowed=allowed))[0].eq(2).all()


def test_rows_do_not_depend_on_the_batch(backend: str) -> None:
    rows, vocab = (14, 601) if INTERPRETED else (29, 1601)
    logits, names = random_logits(rows, vocab), list(KNOBS)
    settings = [params(rows, **KNOBS[name]) for name in names]
    mixed = params(
        rows,
        **{
            knob: torch.stack([getattr(settings[r % len(names)], knob)[r] for r in range(rows)])
            for knob in ("temperature", "top_k", "top_p", "min_p")
        },
    )
    tokens, logprobs = sample(logits, mixed)
    for r in range(rows):
        alone = {
            knob: getattr(mixed, knob)[r : r + 1]
            for knob in ("temperature", "top_k", "top_p", "min_p", "seed")
        }
        token, logprob = sample(logits[r : r + 1], params(1, **alone))
        assert token == tokens[r]
        assert logprob == logprobs[r]


def test_frequency_and_presence_penalties(backend: str) -> None:
    """What is drawn are the logits less frequency * count + presence * (count > 0), and what is
    reported are the probabilities without; more ids than one step takes, in more than one block."""
    vocab, most = 5003, 300
    cases = [(0.0, 0.0), (1.5, 0.0), (0.0, 2.0), (0.02, 0.5), (-2.0, 0.3), (0.3, -2.0)]
    generated = [[(7 * i * i + row) % 90 * 55 for i in range(most)] for row in range(len(cases))]
    generated[4] = []
    logits = random_logits(len(cases), vocab, spread=1.0)
    expected = logits.tolist()
    for row, (frequency, presence) in enumerate(cases):
        for token in set(generated[row]):
            expected[row][token] -= frequency * generated[row].count(token) + presence
    knobs = {
        "temperature": 0.0,
        "frequency_penalty": torch.tensor([frequency for frequency, _ in cases]),
        "presence_penalty": torch.tensor([presence for _, presence in cases]),
        "generated": IdLists.of(generated),
    }
    tokens, logprobs = sample(logits, params(len(cases), **knobs))
    assert tokens.tolist() == [row.index(max(row)) for row in expected]
    plain = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(logprobs, plain, rtol=1e-5, atol=1e-5)
    drawn, _ = sample(logits, params(len(cases), **{**knobs, "temperature": 1.0}))
    assert torch.equal(drawn, sample(torch.tensor(expected), params(len(cases)))[0])


def test_penalties_follow_the_repetition_penalty(backend: str) -> None:
    logits = torch.tensor([[1.5, 1.0, -9.0], [-0.5, 0.0, -9.0]])
    knobs = params(
        2,
        temperature=0.0,
        repetition_penalty=2.0,
        frequency_penalty=-0.2,
        presence_penalty=-0.1,
        seen=IdLists.of([[0], [0]]),
        generated=IdLists.of([[0], [0, 0, 0]]),
    )
    # 1.5 / 2 + 0.3 > 1, though (1.5 + 0.3) / 2 < 1; -0.5 * 2 + 0.7 < 0, though (-0.5 + 0.7) / 2 > 0
    assert sample(logits, knobs)[0].tolist() == [0, 1]


def test_strided_logits(backend: str) -> None:
    rows = 2 if INTERPRETED else 9
    wide = random_logits(rows, 700)
    knobs = params(rows, top_p=0.9)
    part = wide[:, 30:630]
    assert torch.equal(sample(part, knobs)[0], sample(part.contiguous(), knobs)[0])
    assert torch.equal(top_logprobs(part, 3)[1], top_logprobs(part.contiguous(), 3)[1])


# ---- rows from which nothing can be drawn, and bad arguments


@pytest.mark.parametrize("knobs", [{}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5}], ids=str)
def test_undrawable_rows(backend: str, knobs: dict[str, float]) -> None:
    logits = random_logits(6, 50)
    logits[0, 7] = torch.nan
    logits[1] = -torch.inf
    logits[2, 3] = torch.inf
    logits[3, :49] = -torch.inf
    allowed = IdLists.of([[], [], [], [], [], [8, 8, 2]])
    logits[5, [2, 8]] = -torch.inf
    tokens, logprobs = sample(logits, params(6, allowed=allowed, **knobs))
    assert tokens[[0, 1, 2, 5]].eq(-1).all()
    assert logprobs[[0, 1, 2, 5]].eq(-torch.inf).all()
    assert tokens[3] == 49
    assert logprobs[3] == 0
    assert tokens[4] >= 0
    values, ids = top_logprobs(logits, 4)
    assert ids[:3].eq(-1).all()
    assert values[:3].eq(-torch.inf).all()


@pytest.mark.parametrize("knobs", [{"top_k": 1}, {"top_p": 0.6}, {"min_p": 0.9}], ids=str)
def test_filters_act_among_the_allowed_ids(backend: str, knobs: dict[str, float]) -> None:
    rows = 10 if INTERPRETED else 50
    logits = torch.tensor([5.0, 0.0, 1.0, 9.0]).expand(rows, -1)
    allowed = IdLists.of([[2, 1]] * rows)
    tokens, _ = sample(logits, params(rows, allowed=allowed, **knobs))
    assert tokens.eq(2).all()


def test_unlikely_allowed_ids_still_share_their_probability(backend: str) -> None:
    rows = 30 if INTERPRETED else 2000
    logits = torch.tensor([200.0, 1.0, 0.0, -50.0]).expand(rows, -1)
    tokens, _ = sample(logits, params(rows, allowed=IdLists.of([[2, 1]] * rows)))
    assert tokens.eq(1).double().mean() == pytest.approx(0.731, abs=0.27 if INTERPRETED else 0.03)
    assert set(tokens.tolist()) == {1, 2}


def test_bad_arguments() -> None:
    logits = torch.zeros(2, 5)
    with pytest.raises(ValueError, match="logits: expected"):
        sample(logits[0], params(2))
    with pytest.raises(ValueError, match="top_p: expected"):
        sample(logits, replace(params(2), top_p=torch.ones(3)))
    with pytest.raises(ValueError, match="seen: expected 2 rows, got 1"):
        sample(logits, replace(params(2), seen=IdLists.of([[1]])))
    with pytest.raises(ValueError, match="k: expected 1 to 5"):
        top_logprobs(logits, 6)
    seen = IdLists(torch.tensor([0, 1, 2]), torch.tensor([1, 2], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"seen.ids: expected \[2\] int64 on cpu, got .*int32"):
        sample(logits, replace(params(2), seen=seen))
    bias = Biases(torch.tensor([0, 1, 2]), torch.tensor([1, 2]), torch.ones(1))
    with pytest.raises(ValueError, match=r"bias.values: expected \[2\] float32 on cpu, got \[1\]"):
        sample(logits, replace(params(2), bias=bias))


@pytest.mark.parametrize("name", [name for name, _ in SampleParams.neutral(1).tensors()])
def test_tensors_on_another_device_are_refused(name: str) -> None:
    field, _, part = name.partition(".")
    knobs = params(2)
    value = getattr(knobs, field)
    there = replace(value, **{part: getattr(value, part).to("meta")}) if part else value.to("meta")
    with pytest.raises(ValueError, match=rf"^{name}: expected \[\d\] \w+ on cpu, got .* on meta$"):
        sample(torch.zeros(2, 5), replace(knobs, **{field: there}))


@pytest.mark.skipif(cpu.native is None, reason="needs the C++ backend")
@pytest.mark.parametrize("token", [-1, 5])
def test_ids_outside_the_vocabulary(token: int) -> None:
    with pytest.raises(ValueError, match=f"allowed: token id {token} is outside"):
        sample(torch.zeros(1, 5), params(1, allowed=IdLists.of([[token]])))


# ---- log-probabilities of the best


@pytest.mark.parametrize(("vocab", "k"), [(5, 5), (1000, 1), (5003, 20), (3000, 2999)])
def test_top_logprobs(backend: str, vocab: int, k: int) -> None:
    rows = 5 if INTERPRETED else 13
    logits = random_logits(rows, vocab).round(decimals=1)  # many ties
    values, ids = top_logprobs(logits, k)
    want_values, want_ids = kernels.top_logprobs_reference(logits.double(), k)
    assert torch.equal(ids, want_ids)
    torch.testing.assert_close(values, want_values, rtol=1e-5, atol=2e-6)
    tokens, logprobs = sample(logits, params(rows, temperature=0.0))
    assert torch.equal(tokens, ids[:, 0])
    if backend == "triton":  # adds up in another order here than there
        torch.testing.assert_close(logprobs, values[:, 0], rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(logprobs, values[:, 0])


# ---- distributions: Hugging Face's processors say what each knob means

CHI_SQUARE: dict[str, dict[str, Any]] = {
    **{name: knobs for name, knobs in KNOBS.items() if name not in ("greedy", "top_p of none")},
    "bias": {"bias": {1: 3.0, 2: -4.0, 9: -float("inf")}},
    "penalty": {"repetition_penalty": 1.7, "seen": [3, 3, 4, 5, 11]},
    "everything": {
        "bias": {1: 3.0, 2: -4.0},
        "repetition_penalty": 1.4,
        "seen": [0, 1, 3, 3],
        "temperature": 1.3,
        "top_k": 25,
        "top_p": 0.95,
        "min_p": 0.01,
    },
}


def hf_distribution(logits: Tensor, knobs: dict[str, Any]) -> Tensor:
    """`[V]`: the distribution by transformers' own code."""
    hf = pytest.importorskip("transformers.generation.logits_process")
    steps = []
    if "bias" in knobs:
        steps.append(hf.SequenceBiasLogitsProcessor({(k,): v for k, v in knobs["bias"].items()}))
    if "repetition_penalty" in knobs:
        steps.append(hf.RepetitionPenaltyLogitsProcessor(knobs["repetition_penalty"]))
    if "temperature" in knobs:
        steps.append(hf.TemperatureLogitsWarper(knobs["temperature"]))
    if "top_k" in knobs:
        steps.append(hf.TopKLogitsWarper(knobs["top_k"]))
    if "top_p" in knobs:
        steps.append(hf.TopPLogitsWarper(knobs["top_p"]))
    if "min_p" in knobs:
        steps.append(hf.MinPLogitsWarper(knobs["min_p"]))
    ids = torch.tensor([knobs.get("seen", [0])])
    scores = logits[None].clone()
    for step in steps:
        scores = step(ids, scores)
    return scores[0].double().softmax(-1)


@pytest.mark.parametrize("name", CHI_SQUARE)
def test_distribution(backend: str, name: str) -> None:
    if INTERPRETED:
        pytest.skip("needs too many draws; test_equals_reference says the same")
    rows, vocab = 20_000, 40
    logits, knobs = random_logits(1, vocab, spread=1.5)[0], CHI_SQUARE[name]
    expected = hf_distribution(logits, knobs) * rows
    ours = dict(knobs)
    if "bias" in knobs:
        ours["bias"] = Biases.of([knobs["bias"]] * rows)
    if "seen" in knobs:
        ours["seen"] = IdLists.of([knobs["seen"]] * rows)
    tokens, logprobs = sample(logits.expand(rows, -1), params(rows, **ours))
    counts = torch.bincount(tokens, minlength=vocab).double()
    torch.testing.assert_close(logprobs, logits.log_softmax(-1)[tokens], rtol=1e-5, atol=1e-5)

    assert counts[expected == 0].sum() == 0
    rare = expected < 5  # pooled, as the chi-square approximation wants
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]])
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    if len(wanted) > 1:
        assert stats.chisquare(observed.cpu().numpy(), wanted.cpu().numpy()).pvalue > 1e-4
