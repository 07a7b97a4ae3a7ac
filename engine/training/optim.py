"""AdamW with decoupled weight decay (arXiv 1711.05101) on one flat buffer.

An adapter is hundreds of small matrices. Laid end to end in one fp32 buffer, a step is a handful of
tensor operations instead of thousands, clipping is one norm, and the whole state is three vectors
that a safetensors file holds exactly; this is why torch.optim is not used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class FlatTensors:
    """fp32 tensors copied into one buffer `flat [P]`; `views` are its pieces, as leaves."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
        pieces = self.flat.split([tensor.numel() for tensor in tensors])
        self.views = [
            piece.view(tensor.shape).detach().requires_grad_()
            for piece, tensor in zip(pieces, tensors, strict=True)
        ]

    def copies(self) -> list[Tensor]:
        """Independent tensors of the present values."""
        return [view.detach().clone() for view in self.views]


class AdamW:
    """Updates a flat fp32 vector in place.

    Args:
        parameters: `[P]` fp32.
        betas: decay rates of the two running means.
        eps: added to the root of the second mean.
        weight_decay: share of a parameter taken away per step, times the learning rate.
    """

    def __init__(
        self, parameters: Tensor, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        self.parameters = parameters
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.mean = torch.zeros_like(parameters)
        self.square = torch.zeros_like(parameters)
        self.steps = 0

    def step(self, gradient: Tensor, lr: float) -> None:
        """One update by `gradient` `[P]` fp32 at learning rate `lr`."""
        self.steps += 1
        beta1, beta2 = self.betas
        self.mean.lerp_(gradient, 1 - beta1)
        self.square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = self.square.sqrt().div_((1 - beta2**self.steps) ** 0.5).add_(self.eps)
        self.parameters.mul_(1 - lr * self.weight_decay)
        self.parameters.addcdiv_(self.mean, root, value=-lr / (1 - beta1**self.steps))


def clip_(gradient: Tensor, max_norm: float | None) -> Tensor:
    """Scales `gradient` `[P]` in place to at most `max_norm`; returns the norm it had, a scalar."""
    norm = torch.linalg.vector_norm(gradient)
    if max_norm is not None:
        gradient.mul_((max_norm / norm.clamp_min(1e-12)).clamp_max(1.0))
    return norm
