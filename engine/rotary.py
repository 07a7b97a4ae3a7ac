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
    positions = torch.arange(config.max_positions, dtype=torch.float32)
    angles = torch.outer(positions, config.rope_frequencies())
    scale = config.rope_attention_scale
    return (angles.cos() * scale).to(device), (angles.sin() * scale).to(device)
