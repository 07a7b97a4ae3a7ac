"""LoRA adapters (arXiv 2106.09685): their tensors, and how a forward pass meets them.

An adapter holds fp32 matrices a `[r, K]` and b `[n, r]` for each adapted projection. The model runs
fused linears (q, k, v in one; gate, up in one), so an adapter hands out `LoraSlice`s that say which
columns of a fused linear each projection updates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

import kernels
from engine.config import ModelConfig
from engine.errors import AdapterError
from engine.seeds import mix
from kernels import LoraBank, LoraRows, LoraSlice, lora_add_rows_, lora_linear
from kernels.quantized import Weight

FUSED: dict[str, tuple[str, ...]] = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
"""The model's linears and the projections each is made of, in the order of their columns."""

TARGETS: tuple[str, ...] = tuple(itertools.chain.from_iterable(FUSED.values()))

_versions = itertools.count(1)


@dataclass(frozen=True)
class LoraConfig:
    """How an adapter is made and trained.

    Args:
        rank: r, the inner width of each update.
        alpha: an update is scaled by `alpha / rank`.
        targets: adapted projections, from `TARGETS`.
        dropout: probability with which training drops each element of an update's input.
        rslora: scale by `alpha / sqrt(rank)` instead (arXiv 2312.03732).

    Raises:
        AdapterError: a value makes no sense.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = TARGETS
    dropout: float = 0.0
    rslora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise AdapterError(f"rank must be at least 1, not {self.rank}")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise AdapterError(f"alpha must be a positive number, not {self.alpha}")
        if not 0.0 <= self.dropout < 1.0:
            raise AdapterError(f"dropout must be in [0, 1), not {self.dropout}")
        unknown = [target for target in self.targets if target not in TARGETS]
        if unknown or not self.targets:
            raise AdapterError(
                f"targets: {', '.join(unknown) or 'none given'}; choose from {', '.join(TARGETS)}"
            )
        object.__setattr__(self, "targets", tuple(t for t in TARGETS if t in self.targets))

    def scale(self, rank: int, alpha: float) -> float:
        """The factor on an update of this rank and alpha."""
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


Key = tuple[int, str]
"""(layer, target), for example (0, "q_proj")."""


@dataclass(frozen=True, eq=False)
class LoraPair:
    """One projection's update `scale * b @ a`: a `[r, K]`, b `[n, r]`, fp32."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(eq=False)
class Adapter:
    """A named set of low-rank updates that fits one model.

    `version` is a number that no other state of any adapter in this process has had: what was
    computed with this adapter is valid while its version stays the same.
    """

    name: str
    config: LoraConfig
    model: ModelConfig
    pairs: dict[Key, LoraPair]
    version: int = field(init=False)
    _banks: dict[torch.dtype, LoraBank] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.assign(self.pairs)

    def assign(self, pairs: Mapping[Key, LoraPair]) -> None:
        """Replaces the tensors (no copies are made) and gives the adapter a new version."""
        self.pairs = dict(sorted(pairs.items(), key=lambda item: _order(item[0])))
        self.version = next(_versions)
        self._banks = {}

    def copy(self, name: str) -> Adapter:
        """An independent adapter of the same values."""
        pairs = {k: LoraPair(p.a.clone(), p.b.clone(), p.scale) for k, p in self.pairs.items()}
        return Adapter(name, self.config, self.model, pairs)

    def tensors(self) -> list[Tensor]:
        """All a and b, in a fixed order (by layer, then as in `TARGETS`; a before b)."""
        return [tensor for pair in self.pairs.values() for tensor in (pair.a, pair.b)]

    def with_tensors(self, tensors: Sequence[Tensor]) -> dict[Key, LoraPair]:
        """This adapter's pairs with other tensors, given in the order of `tensors()`."""
        it: Iterator[Tensor] = iter(tensors)
        return {k: LoraPair(next(it), next(it), pair.scale) for k, pair in self.pairs.items()}

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return sum(tensor.numel() for tensor in self.tensors())

    def slices(self, layer: int, linear: str) -> list[LoraSlice]:
        """The updates of one fused linear, in fp32: the adapter's own tensors."""
        found, start = [], 0
        for target in FUSED[linear]:
            pair = self.pairs.get((layer, target))
            if pair is not None:
                found.append(LoraSlice(pair.a, pair.b, start, pair.scale))
            start += target_shape(self.model, target)[0]
        return found

    def bank(self, dtype: torch.dtype) -> LoraBank:
        """All updates in the model's dtype for inference, kept until the adapter changes."""
        if dtype not in self._banks:
            # All at once: made one by one during a pass, these small tensors that stay would lie
            # between large ones that go, and keep the heap from using that memory again.
            layers = range(self.model.num_layers)
            self._banks[dtype] = LoraBank(
                _cast(self.slices(layer, linear), dtype) for layer in layers for linear in FUSED
            )
        return self._banks[dtype]


def _cast(slices: list[LoraSlice], dtype: torch.dtype) -> Iterator[LoraSlice]:
    return (LoraSlice(s.a.to(dtype), s.b.to(dtype), s.start, s.scale) for s in slices)


def _order(key: Key) -> tuple[int, int]:
    return key[0], TARGETS.index(key[1])


def target_shape(model: ModelConfig, target: str) -> tuple[int, int]:
    """`(n, K)`, the shape of a projection's weight."""
    width, inner = model.hidden_size, model.intermediate_size
    heads, kv_heads = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    return {
        "q_proj": (heads, width),
        "k_proj": (kv_heads, width),
        "v_proj": (kv_heads, width),
        "o_proj": (width, heads),
        "gate_proj": (inner, width),
        "up_proj": (inner, width),
        "down_proj": (width, inner),
    }[target]


def module_name(layer: int, target: str) -> str:
    """The projection's name in a HF checkpoint, without `.weight`."""
    block = "self_attn" if target[0] in "qkvo" else "mlp"
    return f"model.layers.{layer}.{block}.{target}"


def new_adapter(
    name: str, config: LoraConfig, model: ModelConfig, device: torch.device, seed: int = 0
) -> Adapter:
    """A fresh adapter that changes nothing yet: b is zero, a is drawn as PEFT and LoRA draw it.

    a is uniform in ±1/sqrt(K) (kaiming_uniform with a = sqrt 5), from `seed` on the CPU, so that it
    is the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for layer in range(model.num_layers):
        for target in config.targets:
            n, k = target_shape(model, target)
            a = torch.empty(config.rank, k).uniform_(-1, 1, generator=generator).div_(math.sqrt(k))
            b = torch.zeros(n, config.rank, device=device)
            scale = config.scale(config.rank, config.alpha)
            pairs[layer, target] = LoraPair(a.to(device), b, scale)
    return Adapter(name, config, model, pairs)


class NoLora:
    """The bare model's linears."""

    def apply(
        self, layer: int, linear: str, x: Tensor, weight: Weight, bias: Tensor | None
    ) -> Tensor:
        """`x [T, K]` -> `[T, N]`."""
        return kernels.linear(x, weight, bias)


class InferenceLora:
    """Linears of a batch whose rows carry different adapters.

    Args:
        rows: `(start, stop, adapter)` ranges of the batch's rows; rows in no range, or with None,
            are the bare model's. Neighbouring ranges of one adapter are computed together.
    """

    def __init__(self, rows: Sequence[tuple[int, int, Adapter | None]]) -> None:
        self.rows: list[tuple[int, int, Adapter]] = []
        self._prepared: LoraRows | None = None
        for start, stop, adapter in rows:
            if adapter is None or start == stop:
                continue
            if self.rows and self.rows[-1][1:] == (start, adapter):
                start = self.rows.pop()[0]
            self.rows.append((start, stop, adapter))

    def prepare(self, dtype: torch.dtype) -> LoraRows:
        """Which rows carry which adapter's inference copies; these are made at the first call."""
        if self._prepared is None:
            self._prepared = LoraRows([(i, j, adapter.bank(dtype)) for i, j, adapter in self.rows])
        return self._prepared

    def apply(
        self, layer: int, linear: str, x: Tensor, weight: Weight, bias: Tensor | None
    ) -> Tensor:
        """`x [T, K]` -> `[T, N]`."""
        y = kernels.linear(x, weight, bias)
        if not self.rows:
            return y
        index = layer * len(FUSED) + tuple(FUSED).index(linear)
        return lora_add_rows_(y, x, self.prepare(x.dtype), index)


class TrainingLora:
    """Linears of a training batch, differentiable in one adapter's fp32 tensors.

    Args:
        adapter: the updates of every row.
        dropout: as `LoraConfig.dropout`; 0 for evaluation.
        seed: decides the dropped elements, together with layer and linear. They are drawn afresh
            from it each time, so that a recomputed block drops the same ones.
    """

    def __init__(self, adapter: Adapter, dropout: float = 0.0, seed: int = 0) -> None:
        self.adapter, self.dropout, self.seed = adapter, dropout, seed

    def apply(
        self, layer: int, linear: str, x: Tensor, weight: Weight, bias: Tensor | None
    ) -> Tensor:
        """`x [T, K]` -> `[T, N]`."""
        slices = self.adapter.slices(layer, linear)
        if not self.dropout or not slices:
            return lora_linear(x, weight, bias, slices)
        generator = torch.Generator(device=x.device)
        generator.manual_seed(mix(self.seed, layer, tuple(FUSED).index(linear)))
        return lora_linear(x, weight, bias, slices, dropout=self.dropout, generator=generator)
