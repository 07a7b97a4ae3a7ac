"""Attention of training packs, of paged decode, and the sampling that ends a decode step."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import kernels
from bench import cases
from bench.case import Case, Run, Shapes, backward
from bench.gpu_race.peers import compiled
from bench.gpu_race.results import Goal, Timing
from bench.gpu_race.workbench import Job, Workbench

_BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


@dataclass(frozen=True)
class Pack:
    """Causal sequences, forward or backward, on one device.

    Attributes:
        lengths: of the sequences, packed without padding.
        kv_heads: of keys and values.
        shared: the other sequences continue the first.
    """

    bench: Workbench
    lengths: tuple[int, ...]
    kv_heads: int
    back: bool
    shared: bool = False

    @property
    def unshared(self) -> tuple[int, ...]:
        """The lengths of sequences that each have their own copy of a shared first one."""
        first, *others = self.lengths
        return tuple(first + each for each in others) if self.shared else self.lengths

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def flops(self) -> float:
        """Two products of half a square forward, five backward."""
        shapes = self.bench.shapes
        squares = sum(length**2 for length in self.unshared)
        if self.shared:
            squares -= (len(self.unshared) - 1) * self.lengths[0] ** 2
        return (5.0 if self.back else 2.0) * squares * shapes.heads * shapes.head

    def inputs(self, *size: int) -> list[Tensor]:
        """q, k and v `[*size, heads, D]`."""
        shapes = self.bench.shapes
        counts = shapes.heads, self.kv_heads, self.kv_heads
        at = self.bench.place
        return [at.random(*size, count, shapes.head, grad=self.back) for count in counts]

    def run(self, attend: Callable[..., Tensor], leaves: list[Tensor]) -> Run:
        """Forward, or backward alone, of `attend(*leaves)`."""
        return backward(attend(*leaves), leaves) if self.back else lambda: attend(*leaves)

    def ours(self) -> Run:
        at, others = self.bench.place, len(self.lengths) - 1
        prefix = at.ints(-1, *[0 if self.shared else -1] * others)
        segments = kernels.Segments(at.ints(0, *accumulate(self.lengths)), prefix)
        scale = self.bench.shapes.head**-0.5

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return kernels.attention(q, k, v, segments, scale)

        return self.run(attend, self.inputs(self.tokens))

    def padded(self, backend: SDPBackend | None) -> Run:
        """Torch's attention over the sequences, each padded to the longest; None for its choice."""

        def only() -> AbstractContextManager[None]:
            return nullcontext() if backend is None else sdpa_kernel(backend)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            heads = (x.transpose(1, 2) for x in (q, k, v))
            shared = self.kv_heads != self.bench.shapes.heads
            with only():
                return F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=shared)

        return self.run(attend, self.inputs(len(self.unshared), max(self.unshared)))

    def varlen(self) -> Run:
        """Torch's flash attention over packed sequences, where its version has it."""
        from torch.nn.attention.varlen import varlen_attn

        cu_seqlens = self.bench.place.ints(0, *accumulate(self.unshared))
        most = max(self.unshared)
        known = inspect.signature(varlen_attn).parameters
        causal = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
        if "enable_gqa" in known:
            causal["enable_gqa"] = True

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return varlen_attn(q, k, v, cu_seqlens, cu_seqlens, most, most, **causal)

        return self.run(attend, self.inputs(sum(self.unshared)))

    def flex(self) -> Run:
        """FlexAttention over packed sequences, compiled, with the mask of their documents."""
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        device = self.bench.device
        lengths = torch.tensor(self.lengths, device=device)
        document = torch.arange(len(self.lengths), device=device).repeat_interleave(lengths)

        def seen(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & (document[query] == document[key])

        size = self.tokens
        mask = compiled(create_block_mask)(seen, None, None, size, size, device=device)
        attention = compiled(flex_attention)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = attention(q, k, v, block_mask=mask, enable_gqa=True)
            return out

        leaves = [x.detach().transpose(0, 1)[None] for x in self.inputs(self.tokens)]
        return self.run(attend, [x.requires_grad_(self.back) for x in leaves])

    def race(self, name: str, goals: Sequence[Goal], *, flex: bool) -> Timing:
        """Ours beside whatever torch has."""
        padded = len(set(self.unshared)) > 1
        peers: dict[str, Callable[[], Run]] = {}
        if self.bench.on_gpu:
            for backend, kind in _BACKENDS.items():
                peers[f"{backend}, padded" if padded else backend] = partial(self.padded, kind)
            peers["varlen_attn"] = self.varlen
            if flex:
                peers["flex"] = self.flex

        def build() -> Case:
            return Case(self.ours(), self.padded(None), self.flops, "GFLOP/s")

        return self.bench.race(name, build, peers, goals=goals)


def training(bench: Workbench) -> Iterator[Job]:
    """Dense sequences, very different ones, and a shared prefix's; forward, then backward."""
    shapes, short = bench.shapes, bench.tiny
    dense = (16, 24, 32) if short else (4096, 2048, 8192)
    count, longest = (3, 24) if short else (32, 4096)
    rng = random.Random(0)
    ragged = (longest, *(rng.randint(longest // 16, longest) for _ in range(count - 1)))
    for back in (False, True):
        way = "backward" if back else "forward"
        for length in dense:
            pack = Pack(bench, (length,) * (2 if short else 8), shapes.kv_heads, back)
            title = f"attention {way}, {len(pack.lengths)} x {length}, GQA"
            goals = [Goal("speed", 0.9)]
            yield title, partial(_fitting, pack, title, goals, flex=length == dense[0])
        pack = Pack(bench, (dense[0],) * len(pack.lengths), shapes.heads, back)
        title = f"attention {way}, {len(pack.lengths)} x {dense[0]}, MHA"
        yield title, partial(_fitting, pack, title, [Goal("speed", 0.9)], flex=False)
        pack = Pack(bench, ragged, shapes.kv_heads, back)
        padding = 1 - pack.tokens / (len(ragged) * max(ragged))
        title = f"attention {way}, {len(ragged)} ragged, {padding:.0%} padding"
        goals = [] if back else [Goal("speed", 1.5)]
        yield title, partial(_fitting, pack, title, goals, flex=True)
        prefix, *suffixes = (24, 16, 16, 16) if short else (4096, *[256] * 32)
        pack = Pack(bench, (prefix, *suffixes), shapes.kv_heads, back, shared=True)
        title = f"attention {way}, prefix of {prefix} + {len(suffixes)} x {suffixes[0]}"
        yield title, partial(_fitting, pack, title, [], flex=False)


def _fitting(pack: Pack, title: str, goals: Sequence[Goal], *, flex: bool) -> Timing:
    shapes = pack.bench.shapes
    rows = len(pack.unshared) * max(pack.unshared)
    pack.bench.need(rows * shapes.heads * shapes.head * 2 * 16 / 1e9)
    return pack.race(title, goals, flex=flex)


def paged(bench: Workbench) -> Iterator[Job]:
    """Decode steps over the paged cache, a prefill's chunk, and what both write into it."""
    shapes = bench.shapes
    length, shared = (48, 32) if bench.tiny else (1024, 768)
    for sequences in (2, 5) if bench.tiny else (1, 64, 256):
        for common in (0, shared):
            what = f", {common} shared" if common else ""
            title = f"paged_attention decode, {sequences} x {length}{what}"
            yield title, partial(_paged, bench, title, sequences, 1, length, common)
    for cache in (torch.int8, torch.float8_e4m3fn):
        title = f"paged_attention decode, {sequences} x {length}, {str(cache)[6:]} cache"
        yield title, partial(_paged, bench, title, sequences, 1, length, 0, cache)
    queries = length // 2
    title = f"paged_attention prefill, 8 x {queries} of {length}"
    yield title, partial(_paged, bench, title, 8, queries, length, 0)
    for rows in (sequences, shapes.rows):
        title = f"store_kv {rows} tokens"
        yield title, partial(bench.race, title, partial(cases.store_kv, bench.place, shapes, rows))


def _paged(
    bench: Workbench,
    title: str,
    sequences: int,
    queries: int,
    length: int,
    common: int,
    cache: torch.dtype | None = None,
) -> Timing:
    shapes: Shapes = bench.shapes
    bench.need(8e-9 * 2 * sequences * length * shapes.kv_heads * shapes.head)
    sizes = sequences, queries, length, common, cache
    return bench.race(title, partial(cases.paged_attention, bench.place, shapes, *sizes))


def sampling(bench: Workbench) -> Iterator[Job]:
    """Draws for a batch; the logits are read at least once."""
    for rows in (1, 64, 256):
        for top_k in (0, 10):
            title = f"sample {rows} x {bench.shapes.vocabulary}, top_k {top_k or 'off'}"
            build = partial(cases.sample, bench.place, bench.shapes, rows, top_k)
            yield title, partial(bench.race, title, build)
    title = f"top_logprobs {rows} x {bench.shapes.vocabulary}"
    build = partial(cases.top_logprobs, bench.place, bench.shapes, rows)
    yield title, partial(bench.race, title, build)
