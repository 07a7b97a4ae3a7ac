from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from kernels import dispatch, linear_cross_entropy, linear_cross_entropy_reference
from tests.kernels.oracle import FORWARD, GRADIENT, assert_close, double, misaligned

cross_entropy = importlib.import_module("kernels.cross_entropy")


def problem(rows: int, dim: int, vocab: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head, and targets of which about a third is ignored."""
    hidden = torch.randn(rows, dim, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, vocab, (rows,))
    targets[torch.rand(rows) < 0.3] = cross_entropy.IGNORED
    return hidden, torch.randn(vocab, dim, dtype=dtype) / dim**0.5, targets


def check(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float
) -> None:
    (exact_hidden,) = double(hidden)
    exact_weights = None if weights is None else weights.double()
    loss, logprobs = linear_cross_entropy(hidden, weight, targets, weights, smoothing)
    exact, exact_logprobs = linear_cross_entropy_reference(
        exact_hidden, weight.double(), targets, exact_weights, smoothing
    )
    tolerance = {torch.float32: FORWARD[hidden.dtype]}
    assert_close(loss, exact, tolerance)
    assert_close(logprobs, exact_logprobs, tolerance)
    assert not logprobs.requires_grad
    (grad,) = torch.autograd.grad(loss * 0.5, hidden)
    (expected,) = torch.autograd.grad(exact * 0.5, exact_hidden)
    assert_close(grad, expected, GRADIENT)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True], ids=["even", "weighted"])
@pytest.mark.parametrize(
    ("rows", "dim", "vocab"), [(21, 24, 1001), (1, 16, 16), (40, 8, 5), (30, 17, 130)]
)
def test_linear_cross_entropy(
    backend: str,
    dtype: torch.dtype,
    rows: int,
    dim: int,
    vocab: int,
    weighted: bool,
    smoothing: float,
) -> None:
    hidden, weight, targets = problem(rows, dim, vocab, dtype)
    targets[0] = vocab - 1
    check(hidden, weight, targets, torch.rand(rows) if weighted else None, smoothing)


def test_many_chunks(backend: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "_chunk_rows", lambda hidden, vocab: 7)
    check(*problem(20, 16, 99, dtype), torch.rand(20), 0.05)


def test_strided_inputs(backend: str, dtype: torch.dtype) -> None:
    hidden, weight, targets = problem(20, 16, 99, dtype)
    strided = hidden.detach().T.contiguous().T.requires_grad_()
    head, every = weight.T.contiguous().T, targets.repeat_interleave(2)[::2]
    check(strided, head, every, torch.rand(40)[::2], 0.1)
    rows = (targets != cross_entropy.IGNORED).nonzero().squeeze(1).repeat_interleave(3)[::3]
    assert_close(
        linear_cross_entropy(strided, head, every, rows=rows)[1],
        linear_cross_entropy_reference(hidden.double(), weight.double(), targets)[1],
        {torch.float32: FORWARD[dtype]},
    )


def test_misaligned_inputs(backend: str, dtype: torch.dtype) -> None:
    hidden, weight, targets = problem(20, 16, 99, dtype)
    odd = misaligned(hidden.detach()).requires_grad_()
    check(odd, misaligned(weight), misaligned(targets), misaligned(torch.rand(20)), 0.1)


@pytest.mark.parametrize("rows", [0, 4])
def test_all_ignored(backend: str, dtype: torch.dtype, rows: int) -> None:
    hidden, weight, targets = problem(rows, 8, 20, dtype)
    loss, logprobs = linear_cross_entropy(hidden, weight, targets.fill_(-100))
    assert loss == 0
    assert not logprobs.any()
    assert not torch.autograd.grad(loss, hidden)[0].any()


def test_extreme_logits(backend: str, dtype: torch.dtype) -> None:
    hidden = torch.tensor([[300.0], [-300.0]], dtype=dtype, requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-1.0]], dtype=dtype)
    loss, logprobs = linear_cross_entropy(hidden, weight, torch.tensor([0, 0]))
    assert logprobs.tolist() == [0.0, -600.0]
    assert torch.autograd.grad(loss, hidden)[0].tolist() == [[0.0], [-2.0]]


def test_without_gradient(backend: str, dtype: torch.dtype) -> None:
    hidden, weight, targets = problem(20, 8, 30, dtype)
    with torch.no_grad():
        loss, logprobs = linear_cross_entropy(hidden, weight, targets)
    again, same = linear_cross_entropy(hidden, weight, targets)
    assert torch.equal(loss, again)
    assert torch.equal(logprobs, same)


def test_rows_are_those_that_would_be_found(backend: str, dtype: torch.dtype) -> None:
    hidden, weight, targets = problem(20, 8, 30, dtype)
    rows = (targets != cross_entropy.IGNORED).nonzero().squeeze(1)
    loss, logprobs = linear_cross_entropy(hidden, weight, targets)
    again, same = linear_cross_entropy(hidden, weight, targets, rows=rows)
    assert torch.equal(loss, again)
    assert torch.equal(logprobs, same)
    (grad,), (other,) = (torch.autograd.grad(each, hidden) for each in (loss, again))
    assert torch.equal(grad, other)


def test_a_row_depends_on_itself_alone(invariant: str, dtype: torch.dtype) -> None:
    """The matrix products aside: what happens to a chunk of logits."""
    logits, targets = torch.randn(20, 300).to(dtype), torch.randint(0, 300, (20,))
    weights, part = torch.rand(20), logits[7:9].clone()
    chunk = dispatch.implementation("cross_entropy_chunk", logits)
    outs = chunk(logits, targets, weights, 0.1, True)
    alone = chunk(part, targets[7:9], weights[7:9], 0.1, True)
    assert torch.equal(logits[7:9], part)
    for out, same in zip(outs, alone, strict=True):
        assert torch.equal(out[7:9], same)


def test_derivatives() -> None:
    hidden, weight, targets = problem(9, 6, 11, torch.float64)
    weights = torch.rand(9, dtype=torch.float64)
    for op in (linear_cross_entropy, linear_cross_entropy_reference):
        for smoothing in (0.0, 0.2):
            assert torch.autograd.gradcheck(
                lambda x, op=op, e=smoothing: op(x, weight, targets, weights, e)[0], hidden
            )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("hidden", {"hidden": torch.zeros(5)}),
        ("weight", {"weight": torch.zeros(9, 7)}),
        ("weight", {"weight": torch.zeros(9, 8, dtype=torch.bfloat16)}),
        ("weight", {"weight": torch.zeros(9, 8, requires_grad=True)}),
        ("targets", {"targets": torch.zeros(4, dtype=torch.int64)}),
        ("targets", {"targets": torch.zeros(5, dtype=torch.int32)}),
        ("weights", {"weights": torch.zeros(4)}),
        ("weights", {"weights": torch.zeros(5, requires_grad=True)}),
        ("label_smoothing", {"label_smoothing": 1.5}),
        ("rows", {"rows": torch.zeros(5, dtype=torch.int32)}),
        ("rows", {"rows": torch.zeros(5, 1, dtype=torch.int64)}),
        ("rows", {"rows": torch.arange(4)}),
    ],
)
def test_what_does_not_fit_is_named(name: str, change: dict[str, object]) -> None:
    fitting = {
        "hidden": torch.zeros(5, 8),
        "weight": torch.zeros(9, 8),
        "targets": torch.zeros(5, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=f"^{name}:"):
        linear_cross_entropy(**{**fitting, **change})
