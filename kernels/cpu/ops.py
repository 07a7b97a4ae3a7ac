"""The C++ kernels under their ops' names: outputs are allocated here, addresses are passed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from kernels import cpu
from kernels.attention import Segments
from kernels.sampling import SampleParams

_C: Any = cpu.native
_SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}
_LINEAR = {
    (torch.float32, torch.float32): _C.linear_f32,
    (torch.bfloat16, torch.bfloat16): _C.linear_bf16,
    (torch.bfloat16, torch.float32): _C.linear_bf16_f32,
}


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _rows(x: Tensor) -> Tensor:
    """`x` with contiguous rows (strided rows stay as they are)."""
    return x if x.stride(-1) == 1 else x.contiguous()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, out_dtype: torch.dtype) -> Tensor:
    x, weight = _rows(x), weight.contiguous()
    (rows, k), n = x.shape, weight.shape[0]
    y = torch.empty(rows, n, dtype=out_dtype)
    _LINEAR[x.dtype, out_dtype](
        x.data_ptr(), weight.data_ptr(), _address(bias), y.data_ptr(), rows, n, k, x.stride(0), n
    )
    return y


def _param_tensors(params: SampleParams) -> Iterator[Tensor]:
    """The tensors of `params` in the order of its fields."""
    for field in fields(params):
        value = getattr(params, field.name)
        parts = [value] if isinstance(value, Tensor) else vars(value).values()
        yield from (part.contiguous() for part in parts)


def sample(logits: Tensor, params: SampleParams) -> tuple[Tensor, Tensor]:
    logits = _rows(logits)
    rows, vocab = logits.shape
    tokens, logprobs = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
    kept = list(_param_tensors(params))
    addresses = [x.data_ptr() for x in kept]
    out = tokens.data_ptr(), logprobs.data_ptr()
    _C.sample(logits.data_ptr(), rows, vocab, logits.stride(0), *out, addresses)
    return tokens, logprobs


def top_logprobs(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    logits = _rows(logits)
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
    q, k, v = _rows(q), _rows(k), _rows(v)
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
    dout, q, k, v = _rows(dout), _rows(q), _rows(k), _rows(v)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    views = [_heads(x) for x in (dout, dq, dk, dv)]
    forward = _heads(q), _heads(k), _heads(v), _heads(out), lse.data_ptr()
    _ATTENTION_BACKWARD[q.dtype](_pack(q, k, segments, scale, window), *forward, *views)
    return dq, dk, dv
