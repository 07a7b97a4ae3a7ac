from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import LoraSlice, lora_add_, lora_linear, lora_linear_reference, quantize
from kernels.quantized import KINDS, Kind
from tests.kernels.oracle import FORWARD, GRADIENT, assert_close, double, gradients

# rows, K, columns of each slice, columns without an update at the end, rank
SHAPES = [
    (63, 48, [40, 8, 8], 0, 16),
    (1, 33, [17], 5, 3),
    (7, 6, [10, 4], 2, 1),
    (70, 70, [70, 20], 3, 66),
    (0, 16, [16], 0, 4),
]


def leaves_of(
    rows: int, k: int, columns: list[int], rank: int, dtype: torch.dtype, part: torch.dtype
) -> list[Tensor]:
    """x, then a and b of each slice."""
    tensors = [torch.randn(rows, k, dtype=dtype)]
    for n in columns:
        tensors += [torch.randn(rank, k, dtype=part) / k**0.5, torch.randn(n, rank, dtype=part)]
    return [x.requires_grad_() for x in tensors]


def slices_of(ab: tuple[Tensor, ...]) -> list[LoraSlice]:
    found, start = [], 0
    for i in range(0, len(ab), 2):
        found.append(LoraSlice(ab[i], ab[i + 1], start, 0.5 + i))
        start += len(ab[i + 1])
    return found


def frozen(rows: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A weight, and a bias that is strided."""
    return torch.randn(rows, k, dtype=dtype) / k**0.5, torch.randn(2 * rows, dtype=dtype)[::2]


@pytest.mark.parametrize(("rows", "k", "columns", "spare", "rank"), SHAPES)
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "plain"])
def test_lora_linear(
    backend: str,
    dtype: torch.dtype,
    rows: int,
    k: int,
    columns: list[int],
    spare: int,
    rank: int,
    biased: bool,
) -> None:
    leaves = leaves_of(rows, k, columns, rank, dtype, torch.float32)
    weight, bias = frozen(sum(columns) + spare, k, dtype)
    chosen = bias if biased else None

    def op(x: Tensor, *ab: Tensor) -> Tensor:
        strided = F.pad(x, (0, 3))[:, :-3] if biased else x
        return lora_linear(strided, weight, chosen, slices_of(ab))

    def exact(x: Tensor, *ab: Tensor) -> Tensor:
        wide = None if chosen is None else chosen.double()
        return lora_linear_reference(x, weight.double(), wide, slices_of(ab))

    compare(op, exact, leaves, [torch.randn(rows, len(weight), dtype=dtype)], dtype)


def compare(
    op: Callable[..., Tensor],
    exact: Callable[..., Tensor],
    leaves: list[Tensor],
    upstream: list[Tensor],
    dtype: torch.dtype,
) -> None:
    wide = double(*leaves)
    assert_close(op(*leaves), exact(*wide), FORWARD)
    grads = gradients(op, leaves, upstream)
    assert [g.dtype for g in grads] == [x.dtype for x in leaves]
    for grad, expected in zip(grads, gradients(exact, wide, upstream), strict=True):
        assert_close(grad.to(dtype), expected, GRADIENT)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("kind", KINDS)
def test_quantized_weight(backend: str, dtype: torch.dtype, kind: Kind, dropout: float) -> None:
    leaves = leaves_of(30, 70, [8, 4], 4, dtype, torch.float32)
    weight, bias = frozen(12, 70, dtype)
    rounded = quantize(weight, kind)
    dense = rounded.dequantize(torch.float64)

    def draw() -> torch.Generator:
        return torch.Generator(torch.get_default_device()).manual_seed(3)

    def op(x: Tensor, *ab: Tensor) -> Tensor:
        chosen = {"dropout": dropout, "generator": draw()}
        return lora_linear(x, rounded, bias, slices_of(ab), **chosen)

    def exact(x: Tensor, *ab: Tensor) -> Tensor:
        chosen = {"dropout": dropout, "generator": draw()}
        return lora_linear(x, dense, bias.double(), slices_of(ab), **chosen)

    compare(op, exact, leaves, [torch.randn(30, 12, dtype=dtype)], dtype)
    x = leaves[0].detach()
    bare = F.linear(x.double(), dense, bias.double())
    assert_close(lora_linear(x, rounded, bias, []), bare, FORWARD)


def test_dropout_has_a_mask_for_each_slice(backend: str, dtype: torch.dtype) -> None:
    weight, _ = frozen(12, 40, dtype)
    leaves = leaves_of(30, 40, [8, 4], 4, dtype, torch.float32)
    draw = torch.Generator(torch.get_default_device()).manual_seed(3)
    masks = [
        torch.empty(30, 40, dtype=torch.bool).bernoulli_(0.75, generator=draw) / 0.75
        for _ in range(2)
    ]
    assert not torch.equal(*masks)

    def op(x: Tensor, *ab: Tensor) -> Tensor:
        generator = torch.Generator(torch.get_default_device()).manual_seed(3)
        return lora_linear(x, weight, None, slices_of(ab), dropout=0.25, generator=generator)

    def exact(x: Tensor, *ab: Tensor) -> Tensor:
        wide = [mask.double() for mask in masks]
        return lora_linear_reference(x, weight.double(), None, slices_of(ab), wide)

    compare(op, exact, leaves, [torch.randn(30, 12, dtype=dtype)], dtype)


def test_derivatives() -> None:
    leaves = leaves_of(5, 8, [4, 3], 2, torch.float64, torch.float64)
    weight, bias = frozen(9, 8, torch.float64)
    for op in (lora_linear, lora_linear_reference):
        assert torch.autograd.gradcheck(
            lambda x, *ab, op=op: op(x, weight, bias, slices_of(ab)), leaves
        )


def test_an_input_that_wants_no_gradient(backend: str, dtype: torch.dtype) -> None:
    x, *ab = leaves_of(5, 8, [4, 3], 2, dtype, torch.float32)
    ab[1] = ab[1].detach().to(dtype).requires_grad_()  # dtypes may differ between slices
    weight, _ = frozen(9, 8, dtype)
    grads = torch.autograd.grad(
        lora_linear(x.detach(), weight, None, slices_of(tuple(ab))).sum(), ab
    )
    wide = double(x.detach(), *ab)
    y = lora_linear_reference(wide[0], weight.double(), None, slices_of(tuple(wide[1:])))
    for grad, expected in zip(grads, torch.autograd.grad(y.sum(), wide[1:]), strict=True):
        assert_close(grad.to(dtype), expected, GRADIENT)


def test_gradients_are_the_same_each_time(backend: str, dtype: torch.dtype) -> None:
    leaves = leaves_of(150, 40, [40, 30], 8, dtype, torch.float32)
    weight, upstream = frozen(70, 40, dtype)[0], torch.randn(150, 70, dtype=dtype)

    def once() -> list[Tensor]:
        y = lora_linear(leaves[0], weight, None, slices_of(tuple(leaves[1:])))
        return [y, *torch.autograd.grad(y, leaves, upstream)]

    assert all(torch.equal(x, again) for x, again in zip(once(), once(), strict=True))


@pytest.mark.parametrize(("rows", "k", "columns", "spare", "rank"), SHAPES)
@pytest.mark.parametrize("cast", [False, True], ids=["same", "cast"])
def test_lora_add(
    backend: str,
    dtype: torch.dtype,
    cast: bool,
    rows: int,
    k: int,
    columns: list[int],
    spare: int,
    rank: int,
) -> None:
    other = torch.float16 if dtype == torch.float32 else torch.float32
    part = other if cast else dtype
    x, *ab = [t.detach() for t in leaves_of(rows, k, columns, rank, dtype, part)]
    y = torch.randn(rows, sum(columns) + spare + 3, dtype=dtype)[:, :-3]
    inputs = torch.randn(rows, k + 5, dtype=dtype)[:, 5:].copy_(x)
    expected = y.double()
    for s in slices_of(tuple(ab)):
        update = s.scale * (x.double() @ s.a.double().T) @ s.b.double().T
        expected += F.pad(update, (s.start, y.shape[1] - s.start - len(s.b)))

    assert lora_add_(y, inputs, slices_of(tuple(ab))) is y
    assert_close(y, expected, FORWARD)


def test_a_row_does_not_depend_on_the_batch(invariant: str, dtype: torch.dtype) -> None:
    x, *ab = [t.detach() for t in leaves_of(23, 70, [33, 16], 5, dtype, dtype)]
    slices, y = slices_of(tuple(ab)), torch.randn(23, 49, dtype=dtype)
    whole = lora_add_(y.clone(), x, slices)
    for i in range(23):
        # Interpreted Triton multiplies in numpy, whose sums differ with a row's place in its tile.
        few = slice(i // 16 * 16 if invariant == "triton" else i, i + 1)
        assert torch.equal(lora_add_(y[few].clone(), x[few], slices)[-1], whole[i])


A, B, X, W = torch.zeros(2, 8), torch.zeros(4, 2), torch.zeros(5, 8), torch.zeros(6, 8)


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [
        ("x", (torch.zeros(8), W, None, []), {}),
        ("weight", (X, torch.zeros(6, 7), None, []), {}),
        ("weight", (X, W.bfloat16(), None, []), {}),
        ("weight", (X, torch.zeros(6, 8, requires_grad=True), None, []), {}),
        ("bias", (X, W, torch.zeros(5), []), {}),
        ("bias", (X, W, torch.zeros(6).bfloat16(), []), {}),
        ("bias", (X, W, torch.zeros(6, requires_grad=True), []), {}),
        (r"lora\[0\]\.a", (X, W, None, [LoraSlice(A[:, :7], B, 0, 1.0)]), {}),
        (r"lora\[1\]\.b", (X, W, None, [LoraSlice(A, B, 0, 1.0), LoraSlice(A, A, 0, 1.0)]), {}),
        (r"lora\[0\]\.start", (X, W, None, [LoraSlice(A, B, 3, 1.0)]), {}),
        (r"lora\[0\]\.start", (X, W, None, [LoraSlice(A, B[:3], s, 1.0) for s in (2, 0)]), {}),
        ("dropout", (X, W, None, []), {"dropout": 1.0}),
    ],
)
def test_what_does_not_fit_is_named(
    name: str, arguments: tuple[object, ...], options: dict[str, float]
) -> None:
    with pytest.raises(ValueError, match=f"^{name}:"):
        lora_linear(*arguments, **options)


def test_output_that_cannot_be_added_to_is_named() -> None:
    for y in (torch.zeros(4, 6), torch.zeros(6, 5).T, torch.zeros(5, 6, dtype=torch.bfloat16)):
        with pytest.raises(ValueError, match=r"^y:"):
            lora_add_(y, X, [LoraSlice(A, B, 0, 1.0)])


def test_updates_of_the_same_columns_are_named() -> None:
    overlapping = [LoraSlice(A, B, start, 1.0) for start in (0, 2)]
    with pytest.raises(ValueError, match=r"^lora\[1\]\.start: column 2"):
        lora_add_(torch.zeros(5, 6), X, overlapping)
