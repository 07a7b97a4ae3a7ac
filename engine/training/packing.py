"""Packs examples into micro-batches without padding, computing shared beginnings once.

A micro-batch is one flat run of tokens, cut into segments. Examples that begin alike form a group:
one segment with the shared tokens, then one for the rest of each example, which sees the first.
G examples with P shared and R own tokens cost P + G R tokens instead of G (P + R). Only prompts are
shared, and of each prompt all but the last token, so that every row that predicts a target stays in
the example's own segment, and carries its own weight.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.config import ModelConfig
from kernels import Segments, attention
from kernels.cross_entropy import IGNORED

MIN_PREFIX = 16
"""Shorter common beginnings are not worth a segment of their own."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A training example in token ids.

    Args:
        tokens: prompt, then completion.
        prompt_length: number of prompt tokens, at least 1 and less than all.
        weight: factor on the loss of each completion token.
        index: the example's number in the caller's list.
    """

    tokens: tuple[int, ...]
    prompt_length: int
    weight: float
    index: int

    @property
    def rows(self) -> int:
        """Tokens that the model reads: all but the last, which is only ever predicted."""
        return len(self.tokens) - 1

    @property
    def targets(self) -> int:
        """Number of completion tokens."""
        return len(self.tokens) - self.prompt_length


@dataclass(frozen=True, slots=True)
class Group:
    """Examples whose first `prefix` tokens are the same and computed once (0: nothing shared)."""

    prefix: int
    examples: tuple[Encoded, ...]

    @property
    def rows(self) -> int:
        return self.prefix + sum(example.rows - self.prefix for example in self.examples)


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What one forward and backward pass computes.

    Args:
        tokens: `[T]` int64.
        positions: `[T]` int32, each token's place in its example.
        segments: how attention may look.
        targets: `[T]` int64, the next token where it belongs to a completion, else -100.
        weights: `[T]` fp32, factor of each row's loss.
        target_rows: `[R]` int64, the rows whose target is not -100, ascending.
        examples: the examples inside.
    """

    tokens: Tensor
    positions: Tensor
    segments: Segments
    targets: Tensor
    weights: Tensor
    target_rows: Tensor
    examples: tuple[Encoded, ...]

    def to(self, device: torch.device) -> MicroBatch:
        """The same on `device`."""
        return replace(
            self,
            tokens=self.tokens.to(device),
            positions=self.positions.to(device),
            segments=self.segments.to(device),
            targets=self.targets.to(device),
            weights=self.weights.to(device),
            target_rows=self.target_rows.to(device),
        )


def pack(
    examples: Sequence[Encoded], budget: int, *, share_prefix: bool = True
) -> list[MicroBatch]:
    """Micro-batches of at most `budget` tokens that hold every example once.

    The result does not depend on the order of `examples`. An example longer than the budget gets a
    micro-batch of its own. A group too large for one micro-batch is cut, and its prefix repeated.
    """
    groups = share(examples) if share_prefix else [Group(0, (e,)) for e in _sorted(examples)]
    pieces = [piece for group in groups for piece in _cut(group, budget)]
    return [_assemble(bin) for bin in _first_fit(pieces, budget)]


def share(examples: Sequence[Encoded]) -> list[Group]:
    """Groups the examples so that the fewest tokens are computed.

    Sorted by their shareable tokens, a group is a run of neighbours, and its prefix the least of
    the neighbours' common prefixes; the best cut into runs is found by dynamic programming.
    """
    ordered = _sorted(examples)
    common = [0, *itertools.starmap(_common_prefix, itertools.pairwise(ordered))]
    saved, starts, prefixes = [0], [0], [0]  # best over the first j examples; its last run
    for stop in range(1, len(ordered) + 1):
        best, start, prefix, shortest = saved[-1], stop - 1, 0, common[stop - 1]
        for first in range(stop - 2, -1, -1):
            shortest = min(shortest, common[first + 1])
            if shortest < MIN_PREFIX:
                break
            gain = saved[first] + (stop - first - 1) * shortest
            if gain > best:
                best, start, prefix = gain, first, shortest
        saved.append(best)
        starts.append(start)
        prefixes.append(prefix)
    groups, stop = [], len(ordered)
    while stop:
        groups.append(Group(prefixes[stop], tuple(ordered[starts[stop] : stop])))
        stop = starts[stop]
    return groups[::-1]


def _sorted(examples: Sequence[Encoded]) -> list[Encoded]:
    return sorted(examples, key=lambda e: (_shareable(e), e.tokens, e.prompt_length, e.weight))


def _shareable(example: Encoded) -> tuple[int, ...]:
    return example.tokens[: example.prompt_length - 1]


def _common_prefix(x: Encoded, y: Encoded) -> int:
    length = min(x.prompt_length, y.prompt_length) - 1
    if x.tokens[:length] == y.tokens[:length]:
        return length
    return next(i for i in range(length) if x.tokens[i] != y.tokens[i])


def _cut(group: Group, budget: int) -> list[Group]:
    """The group in pieces that fit the budget, each with the prefix (a lone example needs none)."""
    pieces: list[Group] = []
    current: list[Encoded] = []
    for example in group.examples:
        if current and Group(group.prefix, (*current, example)).rows > budget:
            pieces.append(_piece(group.prefix, current))
            current = []
        current.append(example)
    return [*pieces, _piece(group.prefix, current)]


def _piece(prefix: int, examples: list[Encoded]) -> Group:
    return Group(prefix if len(examples) > 1 else 0, tuple(examples))


def _first_fit(pieces: list[Group], budget: int) -> list[list[Group]]:
    """First-fit decreasing bin packing."""
    bins: list[list[Group]] = []
    room: list[int] = []
    for piece in sorted(pieces, key=lambda piece: -piece.rows):
        found = next((i for i, free in enumerate(room) if piece.rows <= free), None)
        if found is None:
            bins.append([])
            room.append(budget)
            found = len(bins) - 1
        bins[found].append(piece)
        room[found] -= piece.rows
    return bins


def _assemble(groups: list[Group]) -> MicroBatch:
    tokens: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    bounds: list[int] = [0]
    prefixes: list[int] = []
    for group in groups:
        shared = len(prefixes) if group.prefix else -1
        if group.prefix:
            tokens += group.examples[0].tokens[: group.prefix]
            positions += range(group.prefix)
            targets += [IGNORED] * group.prefix
            weights += [0.0] * group.prefix
            bounds.append(len(tokens))
            prefixes.append(-1)
        for example in group.examples:
            silent = example.prompt_length - 1 - group.prefix
            tokens += example.tokens[group.prefix : -1]
            positions += range(group.prefix, example.rows)
            targets += [IGNORED] * silent + list(example.tokens[example.prompt_length :])
            weights += [0.0] * silent + [example.weight] * example.targets
            bounds.append(len(tokens))
            prefixes.append(shared)
    return MicroBatch(
        tokens=torch.tensor(tokens, dtype=torch.int64),
        positions=torch.tensor(positions, dtype=torch.int32),
        segments=Segments(
            torch.tensor(bounds, dtype=torch.int32), torch.tensor(prefixes, dtype=torch.int32)
        ),
        targets=torch.tensor(targets, dtype=torch.int64),
        weights=torch.tensor(weights, dtype=torch.float32),
        target_rows=torch.tensor(
            [row for row, target in enumerate(targets) if target != IGNORED], dtype=torch.int64
        ),
        examples=tuple(example for group in groups for example in group.examples),
    )


class PackedAttention:
    """The model's `attend` over a micro-batch: keys and values are those of the batch itself."""

    def __init__(self, segments: Segments, config: ModelConfig) -> None:
        self.segments, self.windows = segments, config.layer_windows
        self.scale = config.head_dim**-0.5

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`q [T, H, D]`, `k, v [T, Hkv, D]` -> `[T, H, D]`."""
        return attention(q, k, v, self.segments, self.scale, self.windows[layer])
