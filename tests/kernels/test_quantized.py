from __future__ import annotations

from statistics import NormalDist
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import kernels.quantized
from kernels import QuantizedWeight, linear, quantize, quantized_linear, quantized_linear_dx
from kernels.linear import add_base_linear_, add_base_linear_dx_
from kernels.quantized import NF4, Kind
from tests.kernels.oracle import (
    FORWARD,
    GRADIENT,
    assert_close,
    double,
    gradients,
    relative_rms,
)

KINDS: tuple[Kind, ...] = get_args(Kind)
ERROR = {"int8": 0.007, "int4": 0.098, "nf4": 0.093}  # on normal weights, groups of up to 128
SHAPES = [  # rows, N, K, whether there is a bias
    (1, 4, 128, False),
    (5, 70, 192, True),
    (16, 33, 1000, False),
    (16, 33, 1000, True),
    (3, 9, 65, True),
    (20, 5, 17, False),
    (50, 64, 256, True),
    (70, 40, 130, False),
    (70, 40, 130, True),
    (0, 8, 64, True),
]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


def _exact(x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None) -> Tensor:
    dense = weight.dequantize(torch.float64)
    return F.linear(x.double(), dense, None if bias is None else bias.double())


@pytest.mark.parametrize("group_size", [64, 128])
@pytest.mark.parametrize(("n", "k"), [(70, 512), (30, 200), (50, 64)])
def test_round_trip(backend: str, kind: Kind, n: int, k: int, group_size: int) -> None:
    # Rows of any magnitude, beyond what fp16 scales alone can hold.
    weight = torch.randn(n, k) * torch.logspace(-12, 12, n)[:, None]
    found = quantize(weight, kind, group_size)
    scale = weight.abs().amax(1, keepdim=True)
    assert found.shape == (n, k)
    assert relative_rms(found.dequantize(torch.float32) / scale, weight / scale) < ERROR[kind]


def test_bytes(kind: Kind) -> None:
    weight = quantize(torch.randn(256, 1024), kind)
    bits = 8 * weight.nbytes / (256 * 1024)
    assert bits == pytest.approx(8.25 if kind == "int8" else 4.25, abs=0.05)


def test_nf4_values_are_quantiles_of_the_normal_distribution() -> None:
    # QLoRA, equation 4 and appendix E: eight quantiles on each side, from one that leaves the
    # average of 1/30 and 1/32 beyond itself to the median, divided by the largest.
    last = 1 - (1 / 32 + 1 / 30) / 2
    icdf = NormalDist().inv_cdf
    positive = [icdf(0.5 + i * (last - 0.5) / 8) for i in range(1, 9)]
    negative = [-icdf(0.5 + i * (last - 0.5) / 7) for i in range(7, 0, -1)]
    expected = torch.tensor([*negative, 0.0, *positive]) / icdf(last)
    assert torch.allclose(torch.tensor(NF4), expected, atol=1e-6)


def test_nf4_takes_the_nearest_value(backend: str) -> None:
    # One weight of each group is 1, so its scale is 1 or one of the clipped ones.
    weight = torch.rand(8, 256) * 2 - 1
    weight[:, ::64] = 1.0
    found = quantize(weight, "nf4").dequantize(torch.float64).view(8, 4, 64)
    values = torch.tensor(NF4, dtype=torch.float64)
    clips = torch.tensor([1.0, 0.9]).half().double()
    target = weight.double().view(8, 4, 64)
    nearest = [
        values[(target[..., None] / clip - values).abs().argmin(-1)] * clip for clip in clips
    ]
    errors = torch.stack([(each - target).square().sum(-1) for each in nearest])
    expected = torch.where((errors[0] <= errors[1])[..., None], *nearest)
    assert torch.allclose(found, expected, atol=1e-6)


def test_extreme_weights(backend: str, kind: Kind) -> None:
    weight = torch.zeros(4, 192)
    weight[1, 70] = -3.0
    weight[2] = 1e-38
    weight[3, :64] = 1e30
    found = quantize(weight, kind).dequantize(torch.float32)
    assert torch.equal(found[:2], weight[:2])
    assert relative_rms(found[3] / 1e30, weight[3] / 1e30) < 1e-3
    assert found.isfinite().all()


@pytest.mark.parametrize(("rows", "n", "k", "bias"), SHAPES)
def test_quantized_linear(
    backend: str, dtype: torch.dtype, kind: Kind, rows: int, n: int, k: int, bias: bool
) -> None:
    x, weight = torch.randn(rows, k, dtype=dtype), quantize(torch.randn(n, k), kind)
    b = torch.randn(n, dtype=dtype) if bias else None
    assert_close(quantized_linear(x, weight, b), _exact(x, weight, b), FORWARD)


@pytest.mark.parametrize("rows", [3, 50])
def test_tiles_of_every_width(
    backend: str, dtype: torch.dtype, kind: Kind, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card decides; this one has one multiprocessor."""
    if backend == "triton":
        monkeypatch.setattr("kernels.triton.quantized.multiprocessors", lambda device: 1)
    x, weight = torch.randn(rows, 200, dtype=dtype), quantize(torch.randn(70, 200), kind)
    assert_close(quantized_linear(x, weight), _exact(x, weight), FORWARD)


@pytest.mark.parametrize("rows", [7, 100])
@pytest.mark.parametrize("group_size", [64, 128])
def test_gradient(backend: str, dtype: torch.dtype, kind: Kind, rows: int, group_size: int) -> None:
    x = torch.randn(rows, 200, dtype=dtype, requires_grad=True)
    weight, upstream = quantize(torch.randn(40, 200), kind, group_size), torch.randn(rows, 40)
    (leaf,) = double(x)
    (grad,) = gradients(lambda x: quantized_linear(x, weight), [x], [upstream])
    (exact,) = gradients(lambda x: _exact(x, weight), [leaf], [upstream])
    assert_close(grad, exact, GRADIENT)


def test_parts(
    backend: str, dtype: torch.dtype, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are never whole: quantised, multiplied and dequantised part by part."""
    dense = torch.randn(70, 300)
    x, dy = torch.randn(70, 300, dtype=dtype), torch.randn(70, 70, dtype=dtype)
    bias, whole = torch.randn(70, dtype=dtype), quantize(dense, kind)
    for name in ("_CHUNK", "_CHUNK_QUANTIZING", "_CHUNK_QUANTIZING_CPU"):
        monkeypatch.setattr(kernels.quantized, name, 9500)
    weight = quantize(dense, kind)
    assert torch.equal(weight.codes, whole.codes)
    assert torch.equal(weight.scales, whole.scales)
    assert_close(quantized_linear(x, weight, bias), _exact(x, weight, bias), FORWARD)
    exact = dy.double() @ weight.dequantize(torch.float64)
    assert_close(quantized_linear_dx(dy, weight), exact, GRADIENT)
    assert_close(add_base_linear_dx_(torch.zeros_like(x), dy, weight), exact, GRADIENT)
    summed = add_base_linear_(torch.ones(70, 70, dtype=dtype), x, weight)
    assert_close(summed, 1 + _exact(x, weight), FORWARD)


@pytest.mark.parametrize("rows", [3, 80])
def test_linear_takes_it_and_strided_inputs(
    backend: str, dtype: torch.dtype, kind: Kind, rows: int
) -> None:
    wide, weight = torch.randn(2 * rows, 200, dtype=dtype), quantize(torch.randn(40, 64), kind)
    for x in (wide[::2, 20:84], wide[:rows, :64], torch.randn(64, rows, dtype=dtype).T):
        out = linear(x, weight, out_dtype=torch.float32)
        assert out.dtype == torch.float32
        assert_close(out, _exact(x, weight), {torch.float32: FORWARD[dtype]})


def test_a_row_of_few_depends_on_itself_alone(
    invariant: str, dtype: torch.dtype, kind: Kind
) -> None:
    if invariant != "triton":
        pytest.skip("the reference's products come from the vendor")
    x, weight = torch.randn(16, 1000, dtype=dtype), quantize(torch.randn(40, 1000), kind)
    whole = quantized_linear(x, weight)
    for rows in (slice(0, 1), slice(8, 15), slice(15, 16)):
        assert torch.equal(whole[rows], quantized_linear(x[rows], weight))


def test_bad_arguments(kind: Kind) -> None:
    x, weight = torch.randn(3, 64), quantize(torch.randn(5, 64), kind)
    with pytest.raises(ValueError, match=r"^weight:"):
        quantize(x[0], kind)
    with pytest.raises(ValueError, match=r"^weight:"):
        quantize(x.int(), kind)
    with pytest.raises(ValueError, match=r"^kind:"):
        quantize(x, "int3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^group_size:"):
        quantize(x, kind, 32)
    with pytest.raises(ValueError, match=r"^x:"):
        quantized_linear(x[0], weight)
    for other in (quantize(torch.randn(5, 65), kind), weight.to("meta")):
        with pytest.raises(ValueError, match=r"^weight:"):
            quantized_linear(x, other)
    for bias in (torch.randn(4), torch.randn(5).bfloat16(), torch.randn(5, requires_grad=True)):
        with pytest.raises(ValueError, match=r"^bias:"):
            quantized_linear(x, weight, bias)
    with pytest.raises(ValueError, match=r"^out_dtype:"):
        quantized_linear(x, weight, out_dtype=torch.float16)
    with pytest.raises(ValueError, match=r"^dy:"):
        quantized_linear_dx(x, weight)
