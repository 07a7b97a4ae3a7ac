"""Linear layer with 8- or 4-bit weights: few rows read the codes, many a dequantised part of W."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.quantized import NF4, QuantizedWeight, quantized_linear_reference
from kernels.triton.linear import partial_sums, plan_splits, store_skinny, sum_splits
from kernels.triton.target import multiprocessors

# Rows up to which reading codes is cheaper than dequantising before a GEMM. In fp32, which no
# tensor core multiplies exactly, more than the narrowest tile would not fit the registers.
_SKINNY, _SKINNY_FP32 = 64, 16
_BLOCK_G = 64  # columns of a tile; a group is a whole number of them


@triton.jit
def _values(b_code, p_codebook, KIND: tl.constexpr, dtype: tl.constexpr):
    """What unpacked codes stand for, in dtype; codes of int4 and int8 exactly."""
    if KIND == "int8":
        return b_code.to(dtype)
    elif KIND == "nf4":
        # 16 values in one line of L1: a warp's 32 look-ups take one pass.
        return tl.load(p_codebook + b_code.to(tl.int32)).to(dtype)
    elif dtype == tl.float32:
        return b_code.to(tl.float32) - 8.0
    # The code in the last bits of 128 (bf16) or 1024 (fp16) adds itself; no conversion is needed.
    elif dtype == tl.bfloat16:
        return (b_code | 0x4300).to(tl.bfloat16, bitcast=True) - 136.0
    else:
        return (b_code | 0x6400).to(tl.float16, bitcast=True) - 1032.0


@triton.jit
def _unpack(p_codes, p_codebook, KIND: tl.constexpr, G: tl.constexpr, dtype: tl.constexpr):
    """The values of a pair of groups: two tiles of the shape of `p_codes`."""
    if KIND == "int8":
        b_first = tl.load(p_codes)
        b_second = tl.load(p_codes + G)
    else:
        b_both = tl.load(p_codes).to(tl.int16)
        b_first, b_second = b_both & 15, b_both >> 4
    return (
        _values(b_first, p_codebook, KIND, dtype),
        _values(b_second, p_codebook, KIND, dtype),
    )


@triton.jit
def _scales(p_scales):
    """Two groups' fp16 scales, which lie side by side, as fp32."""
    b_both = tl.load(p_scales)
    b_first = b_both.to(tl.int16).to(tl.float16, bitcast=True)
    b_second = (b_both >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return b_first.to(tl.float32), b_second.to(tl.float32)


@triton.jit(do_not_specialize=["rows"])
def _skinny_kernel(
    p_x,
    p_codes,
    p_scales,
    p_row_scales,
    p_codebook,
    p_bias,
    p_y,
    rows,
    N,
    K,
    pairs,
    stride_x,
    steps,
    KIND: tl.constexpr,
    G: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    pair_bytes: tl.constexpr = 2 * G if KIND == "int8" else G  # bytes of a pair of groups
    dtype: tl.constexpr = p_x.dtype.element_ty
    i_split = tl.program_id(1)
    tiles: tl.constexpr = G // BLOCK_G  # in a group
    i_first = i_split * steps
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_t, o_g = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_G)
    m_t, m_n = o_t < rows, o_n < N
    # Rows of W past the last repeat it.
    o_w = tl.minimum(o_n, N - 1).to(tl.int64)
    p_codes += o_w[:, None] * (pairs * pair_bytes) + o_g[None, :]
    p_scales += o_w * pairs
    p_x += o_t.to(tl.int64)[None, :] * stride_x
    # [BLOCK_N, BLOCK_T]
    b_y = tl.zeros([BLOCK_N, BLOCK_T], dtype=tl.float32)
    for i in tl.range(i_first, min(i_first + steps, pairs * tiles), num_stages=STAGES):
        i_pair, i_g = i // tiles, i % tiles * BLOCK_G
        # [BLOCK_N, BLOCK_G] of each group of the pair
        p_pair = p_codes + i_pair * pair_bytes + i_g
        b_first, b_second = _unpack(p_pair, p_codebook, KIND, G, dtype)
        b_scale, b_next_scale = _scales(p_scales + i_pair)
        # [BLOCK_G, BLOCK_T]
        o_k = i_pair * 2 * G + i_g + o_g
        m_x = (o_k < K)[:, None] & m_t[None, :]
        b_x = tl.load(p_x + o_k[:, None], mask=m_x, other=0.0)
        m_x = (o_k + G < K)[:, None] & m_t[None, :]
        b_next_x = tl.load(p_x + o_k[:, None] + G, mask=m_x, other=0.0)
        b_y += tl.dot(b_first, b_x, input_precision="ieee") * b_scale[:, None]
        b_y += tl.dot(b_second, b_next_x, input_precision="ieee") * b_next_scale[:, None]
    b_y *= tl.load(p_row_scales + o_n, mask=m_n, other=0.0)[:, None]
    store_skinny(b_y, p_bias, p_y, rows, N, i_split, o_n, o_t, HAS_BIAS)


@triton.jit(do_not_specialize=["rows", "first_row", "first_pair"])
def _dequantize_kernel(
    p_codes,
    p_scales,
    p_row_scales,
    p_codebook,
    p_w,
    rows,
    columns,
    pairs,
    first_row,
    first_pair,
    KIND: tl.constexpr,
    G: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    pair_bytes: tl.constexpr = 2 * G if KIND == "int8" else G
    i_pair = tl.program_id(0)
    o_n = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_g = tl.arange(0, G)
    m_n = o_n < rows
    o_w = first_row + tl.minimum(o_n, rows - 1)
    p_codes += (
        o_w[:, None] * (pairs * pair_bytes) + (first_pair + i_pair) * pair_bytes + o_g[None, :]
    )
    b_scale, b_next_scale = _scales(p_scales + o_w * pairs + first_pair + i_pair)
    b_row_scale = tl.load(p_row_scales + o_w)
    # [BLOCK_N, G]
    b_first, b_second = _unpack(p_codes, p_codebook, KIND, G, tl.float32)
    b_first = b_first * b_scale[:, None] * b_row_scale[:, None]
    b_second = b_second * b_next_scale[:, None] * b_row_scale[:, None]
    o_k = i_pair * 2 * G + o_g
    p_w += o_n[:, None] * columns + o_k[None, :]
    m_w = m_n[:, None] & (o_k < columns)[None, :]
    tl.store(p_w, b_first.to(p_w.dtype.element_ty), mask=m_w)
    m_w = m_n[:, None] & (o_k + G < columns)[None, :]
    tl.store(p_w + G, b_second.to(p_w.dtype.element_ty), mask=m_w)


@cache
def _codebook(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(NF4, dtype=dtype, device=device)


def _tensors(weight: QuantizedWeight, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Codes, scales (a pair of groups' in each int32), row scales, codebook (read by nf4 alone)."""
    codebook = weight.codes
    if weight.kind == "nf4":
        codebook = _codebook(dtype, weight.device)
    return weight.codes, weight.scales.view(torch.int32), weight.row_scales, codebook


def _tile(weight: QuantizedWeight, x: Tensor) -> dict[str, int]:
    """The tile of a program, and how deep it is pipelined.

    64 rows of W are the M of a wgmma, and read X (from L2) least often; where that leaves
    multiprocessors idle, 32. 32 also for 8-bit codes beside few rows: wgmma's layout takes them
    from shared memory two bytes at a time, 0.24 instructions a byte against 0.14 with mma.sync
    (int4 0.31 against 0.34, nf4 0.52 against 0.63).

    A stage holds a pair of groups: codes, and X beside them. As many as fit 48 KB (two programs on
    a card with 100 KB of shared memory), at most 6, and at least 2.
    """
    block_t = max(16, triton.next_power_of_2(x.shape[0]))
    slow = weight.kind == "int8" and block_t < 64
    block_n = 32 if slow or weight.shape[0] < 64 * multiprocessors(x.device) else 64
    code_bytes = 2 if weight.kind == "int8" else 1
    stage = _BLOCK_G * (block_n * code_bytes + 2 * block_t * x.element_size())
    return {
        "BLOCK_T": block_t,
        "BLOCK_N": block_n,
        "BLOCK_G": _BLOCK_G,
        "num_warps": 4 if block_t == 64 else block_n // 16,
        "STAGES": max(2, min(6, 49_152 // stage)),
    }


def _skinny(
    x: Tensor, weight: QuantizedWeight, bias: Tensor | None, out_dtype: torch.dtype
) -> Tensor:
    (rows, k), n = x.shape, weight.shape[0]
    tile = _tile(weight, x)
    tiles, pairs = triton.cdiv(n, tile["BLOCK_N"]), weight.scales.shape[1] // 2
    splits, steps = plan_splits(tiles, pairs * weight.group_size // _BLOCK_G, x.device)
    if splits > 1:
        y = partial_sums(x, n, splits)
    else:
        y = torch.empty((rows, n), dtype=out_dtype, device=x.device)
    added = None if splits > 1 else bias
    _skinny_kernel[(tiles, splits)](
        x,
        *_tensors(weight, x.dtype),
        y if added is None else added,
        y,
        rows,
        n,
        k,
        pairs,
        x.stride(0),
        steps,
        KIND=weight.kind,
        G=weight.group_size,
        HAS_BIAS=added is not None,
        **tile,
    )
    return sum_splits(y, bias, out_dtype) if splits > 1 else y


def quantized_linear(
    x: Tensor, weight: QuantizedWeight, bias: Tensor | None, *, out_dtype: torch.dtype
) -> Tensor:
    rows, k = x.shape
    most = _SKINNY_FP32 if x.dtype == torch.float32 else _SKINNY
    if rows > most or not rows or not k or not weight.shape[0]:
        return quantized_linear_reference(x, weight, bias, out_dtype=out_dtype)
    x = x if x.stride(1) == 1 else x.contiguous()
    return _skinny(x, weight, None if bias is None else bias.contiguous(), out_dtype)


def dequantize(weight: QuantizedWeight, dtype: torch.dtype, rows: range, columns: range) -> Tensor:
    w = torch.empty((len(rows), len(columns)), dtype=dtype, device=weight.device)
    if w.numel():
        block_n, pair = 32, 2 * weight.group_size
        grid = triton.cdiv(len(columns), pair), triton.cdiv(len(rows), block_n)
        _dequantize_kernel[grid](
            *_tensors(weight, torch.float32),
            w,
            len(rows),
            len(columns),
            weight.scales.shape[1] // 2,
            rows.start,
            columns.start // pair,
            KIND=weight.kind,
            G=weight.group_size,
            BLOCK_N=block_n,
            num_warps=4,
        )
    return w
