"""Frozen weights in 8 or 4 bits, and the linear layer that reads them.

Along K a weight is cut into groups, each with a scale of its own. With `value` the meaning of a
code, `W[n, k] = value(code[n, k]) * scale[n, k // group] * row_scale[n]`:

* "int8": -127 to 127.
* "int4": -8 to 7; the scale may be negative, so that a group's largest weight can be the -8.
* "nf4": one of 16 quantiles of the normal distribution (QLoRA, arXiv 2305.14314).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.checks import FLOATS, expect, expect_frozen
from kernels.dispatch import implementation

Kind = Literal["int8", "int4", "nf4"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# fmt: off
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)
# fmt: on
"""The values of QLoRA's appendix E."""

_LARGEST = {"int8": 127.0, "int4": 8.0, "nf4": 1.0}  # of the values' magnitudes
# Factors on the scale that covers a group's largest weight. More of them gain less than 1 % of the
# error with int4 and less than 2 % with nf4, whose nearest values take much longer to find.
_CLIPS = {"int8": (1.0,), "int4": (1.0, 0.95, 0.9, 0.85, 0.8), "nf4": (1.0, 0.9)}
# Elements of a weight that exist unquantised at a time: 32 MB in 16 bits, which the L2 of a large
# GPU holds between the two kernels. While they are quantised each takes some 20 bytes: 80 MB on a
# GPU, and on a CPU what its caches hold.
_CHUNK, _CHUNK_QUANTIZING, _CHUNK_QUANTIZING_CPU = 1 << 24, 1 << 22, 1 << 19


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A frozen `[N, K]` weight of a linear layer; `quantize` makes one.

    K is padded to K', a multiple of two groups. Of the 4-bit codes byte j of a pair of groups holds
    element j of the first group in its low bits and of the second in its high bits: unpacked, each
    half is one whole group, contiguous along K.

    Args:
        kind: what the codes mean.
        shape: (N, K).
        group_size: consecutive elements of a row that share a scale.
        codes: `[N, K']` int8 for "int8", else `[N, K' / 2]` uint8.
        scales: `[N, K' / group_size]` fp16, relative to the row's.
        row_scales: `[N]` fp32; with these fp16 serves weights of any magnitude.
    """

    kind: Kind
    shape: tuple[int, int]
    group_size: int
    codes: Tensor
    scales: Tensor
    row_scales: Tensor

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes + self.row_scales.nbytes

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def to(self, device: torch.device | str) -> QuantizedWeight:
        """The same weight on another device."""
        parts = {name: getattr(self, name).to(device) for name in ("codes", "scales", "row_scales")}
        return replace(self, **parts)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """`[N, K]`, computed in fp32 (float64 for that dtype) and rounded once."""
        n, k = self.shape
        return _dequantize(self, dtype, range(n), range(k))


Weight = Tensor | QuantizedWeight
"""`[N, K]` of a linear layer, in floats or quantised."""


def quantize(weight: Tensor, kind: Kind, group_size: int = 64) -> QuantizedWeight:
    """Rounds a weight to 8 or 4 bits (and 16 bits for each group's scale).

    Each code is the value nearest to the weight. A 4-bit group's scale is the one of a few, from
    the one that just covers the largest weight to one that clips it by a fifth, with the least
    squared error. Relative RMS error on normal weights, groups of 64: int8 0.6 %, int4 9.1 %, nf4
    8.8 %.

    Args:
        weight: `[N, K]`, any float dtype.
        kind: "int8", "int4" or "nf4".
        group_size: 64 or 128.

    Returns:
        The weight, on the same device.

    Raises:
        ValueError: `weight` is not a matrix of floats, or another `kind` or `group_size`.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"weight: expected [N, K] floats, got {list(weight.shape)} {weight.dtype}")
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if group_size not in (64, 128):
        raise ValueError(f"group_size: expected 64 or 128, got {group_size}")
    (n, k), pair = weight.shape, 2 * group_size
    padded = -(-k // pair) * pair
    width, dtype = (padded, torch.int8) if kind == "int8" else (padded // 2, torch.uint8)
    codes = torch.empty((n, width), dtype=dtype, device=weight.device)
    scales = torch.empty((n, padded // group_size), dtype=torch.float16, device=weight.device)
    row_scales = torch.empty(n, dtype=torch.float32, device=weight.device)
    with torch.no_grad():
        most = _CHUNK_QUANTIZING_CPU if weight.device.type == "cpu" else _CHUNK_QUANTIZING
        for rows in _chunks(n, most // max(1, padded), 1):
            part = F.pad(weight[rows.start : rows.stop].float(), (0, padded - k))
            outs = (out[rows.start : rows.stop] for out in (codes, scales, row_scales))
            for out, value in zip(outs, _quantize_rows(part, kind, group_size), strict=True):
                out.copy_(value)
    return QuantizedWeight(kind, (n, k), group_size, codes, scales, row_scales)


def _quantize_rows(weight: Tensor, kind: Kind, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and row scales of fp32 `[n, K']`."""
    # [n, groups, group_size]
    unit = weight.unflatten(1, (-1, group_size))
    low, high = unit.aminmax(dim=2, keepdim=True)
    peak = torch.maximum(high, -low)
    row_scales = peak.amax(1, keepdim=True).clamp_min_(torch.finfo(torch.float32).tiny)
    if kind == "int4":
        peak = torch.where(high > -low, -high, -low)
    unit, peak = unit / row_scales, peak / row_scales
    scales = torch.stack([(peak * clip).half() for clip in _CLIPS[kind]])
    if len(scales) > 1:
        errors = torch.stack([_error(unit, each, kind) for each in scales])
        scales = scales.gather(0, errors.argmin(0, keepdim=True))
    scales = scales.squeeze(0)
    codes = _nearest(unit, scales, kind)
    if kind != "int8":
        even, odd = codes.unflatten(1, (-1, 2)).unbind(2)
        codes = even | odd << 4
    return codes.flatten(1), scales.squeeze(2), row_scales.flatten() / _LARGEST[kind]


def _nearest(unit: Tensor, scales: Tensor, kind: Kind) -> Tensor:
    """The codes nearest to `[n, groups, group_size]` under fp16 scales `[n, groups, 1]`."""
    steps = scales.float() / _LARGEST[kind]
    target = unit / torch.where(steps == 0, 1.0, steps)
    if kind == "int8":
        return target.round_().clamp_(-127, 127).to(torch.int8)
    if kind == "int4":
        return target.round_().add_(8).clamp_(0, 15).to(torch.uint8)
    values = torch.tensor(NF4, device=unit.device)
    bounds = (values[1:] + values[:-1]) / 2
    return torch.bucketize(target, bounds, out_int32=True).to(torch.uint8)


def _error(unit: Tensor, scales: Tensor, kind: Kind) -> Tensor:
    """Each group's squared error under such scales, `[n, groups, 1]`."""
    error = _values(_nearest(unit, scales, kind), kind, torch.float32)
    error.mul_(scales.float() / _LARGEST[kind]).sub_(unit)
    return error.square_().sum(2, keepdim=True)


def _values(codes: Tensor, kind: Kind, dtype: torch.dtype) -> Tensor:
    """What unpacked codes stand for."""
    if kind == "nf4":
        values = torch.tensor(NF4, dtype=dtype, device=codes.device)
        return values.index_select(0, codes.flatten().int()).view(codes.shape)
    return codes.to(dtype) if kind == "int8" else codes.to(dtype).sub_(8)


def _chunks(length: int, most: int, multiple: int) -> Iterator[range]:
    """Cuts `length` into parts of at most `most`, but at least one `multiple`, at multiples."""
    step = max(1, most // multiple) * multiple
    return (range(start, min(start + step, length)) for start in range(0, length, step))


def quantized_linear(
    x: Tensor,
    weight: QuantizedWeight,
    bias: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Linear layer with a quantised frozen weight, differentiable in `x`.

    Args:
        x: `[T, K]`.
        weight: `[N, K]`.
        bias: `[N]`, dtype of `x`, frozen, or None.
        out_dtype: dtype of the result: fp32 or that of `x`, which is also what None means.

    Returns:
        `[T, N]`: that of `F.linear(x, weight.dequantize(x.dtype), bias)`. On Triton each row
        depends on its own row of `x` alone for up to 16 rows, on one card.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or `bias` wants a gradient.
    """
    out_dtype = check_linear(x, weight, bias, out_dtype)
    if bias is not None:
        expect_frozen("bias", bias)
    return _QuantizedLinear.apply(x, weight, bias, out_dtype)


def check_linear(
    x: Tensor, weight: Weight, bias: Tensor | None, out_dtype: torch.dtype | None = None
) -> torch.dtype:
    """The dtype of a linear layer's result.

    Raises:
        ValueError: the argument that it names is none of such a layer.
    """
    expect("x", x, ("T", "K"), FLOATS)
    dtype, device = x.dtype, x.device
    if not isinstance(weight, QuantizedWeight):
        expect("weight", weight, ("N", x.shape[1]), (dtype,), device)
    elif weight.shape[1] != x.shape[1] or weight.device != device:
        raise ValueError(
            f"weight: expected [N, {x.shape[1]}] on {device}, got {list(weight.shape)} on "
            f"{weight.device}"
        )
    if bias is not None:
        expect("bias", bias, weight.shape[:1], (dtype,), device)
    if out_dtype not in (None, dtype, torch.float32):
        raise ValueError(f"out_dtype: expected float32 or x's {dtype}, got {out_dtype}")
    return out_dtype or dtype


def quantized_linear_dx(dy: Tensor, weight: QuantizedWeight) -> Tensor:
    """The gradient of `quantized_linear` with respect to `x`: `dy [T, N]` times W -> `[T, K]`.

    Raises:
        ValueError: shape, dtype or device does not fit.
    """
    expect("dy", dy, ("T", weight.shape[0]), FLOATS, weight.device)
    dx = torch.empty((len(dy), weight.shape[1]), dtype=dy.dtype, device=dy.device)
    for columns, part in column_parts(weight, dy.dtype):
        torch.mm(dy, part, out=dx[:, columns])
    return dx


def row_parts(weight: QuantizedWeight, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Ranges of the rows of W, each with those rows in `dtype`: columns of Y are cut."""
    n, k = weight.shape
    for part in _chunks(n, _CHUNK // max(1, k), 1):
        yield slice(part.start, part.stop), _dequantize(weight, dtype, part, range(k))


def column_parts(weight: QuantizedWeight, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Ranges of the columns of W, each with those columns in `dtype`: columns of dX are cut.

    So either product's elements are whole sums, rounded once.
    """
    n, k = weight.shape
    for part in _chunks(k, _CHUNK // max(1, n), 2 * weight.group_size):
        yield slice(part.start, part.stop), _dequantize(weight, dtype, range(n), part)


class _QuantizedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: QuantizedWeight, bias: Tensor | None, out_dtype: torch.dtype
    ) -> Tensor:
        ctx.weight, ctx.dtype = weight, x.dtype
        return implementation("quantized_linear", x)(x, weight, bias, out_dtype=out_dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        return quantized_linear_dx(dy.to(ctx.dtype), ctx.weight), None, None, None


def quantized_linear_reference(
    x: Tensor, weight: QuantizedWeight, bias: Tensor | None, *, out_dtype: torch.dtype
) -> Tensor:
    """The specification of `quantized_linear`: never more than a part of W exists unquantised."""
    y = torch.empty((len(x), weight.shape[0]), dtype=x.dtype, device=x.device)
    for columns, part in row_parts(weight, x.dtype):
        if bias is None:
            torch.mm(x, part.T, out=y[:, columns])
        else:
            torch.addmm(bias[columns], x, part.T, out=y[:, columns])
    return y.to(out_dtype)


def _dequantize(weight: QuantizedWeight, dtype: torch.dtype, rows: range, columns: range) -> Tensor:
    return implementation("dequantize", weight.row_scales)(weight, dtype, rows, columns)


def dequantize_reference(
    weight: QuantizedWeight, dtype: torch.dtype, rows: range, columns: range
) -> Tensor:
    """The specification of `QuantizedWeight.dequantize`, for some rows and columns.

    The first column must be the first of a pair of groups.
    """
    size, packed = weight.group_size, weight.kind != "int8"
    groups = slice(columns.start // size, math.ceil(columns.stop / (2 * size)) * 2)
    first, last = groups.start * size, groups.stop * size
    codes = weight.codes[rows.start : rows.stop, first // (1 + packed) : last // (1 + packed)]
    # [rows, groups, group_size]
    codes = codes.unflatten(1, (-1, size))
    if packed:
        codes = torch.stack((codes & 15, codes >> 4), 2).flatten(1, 2)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    w = _values(codes, weight.kind, wide)
    w *= weight.scales[rows.start : rows.stop, groups, None].to(wide)
    w *= weight.row_scales[rows.start : rows.stop, None, None].to(wide)
    return w.flatten(1)[:, : len(columns)].to(dtype)
