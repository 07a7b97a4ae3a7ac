"""No op takes a tensor of the wrong kind, whose memory its kernels would read as something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels
from kernels import LoraBank, LoraRows, LoraSlice, Segments
from kernels.checks import expect

INT = {"dtype": torch.int32}


def _lora_linear(x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return kernels.lora_linear(x, weight, bias, [LoraSlice(a, b, 0, 1.0)])


def _lora_add_(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return kernels.lora_add_(y, x, [LoraSlice(a, b, 0, 1.0)])


def _lora_add_rows_(rows: LoraRows, y: Tensor) -> Tensor:
    return kernels.lora_add_rows_(y, X, rows, 0)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    segments = Segments(torch.tensor([0, 3], **INT), torch.tensor([-1], **INT))
    return kernels.attention(q, k, v, segments, 1.0)


T, K, N = 3, 8, 6
X, W, A, B = (torch.ones(*shape) for shape in ((T, K), (N, K), (2, K), (N, 2)))
Q, KV, CACHE, SCALE = (torch.ones(*s) for s in ((T, 4, K), (T, 2, K), (5, 4, 2, K), (5, 4, 2)))
CACHES = {"k_cache": CACHE, "v_cache": CACHE}
QUANTISED = {name: x.to(torch.int8) for name, x in CACHES.items()}
SCALES = {"k_scale": SCALE, "v_scale": SCALE}
SLOTS = torch.arange(T, **INT)
LAYOUT = {
    "seq_lens": torch.tensor([T], **INT),
    "cu_seqlens_q": torch.tensor([0, T], **INT),
    "block_table": torch.zeros(1, 1, **INT),
}
LAYER = {"x": X, "weight": W, "bias": torch.ones(N)}
ROWS = LoraRows([(0, T, LoraBank([[LoraSlice(A, B, 0, 1.0)]]))])
QUANTIZED = kernels.quantize(W, "int8")

# An op's arguments; the others are held against the first, beginning with the second.
CALLS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (Segments, {"prefix": torch.tensor([-1], **INT), "cu_seqlens": torch.tensor([0, T], **INT)}),
    (_attention, {"q": Q, "k": KV, "v": KV}),
    (
        kernels.linear_cross_entropy,
        {
            "hidden": X,
            "weight": W,
            "targets": torch.arange(T),
            "weights": torch.ones(T),
            "rows": torch.arange(T),
        },
    ),
    (kernels.linear, LAYER),
    (kernels.linear, {**LAYER, "weight": QUANTIZED}),
    (kernels.quantized_linear, {**LAYER, "weight": QUANTIZED}),
    (kernels.quantized_linear_dx, {"weight": QUANTIZED, "dy": torch.ones(T, N)}),
    (_lora_linear, {**LAYER, "a": A, "b": B}),
    (_lora_linear, {**LAYER, "weight": QUANTIZED, "a": A, "b": B}),
    (_lora_add_, {"x": X, "y": torch.ones(T, N), "a": A, "b": B}),
    (_lora_add_rows_, {"rows": ROWS, "y": torch.ones(T, N)}),
    (kernels.rms_norm, {"x": X, "weight": torch.ones(K), "eps": 1e-5}),
    (kernels.add_rms_norm, {"x": X, "weight": torch.ones(K), "residual": X, "eps": 1e-5}),
    (kernels.store_kv, {"k": KV, "v": KV, "slots": SLOTS, **CACHES}),
    (kernels.store_kv, {"k": KV, "v": KV, "slots": SLOTS, **QUANTISED, **SCALES}),
    (kernels.paged_attention, {"q": Q, **CACHES, **LAYOUT, "scale": 1.0}),
    (kernels.paged_attention, {"q": Q, **QUANTISED, **SCALES, **LAYOUT, "scale": 1.0}),
    (
        kernels.rope,
        {
            "q": Q,
            "k": KV,
            "cos": torch.ones(T, K // 2),
            "sin": torch.ones(T, K // 2),
            "positions": torch.arange(T),
        },
    ),
    (kernels.swiglu, {"gate_up": X}),
]
CASES = [
    pytest.param(op, arguments, name, id=f"{i}-{op.__name__.removeprefix('_')}-{name}")
    for i, (op, arguments) in enumerate(CALLS)
    for name, value in arguments.items()
    if isinstance(value, Tensor)
]
CASES_OF_MANY = [case for case in CASES if len(case.values[1]) > 1]


@pytest.mark.parametrize(("op", "arguments", "name"), CASES)
def test_a_wrong_dtype_is_named(
    op: Callable[..., Any], arguments: dict[str, Any], name: str
) -> None:
    op(**arguments)
    wrong = arguments[name].to(
        torch.int64 if arguments[name].is_floating_point() else torch.float32
    )
    with pytest.raises(ValueError, match=rf"^(lora\[0\]\.)?{name}: "):
        op(**{**arguments, name: wrong})


@pytest.mark.parametrize(("op", "arguments", "name"), CASES_OF_MANY)
def test_another_device_is_named(
    op: Callable[..., Any], arguments: dict[str, Any], name: str
) -> None:
    first, second, *_ = arguments
    with pytest.raises(ValueError, match=rf"^(lora\[0\]\.)?{second if name == first else name}: "):
        op(**{**arguments, name: arguments[name].to("meta")})


def test_an_error_says_what_was_expected_and_what_came() -> None:
    expected = r"^x: expected \[3, K\] float32 or float64 on cpu, got \[4, 2\] int64 on meta$"
    floats = torch.float32, torch.float64
    with pytest.raises(ValueError, match=expected):
        expect("x", torch.ones(4, 2).long().to("meta"), (3, "K"), floats, X.device)
    for shape in ((4,), (4, "N", 1), (5, "N")):
        with pytest.raises(ValueError, match=r"^x: "):
            expect("x", torch.ones(4, 2), shape, (torch.float32,))
    for shape in ((4, 2), ("M", "N"), (4, "N")):
        expect("x", torch.ones(4, 2), shape, (torch.float32,), X.device)


def test_every_op_is_here() -> None:
    """Sampling has tests of its own; a chunk and dequantised weights come from other ops."""
    ops = {name for name in kernels.__all__ if f"{name}_reference" in kernels.__all__}
    assert ops - {"sample", "top_logprobs"} <= {op.__name__.removeprefix("_") for op, _ in CALLS}
