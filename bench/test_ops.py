"""Microbenchmarks of every operation at smollm2-135m's shapes, beside plain torch, in bf16.

    python -m pytest bench/test_ops.py

Work is counted as the arithmetic or the traffic that the operation cannot do without: 2 FLOPs per
multiply-add, tensors read once and written once. `extra_info` holds the rate in its unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from kernels.sampling import SampleParams, sample

WIDTH, INNER, VOCABULARY, HEADS, KV_HEADS, HEAD = 576, 1536, 49152, 9, 3, 64
QKV = (HEADS + 2 * KV_HEADS) * HEAD
BF16, EPS, SCALE = torch.bfloat16, 1e-5, HEAD**-0.5
ROWS = 512  # tokens of a prefill or a training pack


@dataclass(frozen=True)
class Case:
    """One operation on fixed inputs, computed by us and by torch.

    Attributes:
        ours, torch: run it once.
        amount: FLOPs or bytes of one run.
        unit: "GFLOP/s" or "GB/s".
    """

    ours: Callable[[], Any]
    torch: Callable[[], Any]
    amount: float
    unit: str


def _random(*shape: int, grad: bool = False) -> Tensor:
    return torch.randn(shape).to(BF16).requires_grad_(grad)


def _with_gradients(run: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], None]:
    """Forward and backward of `run`, from a gradient of ones."""

    def both() -> None:
        out = run()
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    return both


def _linear(rows: int, n: int, k: int) -> Case:
    x, weight = _random(rows, k), _random(n, k)
    return Case(
        lambda: kernels.linear(x, weight),
        lambda: F.linear(x, weight),
        2.0 * rows * n * k if rows > 1 else float(weight.nbytes),
        "GFLOP/s" if rows > 1 else "GB/s",
    )


def _lora_linear() -> Case:
    x, weight, rank = _random(ROWS, WIDTH, grad=True), _random(2 * INNER, WIDTH), 16
    a = [torch.randn(rank, WIDTH, requires_grad=True) for _ in range(2)]
    b = [torch.randn(INNER, rank, requires_grad=True) for _ in range(2)]
    slices = [kernels.LoraSlice(a[i], b[i], i * INNER, 2.0) for i in range(2)]

    def eager() -> Tensor:
        halves = [(x @ a[i].to(BF16).T) @ b[i].to(BF16).T * 2.0 for i in range(2)]
        return F.linear(x, weight) + torch.cat(halves, 1)

    base = 2 * 2.0 * ROWS * WIDTH * 2 * INNER  # forward and dX
    low_rank = 2 * 3 * 2.0 * ROWS * rank * (WIDTH + INNER)  # forward, dX, and dA with dB
    leaves = [x, *a, *b]
    return Case(
        _with_gradients(lambda: kernels.lora_linear(x, weight, None, slices), leaves),
        _with_gradients(eager, leaves),
        base + low_rank,
        "GFLOP/s",
    )


def _rms_norm() -> Case:
    x, weight = _random(ROWS, WIDTH), _random(WIDTH)
    return Case(
        lambda: kernels.rms_norm(x, weight, EPS),
        lambda: F.rms_norm(x, (WIDTH,), weight, EPS),
        2.0 * x.nbytes,
        "GB/s",
    )


def _add_rms_norm() -> Case:
    x, residual, weight = _random(ROWS, WIDTH), _random(ROWS, WIDTH), _random(WIDTH)

    def eager() -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.rms_norm(total, (WIDTH,), weight, EPS), total

    return Case(
        lambda: kernels.add_rms_norm(x, residual, weight, EPS), eager, 4.0 * x.nbytes, "GB/s"
    )


def _rope() -> Case:
    qkv = _random(ROWS, HEADS + 2 * KV_HEADS, HEAD)
    q, k = qkv[:, :HEADS], qkv[:, HEADS : HEADS + KV_HEADS]
    angles = torch.arange(ROWS)[:, None] * 1e-5 ** (torch.arange(HEAD // 2) / (HEAD // 2))
    cos, sin, positions = angles.cos(), angles.sin(), torch.arange(ROWS, dtype=torch.int32)
    wide = [torch.cat([t, t], 1).to(BF16)[:, None] for t in (cos, sin)]

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * wide[0] + torch.cat([-second, first], -1) * wide[1]

    amount = 2.0 * (q.numel() + k.numel()) * q.element_size()
    return Case(
        lambda: kernels.rope(q, k, cos, sin, positions, inplace=True),
        lambda: (rotate(q), rotate(k)),
        amount,
        "GB/s",
    )


def _swiglu() -> Case:
    gate_up = _random(ROWS, 2 * INNER)

    def eager() -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up

    return Case(lambda: kernels.swiglu(gate_up), eager, 1.5 * gate_up.nbytes, "GB/s")


def _attention() -> Case:
    """One causal sequence, forward and backward: 4 products of half a square, and 10 behind."""
    q = _random(ROWS, HEADS, HEAD, grad=True)
    k, v = (_random(ROWS, KV_HEADS, HEAD, grad=True) for _ in range(2))
    ends, alone = (torch.tensor(x, dtype=torch.int32) for x in ([0, ROWS], [-1]))
    segments = kernels.Segments(ends, alone)

    def eager() -> Tensor:
        first, second, third = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = F.scaled_dot_product_attention(first, second, third, is_causal=True, enable_gqa=True)
        return out[0].transpose(0, 1)

    return Case(
        _with_gradients(lambda: kernels.attention(q, k, v, segments, SCALE), [q, k, v]),
        _with_gradients(eager, [q, k, v]),
        7.0 * ROWS * ROWS * HEADS * HEAD,
        "GFLOP/s",
    )


def _paged(sequences: int, queries: int, length: int) -> Case:
    """The newest `queries` tokens of each of the sequences of `length` tokens."""
    size = 16
    blocks = -(-length // size)
    k_cache, v_cache = (_random(sequences * blocks, size, KV_HEADS, HEAD) for _ in range(2))
    q = _random(sequences * queries, HEADS, HEAD)
    ends = torch.arange(0, len(q) + 1, queries, dtype=torch.int32)
    lengths = torch.full((sequences,), length, dtype=torch.int32)
    table = torch.arange(sequences * blocks, dtype=torch.int32).view(sequences, blocks)
    heads = q.view(sequences, queries, HEADS, HEAD).transpose(1, 2)
    keys, values = (
        x.view(sequences, blocks * size, KV_HEADS, HEAD)[:, :length].transpose(1, 2)
        for x in (k_cache, v_cache)
    )
    behind = torch.arange(length - queries, length)[:, None] >= torch.arange(length)

    def eager() -> Tensor:
        return F.scaled_dot_product_attention(
            heads, keys, values, attn_mask=behind, enable_gqa=True
        )

    decode = queries == 1
    seen = queries * (length - (queries - 1) / 2)
    flops = 4.0 * sequences * seen * HEADS * HEAD
    return Case(
        lambda: kernels.paged_attention(q, k_cache, v_cache, ends, lengths, table, SCALE),
        eager,
        2.0 * keys.numel() * keys.element_size() if decode else flops,
        "GB/s" if decode else "GFLOP/s",
    )


def _linear_cross_entropy() -> Case:
    """Forward and the gradient of the hidden states; a quarter of the tokens are targets."""
    hidden, head = _random(ROWS, WIDTH, grad=True), _random(VOCABULARY, WIDTH)
    targets = torch.full((ROWS,), -100)
    targets[-ROWS // 4 :] = torch.randint(VOCABULARY, (ROWS // 4,))

    def eager() -> Tensor:
        return F.cross_entropy((hidden @ head.T).float(), targets, reduction="sum")

    return Case(
        _with_gradients(lambda: kernels.linear_cross_entropy(hidden, head, targets)[0], [hidden]),
        _with_gradients(eager, [hidden]),
        2 * 2.0 * (ROWS // 4) * WIDTH * VOCABULARY,
        "GFLOP/s",
    )


def _sample() -> Case:
    rows = 32
    logits, params = torch.randn(rows, VOCABULARY), SampleParams.neutral(rows)
    params.temperature.fill_(0.2)
    params.top_k.fill_(10)

    def eager() -> tuple[Tensor, Tensor]:
        best, ids = (logits / 0.2).topk(10)
        chosen = ids.gather(1, torch.multinomial(best.softmax(-1), 1))
        return chosen, logits.log_softmax(-1).gather(1, chosen)

    return Case(lambda: sample(logits, params), eager, float(logits.nbytes), "GB/s")


CASES: dict[str, Callable[[], Case]] = {
    "linear decode 1": lambda: _linear(1, 2 * INNER, WIDTH),
    "linear decode 32": lambda: _linear(32, 2 * INNER, WIDTH),
    "linear qkv": lambda: _linear(ROWS, QKV, WIDTH),
    "linear gate_up": lambda: _linear(ROWS, 2 * INNER, WIDTH),
    "linear head decode 32": lambda: _linear(32, VOCABULARY, WIDTH),
    "lora_linear gate_up fwd+bwd": _lora_linear,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "rope": _rope,
    "swiglu": _swiglu,
    "attention fwd+bwd": _attention,
    "paged_attention decode 32 x 512": lambda: _paged(32, 1, 512),
    "paged_attention prefill 256 of 512": lambda: _paged(1, 256, 512),
    "linear_cross_entropy fwd+bwd": _linear_cross_entropy,
    "sample": _sample,
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, Case]:
    torch.manual_seed(0)
    return request.param, CASES[request.param]()


@pytest.mark.benchmark(min_rounds=5, max_time=0.7, warmup=True, warmup_iterations=2)
@pytest.mark.parametrize("side", ["ours", "torch"])
def test_op(benchmark: Any, case: tuple[str, Case], side: str) -> None:
    name, what = case
    benchmark.group = name
    benchmark(getattr(what, side))
    rate = what.amount / benchmark.stats.stats.median / 1e9
    benchmark.extra_info |= {"side": side, "rate": rate, "unit": what.unit}
