"""Whether every op computes what its reference does in float64, at the benchmark's own shapes.

The tests proper are `tests/kernels`, run beside this; here shapes are a model's, memory that an op
should write is NaN before, and some tensors have more elements than 32 bits count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import kernels
from bench.case import EPS, RANK
from bench.cases import angles
from bench.gpu_race import engine_checks, huge
from bench.gpu_race.checker import Checker
from bench.gpu_race.results import Check, Note
from bench.gpu_race.serving_checks import SERVING
from bench.gpu_race.workbench import Job, Skipped, Workbench, reason

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def jobs(bench: Workbench) -> Iterator[Job]:
    """Every op in every dtype, the engine, then tensors of more than 2^31 elements."""
    for name, check in _jobs(bench):
        yield name, partial(_fitting, check)


def _fitting(check: Callable[[], Any]) -> Any:
    """What the check gives; Skipped on a card that is too small for it."""
    try:
        return check()
    except torch.OutOfMemoryError as error:
        raise Skipped(reason(error)) from error


def _jobs(bench: Workbench) -> Iterator[Job]:
    for dtype in _DTYPES:
        if dtype == torch.bfloat16 and bench.dtype != dtype:
            yield "bfloat16", lambda: Note("checks in bfloat16", "this card has none", False)
            continue
        checker = Checker(bench, dtype)
        for check in (*_TRAINING, *SERVING):
            yield f"{check.__name__[1:]} {dtype}", partial(check, checker)
    yield from engine_checks.jobs(bench)
    yield from huge.jobs(bench)


def _lora(c: Checker) -> list[Check]:
    s, at = c.bench.shapes, c.at
    weight = at.random(2 * s.inner, s.width) / s.width**0.5
    x = at.random(c.rows, s.width, grad=True)
    a, b = at.random(RANK, s.width) / s.width**0.5, at.random(s.inner, RANK)
    a, b = a.requires_grad_(), b.requires_grad_()

    def slices(a: Tensor, b: Tensor) -> list[kernels.LoraSlice]:
        return [kernels.LoraSlice(a, b, s.inner, 2.0)]

    def op(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return kernels.lora_linear(x, weight, None, slices(a, b))

    def exact(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return kernels.lora_linear_reference(x, weight.double(), None, slices(a, b))

    def add(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        y = x.new_ones(len(x), 2 * s.inner)
        return kernels.lora_add_(y, x, slices(a, b))

    leaves = [x, a, b]
    frozen = [leaf.detach() for leaf in leaves]
    return c.compare("lora_linear", op, exact, leaves) + c.compare("lora_add_", add, add, frozen)


def _norms(c: Checker) -> list[Check]:
    s, at = c.bench.shapes, c.at
    x, residual = (at.random(c.rows, s.width, grad=True) for _ in range(2))
    weight = at.random(s.width)
    wide = weight.double()
    return c.compare(
        "rms_norm",
        lambda x: kernels.rms_norm(x, weight, EPS),
        lambda x: kernels.rms_norm_reference(x, wide, EPS),
        [x],
    ) + c.compare(
        "add_rms_norm",
        lambda x, y: kernels.add_rms_norm(x, y, weight, EPS),
        lambda x, y: kernels.add_rms_norm_reference(x, y, wide, EPS),
        [x, residual],
    )


def _rope(c: Checker) -> list[Check]:
    s, at = c.bench.shapes, c.at
    q = at.random(c.rows, s.heads, s.head, grad=True)
    k = at.random(c.rows, s.kv_heads, s.head, grad=True)
    table = *angles(at, 64, s.head), torch.randint(64, (c.rows,), device=at.device)
    return c.compare(
        "rope",
        lambda q, k: kernels.rope(q, k, *table),
        lambda q, k: kernels.rope_reference(q, k, *table),
        [q, k],
    )


def _swiglu(c: Checker) -> list[Check]:
    gate_up = c.at.random(c.rows, 2 * c.bench.shapes.inner, grad=True)
    return c.compare("swiglu", kernels.swiglu, kernels.swiglu_reference, [gate_up])


def _attention(c: Checker) -> list[Check]:
    """Unequal sequences, one empty; the last two continue the first."""
    s, at, found = c.bench.shapes, c.at, []
    lengths = [c.rows // 3, 1, 0, c.rows // 2, c.rows // 5, 70]
    bounds = at.ints(*(sum(lengths[:i]) for i in range(len(lengths) + 1)))
    segments, scale = kernels.Segments(bounds, at.ints(-1, -1, -1, -1, 0, 0)), s.head**-0.5
    q = at.random(sum(lengths), s.heads, s.head, grad=True)
    k, v = (at.random(len(q), s.kv_heads, s.head, grad=True) for _ in range(2))
    for window in (None, 100):
        found += c.compare(
            f"attention, window {window}",
            lambda *qkv, window=window: kernels.attention(*qkv, segments, scale, window),
            lambda *qkv, window=window: kernels.attention_reference(*qkv, segments, scale, window)[
                0
            ],
            [q, k, v],
        )
    return found


def _cross_entropy(c: Checker) -> list[Check]:
    s, at = c.bench.shapes, c.at
    rows = c.rows // 4
    hidden = (at.random(rows, s.width) / s.width**0.5).requires_grad_()
    head, targets = at.random(s.vocabulary, s.width), torch.arange(rows, device=at.device)
    targets[::3] = -100
    return c.compare(
        "linear_cross_entropy",
        lambda x: kernels.linear_cross_entropy(x, head, targets, None, 0.1)[:1],
        lambda x: kernels.linear_cross_entropy_reference(x, head.double(), targets, None, 0.1)[:1],
        [hidden],
    )


_TRAINING = (_lora, _norms, _rope, _swiglu, _attention, _cross_entropy)
