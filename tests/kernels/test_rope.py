from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import rope, rope_reference
from tests.kernels.oracle import FORWARD, GRADIENT, assert_close, double, gradients, misaligned


def table(length: int, dim: int) -> tuple[Tensor, Tensor]:
    inverse = 10000.0 ** (-torch.arange(0, dim, 2) / dim)
    angles = torch.arange(length)[:, None] * inverse
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=["int32", "int64"])
@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "dim"),
    [(0, 2, 1, 64), (1, 9, 3, 64), (63, 4, 1, 80), (7, 3, 3, 6), (300, 9, 3, 64), (5, 2, 2, 128)],
)
def test_rope(
    backend: str,
    dtype: torch.dtype,
    rows: int,
    heads: int,
    kv_heads: int,
    dim: int,
    index: torch.dtype,
) -> None:
    q = torch.randn(rows, heads, dim, dtype=dtype, requires_grad=True)
    k = torch.randn(rows, kv_heads, dim, dtype=dtype, requires_grad=True)
    positions = torch.randint(0, 50, (rows,), dtype=index)
    angles = (*table(50, dim), positions)
    upstream = [torch.randn(x.shape, dtype=dtype) for x in (q, k)]
    leaves = double(q, k)

    outs = rope(q.detach(), k.detach(), *angles)
    for out, exact in zip(outs, rope_reference(*leaves, *angles), strict=True):
        assert_close(out, exact, FORWARD)
    grads = gradients(lambda q, k: rope(q, k, *angles), [q, k], upstream)
    exacts = gradients(lambda q, k: rope_reference(q, k, *angles), leaves, upstream)
    for grad, exact in zip(grads, exacts, strict=True):
        assert_close(grad, exact, GRADIENT)


def test_views_of_a_fused_projection(backend: str, dtype: torch.dtype) -> None:
    qkv = torch.randn(11, 5 + 2 + 2, 64, dtype=dtype)
    q, k = qkv[:, :5], qkv[:, 5:7]
    angles = (*table(20, 64), torch.arange(11) + 3)
    expected = rope_reference(q.double(), k.double(), *angles)
    before = qkv.clone()

    for out, exact in zip(rope(q, k, *angles), expected, strict=True):
        assert_close(out, exact, FORWARD)
    assert torch.equal(qkv, before)
    outs = rope(q, k, *angles, inplace=True)
    assert outs[0].data_ptr() == q.data_ptr()
    assert_close(qkv[:, :5], expected[0], FORWARD)
    assert_close(qkv[:, 5:7], expected[1], FORWARD)
    assert torch.equal(qkv[:, 7:], before[:, 7:])


@pytest.mark.parametrize("inplace", [False, True])
def test_misaligned_inputs(backend: str, dtype: torch.dtype, inplace: bool) -> None:
    q, k = (misaligned(torch.randn(11, heads, 64, dtype=dtype)) for heads in (4, 2))
    angles = [misaligned(x) for x in (*table(20, 64), torch.arange(11) + 3)]
    expected = rope_reference(q.double(), k.double(), *angles)
    for out, exact in zip(rope(q, k, *angles, inplace=inplace), expected, strict=True):
        assert_close(out, exact, FORWARD)


def test_gradients_that_are_strided(backend: str, dtype: torch.dtype) -> None:
    q, k = (torch.randn(7, heads, 16, dtype=dtype, requires_grad=True) for heads in (4, 2))
    angles = (*table(20, 16), torch.arange(7))
    upstream = [torch.randn(16, x.shape[1], 7, dtype=dtype).transpose(0, 2) for x in (q, k)]
    grads = gradients(lambda q, k: rope(q, k, *angles), [q, k], upstream)
    leaves = double(q, k)
    exacts = gradients(lambda q, k: rope_reference(q, k, *angles), leaves, upstream)
    for grad, exact in zip(grads, exacts, strict=True):
        assert_close(grad, exact, GRADIENT)


def test_a_row_depends_on_itself_alone(invariant: str, dtype: torch.dtype) -> None:
    q, k = torch.randn(500, 9, 64, dtype=dtype), torch.randn(500, 3, 64, dtype=dtype)
    cos, sin = table(600, 64)
    positions = torch.randint(0, 600, (500,))
    whole, one = (rope(q[r], k[r], cos, sin, positions[r]) for r in (slice(500), slice(9, 10)))
    assert torch.equal(whole[0][9:10], one[0])
    assert torch.equal(whole[1][9:10], one[1])


def test_positions_outside_the_table(native: str) -> None:
    q, (cos, sin) = torch.randn(2, 1, 8), table(5, 8)
    for bad in (5, -1):
        with pytest.raises(ValueError, match=r"^positions:"):
            rope(q, q, cos, sin, torch.tensor([0, bad]))


def test_bad_arguments() -> None:
    q, k, positions = torch.randn(3, 4, 8), torch.randn(3, 2, 8), torch.arange(3)
    cos, sin = table(5, 8)
    with pytest.raises(ValueError, match=r"^q:"):
        rope(torch.randn(3, 4, 7), k, cos, sin, positions)
    with pytest.raises(ValueError, match=r"^k:"):
        rope(q, k[:2], cos, sin, positions)
    with pytest.raises(ValueError, match=r"^k:"):
        rope(q, k.bfloat16(), cos, sin, positions)
    with pytest.raises(ValueError, match=r"^cos:"):
        rope(q, k, cos[:, :2], sin, positions)
    with pytest.raises(ValueError, match=r"^cos:"):
        rope(q, k, cos.bfloat16(), sin, positions)
    with pytest.raises(ValueError, match=r"^sin:"):
        rope(q, k, cos, sin[:2], positions)
    with pytest.raises(ValueError, match=r"^positions:"):
        rope(q, k, cos, sin, positions[:2])
    with pytest.raises(ValueError, match=r"^positions:"):
        rope(q, k, cos, sin, positions.float())
    strided = torch.randn(3, 8, 2).transpose(1, 2)
    with pytest.raises(ValueError, match=r"^q: .* in place"):
        rope(strided, k, cos, sin, positions, inplace=True)
    with pytest.raises(ValueError, match=r"^k: .* in place"):
        rope(q, strided, cos, sin, positions, inplace=True)
    with pytest.raises(ValueError, match=r"^inplace:"):
        rope(q.requires_grad_(), k, cos, sin, positions, inplace=True)
