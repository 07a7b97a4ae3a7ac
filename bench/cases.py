"""The microbenchmarks' cases: each operation's inputs, ours, plain torch's, and the work done.

Work is the arithmetic or the traffic that the operation cannot do without: 2 FLOPs per
multiply-add, tensors read once and written once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from bench.case import BLOCK, EPS, RANK, Case, Eager, Place, Shapes, backward, plain, with_gradients
from kernels.quantized import Kind


def linear(at: Place, rows: int, n: int, k: int) -> Case:
    x, weight = at.random(rows, k), at.random(n, k)
    return Case(
        lambda: kernels.linear(x, weight),
        lambda: F.linear(x, weight),
        2.0 * rows * n * k if rows > 1 else float(weight.nbytes),
        "GFLOP/s" if rows > 1 else "GB/s",
    )


def lora_linear(at: Place, shapes: Shapes, columns: list[int], k: int, rank: int = RANK) -> Case:
    """A fused linear of `columns` each with an update, forward and backward."""
    x, weight = at.random(shapes.rows, k, grad=True), at.random(sum(columns), k)
    a = [at.random(rank, k, grad=True, dtype=torch.float32) for _ in columns]
    b = [at.random(n, rank, grad=True, dtype=torch.float32) for n in columns]
    starts = [sum(columns[:i]) for i in range(len(columns))]
    parts = zip(a, b, starts, strict=True)
    slices = [kernels.LoraSlice(*part, 2.0) for part in parts]

    def eager() -> Tensor:
        pairs = [(one.to(at.dtype), two.to(at.dtype)) for one, two in zip(a, b, strict=True)]
        return F.linear(x, weight) + torch.cat([x @ one.T @ two.T * 2.0 for one, two in pairs], 1)

    base = 2 * 2.0 * x.shape[0] * weight.numel()  # forward and dX
    low_rank = 3 * 2.0 * x.shape[0] * rank * (len(columns) * k + sum(columns))  # and dA with dB
    leaves = [x, *a, *b]
    return Case(
        with_gradients(lambda: kernels.lora_linear(x, weight, None, slices), leaves),
        with_gradients(eager, leaves),
        base + low_rank,
        "GFLOP/s",
    )


def lora_add(at: Place, shapes: Shapes, rows: int, n: int) -> Case:
    """A decode batch that carries one adapter."""
    x, y = at.random(rows, shapes.width), at.random(rows, n)
    a, b = at.random(RANK, shapes.width), at.random(RANK, n).T
    slices = [kernels.LoraSlice(a, b, 0, 1e-3)]
    amount = float(a.nbytes + b.nbytes + x.nbytes + 2 * y.nbytes)
    return Case(
        lambda: kernels.lora_add_(y, x, slices),
        lambda: y.addmm_(x @ a.T, b.T, alpha=1e-3),
        amount,
        "GB/s",
    )


def lora_rows(at: Place, shapes: Shapes, rows: int, adapters: int, n: int) -> Case:
    """A decode batch whose rows carry so many adapters, as many rows each."""
    x, y, each = at.random(rows, shapes.width), at.random(rows, n), rows // adapters
    pairs = [(at.random(RANK, shapes.width), at.random(n, RANK)) for _ in range(adapters)]
    banks = [kernels.LoraBank([[kernels.LoraSlice(a, b, 0, 1e-3)]]) for a, b in pairs]
    carried = kernels.LoraRows([(i * each, (i + 1) * each, bank) for i, bank in enumerate(banks)])

    def eager() -> None:
        for i, (a, b) in enumerate(pairs):
            part = slice(i * each, (i + 1) * each)
            y[part].addmm_(x[part] @ a.T, b.T, alpha=1e-3)

    weights = sum(a.nbytes + b.nbytes for a, b in pairs)
    amount = float(weights + x.nbytes + 2 * y.nbytes)
    return Case(lambda: kernels.lora_add_rows_(y, x, carried, 0), eager, amount, "GB/s")


def rms_norm(
    at: Place, shapes: Shapes, *, back: bool = False, through: Callable[[Eager], Eager] = plain
) -> Case:
    x, weight = at.random(shapes.rows, shapes.width, grad=back), at.random(shapes.width)

    def ours() -> Tensor:
        return kernels.rms_norm(x, weight, EPS)

    def eager() -> Tensor:
        return F.rms_norm(x, (shapes.width,), weight, EPS)

    theirs = through(eager)
    if back:
        return Case(backward(ours(), [x]), backward(theirs(), [x]), 3.0 * x.nbytes, "GB/s")
    return Case(ours, theirs, 2.0 * x.nbytes, "GB/s")


def add_rms_norm(
    at: Place, shapes: Shapes, *, back: bool = False, through: Callable[[Eager], Eager] = plain
) -> Case:
    x, residual = (at.random(shapes.rows, shapes.width, grad=back) for _ in range(2))
    weight = at.random(shapes.width)

    def ours() -> tuple[Tensor, Tensor]:
        return kernels.add_rms_norm(x, residual, weight, EPS)

    def eager() -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.rms_norm(total, (shapes.width,), weight, EPS), total

    theirs = through(eager)
    if back:  # x and residual have the same gradient
        leaves = [x, residual]
        runs = backward(ours(), leaves), backward(theirs(), leaves)
        return Case(*runs, 4.0 * x.nbytes, "GB/s")
    return Case(ours, theirs, 4.0 * x.nbytes, "GB/s")


def angles(at: Place, positions: int, head: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, `[positions, head / 2]` fp32, of a base of 1e5."""
    steps = 1e-5 ** (torch.arange(head // 2, device=at.device) * 2 / head)
    turns = torch.arange(positions, device=at.device)[:, None] * steps
    return turns.cos(), turns.sin()


def rope(
    at: Place, shapes: Shapes, *, back: bool = False, through: Callable[[Eager], Eager] = plain
) -> Case:
    """On views of a fused projection; forward in place."""
    heads, kv_heads, head, rows = shapes.heads, shapes.kv_heads, shapes.head, shapes.rows
    qkv = at.random(rows, heads + 2 * kv_heads, head)
    q, k = (x.requires_grad_(back) for x in (qkv[:, :heads], qkv[:, heads : heads + kv_heads]))
    positions = torch.arange(rows, dtype=torch.int32, device=at.device)
    cos, sin = angles(at, rows, head)
    wide = [torch.cat([t, t], 1).to(at.dtype)[:, None] for t in (cos, sin)]

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * wide[0] + torch.cat([-second, first], -1) * wide[1]

    theirs = through(lambda: (rotate(q), rotate(k)))
    amount = 2.0 * (q.numel() + k.numel()) * q.element_size()
    if back:
        outs = kernels.rope(q, k, cos, sin, positions)
        return Case(backward(outs, [q, k]), backward(theirs(), [q, k]), amount, "GB/s")
    return Case(
        lambda: kernels.rope(q, k, cos, sin, positions, inplace=True), theirs, amount, "GB/s"
    )


def swiglu(
    at: Place, shapes: Shapes, *, back: bool = False, through: Callable[[Eager], Eager] = plain
) -> Case:
    gate_up = at.random(shapes.rows, 2 * shapes.inner, grad=back)

    def eager() -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up

    def ours() -> Tensor:
        return kernels.swiglu(gate_up)

    theirs = through(eager)
    if back:
        runs = backward(ours(), [gate_up]), backward(theirs(), [gate_up])
        return Case(*runs, 2.5 * gate_up.nbytes, "GB/s")
    return Case(ours, theirs, 1.5 * gate_up.nbytes, "GB/s")


def attention(at: Place, shapes: Shapes) -> Case:
    """One causal sequence, forward and backward: 4 products of half a square, and 10 behind."""
    rows, heads, head, scale = shapes.rows, shapes.heads, shapes.head, shapes.head**-0.5
    q = at.random(rows, heads, head, grad=True)
    k, v = (at.random(rows, shapes.kv_heads, head, grad=True) for _ in range(2))
    segments = kernels.Segments(at.ints(0, rows), at.ints(-1))

    def eager() -> Tensor:
        first, second, third = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = F.scaled_dot_product_attention(first, second, third, is_causal=True, enable_gqa=True)
        return out[0].transpose(0, 1)

    return Case(
        with_gradients(lambda: kernels.attention(q, k, v, segments, scale), [q, k, v]),
        with_gradients(eager, [q, k, v]),
        7.0 * rows * rows * heads * head,
        "GFLOP/s",
    )


def paged_attention(
    at: Place,
    shapes: Shapes,
    sequences: int,
    queries: int,
    length: int,
    shared: int = 0,
    cache: torch.dtype | None = None,
) -> Case:
    """The newest `queries` tokens of each of the sequences of `length` tokens.

    Their first `shared` tokens, whole blocks, lie in the same blocks; the amount counts them for
    each sequence nevertheless, as without sharing. `cache` is the dtype of a quantised one.
    """
    heads, kv_heads, head = shapes.heads, shapes.kv_heads, shapes.head
    blocks, common = -(-length // BLOCK), shared // BLOCK
    own = torch.arange(sequences * (blocks - common), dtype=torch.int32, device=at.device)
    table = torch.cat(
        [
            torch.arange(common, dtype=torch.int32, device=at.device).expand(sequences, common),
            own.view(sequences, blocks - common) + common,
        ],
        dim=1,
    )
    shape = common + len(own), BLOCK, kv_heads, head
    k_cache, v_cache = at.random(*shape), at.random(*shape)
    q = at.random(sequences * queries, heads, head)
    ends = torch.arange(0, len(q) + 1, queries, dtype=torch.int32, device=at.device)
    lengths = torch.full((sequences,), length, dtype=torch.int32, device=at.device)
    wide = q.view(sequences, queries, heads, head).transpose(1, 2)
    keys, values = (x[table].flatten(1, 2)[:, :length].transpose(1, 2) for x in (k_cache, v_cache))
    places = torch.arange(length, device=at.device)
    mask = None if queries == 1 else places[length - queries :, None] >= places
    extra: dict[str, Any] = {"shared_blocks": common} if common else {}
    token = 2 * kv_heads * head * k_cache.element_size()
    if cache is not None:
        k_cache, v_cache, extra["k_scale"], extra["v_scale"] = _quantised(k_cache, v_cache, cache)
        token = 2 * kv_heads * (head * cache.itemsize + 4)

    def eager() -> Tensor:
        return F.scaled_dot_product_attention(wide, keys, values, attn_mask=mask, enable_gqa=True)

    seen = queries * (length - (queries - 1) / 2)
    decode, flops = queries == 1, 4.0 * sequences * seen * heads * head
    return Case(
        lambda: kernels.paged_attention(
            q, k_cache, v_cache, ends, lengths, table, head**-0.5, **extra
        ),
        eager,
        float(sequences * length * token) if decode else flops,
        "GB/s" if decode else "GFLOP/s",
    )


def store_kv(at: Place, shapes: Shapes, rows: int) -> Case:
    """So many tokens' keys and values, views of a fused projection, to scattered slots."""
    heads, kv_heads, head = shapes.heads, shapes.kv_heads, shapes.head
    qkv = at.random(rows, heads + 2 * kv_heads, head)
    _, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    blocks = -(-2 * rows // BLOCK)
    k_cache, v_cache = (at.random(blocks, BLOCK, kv_heads, head) for _ in range(2))
    slots = torch.randperm(blocks * BLOCK, device=at.device)[:rows]
    narrow = slots.int()

    def eager() -> None:
        k_cache.flatten(0, 1).index_copy_(0, slots, k)
        v_cache.flatten(0, 1).index_copy_(0, slots, v)

    amount = 2.0 * (k.numel() + v.numel()) * k.element_size()
    return Case(lambda: kernels.store_kv(k, v, k_cache, v_cache, narrow), eager, amount, "GB/s")


def _quantised(k: Tensor, v: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Codes of both caches, then their scales."""
    codes = [torch.empty_like(k, dtype=dtype) for _ in range(2)]
    scales = [k.new_empty(k.shape[:3], dtype=torch.float32) for _ in range(2)]
    slots = torch.arange(k.shape[0] * k.shape[1], dtype=torch.int32, device=k.device)
    kernels.store_kv(k.flatten(0, 1), v.flatten(0, 1), *codes, slots, *scales)
    return codes + scales


def linear_cross_entropy(
    at: Place,
    shapes: Shapes,
    *,
    learnt: float = 0.25,
    wide: bool = True,
    through: Callable[[Eager], Eager] = plain,
) -> Case:
    """Forward and the gradient of the hidden states; `learnt` of the tokens are targets.

    Torch's loss is of logits in fp32 (`wide`), as transformers takes it, or in their own dtype.
    """
    rows, width, vocabulary = shapes.rows, shapes.width, shapes.vocabulary
    hidden, head = at.random(rows, width, grad=True), at.random(vocabulary, width)
    targets = torch.full((rows,), -100, device=at.device)
    count = max(1, int(rows * learnt))
    targets[-count:] = torch.randint(vocabulary, (count,), device=at.device)
    kept = torch.arange(rows - count, rows, device=at.device)  # found on a GPU, it would wait

    def ours() -> Tensor:
        return kernels.linear_cross_entropy(hidden, head, targets, rows=kept)[0]

    def eager() -> Tensor:
        logits = hidden @ head.T
        return F.cross_entropy(logits.float() if wide else logits, targets, reduction="sum")

    return Case(
        with_gradients(ours, [hidden]),
        with_gradients(through(eager), [hidden]),
        2 * 2.0 * count * width * vocabulary,
        "GFLOP/s",
    )


def sample(at: Place, shapes: Shapes, rows: int, top_k: int = 10) -> Case:
    """A draw from the `top_k` most likely of each row, from all where it is 0."""
    logits = at.random(rows, shapes.vocabulary, dtype=torch.float32)
    params = kernels.SampleParams.neutral(rows, at.device)
    params = replace(
        params,
        temperature=torch.full_like(params.temperature, 0.2),
        top_k=torch.full_like(params.top_k, top_k),
    )

    def eager() -> tuple[Tensor, Tensor]:
        scores = logits / 0.2
        if top_k:
            best, ids = scores.topk(top_k)
            chosen = ids.gather(1, torch.multinomial(best.softmax(-1), 1))
        else:
            chosen = torch.multinomial(scores.softmax(-1), 1)
        return chosen, logits.log_softmax(-1).gather(1, chosen)

    return Case(lambda: kernels.sample(logits, params), eager, float(logits.nbytes), "GB/s")


def top_logprobs(at: Place, shapes: Shapes, rows: int, k: int = 5) -> Case:
    logits = at.random(rows, shapes.vocabulary, dtype=torch.float32)
    return Case(
        lambda: kernels.top_logprobs(logits, k),
        lambda: logits.log_softmax(-1).topk(k),
        float(logits.nbytes),
        "GB/s",
    )


def quantized_linear(at: Place, kind: Kind, rows: int, n: int, k: int) -> Case:
    """Beside torch's product with the weight unquantised."""
    x, weight = at.random(rows, k), at.random(n, k)
    small = kernels.quantize(weight, kind)
    return Case(
        lambda: kernels.quantized_linear(x, small),
        lambda: F.linear(x, weight),
        2.0 * rows * n * k if rows > 1 else float(small.nbytes),
        "GFLOP/s" if rows > 1 else "GB/s",
    )
