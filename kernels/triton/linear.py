"""Linear layer: a kernel that streams the weights once for few rows, the vendor's GEMM for many."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.target import multiprocessors

SKINNY = 16  # rows that the skinny kernel takes: the narrowest tile of the tensor cores
_HAS_OUT_DTYPE = "dtype" in torch.ops.aten.mm.overloads()  # torch.mm(..., out_dtype), from 2.8 on


@triton.jit(do_not_specialize=["rows"])
def _skinny_kernel(
    p_x,
    p_w,
    p_bias,
    p_y,
    rows,
    N,
    K,
    stride_x,
    steps,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    i_split = tl.program_id(1)
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_t = tl.arange(0, BLOCK_T)
    o_k = i_split * steps * BLOCK_K + tl.arange(0, BLOCK_K)
    m_t = o_t < rows
    # Rows of W past the last repeat it, so that only K needs a mask.
    p_w += tl.minimum(o_n, N - 1).to(tl.int64)[:, None] * K
    p_x += o_t.to(tl.int64)[None, :] * stride_x
    # [BLOCK_N, BLOCK_T]
    b_y = tl.zeros([BLOCK_N, BLOCK_T], dtype=tl.float32)
    for _ in range(min(steps, tl.cdiv(K - i_split * steps * BLOCK_K, BLOCK_K))):
        m_k = o_k < K
        # [BLOCK_N, BLOCK_K], [BLOCK_K, BLOCK_T]
        b_w = tl.load(p_w + o_k[None, :], mask=m_k[None, :], other=0.0)
        b_x = tl.load(p_x + o_k[:, None], mask=m_k[:, None] & m_t[None, :], other=0.0)
        b_y = tl.dot(b_w, b_x, b_y, input_precision="ieee")
        o_k += BLOCK_K
    store_skinny(b_y, p_bias, p_y, rows, N, i_split, o_n, o_t, HAS_BIAS)


@triton.jit
def store_skinny(b_y, p_bias, p_y, rows, N, i_split, o_n, o_t, HAS_BIAS: tl.constexpr):
    """Stores a tile [BLOCK_N, BLOCK_T], transposed, into split `i_split` of [splits, rows, N]."""
    m_n = o_n < N
    if HAS_BIAS:
        b_y += tl.load(p_bias + o_n, mask=m_n, other=0.0).to(tl.float32)[:, None]
    o_y = (i_split.to(tl.int64) * rows + o_t)[None, :] * N + o_n[:, None]
    m_y = m_n[:, None] & (o_t < rows)[None, :]
    tl.store(p_y + o_y, b_y.to(p_y.dtype.element_ty), mask=m_y)


@triton.jit
def _sum_splits_kernel(
    p_partial,
    p_bias,
    p_y,
    count,
    N,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = o < count
    # [BLOCK]
    b_y = tl.load(p_partial + o, mask=m, other=0.0)
    for i_split in tl.static_range(1, SPLITS):
        b_y += tl.load(p_partial + i_split * tl.cast(count, tl.int64) + o, mask=m, other=0.0)
    if HAS_BIAS:
        b_y += tl.load(p_bias + o % N, mask=m, other=0.0).to(tl.float32)
    tl.store(p_y + o, b_y.to(p_y.dtype.element_ty), mask=m)


def plan_splits(tiles: int, steps: int, device: torch.device) -> tuple[int, int]:
    """How a skinny kernel of `tiles` programs with `steps` iterations cuts K.

    Enough programs to keep every multiprocessor's memory queue full: two for each, unless a part
    would be shorter than four iterations, which only fill the pipeline. It depends on the weight
    and the card alone, never on the rows, so that a row's sums don't either.

    Returns:
        The number of splits, and the iterations of each.
    """
    wanted = 2 * multiprocessors(device)
    splits = 1 if 4 * tiles >= 3 * wanted else min(-(-wanted // tiles), max(1, steps // 4), 16)
    each = -(-steps // splits)
    return -(-steps // each), each


def partial_sums(x: Tensor, n: int, splits: int) -> Tensor:
    """`[splits, T, n]` fp32, where a skinny kernel's splits leave their sums."""
    return torch.empty((splits, x.shape[0], n), dtype=torch.float32, device=x.device)


def sum_splits(partial: Tensor, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """Adds up `[splits, T, N]` in a fixed order, and the bias."""
    splits, rows, n = partial.shape
    y = torch.empty((rows, n), dtype=out_dtype, device=partial.device)
    block = 512  # a launch of microseconds: small tiles, so that all multiprocessors take part
    _sum_splits_kernel[(triton.cdiv(y.numel(), block),)](
        partial,
        y if bias is None else bias,
        y,
        y.numel(),
        n,
        SPLITS=splits,
        BLOCK=block,
        HAS_BIAS=bias is not None,
        num_warps=4,
    )
    return y


def _tile(n: int, x: Tensor) -> dict[str, int]:
    """The widest tile that still gives two programs to each multiprocessor.

    A wide tile reads X less often (from L2, 16 rows of it beside each `BLOCK_N` rows of W); two
    programs of several 4 to 16 KB stages keep the 40 KB in flight that full bandwidth takes. Warps
    stand along N: more of them than 16-row tiles would repeat each other's work.
    """
    enough = 2 * multiprocessors(x.device)
    block_n = next((width for width in (64, 32) if n >= width * enough), 16)
    return {
        "BLOCK_T": SKINNY,
        "BLOCK_N": block_n,
        "BLOCK_K": 256 // x.element_size(),
        "num_warps": block_n // 16,
        "num_stages": 4 if block_n == 64 else 6,
    }


def _skinny(x: Tensor, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    (rows, k), n = x.shape, weight.shape[0]
    tile = _tile(n, x)
    tiles = triton.cdiv(n, tile["BLOCK_N"])
    splits, steps = plan_splits(tiles, triton.cdiv(k, tile["BLOCK_K"]), x.device)
    if splits > 1:
        y = partial_sums(x, n, splits)
    else:
        y = torch.empty((rows, n), dtype=out_dtype, device=x.device)
    added = None if splits > 1 else bias
    _skinny_kernel[(tiles, splits)](
        x,
        weight,
        y if added is None else added,
        y,
        rows,
        n,
        k,
        x.stride(0),
        steps,
        HAS_BIAS=added is not None,
        **tile,
    )
    return sum_splits(y, bias, out_dtype) if splits > 1 else y


def _many(x: Tensor, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """The vendor's GEMM, whose fp32 sums are not rounded on their way to an fp32 result."""
    wider = out_dtype == torch.float32 != x.dtype
    if not wider or not _HAS_OUT_DTYPE or x.device.type == "cpu":
        return F.linear(x, weight, bias).to(out_dtype)
    y = torch.mm(x, weight.T, out_dtype=out_dtype)
    return y if bias is None else y.add_(bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, out_dtype: torch.dtype) -> Tensor:
    rows, k = x.shape
    if rows > SKINNY or not rows or not k or not weight.shape[0]:
        return _many(x, weight, bias, out_dtype)
    x = x if x.stride(1) == 1 else x.contiguous()
    bias = None if bias is None else bias.contiguous()
    return _skinny(x, weight.contiguous(), bias, out_dtype)
