"""SwiGLU's elementwise half: all of a matrix's elements in one row of equal tiles."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Outputs of one program: with 4 warps a thread has twice 16 bytes of bf16 from gate and from up.
# Tiles run on across rows, so no width of the layer leaves a part of them idle.
_TILE = 2048


@triton.jit
def _tile(total, F: tl.constexpr, BLOCK: tl.constexpr):
    """A program's first output and its row, its outputs counted from that row's start, and which
    of them there are."""
    i_first = tl.program_id(0).to(tl.int64) * BLOCK
    i_row = i_first // F
    # No `%` here: of a 64-bit one Triton 3.6 forgets what divides it, and accesses take 2 bytes.
    o = (i_first - i_row * F).to(tl.int32) + tl.arange(0, BLOCK)
    return i_first, i_row, o, o < total - i_row * F


@triton.jit
def _swiglu_kernel(p_x, p_y, total, stride, F: tl.constexpr, BLOCK: tl.constexpr):
    i_first, i_row, o, m = _tile(total, F, BLOCK)
    # [BLOCK]
    o_x = (i_row + o // F) * stride + o % F
    b_gate = tl.load(p_x + o_x, mask=m, other=0.0).to(tl.float32)
    b_up = tl.load(p_x + o_x + F, mask=m, other=0.0).to(tl.float32)
    b_y = b_gate * tl.sigmoid(b_gate) * b_up
    tl.store(p_y + i_first + tl.arange(0, BLOCK), b_y.to(p_y.dtype.element_ty), mask=m)


@triton.jit
def _swiglu_backward_kernel(p_dy, p_x, p_dx, total, stride, F: tl.constexpr, BLOCK: tl.constexpr):
    i_first, i_row, o, m = _tile(total, F, BLOCK)
    # [BLOCK]
    o_t, o_f = i_row + o // F, o % F
    o_x, o_dx = o_t * stride + o_f, o_t * 2 * F + o_f
    b_dy = tl.load(p_dy + i_first + tl.arange(0, BLOCK), mask=m, other=0.0).to(tl.float32)
    b_gate = tl.load(p_x + o_x, mask=m, other=0.0).to(tl.float32)
    b_up = tl.load(p_x + o_x + F, mask=m, other=0.0).to(tl.float32)
    b_sigmoid = tl.sigmoid(b_gate)
    b_dgate = b_dy * b_up * b_sigmoid * (1.0 + b_gate * (1.0 - b_sigmoid))
    b_dup = b_dy * b_gate * b_sigmoid
    tl.store(p_dx + o_dx, b_dgate.to(p_dx.dtype.element_ty), mask=m)
    tl.store(p_dx + o_dx + F, b_dup.to(p_dx.dtype.element_ty), mask=m)


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def swiglu(gate_up: Tensor) -> Tensor:
    gate_up = _rows(gate_up)
    features = gate_up.shape[1] // 2
    y = torch.empty(gate_up.shape[0], features, dtype=gate_up.dtype, device=gate_up.device)
    if y.numel():
        sizes = y.numel(), gate_up.stride(0)
        grid = (triton.cdiv(y.numel(), _TILE),)
        _swiglu_kernel[grid](gate_up, y, *sizes, F=features, BLOCK=_TILE, num_warps=4)
    return y


def swiglu_backward(dy: Tensor, gate_up: Tensor) -> Tensor:
    gate_up = _rows(gate_up)
    dx = torch.empty_like(gate_up, memory_format=torch.contiguous_format)
    if dx.numel():
        sizes = dy.numel(), gate_up.stride(0)
        grid = (triton.cdiv(dy.numel(), _TILE),)
        tensors = dy.contiguous(), gate_up, dx
        _swiglu_backward_kernel[grid](*tensors, *sizes, F=dy.shape[1], BLOCK=_TILE, num_warps=4)
    return dx
