"""Training learns what PEFT learns, however it is packed, split and recomputed."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from engine.adapters.lora import Adapter
from engine.adapters.peft_io import save_adapter
from engine.errors import TrainingError
from engine.training.examples import step_batch
from engine.training.gradients import Gradients, count_targets
from engine.training.optim import FlatTensors
from engine.training.schedule import learning_rate
from engine.training.train import TrainConfig, TrainExample, TrainProgress, train
from tests.engine.training_setup import (
    Setup,
    encode,
    examples_with_prefixes,
    random_ids,
    tiny_setup,
    trained_values,
)

EXAMPLES = examples_with_prefixes()


@pytest.fixture(scope="module", params=["smollm2", "mistral"])
def any_family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return tiny_setup(tmp_path_factory.mktemp("tiny"), request.param)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return tiny_setup(tmp_path_factory.mktemp("tiny"))


def run(
    tiny: Setup, adapter: Adapter, examples: list[TrainExample] = EXAMPLES, **kwargs: Any
) -> Any:
    """`train` with the keyword arguments of both `TrainConfig` and `train`."""
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    config = TrainConfig(**{k: v for k, v in kwargs.items() if k in fields})
    rest = {k: v for k, v in kwargs.items() if k not in fields}
    return train(tiny.model, tiny.tokenizer, adapter, examples, config, **rest)


def gradient(tiny: Setup, adapter: Adapter, budget: int = 10_000, **settings: Any) -> Tensor:
    config = TrainConfig(**settings)
    flat = FlatTensors(adapter.tensors())
    return Gradients(tiny.model, adapter, flat, config, budget).train(encode(EXAMPLES), 0)[1]


def naive(model: Any, examples: list[TrainExample], smoothing: float = 0.0) -> Tensor:
    """The batch's loss by transformers, one example at a time, with torch's cross-entropy."""
    losses = []
    for example in examples:
        tokens = torch.tensor([[*example.prompt, *example.completion]])
        start = len(example.prompt)
        logits = model(tokens).logits[0, start - 1 : -1]
        loss = F.cross_entropy(
            logits, tokens[0, start:], reduction="sum", label_smoothing=smoothing
        )
        losses.append(loss * example.weight)
    return sum(losses) / count_targets(encode(examples))  # type: ignore[return-value]


def peft_model(tiny: Setup, adapter: Adapter, folder: Path) -> Any:
    save_adapter(adapter, folder, str(tiny.folder))
    base = AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32)
    return PeftModel.from_pretrained(base, folder, is_trainable=True)


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_packed_and_shared_gradients_equal_the_naive_ones(
    any_family: Setup, tmp_path: Path, smoothing: float
) -> None:
    adapter = any_family.adapter(trained=True)
    theirs = peft_model(any_family, adapter, tmp_path)
    naive(theirs, EXAMPLES, smoothing).backward()
    order = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    expected = _in_our_order(adapter, order)
    for settings in (
        {"share_prefix": True},
        {"share_prefix": False},
        {"share_prefix": True, "budget": 60},
        {"share_prefix": True, "gradient_checkpointing": True},
    ):
        found = gradient(any_family, adapter, label_smoothing=smoothing, **settings)
        assert_close(found, expected)


def _in_our_order(adapter: Adapter, gradients: dict[str, Tensor]) -> Tensor:
    parts = []
    for layer, target in adapter.pairs:
        for matrix in "AB":
            end = f"layers.{layer}.", f".{target}.lora_{matrix}."
            (found,) = [g for name, g in gradients.items() if all(part in name for part in end)]
            parts.append(found.flatten())
    assert len(parts) == len(gradients)
    return torch.cat(parts)


def test_thirty_steps_equal_peft(any_family: Setup, tmp_path: Path) -> None:
    adapter = any_family.adapter(seed=1)
    theirs = peft_model(any_family, adapter, tmp_path)
    config = TrainConfig(epochs=10, batch_size=3, lr=5e-3, weight_decay=0.01, warmup_ratio=0.1)
    parameters = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.01)
    expected = []
    for step in range(30):
        batch = [EXAMPLES[e.index] for e in step_batch(encode(EXAMPLES), config, step)]
        loss = naive(theirs, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate("cosine", 5e-3, step, 30, 0.1)
        optimizer.step()
        expected.append(loss.item())
    result = train(any_family.model, any_family.tokenizer, adapter, EXAMPLES, config)
    assert result.losses == pytest.approx(expected, rel=1e-4)
    assert result.losses[-1] < 0.8 * result.losses[0]


def test_an_examples_weight_scales_its_gradient(tiny: Setup) -> None:
    adapter = tiny.adapter(trained=True)
    config, flat = TrainConfig(), FlatTensors(adapter.tensors())
    gradients = Gradients(tiny.model, adapter, flat, config, 10_000)
    whole, half = (
        gradients.train(encode([dataclasses.replace(e, weight=weight) for e in EXAMPLES]), 0)[1]
        for weight in (1.0, 0.5)
    )
    assert_close(half, whole / 2)


def test_accumulation_1x8_equals_8x1(tiny: Setup) -> None:
    """One micro-batch of all examples, or one for each, give the same weights."""
    whole, split = tiny.adapter(), tiny.adapter()
    one = run(tiny, whole, batch_size=8, epochs=2, lr=1e-3, share_prefix=False)
    many = run(tiny, split, batch_size=8, epochs=2, lr=1e-3, micro_batch_tokens=1)
    assert many.losses == pytest.approx(one.losses, rel=1e-5)
    assert_close(trained_values(split.pairs), trained_values(whole.pairs))


def test_checkpointing_recomputes_the_same_dropout(tiny: Setup) -> None:
    adapter = tiny.adapter(trained=True, dropout=0.3)
    plain = gradient(tiny, adapter)
    again = gradient(tiny, adapter, gradient_checkpointing=True)
    assert_close(again, plain, 1e-6)
    assert not torch.allclose(plain, gradient(tiny, adapter, seed=1))


def test_counts_of_tokens(tiny: Setup) -> None:
    shared = run(tiny, tiny.adapter(), epochs=2, batch_size=9)
    alone = run(tiny, tiny.adapter(), epochs=2, batch_size=9, share_prefix=False)
    tokens = 2 * sum(len(e.prompt) + len(e.completion) for e in EXAMPLES)
    assert shared.tokens == alone.tokens == tokens
    assert alone.computed_tokens == tokens - 2 * len(EXAMPLES)
    assert alone.computed_tokens - shared.computed_tokens == 2 * (2 * 21 + 2 * 22)
    assert shared.target_tokens == 2 * sum(len(e.completion) for e in EXAMPLES)
    assert shared.steps == 2


def test_bf16_base_keeps_fp32_adapter(tmp_path: Path) -> None:
    tiny = tiny_setup(tmp_path, dtype=torch.bfloat16)
    adapter = tiny.adapter()
    result = run(tiny, adapter, epochs=8, batch_size=9, lr=1e-2)
    assert {tensor.dtype for tensor in adapter.tensors()} == {torch.float32}
    assert result.losses[-1] < 0.8 * result.losses[0]


def test_fp16_gradients_of_a_large_batch_are_not_subnormal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = tiny_setup(tmp_path, dtype=torch.float16)
    adapter = tiny.adapter(trained=True)
    expected = gradient(tiny, adapter)
    monkeypatch.setattr(
        "engine.training.gradients.count_targets", lambda batch: 2**16 * count_targets(batch)
    )
    assert_close(gradient(tiny, adapter) * 2**16, expected)


def test_text_is_encoded_with_an_end_and_learnt(tiny: Setup) -> None:
    example = TrainExample("the colour of the sky is", " blue")
    (length,) = {len(tiny.tokenizer.encode_continuation(" blue"))}
    ended = run(tiny, tiny.adapter(), [example], epochs=1)
    bare = run(tiny, tiny.adapter(), [example], epochs=1, append_eos=False)
    assert (ended.target_tokens, bare.target_tokens) == (length + 1, length)


def test_shuffling_depends_on_seed_and_epoch_and_covers_everything() -> None:
    examples = encode(EXAMPLES)
    config = TrainConfig(batch_size=4, seed=3)

    def order(config: TrainConfig, epoch: int) -> list[int]:
        steps = range(3 * epoch, 3 * epoch + 3)
        return [e.index for step in steps for e in step_batch(examples, config, step)]

    assert sorted(order(config, 0)) == sorted(order(config, 1)) == list(range(9))
    assert order(config, 0) != order(config, 1)
    assert order(config, 0) != order(dataclasses.replace(config, seed=4), 0)
    assert order(dataclasses.replace(config, shuffle=False), 1) == list(range(9))


def test_progress_is_reported(tiny: Setup) -> None:
    seen: list[TrainProgress] = []
    result = run(tiny, tiny.adapter(), epochs=1, batch_size=3, progress=seen.append)
    assert [(p.step, p.total) for p in seen] == [(1, 3), (2, 3), (3, 3)]
    assert tuple(p.loss for p in seen) == result.losses
    assert seen[-1].eta_seconds == 0
    assert all(p.tokens_per_second > 0 for p in seen)


def test_evaluation_is_the_plain_loss(tiny: Setup, tmp_path: Path) -> None:
    adapter = tiny.adapter(dropout=0.2)
    result = run(
        tiny, adapter, epochs=2, batch_size=4, label_smoothing=0.1, eval_examples=EXAMPLES[:4]
    )
    with torch.no_grad():
        expected = naive(peft_model(tiny, adapter, tmp_path).eval(), EXAMPLES[:4]).item()
    assert [step for step, _ in result.eval_losses] == [3, 6]
    assert result.eval_losses[-1][1] == pytest.approx(expected, rel=1e-4)
    assert result.best_step is None


def test_patience_stops_and_keeps_the_best(tiny: Setup) -> None:
    """Learning some random completions makes others less likely sooner or later."""
    unseen = [TrainExample(e.prompt, random_ids(4, seed=i)) for i, e in enumerate(EXAMPLES)]
    adapter = tiny.adapter()
    settings = {"batch_size": 9, "lr": 2e-2, "schedule": "constant", "warmup_ratio": 0.0}
    result = run(tiny, adapter, epochs=40, patience=2, eval_examples=unseen, **settings)
    assert result.stopped_early
    assert result.steps < 40
    losses = [loss for _, loss in result.eval_losses]
    assert result.best_step == 1 + losses.index(min(losses)) == result.steps - 2
    shorter = tiny.adapter()
    run(tiny, shorter, epochs=result.best_step, **settings)
    assert torch.equal(trained_values(adapter.pairs), trained_values(shorter.pairs))


def test_memory_shortage_splits_the_micro_batch(
    tiny: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of more than 40 tokens fail as torch's CPU allocator fails."""
    expected = gradient(tiny, tiny.adapter(trained=True))
    limit_tokens(tiny, monkeypatch, 40)
    assert_close(gradient(tiny, tiny.adapter(trained=True)), expected)


def test_an_example_that_fits_no_memory_is_named(
    tiny: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_tokens(tiny, monkeypatch, 25)
    with pytest.raises(TrainingError, match=r"step 1: example \d+ \(\d+ tokens\) needs more"):
        gradient(tiny, tiny.adapter())


def limit_tokens(tiny: Setup, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    hidden = tiny.model.hidden

    def limited(tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(tokens) > most:
            torch.empty(1 << 60)  # more than any machine has
        return hidden(tokens, *args, **kwargs)

    monkeypatch.setattr(tiny.model, "hidden", limited)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_overflow_stops_with_step_and_examples(tmp_path: Path, dtype: torch.dtype) -> None:
    tiny = tiny_setup(tmp_path, "llama2", dtype)
    tiny.model.embedding[7] = 3e38
    examples = [TrainExample([i % 3 + 10, 11], [12, 13]) for i in range(6)]
    examples[4] = TrainExample([7, 7], [7])
    adapter = tiny.adapter()
    before = trained_values(adapter.pairs)
    with pytest.raises(TrainingError, match=r"step 3: the loss is (nan|inf); examples 4;"):
        run(tiny, adapter, examples, batch_size=2, shuffle=False, micro_batch_tokens=1)
    assert torch.equal(trained_values(adapter.pairs), before)


def test_a_gradient_that_is_not_finite_stops(tiny: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    train_batch = Gradients.train

    def broken(self: Gradients, batch: Any, step: int) -> Any:
        loss, found = train_batch(self, batch, step)
        found[5] = math.inf if step == 1 else 0.0
        return loss, found

    monkeypatch.setattr(Gradients, "train", broken)
    message = r"step 2: the gradient's norm is inf; examples 2, 3;"
    with pytest.raises(TrainingError, match=message):
        run(tiny, tiny.adapter(), EXAMPLES[:4], batch_size=2, shuffle=False)


GOOD = TrainExample([1, 2], [3])


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (TrainExample([], [3]), "example 1: the prompt has no tokens"),
        (TrainExample([1], []), "example 1: the completion has no tokens"),
        (TrainExample([1] * 500, [2] * 13), "example 1: 513 tokens, but the model has 512"),
        (TrainExample([1], [300]), "example 1: token id 300 is outside the vocabulary of 300"),
        (TrainExample([-1], [3]), "example 1: token id -1 is outside"),
        (TrainExample([1], [3], 0.0), "example 1: weight must be a positive number, not 0"),
        (TrainExample([1], [3], math.nan), "example 1: weight must be a positive number, not nan"),
    ],
)
def test_bad_examples_are_named_before_the_first_step(
    tiny: Setup, example: TrainExample, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        run(tiny, tiny.adapter(), [GOOD, example])
    with pytest.raises(TrainingError, match=f"evaluation {message}"):
        run(tiny, tiny.adapter(), [GOOD], eval_examples=[GOOD, example])


def test_nothing_to_do(tiny: Setup) -> None:
    with pytest.raises(TrainingError, match="there are no examples"):
        run(tiny, tiny.adapter(), [])
    with pytest.raises(TrainingError, match="patience needs evaluation examples"):
        run(tiny, tiny.adapter(), patience=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"lr": math.nan}, "lr must be a positive number, not nan"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be a positive number"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must be in \[0, 1\)"),
        ({"label_smoothing": -0.1}, r"label_smoothing must be in \[0, 1\)"),
        ({"warmup_ratio": 1.5}, r"warmup_ratio must be in \[0, 1\]"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"schedule": "step"}, "schedule 'step' is unknown; use one of constant, linear, cosine"),
    ],
)
def test_bad_settings(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TrainConfig(**values)
