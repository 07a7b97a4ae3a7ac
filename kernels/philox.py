"""Counter-based random numbers: a function of (seed, position) alone, the same on every device.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). `uniform`
gives the numbers of Triton's `tl.rand(seed, offset)`.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW32 = 0xFFFFFFFF
_ROUNDS = 10
_TO_UNIT = 4.6566127342e-10  # just under 2^-31: the largest product still rounds below 1


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a*b, by halves of `a`, so that nothing leaves int64."""
    low, high = (a & 0xFFFF) * b, (a >> 16) * b
    return (high + (low >> 16)) >> 16, (low + ((high & 0xFFFF) << 16)) & _LOW32


def philox4x32(counter: Tensor, key: Tensor) -> Tensor:
    """Ten rounds of Philox.

    Args:
        counter: `[..., 4]` int64 holding 32-bit words.
        key: `[..., 2]` int64 holding 32-bit words.

    Returns:
        `[..., 4]` int64 holding 32 random bits each.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW32, (k1 + _KEY_STEPS[1]) & _LOW32
    return torch.stack((c0, c1, c2, c3), dim=-1)


def uniform(seed: Tensor, position: Tensor) -> Tensor:
    """One number in [0, 1) for each (seed, position).

    Args:
        seed: `[R]` int64, all 64 bits count.
        position: `[R]` int64, the counter.

    Returns:
        `[R]` fp32.
    """
    zero = torch.zeros_like(position)
    counter = torch.stack((position & _LOW32, (position >> 32) & _LOW32, zero, zero), dim=-1)
    key = torch.stack((seed & _LOW32, (seed >> 32) & _LOW32), dim=-1)
    bits = philox4x32(counter, key)[..., 0]
    folded = torch.where(bits > 0x7FFFFFFF, _LOW32 - bits, bits)
    return folded.float() * torch.tensor(_TO_UNIT, dtype=torch.float32)
