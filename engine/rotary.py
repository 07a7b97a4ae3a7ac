"""Cosines and sines of rotary position embedding, one table for a model."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.config import ModelConfig


def rotary_table(config: ModelConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position a model knows, scaled as its config says.

    Returns:
        cos, sin: `[max_positions, head_dim / 2]` fp32 on `device`.
    """
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float32)
    frequencies = 1.0 / config.rope_theta ** (steps / config.head_dim)
    scale = 1.0
    if config.rope_scaling is not None:
        frequencies = config.rope_scaling.rescale(frequencies, config.rope_theta)
        scale = config.rope_scaling.attention_scale
    angles = torch.outer(torch.arange(config.max_positions, dtype=torch.float32), frequencies)
    return (angles.cos() * scale).to(device), (angles.sin() * scale).to(device)
