"""Low-rank updates of a linear layer: Y = X Wᵀ + b + scale (X Aᵀ) Bᵀ (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.checks import FLOATS, expect, expect_frozen
from kernels.dispatch import implementation
from kernels.linear import base_linear, base_linear_dx
from kernels.quantized import Weight, check_linear


@dataclass(frozen=True, eq=False)
class LoraSlice:
    """One projection's update, of columns `start` to `start + n - 1` of a fused linear layer.

    Args:
        a: `[r, K]`.
        b: `[n, r]`.
        start: first column that the update adds to.
        scale: factor on the update, `alpha / r` or `alpha / sqrt(r)`.
    """

    a: Tensor
    b: Tensor
    start: int
    scale: float


def lora_linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    lora: Sequence[LoraSlice],
    *,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Frozen linear layer with low-rank updates, differentiable in `x` and each `a` and `b`.

    Args:
        x: `[T, K]`.
        weight: `[N, K]`, same dtype, frozen; or quantised.
        bias: `[N]`, same dtype, frozen, or None.
        lora: the updates; `a` and `b` may be fp32 beside a bf16 `x`: they are cast for the products
            and their gradients come back in their own dtype. Column ranges must not overlap.
        dropout: probability with which each update drops each element of `x` (each its own draw;
            the base product sees all of `x`).
        generator: source of the draws, on the device of `x`.

    Returns:
        `[T, N]`, dtype of `x`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, columns overlap, `weight` or `bias` wants
            a gradient, bad `dropout`.
    """
    check_linear(x, weight, bias)
    for name, part in (("weight", weight), ("bias", bias)):
        if isinstance(part, Tensor):
            expect_frozen(name, part)
    check_updates("lora", lora, x.shape[1], weight.shape[0], x.device)
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout: must be in [0, 1), got {dropout}")
    if not lora:
        return base_linear(x, weight, bias)
    plan = LoraPlan.of(lora, _keep_masks(x, len(lora), dropout, generator), dropout)
    ab = itertools.chain.from_iterable((part.a, part.b) for part in lora)
    return _LoraLinear.apply(x, weight, bias, plan, *ab)


def lora_add_(y: Tensor, x: Tensor, lora: Sequence[LoraSlice]) -> Tensor:
    """Adds the updates to a linear layer's output, in place, without gradients.

    Args:
        y: `[T, N]`, the layer's output; rows may be strided, elements of a row contiguous.
        x: `[T, K]`, its input, same dtype; rows may be strided.
        lora: the updates; fastest with `a` and `b` in the dtype of `x` and `b.T` contiguous. Column
            ranges must not overlap.

    Returns:
        `y`. On the CPU and Triton backends each row depends on its own row of `x` and `y` alone.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, columns overlap, or the rows of `y` are
            not contiguous.
    """
    check_output(y, x)
    check_updates("lora", lora, x.shape[1], y.shape[1], x.device)
    return implementation("lora_add_", x)(y, x, lora)


def check_output(y: Tensor, x: Tensor) -> None:
    """Raises ValueError, naming the argument, where no update of `x` can be added to `y`."""
    expect("x", x, ("T", "K"), FLOATS)
    expect("y", y, (x.shape[0], "N"), (x.dtype,), x.device)
    if y.stride(1) != 1:
        raise ValueError(f"y: elements of a row must be contiguous, got stride {y.stride(1)}")


def check_updates(
    name: str, lora: Sequence[LoraSlice], k: int, columns: int, device: torch.device
) -> None:
    """Raises ValueError, naming the part, unless the updates are of a layer of K and N like these.

    Args:
        name: what to call `lora`.
        columns: N.
    """
    for i, part in enumerate(lora):
        expect(f"{name}[{i}].a", part.a, ("r", k), FLOATS, device)
        expect(f"{name}[{i}].b", part.b, ("n", part.a.shape[0]), FLOATS, device)
        if not 0 <= part.start <= columns - part.b.shape[0]:
            raise ValueError(
                f"{name}[{i}].start: columns {part.start} to {part.start + part.b.shape[0]} "
                f"are not all among the layer's {columns}"
            )
    if len(lora) > 1:
        ends = sorted(
            [(part.start, part.start + part.b.shape[0], i) for i, part in enumerate(lora)]
        )
        for (_, stop, _), (start, _, i) in itertools.pairwise(ends):
            if start < stop:
                raise ValueError(f"{name}[{i}].start: column {start} belongs to another update too")


def _keep_masks(
    x: Tensor, count: int, dropout: float, generator: torch.Generator | None
) -> list[Tensor] | None:
    """One bool mask `[T, K]` per update, true where an element of `x` is kept."""
    if dropout == 0.0:
        return None
    empty = [torch.empty(x.shape, dtype=torch.bool, device=x.device) for _ in range(count)]
    return [mask.bernoulli_(1.0 - dropout, generator=generator) for mask in empty]


@dataclass(frozen=True)
class LoraPlan:
    """What both directions of `lora_linear` know beside tensors, entry i for update i.

    Attributes:
        columns: of y.
        inner: rows of the stacked A, columns of S = X Aᵀ.
        scales: factors on the updates.
        masks: `[T, K]` bool each, true where an element of x is kept; None if all are.
    """

    columns: list[slice]
    inner: list[slice]
    scales: list[float]
    masks: list[Tensor] | None

    @classmethod
    def of(cls, lora: Sequence[LoraSlice], masks: list[Tensor] | None, dropout: float) -> LoraPlan:
        ends = list(itertools.accumulate(len(part.a) for part in lora))
        return cls(
            [slice(part.start, part.start + len(part.b)) for part in lora],
            [slice(end - len(part.a), end) for part, end in zip(lora, ends, strict=True)],
            [part.scale / (1.0 - dropout) for part in lora],
            masks,
        )


class _LoraLinear(torch.autograd.Function):
    """The base products are whole GEMMs; the updates accumulate into their results."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Weight, bias: Tensor | None, plan: LoraPlan, *ab: Tensor
    ) -> Tensor:
        a = (torch.cat(ab[::2]) if len(ab) > 2 else ab[0]).to(x.dtype)
        y, s = implementation("lora_linear_forward", x)(x, weight, bias, plan, a, ab[1::2])
        ctx.save_for_backward(x, s, a, *ab)
        ctx.plan, ctx.weight = plan, weight
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x, s, a, *ab), plan = ctx.saved_tensors, ctx.plan
        dx, da, db = implementation("lora_linear_backward", x)(
            dy, x, ctx.weight, plan, s, a, ab[1::2], want_dx=ctx.needs_input_grad[0]
        )
        parts = zip((da[rows] for rows in plan.inner), db, strict=True)
        grads = zip(itertools.chain.from_iterable(parts), ab, strict=True)
        return dx, None, None, None, *(grad.to(leaf.dtype) for grad, leaf in grads)


def lora_linear_forward_reference(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    plan: LoraPlan,
    a: Tensor,
    b: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """`lora_linear` without gradients, and what its backward pass needs.

    Args:
        x, weight, bias: as for `lora_linear`.
        plan: the updates' places and factors.
        a: `[R, K]`, all updates' A one below the other, dtype of `x`; R is the sum of their ranks.
        b: `[n, r]` of each update, in any dtype.

    Returns:
        y `[T, N]`, and S = X Aᵀ `[T, R]` in the dtype of `x`.
    """
    y, s = base_linear(x, weight, bias), _shrink(x, a, plan)
    for part, columns, inner, scale in zip(b, plan.columns, plan.inner, plan.scales, strict=True):
        y[:, columns].addmm_(s[:, inner], part.to(x.dtype).T, alpha=scale)
    return y, s


def lora_linear_backward_reference(
    dy: Tensor,
    x: Tensor,
    weight: Weight,
    plan: LoraPlan,
    s: Tensor,
    a: Tensor,
    b: Sequence[Tensor],
    *,
    want_dx: bool,
) -> tuple[Tensor | None, Tensor, list[Tensor]]:
    """The gradients of `lora_linear`.

    Args:
        dy: `[T, N]`.
        s: the second result of the forward pass, by the same backend.
        want_dx: whether the gradient of `x` is wanted.
        x, weight, plan, a, b: as in the forward pass.

    Returns:
        dX `[T, K]` or None; the gradient of the stacked A `[R, K]`, and that of each B `[n, r]`, in
        any dtype.
    """
    dx = base_linear_dx(dy, weight) if want_dx else None
    ds, db = [], []
    for part, columns, inner, scale in zip(b, plan.columns, plan.inner, plan.scales, strict=True):
        own = dy[:, columns]
        ds.append(own @ (part * scale).to(x.dtype))
        db.append((own.T @ s[:, inner]).to(part.dtype).mul_(scale))
    return dx, _shrink_gradients(x, a, torch.cat(ds, dim=1), dx, plan), db


def _shrink(x: Tensor, a: Tensor, plan: LoraPlan) -> Tensor:
    """S `[T, R]`: every update's X Aᵀ, in one product where all see the same X."""
    if plan.masks is None:
        return x @ a.T
    parts = zip(plan.masks, plan.inner, strict=True)
    return torch.cat([(x * mask) @ a[rows].T for mask, rows in parts], dim=1)


def _shrink_gradients(
    x: Tensor, a: Tensor, ds: Tensor, dx: Tensor | None, plan: LoraPlan
) -> Tensor:
    """The gradient of the stacked A; adds that of `x` to `dx`."""
    if plan.masks is None:
        if dx is not None:
            dx.addmm_(ds, a)
        return ds.T @ x
    da = torch.empty_like(a)
    for mask, rows in zip(plan.masks, plan.inner, strict=True):
        torch.mm(ds[:, rows].T, x * mask, out=da[rows])
        if dx is not None:
            dx += (ds[:, rows] @ a[rows]).mul_(mask)
    return da


def lora_linear_reference(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    lora: Sequence[LoraSlice],
    masks: Sequence[Tensor] | None = None,
) -> Tensor:
    """The specification of `lora_linear`; factor `masks[i]` `[T, K]` is on what update i sees."""
    y = base_linear(x, weight, bias)
    for i, part in enumerate(lora):
        dropped = x if masks is None else x * masks[i]
        update = part.scale * (dropped @ part.a.to(x.dtype).T) @ part.b.to(x.dtype).T
        y = y + F.pad(update, (part.start, y.shape[1] - part.start - update.shape[1]))
    return y


def lora_add__reference(y: Tensor, x: Tensor, lora: Sequence[LoraSlice]) -> Tensor:
    """The specification of `lora_add_`."""
    for part in lora:
        inner = x @ part.a.to(x.dtype).T
        columns = y[:, part.start : part.start + len(part.b)]
        columns += part.scale * (inner @ part.b.to(x.dtype).T)
    return y
