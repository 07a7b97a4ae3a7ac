from __future__ import annotations

import pytest
import torch

from kernels import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference
from tests.kernels.oracle import FORWARD, GRADIENT, assert_close, double, gradients, misaligned

EPS = 1e-5
SHAPES = [(0, 64), (1, 64), (63, 80), (7, 576), (5, 33), (3, 2, 64), (2, 3, 4, 16), (90, 1000)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm(backend: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    weight, upstream = torch.randn(shape[-1], dtype=dtype), torch.randn(shape, dtype=dtype)
    oracle, (leaf,) = weight.double(), double(x)

    assert_close(rms_norm(x.detach(), weight, EPS), rms_norm_reference(leaf, oracle, EPS), FORWARD)
    (grad,) = gradients(lambda x: rms_norm(x, weight, EPS), [x], [upstream])
    (exact,) = gradients(lambda x: rms_norm_reference(x, oracle, EPS), [leaf], [upstream])
    assert_close(grad, exact, GRADIENT)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_add_rms_norm(backend: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, residual = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(2))
    weight = torch.randn(shape[-1], dtype=dtype)
    upstream = [torch.randn(shape, dtype=dtype) for _ in range(2)]
    oracle, leaves = weight.double(), double(x, residual)

    outs = add_rms_norm(x.detach(), residual.detach(), weight, EPS)
    for out, exact in zip(outs, add_rms_norm_reference(*leaves, oracle, EPS), strict=True):
        assert_close(out, exact, FORWARD)
    grads = gradients(lambda a, b: add_rms_norm(a, b, weight, EPS), [x, residual], upstream)
    exacts = gradients(lambda a, b: add_rms_norm_reference(a, b, oracle, EPS), leaves, upstream)
    for grad, exact in zip(grads, exacts, strict=True):
        assert_close(grad, exact, GRADIENT)


def test_strided_inputs(backend: str, dtype: torch.dtype) -> None:
    fused = torch.randn(9, 5, 64, dtype=dtype)
    weight = torch.randn(128, dtype=dtype)[::2]
    for x in (fused[:, 1:3], fused[:, 4], fused[::2, 0], fused.transpose(0, 2)):
        scale = weight if x.shape[-1] == 64 else torch.randn(x.shape[-1], dtype=dtype)
        exact = rms_norm_reference(x.double(), scale.double(), EPS)
        assert_close(rms_norm(x, scale, EPS), exact, FORWARD)
        assert_close(add_rms_norm(x, -2 * x, scale, EPS)[0], -exact, FORWARD)


def test_misaligned_inputs(backend: str, dtype: torch.dtype) -> None:
    x, weight = torch.randn(9, 64, dtype=dtype), torch.randn(64, dtype=dtype)
    odd, scale = misaligned(x).requires_grad_(), misaligned(weight)
    (leaf,), upstream = double(odd), misaligned(torch.randn(9, 64, dtype=dtype))

    def twice(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return add_rms_norm(rms_norm(x, weight, EPS), x, weight, EPS)[0]

    def exact(x: torch.Tensor) -> torch.Tensor:
        return twice(x, weight.double())

    assert_close(twice(odd, scale), exact(leaf), FORWARD)
    (grad,) = gradients(lambda x: twice(x, scale), [odd], [upstream])
    assert_close(grad, gradients(exact, [leaf], [upstream])[0], GRADIENT)


def test_a_row_depends_on_itself_alone(invariant: str, dtype: torch.dtype) -> None:
    x, weight = torch.randn(100, 576, dtype=dtype), torch.randn(576, dtype=dtype)
    whole = rms_norm(x, weight, EPS)
    assert torch.equal(whole[17:18], rms_norm(x[17:18], weight, EPS))
    assert torch.equal(whole[3:60], rms_norm(x[3:60], weight, EPS))


def test_add_rms_norm_is_the_norm_of_the_rounded_sum(backend: str, dtype: torch.dtype) -> None:
    x, residual = torch.randn(2, 9, 576, dtype=dtype)
    weight = torch.randn(576, dtype=dtype)
    normed, total = add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, rms_norm(total, weight, EPS))


def test_bad_arguments() -> None:
    x, weight = torch.randn(3, 8), torch.randn(8)
    with pytest.raises(ValueError, match=r"^weight:"):
        rms_norm(x, weight[:4], EPS)
    with pytest.raises(ValueError, match=r"^weight:"):
        rms_norm(x, weight.bfloat16(), EPS)
    with pytest.raises(ValueError, match=r"^x:"):
        rms_norm(x[0, 0], weight, EPS)
    for norm in (lambda w: rms_norm(x, w, EPS), lambda w: add_rms_norm(x, x, w, EPS)):
        with pytest.raises(ValueError, match=r"^weight: must be frozen"):
            norm(weight.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"^residual:"):
        add_rms_norm(x, x[:2], weight, EPS)
    with pytest.raises(ValueError, match=r"^residual:"):
        add_rms_norm(x, x.bfloat16(), weight, EPS)
