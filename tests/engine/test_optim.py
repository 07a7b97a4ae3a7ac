"""AdamW is torch's, schedules have the promised values, clipping the promised norm."""

from __future__ import annotations

import math

import pytest
import torch

from engine.training.optim import AdamW, FlatTensors, clip_
from engine.training.schedule import Schedule, learning_rate


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_equals_torch(weight_decay: float) -> None:
    torch.manual_seed(0)
    ours = torch.randn(50)
    theirs = ours.clone().requires_grad_()
    optimizer = AdamW(ours, (0.9, 0.99), 1e-8, weight_decay)
    peer = torch.optim.AdamW([theirs], betas=(0.9, 0.99), eps=1e-8, weight_decay=weight_decay)
    for step in range(20):
        gradient = torch.randn(50) * 10.0 ** (step % 5 - 2)
        peer.param_groups[0]["lr"] = lr = 0.01 / (step + 1)
        theirs.grad = gradient.clone()
        optimizer.step(gradient, lr)
        peer.step()
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_views_are_the_flat_buffer() -> None:
    tensors = [torch.randn(3, 4), torch.randn(2)]
    flat = FlatTensors(tensors)
    assert all(torch.equal(view, tensor) for view, tensor in zip(flat.views, tensors, strict=True))
    flat.flat.mul_(2)
    assert torch.equal(flat.views[0], 2 * tensors[0])
    copies = flat.copies()
    flat.flat.zero_()
    assert torch.equal(copies[1], 2 * tensors[1])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, *(1 - i / 8 for i in range(8))]),
        ("cosine", [0.5, 1.0, *(0.5 + 0.5 * math.cos(math.pi * i / 8) for i in range(8))]),
    ],
)
def test_schedules(schedule: Schedule, expected: list[float]) -> None:
    rates = [learning_rate(schedule, 3.0, step, 10, 0.15) for step in range(10)]
    assert rates == pytest.approx([3.0 * factor for factor in expected])


@pytest.mark.parametrize("warmup_ratio", [0.0, 1.0])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_step_of_a_short_run_has_a_rate(schedule: Schedule, warmup_ratio: float) -> None:
    assert learning_rate(schedule, 1.0, 0, 1, warmup_ratio) == 1.0


def test_clipping_keeps_the_direction_and_bounds_the_norm() -> None:
    gradient = torch.tensor([3.0, 4.0])
    assert clip_(gradient, 10.0) == 5.0
    assert gradient.tolist() == [3.0, 4.0]
    assert clip_(gradient, 1.0) == 5.0
    assert gradient.tolist() == pytest.approx([0.6, 0.8])
    assert clip_(torch.zeros(2), 1.0) == 0.0
    assert clip_(torch.tensor([1.0, math.inf]), 1.0) == math.inf
