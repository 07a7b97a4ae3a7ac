"""Microbenchmarks of every operation beside plain torch, in bf16: `bench/cases.py` says what runs.

    python -m pytest bench/test_ops.py

On the CPU at smollm2-135m's shapes and, where there is a GPU, on it at those of an 8B model.
`extra_info` holds the rate in its unit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from bench import cases
from bench.case import LLAMA_8B, SMOLLM2_135M, Case, Place, Run, Shapes
from kernels.quantized import KINDS, Kind

SHAPES = {"cpu": SMOLLM2_135M, "cuda": LLAMA_8B}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def _quantized(at: Place, shapes: Shapes, *, kind: Kind, rows: int) -> Case:
    return cases.quantized_linear(at, kind, rows, 2 * shapes.inner, shapes.width)


CASES: dict[str, Callable[[Place, Shapes], Case]] = {
    "linear decode 1": lambda at, s: cases.linear(at, 1, 2 * s.inner, s.width),
    "linear decode 32": lambda at, s: cases.linear(at, 32, 2 * s.inner, s.width),
    "linear qkv": lambda at, s: cases.linear(at, s.rows, s.qkv, s.width),
    "linear gate_up": lambda at, s: cases.linear(at, s.rows, 2 * s.inner, s.width),
    "linear head decode 32": lambda at, s: cases.linear(at, 32, s.vocabulary, s.width),
    **{
        f"quantized_linear {kind} decode 1": partial(_quantized, kind=kind, rows=1)
        for kind in KINDS
    },
    "lora_linear gate_up fwd+bwd": lambda at, s: cases.lora_linear(at, s, [s.inner] * 2, s.width),
    "lora_add_ gate_up decode 32": lambda at, s: cases.lora_add(at, s, 32, 2 * s.inner),
    "lora_add_rows_ gate_up decode 32": lambda at, s: cases.lora_rows(at, s, 32, 4, 2 * s.inner),
    "rms_norm": cases.rms_norm,
    "add_rms_norm": cases.add_rms_norm,
    "rope": cases.rope,
    "swiglu": cases.swiglu,
    "attention fwd+bwd": cases.attention,
    "store_kv decode 32": lambda at, s: cases.store_kv(at, s, 32),
    "paged_attention decode 32 x 512": lambda at, s: cases.paged_attention(at, s, 32, 1, 512),
    "paged_attention prefill 256 of 512": lambda at, s: cases.paged_attention(at, s, 1, 256, 512),
    "linear_cross_entropy fwd+bwd": cases.linear_cross_entropy,
    "sample": lambda at, s: cases.sample(at, s, 32),
    "top_logprobs": lambda at, s: cases.top_logprobs(at, s, 32),
}


@pytest.fixture(scope="module", params=DEVICES)
def place(request: pytest.FixtureRequest) -> Place:
    return Place(torch.device(request.param), torch.bfloat16)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, place: Place) -> tuple[str, Case]:
    torch.manual_seed(0)
    shapes = SHAPES[place.device.type]
    return f"{place.device.type} {request.param}", CASES[request.param](place, shapes)


def finished(run: Run, place: Place) -> Run:
    """`run`, until its results are there."""

    def wait() -> None:
        run()
        torch.cuda.synchronize()

    return wait if place.device.type == "cuda" else run


@pytest.mark.benchmark(min_rounds=5, max_time=0.7, warmup=True, warmup_iterations=2)
@pytest.mark.parametrize("side", ["ours", "torch"])
def test_op(benchmark: Any, place: Place, case: tuple[str, Case], side: str) -> None:
    name, what = case
    benchmark.group = name
    benchmark(finished(getattr(what, side), place))
    rate = what.amount / benchmark.stats.stats.median / 1e9
    benchmark.extra_info |= {"side": side, "rate": rate, "unit": what.unit}
