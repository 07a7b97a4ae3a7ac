"""The ways in which rotary frequencies are stretched to longer contexts, one class each.

The unscaled frequencies are ``theta ** (-2i / head_dim)`` for i = 0 .. head_dim/2 - 1 (RoFormer,
arXiv 2104.09864). A scaling changes them once, when the model is loaded; none supported here
depends on the length of a sequence. To add a kind: write its class and list it in ``_KINDS``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.errors import CheckpointError


class RopeScaling(Protocol):
    """A change of the rotary frequencies, and of the size of the cosines and sines."""

    @property
    def attention_scale(self) -> float:
        """Factor on cos and sin (1.0 for all kinds but YaRN)."""

    def rescale(self, frequencies: Tensor, theta: float) -> Tensor:
        """Scaled copy of the unscaled ``frequencies`` [head_dim/2] fp32, in radians a position."""

    def to_hf(self) -> dict[str, Any]:
        """The ``rope_scaling`` entry of a transformers config.json."""


@dataclass(frozen=True)
class LinearRope:
    """Position interpolation (arXiv 2306.15595): every frequency divided by ``factor``."""

    factor: float
    attention_scale: float = 1.0

    @classmethod
    def from_hf(cls, fields: _Fields) -> LinearRope:
        return cls(fields.number("factor"))

    def rescale(self, frequencies: Tensor, theta: float) -> Tensor:
        return frequencies / self.factor

    def to_hf(self) -> dict[str, Any]:
        return {"rope_type": "linear", "factor": self.factor}


@dataclass(frozen=True)
class Llama3Rope:
    """Llama 3.1's: long wavelengths divided by ``factor``, short ones kept, blended between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int
    attention_scale: float = 1.0

    @classmethod
    def from_hf(cls, fields: _Fields) -> Llama3Rope:
        scaling = cls(
            factor=fields.number("factor"),
            low_freq_factor=fields.number("low_freq_factor"),
            high_freq_factor=fields.number("high_freq_factor"),
            original_max_positions=fields.original_length(),
        )
        if scaling.high_freq_factor <= scaling.low_freq_factor:
            raise CheckpointError(
                f"{fields.where}: high_freq_factor must be greater than low_freq_factor"
            )
        return scaling

    def rescale(self, frequencies: Tensor, theta: float) -> Tensor:
        turns = self.original_max_positions * frequencies / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = kept.clamp(0.0, 1.0)
        return kept * frequencies + (1 - kept) * frequencies / self.factor

    def to_hf(self) -> dict[str, Any]:
        return {
            "rope_type": "llama3",
            "factor": self.factor,
            "low_freq_factor": self.low_freq_factor,
            "high_freq_factor": self.high_freq_factor,
            "original_max_position_embeddings": self.original_max_positions,
        }


@dataclass(frozen=True)
class YarnRope:
    """YaRN (arXiv 2309.00071, section 3.2 to 3.4), as transformers and llama.cpp compute it."""

    factor: float
    original_max_positions: int
    attention_scale: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    @classmethod
    def from_hf(cls, fields: _Fields) -> YarnRope:
        for key, default in (("mscale", None), ("mscale_all_dim", None), ("truncate", True)):
            fields.require_default(key, default)
        factor = fields.number("factor")
        return cls(
            factor=factor,
            original_max_positions=fields.original_length(),
            attention_scale=fields.number("attention_factor", yarn_attention_scale(factor)),
            beta_fast=fields.number("beta_fast", 32.0),
            beta_slow=fields.number("beta_slow", 1.0),
        )

    def rescale(self, frequencies: Tensor, theta: float) -> Tensor:
        half = frequencies.shape[0]
        first = max(math.floor(self._index(self.beta_fast, theta, half)), 0)
        last = min(math.ceil(self._index(self.beta_slow, theta, half)), 2 * half - 1)
        width = max(last - first, 0.001)
        divided = ((torch.arange(half, dtype=torch.float32) - first) / width).clamp(0.0, 1.0)
        return divided * frequencies / self.factor + (1 - divided) * frequencies

    def _index(self, turns: float, theta: float, half: int) -> float:
        """The (fractional) index of the frequency that turns so often in the original length."""
        wavelength = self.original_max_positions / turns
        return half * math.log(wavelength / (2 * math.pi)) / math.log(theta)

    def to_hf(self) -> dict[str, Any]:
        return {
            "rope_type": "yarn",
            "factor": self.factor,
            "original_max_position_embeddings": self.original_max_positions,
            "attention_factor": self.attention_scale,
            "beta_fast": self.beta_fast,
            "beta_slow": self.beta_slow,
        }


@dataclass(frozen=True)
class FactorsRope:
    """One divisor a frequency: what a GGUF's ``rope_freqs.weight`` holds.

    transformers says the same with a "longrope" whose short and long factors are equal.
    """

    factors: tuple[float, ...]
    original_max_positions: int
    attention_scale: float = 1.0

    @classmethod
    def from_hf(cls, fields: _Fields) -> FactorsRope:
        short, long = fields.numbers("short_factor"), fields.numbers("long_factor")
        if short != long:
            raise CheckpointError(
                f"{fields.where}: longrope whose short and long factors differ is not supported"
            )
        return cls(short, fields.original_length(), fields.number("attention_factor"))

    def rescale(self, frequencies: Tensor, theta: float) -> Tensor:
        return frequencies / torch.tensor(self.factors, dtype=torch.float32)

    def to_hf(self) -> dict[str, Any]:
        return {
            "rope_type": "longrope",
            "short_factor": list(self.factors),
            "long_factor": list(self.factors),
            "factor": 1.0,
            "attention_factor": self.attention_scale,
            "original_max_position_embeddings": self.original_max_positions,
        }


_KINDS: dict[str, type[LinearRope | Llama3Rope | YarnRope | FactorsRope]] = {
    "linear": LinearRope,
    "llama3": Llama3Rope,
    "yarn": YarnRope,
    "longrope": FactorsRope,
}


def yarn_attention_scale(factor: float) -> float:
    """YaRN's recommended factor on cos and sin (equation 22): 0.1 ln(factor) + 1."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def rope_scaling_from_hf(
    fields: Mapping[str, Any], where: str, max_positions: int
) -> RopeScaling | None:
    """The scaling that a config.json's ``rope_scaling`` or ``rope_parameters`` describes.

    ``where`` names file and key in errors. Raises CheckpointError for a kind that is not supported
    or a number that is missing.
    """
    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind == "default":
        return None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise CheckpointError(
            f"{where}: rope type {kind!r} is not supported; use a model with one of: default, "
            + ", ".join(_KINDS)
        )
    return _KINDS[kind].from_hf(_Fields(fields, where, max_positions))


@dataclass(frozen=True)
class _Fields:
    """The numbers of one rope entry, each checked as it is taken."""

    values: Mapping[str, Any]
    where: str
    max_positions: int

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key)
        if value is None:
            value = default
        return self._positive(value, key)

    def numbers(self, key: str) -> tuple[float, ...]:
        values = self.values.get(key)
        if not isinstance(values, list):
            raise CheckpointError(f"{self.where}: {key} must be a list of numbers")
        return tuple(self._positive(value, key) for value in values)

    def original_length(self) -> int:
        return int(self.number("original_max_position_embeddings", self.max_positions))

    def require_default(self, key: str, default: Any) -> None:
        value = self.values.get(key, default)
        if value != default:
            raise CheckpointError(f"{self.where}: {key} = {value!r} is not supported")

    def _positive(self, value: Any, key: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise CheckpointError(f"{self.where}: {key} must be a positive number, not {value!r}")
        return float(value)
