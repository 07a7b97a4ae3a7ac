"""Tensors of more than 2^31 elements: whether offsets are computed in 64 bits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

import kernels
from bench.case import BLOCK, EPS
from bench.cases import angles
from bench.gpu_race.results import Check
from bench.gpu_race.workbench import Job, Workbench
from tests.kernels.oracle import FORWARD, GRADIENT, relative_rms


def jobs(bench: Workbench) -> Iterator[Job]:
    forward = _swiglu, _rms_norm, _rope, _attention, _paged, _linear, _store_kv
    for check in (*forward, _swiglu_backward, _cross_entropy):
        yield f"huge{check.__name__}", partial(check, bench)


def _rows(bench: Workbench, columns: int) -> int:
    """As many rows of so many columns as exceed 2^31 elements, where they fit."""
    bench.need(4 * 2.2 * 2)
    return 40 if bench.tiny else 2**31 // columns + 1000


def _ends(rows: int) -> list[slice]:
    """The first rows and, beyond 2^31 elements, the last."""
    return [slice(0, 5), slice(rows - 5, rows)]


def _check(
    name: str,
    pairs: list[tuple[Tensor, Tensor]],
    allowed: dict[torch.dtype, float] = FORWARD,
) -> Check:
    error = max(relative_rms(*pair) for pair in pairs)
    return Check(f"{name} of more than 2^31 elements", error, allowed[pairs[0][0].dtype])


def _swiglu(bench: Workbench) -> Check:
    columns = 2 * bench.shapes.inner
    x = bench.place.random(_rows(bench, columns), columns)
    y = kernels.swiglu(x)
    pairs = [(y[part], kernels.swiglu_reference(x[part].double())) for part in _ends(len(x))]
    return _check("swiglu", pairs)


def _swiglu_backward(bench: Workbench) -> Check:
    columns = 2 * bench.shapes.inner
    x = bench.place.random(_rows(bench, columns), columns, grad=True)
    y = kernels.swiglu(x)
    upstream = bench.place.random(*y.shape)
    (found,) = torch.autograd.grad(y, x, upstream)
    pairs = []
    for part in _ends(len(x)):
        wide = x.detach()[part].double().requires_grad_()
        exact = torch.autograd.grad(kernels.swiglu_reference(wide), wide, upstream[part].double())
        pairs.append((found[part], *exact))
    return _check("swiglu's gradient", pairs, GRADIENT)


def _rms_norm(bench: Workbench) -> Check:
    width = bench.shapes.width
    x, weight = bench.place.random(_rows(bench, width), width), bench.place.random(width)
    y, wide = kernels.rms_norm(x, weight, EPS), weight.double()
    exact = [kernels.rms_norm_reference(x[part].double(), wide, EPS) for part in _ends(len(x))]
    return _check("rms_norm", list(zip((y[part] for part in _ends(len(x))), exact, strict=True)))


def _rope(bench: Workbench) -> Check:
    """In place, on views of a fused projection."""
    s = bench.shapes
    rows = _rows(bench, s.qkv)
    qkv = bench.place.random(rows, s.heads + 2 * s.kv_heads, s.head)
    table = angles(bench.place, 64, s.head)
    positions = torch.arange(rows, device=bench.device) % 64
    heads = s.heads, s.kv_heads, s.kv_heads
    exact = []
    for part in _ends(rows):
        q, k, _ = qkv[part].double().split(heads, dim=1)
        exact += kernels.rope_reference(q, k, *table, positions[part])
    q, k, _ = qkv.split(heads, dim=1)
    kernels.rope(q, k, *table, positions, inplace=True)
    found = [x[part] for part in _ends(rows) for x in (q, k)]
    return _check("rope", list(zip(found, exact, strict=True)))


def _attention(bench: Workbench) -> Check:
    """Many short sequences; the first and the last are compared."""
    s, length = bench.shapes, 8 if bench.tiny else 200
    count = _rows(bench, s.heads * s.head) // length
    bounds = torch.arange(count + 1, dtype=torch.int32, device=bench.device) * length
    segments = kernels.Segments(bounds, bounds.new_full((count,), -1))
    q = bench.place.random(count * length, s.heads, s.head)
    k, v = (bench.place.random(len(q), s.kv_heads, s.head) for _ in range(2))
    out = kernels.attention(q, k, v, segments, s.head**-0.5)
    alone, pairs = kernels.Segments(bounds[:2], bounds.new_full((1,), -1)), []
    for part in (slice(0, length), slice(len(q) - length, len(q))):
        wide = (x[part].double() for x in (q, k, v))
        exact, _ = kernels.attention_reference(*wide, alone, s.head**-0.5, None)
        pairs.append((out[part], exact))
    return _check("attention", pairs)


def _paged(bench: Workbench) -> Check:
    """One sequence in the first blocks of the cache, one in the last."""
    s, width = bench.shapes, 4
    blocks = _rows(bench, BLOCK * s.kv_heads * s.head)
    k_cache, v_cache = (bench.place.random(blocks, BLOCK, s.kv_heads, s.head) for _ in range(2))
    first = torch.arange(width, dtype=torch.int32, device=bench.device)
    table = torch.stack([first, first + blocks - width])
    q, lengths = bench.place.random(2, s.heads, s.head), bench.place.ints(50, 60)
    places = bench.place.ints(0, 1, 2), lengths, table, s.head**-0.5
    out = kernels.paged_attention(q, k_cache, v_cache, *places)
    held = table.flatten().long()
    small = torch.arange(2 * width, dtype=torch.int32, device=bench.device).view(2, width)
    caches = (cache[held].double() for cache in (k_cache, v_cache))
    places = *places[:2], small, places[3]
    return _check(
        "paged_attention", [(out, kernels.paged_attention_reference(q.double(), *caches, *places))]
    )


def _linear(bench: Workbench) -> Check:
    """Few rows, which are ours to multiply, and a weight that is too large."""
    width = bench.shapes.width
    weight, x = bench.place.random(_rows(bench, width), width), bench.place.random(16, width)
    y = kernels.linear(x, weight)
    pairs = [(y[:, part], x.double() @ weight[part].double().T) for part in _ends(len(weight))]
    return _check("linear", pairs)


def _store_kv(bench: Workbench) -> Check:
    """To the first slots of the cache and to the last."""
    s, at, count = bench.shapes, bench.place, 5
    blocks = _rows(bench, BLOCK * s.kv_heads * s.head)
    caches = [at.random(blocks, BLOCK, s.kv_heads, s.head) for _ in range(2)]
    k, v = (at.random(2 * count, s.kv_heads, s.head) for _ in range(2))
    places = torch.arange(count, dtype=torch.int32, device=bench.device)
    slots = torch.cat([places, blocks * BLOCK - 1 - places])
    kernels.store_kv(k, v, *caches, slots)
    found = [cache.flatten(0, 1)[slots.long()] for cache in caches]
    return _check("store_kv", list(zip(found, (k, v), strict=True)))


def _cross_entropy(bench: Workbench) -> Check:
    """Hidden states and their gradient; the vocabulary is small, and time no matter."""
    width, vocabulary = bench.shapes.width, 4096
    hidden = bench.place.random(_rows(bench, width), width, grad=True)
    head = bench.place.random(vocabulary, width) / width**0.5
    targets = torch.arange(len(hidden), device=bench.device) % vocabulary
    kept = torch.arange(len(hidden), device=bench.device)
    loss, logprobs = kernels.linear_cross_entropy(hidden, head, targets, rows=kept)
    (found,) = torch.autograd.grad(loss, hidden)
    pairs = []
    for part in _ends(len(hidden)):
        wide = hidden.detach()[part].double().requires_grad_()
        exact, chosen = kernels.linear_cross_entropy_reference(wide, head.double(), targets[part])
        pairs += [(found[part], *torch.autograd.grad(exact, wide)), (logprobs[part], chosen)]
    return _check("linear_cross_entropy", pairs, GRADIENT)
