"""Senseless parameters are refused by name and value."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import RequestError
from engine.serving.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", -0.1, "temperature must be a number at least 0, not -0.1"),
        ("temperature", float("nan"), "temperature .* not nan"),
        ("top_k", -1, "top_k must be a whole number of at least 0, not -1"),
        ("top_k", 1.5, "top_k .* not 1.5"),
        ("top_p", 0.0, "top_p must be a number above 0 and at most 1, not 0.0"),
        ("top_p", 1.1, "top_p"),
        ("min_p", 2, "min_p must be a number from 0 to 1, not 2"),
        ("repetition_penalty", 0, "repetition_penalty must be a number above 0, not 0"),
        (
            "frequency_penalty",
            2.5,
            "frequency_penalty must be a number from -2 to 2, not 2.5",
        ),
        ("presence_penalty", -3, "presence_penalty must be a number from -2 to 2, not -3"),
        ("presence_penalty", None, "presence_penalty .* not None"),
        ("max_tokens", 0, "max_tokens must be a whole number of at least 1, not 0"),
        ("n", 0, "n must be"),
        ("logprobs", 0, "logprobs must be a whole number of at least 1, not 0"),
        ("seed", "x", "seed must be a whole number, not 'x'"),
        ("stop", "end", "stop must be a tuple of non-empty strings, not 'end'"),
        ("stop", ("",), "stop"),
        ("stop_ids", (-1,), "stop_ids"),
        ("logit_bias", {-1: 1.0}, "logit_bias"),
        ("logit_bias", {3: float("inf")}, r"logit_bias\[3\] must be a number, not inf"),
        ("allowed", (), "allowed must name at least one string"),
        ("allowed", ("",), "allowed must be a tuple of non-empty strings"),
    ],
)
def test_senseless_values_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(**{name: value})


def test_sensible_values_pass() -> None:
    SamplingParams(frequency_penalty=-2, presence_penalty=2)
    SamplingParams(temperature=0, top_p=1, logit_bias={0: -100}, stop=("a",), allowed=("b",))
