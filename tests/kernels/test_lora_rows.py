from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels import LoraBank, LoraRows, LoraSlice, lora_add_rows_
from tests.kernels.oracle import FORWARD, assert_close

# (start, n, rank) of each update, of each of two linear layers, of each adapter
ALIGNED = [
    [[(0, 32, 16), (32, 16, 16)], [(0, 48, 16)]],
    [[(32, 16, 80)], [(16, 32, 2)]],
]
RAGGED = [
    [[(0, 33, 4), (33, 10, 7)], [(20, 25, 3)]],
    [[(33, 10, 16)], []],
    [[(0, 20, 40), (40, 5, 1)], [(0, 45, 2)]],
]
SHAPES = [(64, 48, ALIGNED), (550, 45, RAGGED)]


def banks_of(
    k: int, specs: list[list[list[tuple[int, int, int]]]], dtype: torch.dtype
) -> list[LoraBank]:
    def part(start: int, n: int, rank: int) -> LoraSlice:
        a, b = torch.randn(rank, k, dtype=dtype) / k**0.5, torch.randn(n, rank, dtype=dtype)
        return LoraSlice(a, b, start, 0.5 + rank)

    return [LoraBank([[part(*spec) for spec in parts] for parts in linears]) for linears in specs]


def exact(y: Tensor, x: Tensor, rows: LoraRows, linear: int) -> Tensor:
    y = y.double()
    for start, stop, bank in rows.ranges:
        for s in bank.linears[linear]:
            inner = x[start:stop].double() @ s.a.double().T
            y[start:stop, s.start : s.start + len(s.b)] += s.scale * inner @ s.b.double().T
    return y


@pytest.mark.parametrize(("k", "n", "specs"), SHAPES, ids=["aligned", "ragged"])
@pytest.mark.parametrize("linear", [0, 1])
def test_each_row_gets_its_own_adapter(
    backend: str,
    dtype: torch.dtype,
    k: int,
    n: int,
    specs: list[list[list[tuple[int, int, int]]]],
    linear: int,
) -> None:
    banks = banks_of(k, specs, dtype)
    ranges = [(0, 3, banks[0]), (3, 25, banks[1]), (27, 28, banks[-1]), (28, 30, banks[0])]
    rows = LoraRows([*ranges, (30, 30, banks[0])])
    x, y = torch.randn(33, k + 5, dtype=dtype)[:, 5:], torch.randn(33, n + 3, dtype=dtype)[:, :-3]
    before, expected = y.clone(), exact(y, x, rows, linear)
    assert lora_add_rows_(y, x, rows, linear) is y
    assert_close(y, expected, FORWARD)
    untouched = (expected == before.double()).all(1)
    assert untouched[[25, 26, 30, 31, 32]].all()
    assert torch.equal(y[untouched], before[untouched])


def test_a_row_does_not_depend_on_the_batch(invariant: str, dtype: torch.dtype) -> None:
    first, second = banks_of(550, RAGGED[:2], dtype)
    x, y = torch.randn(70, 550, dtype=dtype), torch.randn(70, 45, dtype=dtype)
    ranges = [(0, 5, first), (5, 60, second), (60, 70, first)]
    whole = lora_add_rows_(y.clone(), x, LoraRows(ranges), 0)
    for i, bank in ((0, first), (5, second), (21, second), (60, first)):
        alone = LoraRows([(0, 1, bank)])
        assert torch.equal(
            lora_add_rows_(y[i : i + 1].clone(), x[i : i + 1], alone, 0)[0], whole[i]
        )


def test_nothing_to_add(backend: str, dtype: torch.dtype) -> None:
    x, y = torch.randn(4, 8, dtype=dtype), torch.randn(4, 6, dtype=dtype)
    before = y.clone()
    bank = LoraBank([[], [LoraSlice(x[:2], y[:, :2], 0, 1.0)]])
    for rows in (LoraRows([]), LoraRows([(1, 1, bank)]), LoraRows([(0, 4, bank)])):
        assert torch.equal(lora_add_rows_(y, x, rows, 0), before)


def test_what_does_not_fit_is_named() -> None:
    a, b, x, y = torch.zeros(2, 8), torch.zeros(4, 2), torch.zeros(5, 8), torch.zeros(5, 6)
    bank = LoraBank([[LoraSlice(a, b, 0, 1.0)]])
    rows = LoraRows([(1, 4, bank)])
    elsewhere = LoraBank([[LoraSlice(a.to("meta"), b.to("meta"), 0, 1.0)]])
    for name, call in {
        "rows: go up": lambda: lora_add_rows_(y[:3], x[:3], rows, 0),
        "rows: a bank .* torch.bfloat16": lambda: lora_add_rows_(
            y.bfloat16(), x.bfloat16(), rows, 0
        ),
        "rows: a bank .* cpu": lambda: lora_add_rows_(y, x, LoraRows([(1, 4, elsewhere)]), 0),
        "linear: ": lambda: lora_add_rows_(y, x, rows, 1),
        "y: ": lambda: lora_add_rows_(y[:4], x, rows, 0),
        "rows: a bank's updates of 4 columns": lambda: lora_add_rows_(y[:, :3], x, rows, 0),
        "rows: a bank's updates .* of 8, ": lambda: lora_add_rows_(y, x[:, :7], rows, 0),
        "ranges: ": lambda: LoraRows([(0, 4, bank), (3, 5, bank)]),
        r"linears\[1\]\[0\]\.a: ": lambda: LoraBank([[], [LoraSlice(a.int(), b, 0, 1.0)]]),
        r"linears\[0\]\[0\]\.b: ": lambda: LoraBank([[LoraSlice(a, b[:, :1], 0, 1.0)]]),
        r"linears\[0\]\[1\]\.start: column 2": lambda: LoraBank(
            [[LoraSlice(a, b, start, 1.0) for start in (0, 2)]]
        ),
        "linears: ": lambda: LoraBank([[LoraSlice(a, b.bfloat16(), 0, 1.0)]]),
    }.items():
        with pytest.raises(ValueError, match=f"^{name}"):
            call()
