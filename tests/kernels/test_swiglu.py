from __future__ import annotations

import pytest
import torch

from kernels import swiglu, swiglu_reference
from tests.kernels.oracle import FORWARD, GRADIENT, assert_close, double, gradients


@pytest.mark.parametrize("shape", [(0, 32), (1, 64), (63, 80), (5, 26), (40, 3072)], ids=str)
def test_swiglu(backend: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    x = (4 * torch.randn(shape)).to(dtype).requires_grad_()
    upstream, leaves = torch.randn(shape[0], shape[1] // 2, dtype=dtype), double(x)

    assert_close(swiglu(x.detach()), swiglu_reference(leaves[0]), FORWARD)
    (grad,) = gradients(swiglu, [x], [upstream])
    (exact,) = gradients(swiglu_reference, leaves, [upstream])
    assert_close(grad, exact, GRADIENT)


def test_extreme_gates(backend: str, dtype: torch.dtype) -> None:
    most = min(1e30, torch.finfo(dtype).max)
    gate = torch.tensor([-most, -200.0, -88.0, -0.0, 0.0, 88.0, 200.0, most], dtype=dtype)
    x = torch.cat((gate, torch.ones_like(gate)))[None].requires_grad_()
    out = swiglu(x)
    out.sum().backward()
    assert_close(out, swiglu_reference(x.double()), FORWARD)
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_strided_rows(backend: str, dtype: torch.dtype) -> None:
    x = torch.randn(20, 100, dtype=dtype)
    for view in (x[::2, 10:74], x[:, ::2]):
        leaf = view.detach().requires_grad_()
        (exact_leaf,) = double(leaf)
        upstream = torch.randn(view.shape[1] // 2, view.shape[0], dtype=dtype).T
        assert_close(swiglu(view), swiglu_reference(exact_leaf), FORWARD)
        (grad,) = gradients(swiglu, [leaf], [upstream])
        assert_close(grad, gradients(swiglu_reference, [exact_leaf], [upstream])[0], GRADIENT)


def test_a_row_depends_on_itself_alone(invariant: str, dtype: torch.dtype) -> None:
    x = torch.randn(100, 300, dtype=dtype)
    assert torch.equal(swiglu(x)[41:43], swiglu(x[41:43]))


def test_bad_arguments() -> None:
    for shape in ((4,), (3, 5), (2, 3, 4)):
        with pytest.raises(ValueError, match=r"^gate_up:"):
            swiglu(torch.randn(shape))
