"""The C++ kernels under their ops' names: outputs are allocated here, addresses are passed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import cpu
from kernels.attention import Segments
from kernels.lora import LoraSlice
from kernels.paged_attention import paged_attention_reference, store_kv_reference
from kernels.recording import recordable
from kernels.rows import contiguous_rows
from kernels.sampling import SampleParams

if cpu.native is None:
    raise ImportError(f"the C++ kernels: {cpu.status}")
_C = recordable(cpu.native)
_SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}
_LINEAR = {
    (torch.float32, torch.float32): _C.linear_f32,
    (torch.bfloat16, torch.bfloat16): _C.linear_bf16,
    (torch.bfloat16, torch.float32): _C.linear_bf16_f32,
}


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, out_dtype: torch.dtype) -> Tensor:
    x, weight = contiguous_rows(x), weight.contiguous()
    bias = None if bias is None else contiguous_rows(bias)
    (rows, k), n = x.shape, weight.shape[0]
    y = torch.empty(rows, n, dtype=out_dtype)
    _LINEAR[x.dtype, out_dtype](
        x.data_ptr(), weight.data_ptr(), _address(bias), y.data_ptr(), rows, n, k, x.stride(0), n
    )
    return y


def sample(logits: Tensor, params: SampleParams) -> tuple[Tensor, Tensor]:
    logits = contiguous_rows(logits)
    rows, vocab = logits.shape
    tokens, logprobs = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
    kept = [tensor.contiguous() for _, tensor in params.tensors()]
    addresses = [x.data_ptr() for x in kept]
    out = tokens.data_ptr(), logprobs.data_ptr()
    _C.sample(logits.data_ptr(), rows, vocab, logits.stride(0), *out, addresses)
    return tokens, logprobs


def top_logprobs(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    logits = contiguous_rows(logits)
    rows, vocab = logits.shape
    logprobs, ids = torch.empty(rows, k), torch.empty(rows, k, dtype=torch.int64)
    out = logprobs.data_ptr(), ids.data_ptr()
    _C.top_logprobs(logits.data_ptr(), rows, vocab, logits.stride(0), k, *out)
    return logprobs, ids


_ATTENTION = {torch.float32: _C.attention_f32, torch.bfloat16: _C.attention_bf16}
_ATTENTION_BACKWARD = {
    torch.float32: _C.attention_backward_f32,
    torch.bfloat16: _C.attention_backward_bf16,
}


def _heads(x: Tensor) -> tuple[int, int, int]:
    """Address and strides of `[T, H, D]` with contiguous rows."""
    return x.data_ptr(), x.stride(0), x.stride(1)


def _pack(
    q: Tensor, k: Tensor, segments: Segments, scale: float, window: int | None
) -> tuple[int | float, ...]:
    (_, heads, dim), kv_heads = q.shape, k.shape[1]
    cu_seqlens, prefix = segments.cu_seqlens, segments.prefix
    limit = window or len(q)
    addresses = cu_seqlens.data_ptr(), prefix.data_ptr()
    return *addresses, len(prefix), heads, kv_heads, dim, scale, limit


def attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    q, k, v = contiguous_rows(q), contiguous_rows(k), contiguous_rows(v)
    out, lse = torch.empty(q.shape, dtype=q.dtype), torch.empty(q.shape[:2])
    pack = _pack(q, k, segments, scale, window)
    _ATTENTION[q.dtype](pack, _heads(q), _heads(k), _heads(v), _heads(out), lse.data_ptr())
    return out, lse


def attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    segments: Segments,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dout, q, k, v = (
        contiguous_rows(dout),
        contiguous_rows(q),
        contiguous_rows(k),
        contiguous_rows(v),
    )
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    views = [_heads(x) for x in (dout, dq, dk, dv)]
    forward = _heads(q), _heads(k), _heads(v), _heads(out), lse.data_ptr()
    _ATTENTION_BACKWARD[q.dtype](_pack(q, k, segments, scale, window), *forward, *views)
    return dq, dk, dv


_RMS_NORM = {torch.float32: _C.rms_norm_f32, torch.bfloat16: _C.rms_norm_bf16}
_RMS_NORM_BACKWARD = {
    torch.float32: _C.rms_norm_backward_f32,
    torch.bfloat16: _C.rms_norm_backward_bf16,
}
_ADD_RMS_NORM = {torch.float32: _C.add_rms_norm_f32, torch.bfloat16: _C.add_rms_norm_bf16}
_ROPE = {torch.float32: _C.rope_f32, torch.bfloat16: _C.rope_bf16}
_SWIGLU = {torch.float32: _C.swiglu_f32, torch.bfloat16: _C.swiglu_bf16}
_SWIGLU_BACKWARD = {
    torch.float32: _C.swiglu_backward_f32,
    torch.bfloat16: _C.swiglu_backward_bf16,
}
_STORE_KV = {torch.float32: _C.store_kv_f32, torch.bfloat16: _C.store_kv_bf16}
_PAGED_ATTENTION = {
    torch.float32: _C.paged_attention_f32,
    torch.bfloat16: _C.paged_attention_bf16,
}


def _like(x: Tensor) -> Tensor:
    """A contiguous output for `x`; takes half the time of torch.empty with a shape."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _norm_rows(x: Tensor) -> tuple[Tensor, tuple[int, int, int, int, int]]:
    """`x`, and its rows as the C++ walks them: rows, inner, D, outer stride, inner stride."""
    if x.dim() == 2 and x.stride(1) == 1:
        rows, dim = x.shape
        return x, (rows, 1, dim, x.stride(0), 0)
    if x.dim() == 3 and x.stride(2) == 1:
        outer, inner, dim = x.shape
        return x, (outer * inner, inner, dim, x.stride(0), x.stride(1))
    x, dim = x.contiguous(), x.shape[-1]
    return x, (x.numel() // max(1, dim), 1, dim, dim, 0)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x, rows = _norm_rows(x)
    weight = weight.contiguous()
    y = _like(x)
    _RMS_NORM[x.dtype](x.data_ptr(), weight.data_ptr(), y.data_ptr(), *rows, eps)
    return y


def rms_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, eps: float, dtotal: Tensor | None = None
) -> Tensor:
    x, rows = _norm_rows(x)
    dy, weight = dy.contiguous(), weight.contiguous()
    dx = _like(x)
    inputs = dy.data_ptr(), _address(dtotal), x.data_ptr(), weight.data_ptr()
    _RMS_NORM_BACKWARD[x.dtype](*inputs, dx.data_ptr(), *rows, eps)
    return dx


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x, residual, weight = x.contiguous(), residual.contiguous(), weight.contiguous()
    y, total = _like(x), _like(x)
    dim = x.shape[-1]
    inputs = x.data_ptr(), residual.data_ptr(), weight.data_ptr()
    rows = x.numel() // max(1, dim)
    _ADD_RMS_NORM[x.dtype](*inputs, y.data_ptr(), total.data_ptr(), rows, dim, eps)
    return y, total


def add_rms_norm_backward(
    dy: Tensor, dtotal: Tensor, total: Tensor, weight: Tensor, eps: float
) -> Tensor:
    return rms_norm_backward(dy, total, weight, eps, dtotal.contiguous())


def rope(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    *,
    inplace: bool = False,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    q, k, cos, sin, positions = (
        contiguous_rows(q),
        contiguous_rows(k),
        cos.contiguous(),
        sin.contiguous(),
        contiguous_rows(positions),
    )
    q_out = q if inplace else _like(q)
    k_out = k if inplace else _like(k)
    table = cos.data_ptr(), sin.data_ptr(), *cos.shape, -1.0 if inverse else 1.0
    wide = positions.dtype == torch.int64
    _ROPE[q.dtype](
        (q.data_ptr(), q_out.data_ptr(), q.shape[1], *q.stride()[:2], *q_out.stride()[:2]),
        (k.data_ptr(), k_out.data_ptr(), k.shape[1], *k.stride()[:2], *k_out.stride()[:2]),
        table,
        positions.data_ptr(),
        wide,
        q.shape[0],
    )
    return q_out, k_out


def swiglu(gate_up: Tensor) -> Tensor:
    gate_up = contiguous_rows(gate_up)
    rows, features = gate_up.shape[0], gate_up.shape[1] // 2
    y = torch.empty(rows, features, dtype=gate_up.dtype)
    addresses = gate_up.data_ptr(), y.data_ptr()
    _SWIGLU[gate_up.dtype](*addresses, rows, features, gate_up.stride(0))
    return y


def swiglu_backward(dy: Tensor, gate_up: Tensor) -> Tensor:
    dy, gate_up = dy.contiguous(), contiguous_rows(gate_up)
    rows, features = dy.shape
    grad = _like(gate_up)
    addresses = dy.data_ptr(), gate_up.data_ptr(), grad.data_ptr()
    _SWIGLU_BACKWARD[gate_up.dtype](*addresses, rows, features, gate_up.stride(0))
    return grad


def _cache(k_cache: Tensor, v_cache: Tensor) -> tuple[int, ...]:
    """Addresses, number and size of the blocks, strides of a block, token and head."""
    strides = k_cache.stride()
    if v_cache.stride() != strides or strides[3] != 1:
        raise ValueError("v_cache: strides must equal k_cache's, the last dimension contiguous")
    return k_cache.data_ptr(), v_cache.data_ptr(), *k_cache.shape[:2], *strides[:3]


def store_kv(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    if k_scale is not None:
        return store_kv_reference(k, v, k_cache, v_cache, slots, k_scale, v_scale)
    k, v, slots = contiguous_rows(k), contiguous_rows(v), contiguous_rows(slots)
    cache = _cache(k_cache, v_cache)
    _STORE_KV[k.dtype](_heads(k), _heads(v), tuple(k.shape), cache, slots.data_ptr())


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    scale: float,
    window: int | None = None,
    shared_blocks: int = 0,  # found out by itself
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    if k_scale is not None:
        layout, scales = (cu_seqlens_q, seq_lens, block_table), (k_scale, v_scale)
        return paged_attention_reference(q, k_cache, v_cache, *layout, scale, window, 0, *scales)
    q, cu_seqlens_q, seq_lens = (
        contiguous_rows(q),
        contiguous_rows(cu_seqlens_q),
        contiguous_rows(seq_lens),
    )
    block_table = contiguous_rows(block_table)
    out = _like(q)
    _PAGED_ATTENTION[q.dtype](
        _heads(q),
        out.data_ptr(),
        (*q.shape, k_cache.shape[2]),
        _cache(k_cache, v_cache),
        (cu_seqlens_q.data_ptr(), seq_lens.data_ptr(), block_table.data_ptr()),
        (*block_table.shape, block_table.stride(0)),
        scale,
        window or 0,
    )
    return out


_CROSS_ENTROPY = {torch.float32: _C.cross_entropy_f32, torch.bfloat16: _C.cross_entropy_bf16}


def cross_entropy_chunk(
    logits: Tensor, targets: Tensor, weights: Tensor | None, label_smoothing: float, grad: bool
) -> tuple[Tensor, Tensor]:
    rows, vocab = logits.shape
    losses, logprobs = torch.empty(rows), torch.empty(rows)
    _CROSS_ENTROPY[logits.dtype](
        logits.data_ptr(),
        rows,
        vocab,
        targets.data_ptr(),
        _address(weights),
        label_smoothing,
        grad,
        losses.data_ptr(),
        logprobs.data_ptr(),
    )
    return losses, logprobs


_LORA_ADD = {
    (torch.float32, torch.float32): _C.lora_add_f32,
    (torch.bfloat16, torch.bfloat16): _C.lora_add_bf16,
    (torch.bfloat16, torch.float32): _C.lora_add_bf16_f32,
}


def lora_add_(y: Tensor, x: Tensor, lora: Sequence[LoraSlice]) -> Tensor:
    if not lora:
        return y
    x = contiguous_rows(x)
    wide = any(part.a.dtype != x.dtype or part.b.dtype != x.dtype for part in lora)
    dtype = torch.float32 if wide else x.dtype
    pairs = [(part.a.to(dtype).contiguous(), part.b.T.to(dtype).contiguous()) for part in lora]
    slices = [
        (a.data_ptr(), b.data_ptr(), *b.shape, part.start, part.scale)
        for (a, b), part in zip(pairs, lora, strict=True)
    ]
    at = y.data_ptr(), y.stride(0), x.data_ptr(), x.stride(0), *x.shape
    _LORA_ADD[x.dtype, dtype](*at, slices)
    return y
