"""What a caller asks of a generation: how tokens are drawn, and where to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.errors import RequestError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Knobs of one request; the order in which they act is that of `kernels.sample`.

    Args:
        temperature: >= 0; 0 always takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens that together reach this probability, in (0, 1].
        min_p: keep tokens with at least this fraction of the best one's probability, in [0, 1].
        repetition_penalty: > 0; above 1 makes tokens of the prompt and the text so far less likely.
        stop: strings that end the text, wherever they fall among tokens; not part of the text.
        stop_ids: token ids that end the text.
        max_tokens: the most tokens to generate.
        n: how many samples of each prompt.
        logprobs: also report so many most likely tokens of each position; None for none.
        logit_bias: added to the logits of these token ids.
        allowed: the text must be one of these strings; None for any text.
        seed: the same request with the same seed gives the same text, whatever else is running.
        ignore_eos: go on after an end-of-text token.

    Raises:
        RequestError: a value makes no sense.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    max_tokens: int = 64
    n: int = 1
    logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed: tuple[str, ...] | None = None
    seed: int = 0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, self.temperature >= 0, "at least 0")
        _whole("top_k", self.top_k, 0)
        _number("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _number("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1")
        penalty = self.repetition_penalty
        _number("repetition_penalty", penalty, penalty > 0, "above 0")
        _whole("max_tokens", self.max_tokens, 1)
        _whole("n", self.n, 1)
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 1)
        if not isinstance(self.seed, int):
            raise RequestError(f"seed must be a whole number, not {self.seed!r}")
        _strings("stop", self.stop)
        for token in self.stop_ids:
            _whole("stop_ids", token, 0)
        for token, bias in self.logit_bias.items():
            _whole("logit_bias", token, 0)
            _number(f"logit_bias[{token}]", bias, True, "")
        if self.allowed is not None:
            _strings("allowed", self.allowed)
            if not self.allowed:
                raise RequestError("allowed must name at least one string; None allows any text")


def _number(name: str, value: float, fits: bool, range_: str) -> None:
    if not math.isfinite(value) or not fits:
        raise RequestError(f"{name} must be a number {range_}".rstrip() + f", not {value!r}")


def _whole(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise RequestError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _strings(name: str, values: tuple[str, ...]) -> None:
    if isinstance(values, str) or not all(isinstance(value, str) and value for value in values):
        raise RequestError(f"{name} must be a tuple of non-empty strings, not {values!r}")
