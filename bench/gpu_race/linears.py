"""Products with weights: plain, with LoRA, quantised, and the head with its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch.nn.functional as F

from bench import cases
from bench.case import RANK, Run, Shapes, with_gradients
from bench.gpu_race.peers import compiled, installed, liger_cross_entropy, peft_linear
from bench.gpu_race.results import Goal, Timing
from bench.gpu_race.workbench import Job, Workbench
from kernels.quantized import KINDS

_BARE = "bare GEMMs"
_NARROW = "torch, 16-bit logits"


def lora(bench: Workbench) -> Iterator[Job]:
    """Each fused linear of a block, forward and backward, beside its products without LoRA."""
    shapes = bench.rows(8192, 2 * 12 * bench.shapes.inner)
    fused: dict[str, tuple[list[int], int]] = {
        "qkv": (
            [shapes.heads * shapes.head, *[shapes.kv_heads * shapes.head] * 2],
            shapes.width,
        ),
        "o": ([shapes.width], shapes.heads * shapes.head),
        "gate_up": ([shapes.inner] * 2, shapes.width),
        "down": ([shapes.width], shapes.inner),
    }
    for name, (columns, k) in fused.items():
        ranks = (RANK, 4 * RANK) if name == "o" else (RANK,)
        for rank in ranks:
            yield f"{name} r{rank}", partial(_lora, bench, name, shapes, columns, k, rank)
    title = f"lora_add_ gate_up r{RANK}, 256 rows"
    build = partial(cases.lora_add, bench.place, bench.shapes, 256, bench.shapes.inner * 2)
    yield title, partial(bench.race, title, build)
    for adapters in (1, 16, 256):
        title = f"lora_add_rows_ gate_up r{RANK}, 256 rows of {adapters} adapters"
        build = partial(cases.lora_rows, bench.place, bench.shapes, 256, adapters, shapes.inner * 2)
        yield title, partial(bench.race, title, build)


def _lora(
    bench: Workbench, name: str, shapes: Shapes, columns: list[int], k: int, rank: int
) -> Timing:
    at = bench.place

    def bare() -> Run:
        x, weight = at.random(shapes.rows, k, grad=True), at.random(sum(columns), k)
        return with_gradients(lambda: F.linear(x, weight), [x])

    peers: dict[str, Callable[[], Run]] = {_BARE: bare}
    if installed("peft"):
        peers["peft"] = partial(peft_linear, at, shapes.rows, columns, k, rank)
    build = partial(cases.lora_linear, at, shapes, columns, k, rank)
    title = f"lora_linear {name} r{rank} fwd+bwd"
    return bench.race(title, build, peers, goals=[Goal("speed", 1 / 1.1, _BARE)])


def cross_entropy(bench: Workbench) -> Iterator[Job]:
    """All tokens learnt, then a quarter of them; time and memory."""
    shapes = bench.rows(8192, 14.0 * bench.shapes.vocabulary)
    goals = [Goal("speed", 1.0), *(Goal("memory", 0.25, peer) for peer in ("torch", _NARROW))]
    yield "all tokens", partial(_cross_entropy, bench, shapes, 1.0, goals)
    yield "a quarter of the tokens", partial(_cross_entropy, bench, shapes, 0.25, [])


def _cross_entropy(bench: Workbench, shapes: Shapes, learnt: float, goals: list[Goal]) -> Timing:
    build = partial(cases.linear_cross_entropy, bench.place, shapes, learnt=learnt)
    # Faster, less exact: the loss of logits that stay in 16 bits.
    peers: dict[str, Callable[[], Run]] = {_NARROW: lambda: build(wide=False).torch}
    if bench.on_gpu and learnt == 1.0:
        peers["torch.compile"] = lambda: build(through=compiled).torch
        if installed("liger_kernel"):
            peers["liger"] = partial(liger_cross_entropy, bench.place, shapes)
    title = f"linear_cross_entropy {shapes.rows} x {shapes.vocabulary}, {learnt:.0%} learnt"
    return bench.race(title, build, peers, goals=goals, memory=True)


def plain(bench: Workbench) -> Iterator[Job]:
    """Decode's skinny products, and the head's."""
    shapes = bench.shapes
    goal = [Goal("ceiling", 0.9)]
    for rows in (1, 16, 64, 256):
        for name, n, k in (
            ("gate_up", 2 * shapes.inner, shapes.width),
            ("down", shapes.width, shapes.inner),
            ("head", shapes.vocabulary, shapes.width),
        ):
            build = partial(cases.linear, bench.place, rows, n, k)
            title = f"linear {name} x {rows}"
            yield title, partial(bench.race, title, build, goals=goal if rows == 1 else [])


def quantized(bench: Workbench) -> Iterator[Job]:
    """Decode, a small batch and a training pack, beside the 16-bit product."""
    shapes = bench.rows(8192, 2 * 8 * bench.shapes.inner)
    for kind in KINDS:
        for rows in (1, 16, 256, shapes.rows):
            title = f"quantized_linear {kind} gate_up x {rows}"
            build = partial(
                cases.quantized_linear, bench.place, kind, rows, 2 * shapes.inner, shapes.width
            )
            yield title, partial(bench.race, title, build)
