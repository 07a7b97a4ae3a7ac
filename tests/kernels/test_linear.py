from __future__ import annotations

import pytest
import torch

from kernels import linear
from tests.kernels.conftest import INTERPRETED
from tests.kernels.oracle import FORWARD, assert_close


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize(
    ("rows", "n", "k"),
    [
        (1, 4, 32),
        (63, 7, 80),
        (5, 1, 1),
        (13, 33, 17),
        (2, 6, 576),
        (64, 130, 65),
        (0, 5, 8),
        (16, 40, 1100),
        (33, 150, 96),
        *([] if INTERPRETED else [(3, 9000, 40), (500, 50, 2048)]),
    ],
)
def test_linear(backend: str, dtype: torch.dtype, rows: int, n: int, k: int, bias: bool) -> None:
    x, weight = torch.randn(rows, k, dtype=dtype), torch.randn(n, k, dtype=dtype)
    b = torch.randn(n, dtype=dtype) if bias else None
    exact = torch.nn.functional.linear(
        x.double(), weight.double(), None if b is None else b.double()
    )
    assert_close(linear(x, weight, b), exact, FORWARD)


@pytest.mark.parametrize("n", [40, 70, 140])
def test_tiles_of_every_width(
    backend: str, dtype: torch.dtype, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card decides; this one has one multiprocessor."""
    if backend == "triton":
        monkeypatch.setattr("kernels.triton.linear.multiprocessors", lambda device: 1)
    x, weight = torch.randn(3, 200, dtype=dtype), torch.randn(n, 200, dtype=dtype)
    assert_close(linear(x, weight), x.double() @ weight.double().T, FORWARD)


@pytest.mark.parametrize("rows", [9, 40])
def test_fp32_result(backend: str, dtype: torch.dtype, rows: int) -> None:
    x, weight = torch.randn(rows, 576, dtype=dtype), torch.randn(50, 576, dtype=dtype)
    bias = torch.randn(50, dtype=dtype)
    out = linear(x, weight, bias, out_dtype=torch.float32)
    assert out.dtype == torch.float32
    exact = x.double() @ weight.double().T + bias.double()
    assert_close(out, exact, {torch.float32: FORWARD[dtype]})


def test_strided_inputs(backend: str, dtype: torch.dtype) -> None:
    wide, weight = torch.randn(10, 100, dtype=dtype), torch.randn(64, 18, dtype=dtype)
    bias = torch.randn(36, dtype=dtype)[::2]
    for x in (wide[::3, 20:84], wide[:, :64], torch.randn(64, 5, dtype=dtype).T):
        exact = x.double() @ weight.double() + bias.double()
        assert_close(linear(x, weight.T, bias), exact, FORWARD)


@pytest.mark.parametrize("k", [70, 96])
def test_a_row_depends_on_itself_alone(native: str, dtype: torch.dtype, k: int) -> None:
    x, weight = torch.randn(700, k, dtype=dtype), torch.randn(150, k, dtype=dtype)
    whole = linear(x, weight)
    for rows in (slice(0, 1), slice(8, 15), slice(100, 164), slice(699, 700)):
        assert torch.equal(whole[rows], linear(x[rows], weight))


def test_a_row_of_few_depends_on_itself_alone(invariant: str, dtype: torch.dtype) -> None:
    weight = torch.randn(40, 1100, dtype=dtype)
    x = torch.randn(16, 1100, dtype=dtype)
    whole = linear(x, weight)
    for rows in (slice(0, 1), slice(8, 15), slice(15, 16)):
        assert torch.equal(whole[rows], linear(x[rows], weight))


def test_bad_arguments() -> None:
    x, weight = torch.randn(3, 8), torch.randn(5, 8)
    with pytest.raises(ValueError, match=r"^x:"):
        linear(x[0], weight)
    with pytest.raises(ValueError, match=r"^weight:"):
        linear(x[:, :4], weight)
    with pytest.raises(ValueError, match=r"^weight:"):
        linear(x.bfloat16(), weight)
    for bias in (torch.randn(4), torch.randn(5, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match=r"^bias:"):
            linear(x, weight, bias)
    with pytest.raises(ValueError, match=r"^out_dtype:"):
        linear(x, weight, out_dtype=torch.float16)
