from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels import Segments, attention, attention_reference
from tests.kernels.conftest import INTERPRETED
from tests.kernels.oracle import FORWARD, GRADIENT, assert_close, double, gradients

SHAPES = [(6, 2, 64), (2, 1, 80), (2, 2, 6)] if INTERPRETED else [(9, 3, 64), (4, 1, 80), (2, 2, 6)]
LONG, OWN = (70, 40) if INTERPRETED else (130, 90)  # tokens of a sequence, and after a prefix


def pack(lengths: list[int], prefix: list[int] | None = None) -> Segments:
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    return Segments(cu_seqlens, torch.tensor(prefix or [-1] * len(lengths), dtype=torch.int32))


def check(
    segments: Segments, shape: tuple[int, int, int], dtype: torch.dtype, window: int | None
) -> None:
    """Forward and backward, on views of one fused tensor, against the reference in float64."""
    heads, kv_heads, dim = shape
    total = int(segments.cu_seqlens[-1])
    qkv = torch.randn(total, heads + 2 * kv_heads, dim, dtype=dtype)
    leaves = [x.requires_grad_() for x in qkv.split([heads, kv_heads, kv_heads], dim=1)]
    scale, upstream = dim**-0.5, [torch.randn(total, heads, dim, dtype=dtype)]
    exact_leaves = double(*leaves)

    def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention_reference(q, k, v, segments, scale, window)[0]

    assert_close(attention(*leaves, segments, scale, window), exact(*exact_leaves), FORWARD)
    grads = gradients(lambda q, k, v: attention(q, k, v, segments, scale, window), leaves, upstream)
    exacts = gradients(exact, exact_leaves, upstream)
    for grad, expected in zip(grads, exacts, strict=True):
        if expected.abs().sum() < 1e-9:  # one visible key: scores do not matter
            assert grad.abs().sum() <= GRADIENT[dtype] * grad.numel()
        else:
            assert_close(grad, expected, GRADIENT)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("lengths", "prefix"),
    [
        ([63], None),
        ([1], None),
        ([0, 1, 25, 0, LONG, 24], None),
        ([70, 5, 1, 0, OWN], [-1, 0, 0, 0, 0]),
        ([LONG // 2, 7, 30, 2, 9, OWN], [-1, 0, -1, 2, 2, 0]),
        ([0, 3], [-1, 0]),
    ],
    ids=["single", "one-token", "ragged", "users", "two-groups", "empty-prefix"],
)
def test_attention(
    backend: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    lengths: list[int],
    prefix: list[int] | None,
) -> None:
    check(pack(lengths, prefix), shape, dtype, None)


@pytest.mark.parametrize("dim", [96, 128, 250, 256])
def test_head_sizes(backend: str, dtype: torch.dtype, dim: int) -> None:
    check(pack([17, 9], [-1, 0]), (2, 1, dim), dtype, None)


def test_head_sizes_without_a_kernel_are_named(backend: str, dtype: torch.dtype) -> None:
    if backend == "triton":
        with pytest.raises(ValueError, match=r"^q: a head size of 257"):
            check(pack([40]), (1, 1, 257), dtype, None)
    else:
        check(pack([40]), (1, 1, 257), dtype, None)


@pytest.mark.parametrize("window", [None, 25])
def test_many_segments_continue_one(backend: str, dtype: torch.dtype, window: int | None) -> None:
    """So many that their sums into the prefix's gradient are taken in parts, the last one short."""
    users = [7, 0, 30, 1, 20, 13]
    lengths = [5, 20, *users, 3]
    check(pack(lengths, [-1, -1, *[1] * len(users), 0]), (16, 1, 8), dtype, window)


@pytest.mark.parametrize("window", [1, 10, 66, 1000])
def test_window_counts_over_prefix_and_own_tokens(
    backend: str, dtype: torch.dtype, window: int
) -> None:
    check(pack([70, 5, OWN, 20], [-1, 0, 0, -1]), (4, 2, 16), dtype, window)


def test_no_tokens(backend: str, dtype: torch.dtype) -> None:
    check(pack([0]), (4, 2, 16), dtype, None)


def test_a_shared_prefix_gives_the_gradients_of_copies(backend: str) -> None:
    prefix, users = 33, [4, 1, OWN]
    shared = pack([prefix, *users], [-1, 0, 0, 0])
    copies = pack([prefix, *(prefix + n for n in users)])
    index, own, start = list(range(prefix)), [True] * prefix, prefix
    for n in users:
        index += [*range(prefix), *range(start, start + n)]
        own += [False] * prefix + [True] * n
        start += n
    leaves = [torch.randn(start, h, 16, requires_grad=True) for h in (4, 2, 2)]
    upstream = [torch.randn(start, 4, 16)]

    def unshared(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q[index], k[index], v[index], copies, 0.25)[torch.tensor(own)]

    grads = gradients(lambda q, k, v: attention(q, k, v, shared, 0.25), leaves, upstream)
    for grad, expected in zip(grads, gradients(unshared, leaves, upstream), strict=True):
        assert_close(grad, expected, GRADIENT)


@pytest.mark.parametrize("window", [None, 12])
def test_result_does_not_depend_on_the_rest_of_the_pack(
    invariant: str, dtype: torch.dtype, window: int | None
) -> None:
    leaves = [torch.randn(100, h, 32, dtype=dtype, requires_grad=True) for h in (4, 2, 2)]
    parts = [x.detach()[30:77].requires_grad_() for x in leaves]
    upstream = torch.randn(100, 4, 32, dtype=dtype)

    def run(inputs: list[Tensor], segments: Segments, upstream: Tensor) -> list[Tensor]:
        out = attention(*inputs, segments, 0.2, window)
        return [out, *torch.autograd.grad(out, inputs, upstream)]

    whole = run(leaves, pack([30, 27, 20, 23], [-1, -1, 1, 0]), upstream)
    alone = run(parts, pack([27, 20], [-1, 0]), upstream[30:77])
    for among, itself in zip(whole, alone, strict=True):
        assert torch.equal(among[30:77], itself)


def test_reference_derivatives() -> None:
    segments = pack([3, 2, 0, 4], [-1, 0, 0, 0])
    leaves = [torch.randn(9, h, 5, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2)]
    for window in (None, 4):
        assert torch.autograd.gradcheck(
            lambda q, k, v, window=window: attention(q, k, v, segments, 0.4, window), leaves
        )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("q", {"q": torch.zeros(5, 8)}),
        ("k", {"k": torch.zeros(5, 0, 8), "v": torch.zeros(5, 0, 8)}),
        ("k", {"k": torch.zeros(5, 3, 8), "v": torch.zeros(5, 3, 8)}),
        ("k", {"k": torch.zeros(4, 2, 8)}),
        ("k", {"k": torch.zeros(5, 2, 8, dtype=torch.bfloat16)}),
        ("v", {"v": torch.zeros(5, 1, 8)}),
        ("window", {"window": 0}),
        ("scale", {"scale": 0.0}),
        ("segments", {"segments": pack([6])}),
        ("segments", {"segments": pack([5]).to("meta")}),
    ],
)
def test_what_does_not_fit_is_named(name: str, change: dict[str, object]) -> None:
    fitting = {
        "q": torch.zeros(5, 4, 8),
        "k": torch.zeros(5, 2, 8),
        "v": torch.zeros(5, 2, 8),
        "segments": pack([5]),
        "scale": 1.0,
    }
    with pytest.raises(ValueError, match=f"^{name}:"):
        attention(**{**fitting, **change})


@pytest.mark.parametrize(
    ("name", "cu_seqlens", "prefix"),
    [
        ("cu_seqlens", [1, 2], [-1]),
        ("cu_seqlens", [0, 4, 2], [-1, -1]),
        ("cu_seqlens", [0, 2], [-1, -1]),
        ("cu_seqlens", [], []),
        ("prefix", [0, 2, 4], [1, -1]),
        ("prefix", [0, 2, 4], [-1, 1]),
        ("prefix", [0, 2, 4, 6], [-1, 0, 1]),
    ],
)
def test_impossible_segments_are_named(name: str, cu_seqlens: list[int], prefix: list[int]) -> None:
    with pytest.raises(ValueError, match=f"^{name}:"):
        Segments(*(torch.tensor(x, dtype=torch.int32) for x in (cu_seqlens, prefix)))


@pytest.mark.parametrize("name", ["cu_seqlens", "prefix"])
def test_strided_segments_are_named(name: str) -> None:
    segments = pack([2, 3])
    strided = getattr(segments, name).repeat_interleave(2)[::2]
    with pytest.raises(ValueError, match=f"^{name}: must be contiguous"):
        replace(segments, **{name: strided})
