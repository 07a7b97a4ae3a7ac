"""What a caller asks of a generation: how tokens are drawn, and where to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
        frequency_penalty: subtracted from a token's logit for each time it stands in the text so
            far, the prompt not counted, from -2 to 2; below 0 makes such tokens more likely.
        presence_penalty: the same, but subtracted once however often the token stands there.
        stop: strings that end the text, wherever they fall among tokens; not part of the text.
        stop_ids: token ids that end the text.
        max_tokens: the most tokens to generate.
        n: how many samples of each prompt.
        logprobs: also report so many most likely tokens of each position; None for none.
        logit_bias: added to the logits of these token ids.
        allowed: the text must be one of these strings, and ends with it whatever `stop` says; None
            for any text.
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
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
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
        _number("temperature", self.temperature, lambda t: t >= 0, "at least 0")
        _whole("top_k", self.top_k, 0, 2**31 - 1)
        _number("top_p", self.top_p, lambda p: 0 < p <= 1, "above 0 and at most 1")
        _number("min_p", self.min_p, lambda p: 0 <= p <= 1, "from 0 to 1")
        _number("repetition_penalty", self.repetition_penalty, lambda p: p > 1e-6, "above 0")
        for name in ("frequency_penalty", "presence_penalty"):
            _number(name, getattr(self, name), lambda p: -2 <= p <= 2, "from -2 to 2")
        _whole("max_tokens", self.max_tokens, 1)
        _whole("n", self.n, 1)
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 1)
        _whole("seed", self.seed, None)
        _strings("stop", self.stop)
        if not isinstance(self.stop_ids, tuple | list | set | frozenset):
            raise RequestError(f"stop_ids must be a tuple of token ids, not {self.stop_ids!r}")
        for token in self.stop_ids:
            _whole("stop_ids", token, 0)
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError(f"logit_bias must map token ids to numbers, not {self.logit_bias!r}")
        for token, bias in self.logit_bias.items():
            _whole("logit_bias", token, 0)
            _number(f"logit_bias[{token}]", bias, lambda _: True, "")
        if self.allowed is not None:
            _strings("allowed", self.allowed)
            if not self.allowed:
                raise RequestError("allowed must name at least one string; None allows any text")


def _number(name: str, value: Any, fits: Callable[[float], bool], range_: str) -> None:
    sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not sound or not fits(value):
        raise RequestError(f"{name} must be a number {range_}".rstrip() + f", not {value!r}")


def _whole(name: str, value: Any, least: int | None, most: float = math.inf) -> None:
    sound = isinstance(value, int) and not isinstance(value, bool)
    if not sound or value > most or (least is not None and value < least):
        range_ = "" if least is None else f" of at least {least}"
        raise RequestError(f"{name} must be a whole number{range_}, not {value!r}")


def _strings(name: str, values: object) -> None:
    if not isinstance(values, tuple | list) or not all(isinstance(v, str) and v for v in values):
        raise RequestError(f"{name} must be a tuple of non-empty strings, not {values!r}")
