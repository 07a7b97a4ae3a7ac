"""What every op is held to: the reference in float64, by relative RMS error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FORWARD = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-3}
GRADIENT = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """RMS of the error over the RMS of what was expected; 0 for two empty tensors."""
    if expected.numel() == 0:
        return 0.0
    error = (actual.double() - expected.double()).square().mean().sqrt()
    return (error / expected.double().square().mean().sqrt().clamp_min(1e-30)).item()


def assert_close(actual: Tensor, expected: Tensor, tolerance: dict[torch.dtype, float]) -> None:
    """Shape equal, and the error within what the dtype of `actual` allows."""
    assert actual.shape == expected.shape
    assert relative_rms(actual, expected) <= tolerance[actual.dtype]


def misaligned(x: Tensor) -> Tensor:
    """The same values in memory where no load or store of two elements or more is aligned."""
    return torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)


def double(*tensors: Tensor) -> list[Tensor]:
    """float64 leaves of the same values."""
    return [x.detach().double().requires_grad_(x.requires_grad) for x in tensors]


def gradients(op: Callable[..., Any], leaves: list[Tensor], upstream: list[Tensor]) -> list[Tensor]:
    """Gradients of the op's outputs, weighted by `upstream`, with respect to `leaves`."""
    out = op(*leaves)
    outs = [out] if isinstance(out, Tensor) else list(out)
    return list(
        torch.autograd.grad(
            outs, leaves, [g.to(o.dtype) for g, o in zip(upstream, outs, strict=True)]
        )
    )
