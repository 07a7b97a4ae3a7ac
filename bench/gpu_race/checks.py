"""Whether every op computes what its reference does in float64, at the benchmark's own shapes.

The tests proper are `tests/kernels`, run beside this; here shapes are a model's, memory that an op
should write is NaN before, and some tensors have more elements than 32 bits count.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import kernels
from bench.case import BLOCK, EPS, RANK, Place
from bench.cases import angles
from bench.gpu_race import huge
from bench.gpu_race.results import Check, Note
from bench.gpu_race.workbench import Job, Workbench
from kernels.quantized import KINDS, quantize, quantized_linear
from tests.kernels.oracle import FORWARD, GRADIENT, double, gradients, relative_rms

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@contextmanager
def poisoned() -> Iterator[None]:
    """Within the block memory that torch allocates without a value holds NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


@dataclass(frozen=True)
class Checker:
    """Compares ops on tensors of one dtype with their references on the same values in float64."""

    bench: Workbench
    dtype: torch.dtype

    @property
    def at(self) -> Place:
        return Place(self.bench.device, self.dtype)

    @property
    def rows(self) -> int:
        """A number that no tile divides."""
        return 37 if self.bench.tiny else 2053

    def compare(
        self,
        name: str,
        op: Callable[..., Tensor | Sequence[Tensor]],
        exact: Callable[..., Tensor | Sequence[Tensor]],
        leaves: list[Tensor],
    ) -> list[Check]:
        """The outputs' errors, and those of the gradients of the leaves that want one."""
        title = f"{name} {str(self.dtype).removeprefix('torch.')}"
        wide = double(*leaves)
        with poisoned():
            outs = _several(op(*(x.detach() for x in leaves)))
            wanted = _several(exact(*(x.detach() for x in wide)))
            errors = [relative_rms(*pair) for pair in zip(outs, wanted, strict=True)]
            checks = [Check(title, max(errors), FORWARD[self.dtype])]
            if any(x.requires_grad for x in leaves):
                upstream = [self.at.random(*out.shape) for out in outs]
                grads = gradients(op, leaves, upstream)
                wanted = gradients(exact, wide, upstream)
                errors = [relative_rms(*pair) for pair in zip(grads, wanted, strict=True)]
                checks.append(Check(f"{title} gradients", max(errors), GRADIENT[self.dtype]))
        return checks


def _several(out: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else list(out)


def jobs(bench: Workbench) -> Iterator[Job]:
    """Every op in every dtype, then tensors of more than 2^31 elements."""
    for dtype in _DTYPES:
        if dtype == torch.bfloat16 and bench.dtype != dtype:
            yield "bfloat16", lambda: Note("checks in bfloat16", "this card has none", False)
            continue
        checker = Checker(bench, dtype)
        for check in _CHECKS:
            yield f"{check.__name__[1:]} {dtype}", partial(check, checker)
    yield from huge.jobs(bench)


def _linear(c: Checker) -> list[Check]:
    s, at = c.bench.shapes, c.at
    found = []
    for rows in (1, 16, c.rows):
        x, w = at.random(rows, s.width), at.random(2 * s.inner, s.width)
        found += c.compare(f"linear x {rows}", kernels.linear, lambda x, w: x @ w.T, [x, w])
    return found


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


def _paged(c: Checker) -> list[Check]:
    """A prefill's chunk beside decode steps; then decode behind shared blocks."""
    s, at, found = c.bench.shapes, c.at, []
    width, shared = (5, 2) if c.bench.tiny else (70, 33)
    for queries, common in (([33, 1, 7, 1], 0), ([1] * 7, shared)):
        count = len(queries)
        table = torch.arange(count * width, dtype=torch.int32, device=at.device).view(count, -1)
        table[:, :common] = table[0, :common]
        lengths = at.ints(*(width * BLOCK - 11 * i for i in range(count)))
        bounds = at.ints(*(sum(queries[:i]) for i in range(count + 1)))
        q = at.random(sum(queries), s.heads, s.head)
        caches = [at.random(count * width, BLOCK, s.kv_heads, s.head) for _ in range(2)]
        places = bounds, lengths, table, s.head**-0.5
        found += c.compare(
            f"paged_attention, {common} shared blocks",
            lambda *x, places=places, n=common: kernels.paged_attention(
                *x, *places, shared_blocks=n
            ),
            lambda *x, places=places: kernels.paged_attention_reference(*x, *places),
            [q, *caches],
        )
    return found


def _store_kv(c: Checker) -> list[Check]:
    s, at = c.bench.shapes, c.at
    k, v = (at.random(c.rows, s.kv_heads, s.head) for _ in range(2))
    slots = torch.randperm(2 * c.rows, device=at.device)[: c.rows].int()

    def store(op: Callable[..., None], k: Tensor, v: Tensor) -> list[Tensor]:
        caches = [k.new_zeros(2 * c.rows // BLOCK + 1, BLOCK, *k.shape[1:]) for _ in range(2)]
        op(k, v, *caches, slots)
        return caches

    ops = partial(store, kernels.store_kv), partial(store, kernels.store_kv_reference)
    return c.compare("store_kv", *ops, [k, v])


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


def _sample(c: Checker) -> list[Check]:
    """Logits are always fp32; tokens must be the reference's."""
    if c.dtype != torch.float32:
        return []
    logits, found = 3 * c.at.random(64, c.bench.shapes.vocabulary), []
    for top_k, top_p in ((0, 1.0), (50, 1.0), (0, 0.9)):
        params = kernels.SampleParams.neutral(len(logits), c.bench.device)
        params.top_k.fill_(top_k)
        params.seed.copy_(torch.arange(len(logits)))
        params.top_p.fill_(top_p)
        with poisoned():
            tokens, _ = kernels.sample(logits, params)
        wrong = (tokens != kernels.sample_reference(logits, params)[0]).double().mean().item()
        found.append(Check(f"sample, top_k {top_k}, top_p {top_p}: wrong tokens", wrong, 0.0))
    ids, wanted = (f(logits, 20)[1] for f in (kernels.top_logprobs, kernels.top_logprobs_reference))
    wrong = (ids != wanted).double().mean().item()
    return [*found, Check("top_logprobs: wrong tokens", wrong, 0.0)]


def _quantized(c: Checker) -> list[Check]:
    s, found = c.bench.shapes, []
    for kind in KINDS:
        weight = quantize(c.at.random(s.inner, s.width), kind)
        exact = weight.dequantize(torch.float64)
        for rows in (1, 16, c.rows):
            found += c.compare(
                f"quantized_linear {kind} x {rows}",
                lambda x, weight=weight: quantized_linear(x, weight),
                lambda x, exact=exact: x @ exact.T,
                [c.at.random(rows, s.width, grad=True)],
            )
    return found


_CHECKS = (
    _linear,
    _lora,
    _norms,
    _rope,
    _swiglu,
    _attention,
    _paged,
    _store_kv,
    _cross_entropy,
    _sample,
    _quantized,
)
