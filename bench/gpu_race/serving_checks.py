"""The checks of what generation uses: skinny products, adapters, the paged cache, sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import kernels
from bench.case import BLOCK, RANK
from bench.gpu_race.checker import Checker, poisoned
from bench.gpu_race.results import Check
from kernels.quantized import KINDS
from tests.kernels.oracle import relative_rms


def _linear(c: Checker) -> list[Check]:
    s, at = c.bench.shapes, c.at
    found = []
    for rows in (1, 16, c.rows):
        x, w = at.random(rows, s.width), at.random(2 * s.inner, s.width)
        found += c.compare(f"linear x {rows}", kernels.linear, lambda x, w: x @ w.T, [x, w])
    return found


def _lora_rows(c: Checker) -> list[Check]:
    """Two adapters of different ranks on a batch's rows, and rows with none."""
    s, at = c.bench.shapes, c.at
    x = at.random(c.rows, s.width)
    ab = [
        at.random(*shape) / s.width**0.5
        for rank in (RANK, 2 * RANK)
        for shape in ((rank, s.width), (s.inner, rank))
    ]

    def op(x: Tensor, *ab: Tensor) -> Tensor:
        y = x.new_ones(len(x), 2 * s.inner)
        banks = [
            kernels.LoraBank([[kernels.LoraSlice(a, b, s.inner, 2.0)]])
            for a, b in zip(ab[::2], ab[1::2], strict=True)
        ]
        half = len(x) // 2
        rows = kernels.LoraRows([(3, half, banks[0]), (half, len(x) - 1, banks[1])])
        return kernels.lora_add_rows_(y, x, rows, 0)

    return c.compare("lora_add_rows_", op, op, [x, *ab])


def _paged(c: Checker) -> list[Check]:
    """A prefill's chunk beside decode steps; then decode behind shared blocks."""
    s, at, found = c.bench.shapes, c.at, []
    width, shared = (5, 2) if c.bench.tiny else (70, 58)  # worth it, and no multiple of a tile
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


def _quantised_cache(c: Checker) -> list[Check]:
    """What is stored in 8 bits, and attention over it."""
    s, at, found = c.bench.shapes, c.at, []
    width, count = (3, 2) if c.bench.tiny else (66, 3)
    tokens = count * width * BLOCK
    k, v = (at.random(tokens, s.kv_heads, s.head) for _ in range(2))
    slots = torch.randperm(tokens, device=at.device).int()
    table = torch.arange(count * width, dtype=torch.int32, device=at.device).view(count, -1)
    bounds, lengths = at.ints(*range(count + 1)), at.ints(*[width * BLOCK - 5] * count)
    places = bounds, lengths, table, s.head**-0.5
    for kind in (torch.int8, torch.float8_e4m3fn):
        caches, wide = [], []
        for store in (kernels.store_kv, kernels.store_kv_reference):
            codes = [k.new_zeros(count * width, BLOCK, *k.shape[1:]).to(kind) for _ in range(2)]
            scales = [k.new_zeros(codes[0].shape[:3], dtype=torch.float32) for _ in range(2)]
            store(k, v, *codes, slots, *scales)
            caches.append((codes, scales))
            parts = zip(codes, scales, strict=True)
            wide.append([code.double() * scale.double()[..., None] for code, scale in parts])
        error = max(relative_rms(*pair) for pair in zip(*wide, strict=True))
        found.append(Check(f"store_kv {kind} {c.dtype}", error, 1e-3))
        codes, (k_scale, v_scale) = caches[0]
        found += c.compare(
            f"paged_attention {kind} cache",
            partial(_over, codes, places, k_scale=k_scale, v_scale=v_scale),
            lambda q, exact=wide[0]: kernels.paged_attention_reference(q, *exact, *places),
            [at.random(count, s.heads, s.head)],
        )
    return found


def _over(caches: list[Tensor], places: tuple[Any, ...], q: Tensor, **scales: Tensor) -> Tensor:
    return kernels.paged_attention(q, *caches, *places, **scales)


def _sample(c: Checker) -> list[Check]:
    """Logits are always fp32; tokens must be the reference's."""
    if c.dtype != torch.float32:
        return []
    logits, found = 3 * c.at.random(64, c.bench.shapes.vocabulary), []
    for top_k, top_p in ((0, 1.0), (50, 1.0), (0, 0.9)):
        params = kernels.SampleParams.neutral(len(logits), c.bench.device)
        params = replace(
            params,
            top_k=torch.full_like(params.top_k, top_k),
            top_p=torch.full_like(params.top_p, top_p),
            seed=torch.arange(len(logits), device=c.bench.device),
        )
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
        weight = kernels.quantize(c.at.random(s.inner, s.width), kind)
        exact = weight.dequantize(torch.float64)
        for rows in (1, 16, c.rows):
            found += c.compare(
                f"quantized_linear {kind} x {rows}",
                lambda x, weight=weight: kernels.quantized_linear(x, weight),
                lambda x, exact=exact: x @ exact.T,
                [c.at.random(rows, s.width, grad=True)],
            )
    return found


SERVING = (_linear, _lora_rows, _paged, _store_kv, _quantised_cache, _sample, _quantized)
