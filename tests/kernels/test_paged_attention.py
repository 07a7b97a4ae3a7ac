from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from kernels import paged_attention, paged_attention_reference, store_kv
from tests.kernels.oracle import FORWARD, assert_close


@dataclass
class Batch:
    """Sequences in a paged cache; slots that no sequence uses hold NaN."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    cu_seqlens_q: Tensor
    seq_lens: Tensor
    block_table: Tensor
    window: int | None = None

    def run(self) -> Tensor:
        return paged_attention(*self.tensors(), 0.3, self.window)

    def oracle(self) -> Tensor:
        caches = (x.nan_to_num().double() for x in (self.k_cache, self.v_cache))
        return paged_attention_reference(
            self.q.double(), *caches, *self.tensors()[3:], 0.3, self.window
        )

    def tensors(self) -> tuple[Tensor, ...]:
        caches = self.k_cache, self.v_cache
        return self.q, *caches, self.cu_seqlens_q, self.seq_lens, self.block_table

    def rows(self, s: int, first: int, last: int) -> Batch:
        """Queries first..last of sequence s alone, as they stood in an earlier chunk."""
        start, end = self.cu_seqlens_q[s].item(), self.cu_seqlens_q[s + 1].item()
        length = self.seq_lens[s].item() - (end - start) + last
        return replace(
            self,
            q=self.q[start + first : start + last],
            cu_seqlens_q=torch.tensor([0, last - first], dtype=torch.int32),
            seq_lens=torch.tensor([length], dtype=torch.int32),
            block_table=self.block_table[s : s + 1],
        )


def make(
    lengths: list[tuple[int, int]],
    dtype: torch.dtype,
    *,
    heads: int = 6,
    kv_heads: int = 2,
    dim: int = 64,
    block_size: int = 16,
    shared: int = 0,
    window: int | None = None,
) -> Batch:
    """Sequences of (queries, length), the blocks of their first `shared` tokens the same."""
    width = max((-(-n // block_size) for _, n in lengths), default=0)
    blocks = width * len(lengths) + 3
    table = torch.randperm(blocks)[: width * len(lengths)].view(len(lengths), width)
    table[:, : shared // block_size] = table[:1, : shared // block_size]
    shape = (blocks, block_size, kv_heads, dim)
    k_cache, v_cache = (torch.full(shape, torch.nan, dtype=dtype) for _ in range(2))
    for s, (_, length) in enumerate(lengths):
        at = torch.arange(length)
        slots = (table[s, at // block_size] * block_size + at % block_size).int()
        k, v = torch.randn(2, length, kv_heads, dim, dtype=dtype)
        store_kv(k, v, k_cache, v_cache, slots)
    queries = torch.tensor([0] + [n for n, _ in lengths]).cumsum(0).int()
    q = torch.randn(int(queries[-1]), heads, dim, dtype=dtype)
    seq_lens = torch.tensor([n for _, n in lengths], dtype=torch.int32)
    return Batch(q, k_cache, v_cache, queries, seq_lens, table.int(), window)


DECODE = [(1, n) for n in (1, 15, 64, 65, 200, 130)]
MIXED = [(1, 1), (63, 63), (1, 129), (0, 0), (5, 300), (40, 41), (0, 7), (2, 64)]


@pytest.mark.parametrize(
    ("block_size", "window"), [(16, None), (16, 1), (1, 37), (20, 100), (128, None)]
)
@pytest.mark.parametrize("lengths", [DECODE, MIXED], ids=["decode", "mixed"])
def test_against_the_reference(
    backend: str,
    dtype: torch.dtype,
    lengths: list[tuple[int, int]],
    block_size: int,
    window: int | None,
) -> None:
    batch = make(lengths, dtype, block_size=block_size, window=window)
    assert_close(batch.run(), batch.oracle(), FORWARD)


@pytest.mark.parametrize("group", range(1, 9))
def test_query_heads_per_kv_head(native: str, dtype: torch.dtype, group: int) -> None:
    batch = make(MIXED, dtype, heads=3 * group, kv_heads=3)
    assert_close(batch.run(), batch.oracle(), FORWARD)


@pytest.mark.parametrize("dim", [1, 2, 8, 31, 64, 80, 96, 100, 128, 256])
def test_head_dims(native: str, dtype: torch.dtype, dim: int) -> None:
    batch = make(MIXED, dtype, dim=dim, kv_heads=1)
    assert_close(batch.run(), batch.oracle(), FORWARD)


@pytest.mark.parametrize("heads", [1, 40])
def test_one_kv_head(native: str, dtype: torch.dtype, heads: int) -> None:
    batch = make(DECODE, dtype, heads=heads, kv_heads=1)
    assert_close(batch.run(), batch.oracle(), FORWARD)


def test_an_empty_batch(backend: str, dtype: torch.dtype) -> None:
    assert make([], dtype).run().shape == (0, 6, 64)
    assert make([(0, 5), (0, 0)], dtype).run().shape == (0, 6, 64)


@pytest.mark.parametrize("window", [None, 90])
def test_sequences_that_share_blocks(backend: str, dtype: torch.dtype, window: int | None) -> None:
    lengths = [(1, 161 + 7 * n) for n in range(20)] + [(3, 200), (1, 161), (50, 230), (1, 300)]
    batch = make(lengths, dtype, shared=160, window=window)
    batch.block_table[10:15, :8] = batch.block_table[16, :8]
    out = batch.run()
    assert_close(out, batch.oracle(), FORWARD)
    if backend == "reference":
        return
    for s in range(len(lengths)):
        alone = batch.rows(s, 0, lengths[s][0]).run()
        assert torch.equal(out[batch.cu_seqlens_q[s] : batch.cu_seqlens_q[s + 1]], alone)


@pytest.mark.parametrize("window", [None, 50])
def test_a_row_does_not_depend_on_chunks(
    native: str, dtype: torch.dtype, window: int | None
) -> None:
    batch = make([(230, 250), (1, 100), (9, 9)], dtype, window=window)
    out = batch.run()
    for first, last in ((0, 1), (0, 100), (43, 45), (45, 108), (108, 230), (229, 230)):
        assert torch.equal(out[first:last], batch.rows(0, first, last).run())


def test_later_keys_are_not_read(native: str, dtype: torch.dtype) -> None:
    batch = make([(20, 70)], dtype)
    early = batch.rows(0, 0, 5)
    before = early.run()
    slot = batch.block_table[0, 3], slice(7, None)  # positions from 55 on
    batch.k_cache[slot] = torch.nan
    batch.v_cache[slot] = torch.nan
    assert torch.equal(early.run(), before)


def test_blocks_behind_the_window_may_be_gone(native: str, dtype: torch.dtype) -> None:
    batch = make([(3, 200), (1, 190)], dtype, window=40)
    expected = batch.run()
    batch.block_table[:, :8] = -1
    assert torch.equal(batch.run(), expected)


def test_strided_inputs(backend: str, dtype: torch.dtype) -> None:
    batch = make(MIXED, dtype)
    expected = batch.run()
    layers = torch.stack((batch.k_cache, batch.v_cache), dim=1)
    batch.q = torch.cat((batch.q, batch.q), dim=1)[:, :6]
    batch.k_cache, batch.v_cache = layers[:, 0], layers[:, 1]
    batch.block_table = torch.nn.functional.pad(batch.block_table, (0, 9))[:, :-4]
    assert torch.equal(batch.run(), expected)


@pytest.mark.parametrize("tokens", [0, 1, 63])
def test_store_kv(backend: str, dtype: torch.dtype, tokens: int) -> None:
    qkv = torch.randn(tokens, 9, 40, dtype=dtype)
    k, v = qkv[:, 3:6], qkv[:, 6:]
    caches = torch.zeros(2, 10, 8, 3, 40, dtype=dtype)
    slots = torch.randperm(80)[:tokens].int()
    store_kv(k, v, caches[0], caches[1], slots)
    flat = caches.flatten(1, 2)
    assert torch.equal(flat[0, slots.long()], k)
    assert torch.equal(flat[1, slots.long()], v)
    assert caches.count_nonzero() == k.count_nonzero() + v.count_nonzero()


def test_indices_out_of_range(native: str) -> None:
    batch = make([(1, 20), (2, 30)], torch.float32)
    bad = {
        "seq_lens": torch.tensor([20, 1]),
        "block_table": torch.tensor([[0, 1], [0, 99]]),
        "cu_seqlens_q": torch.tensor([0, 2, 1]),
    }
    for name, value in bad.items():
        with pytest.raises(ValueError, match=rf"^{name}:"):
            replace(batch, **{name: value.int()}).run()
    with pytest.raises(ValueError, match=r"^block_table:"):
        replace(batch, block_table=batch.block_table[:, :1]).run()
    k = torch.randn(1, 2, 64)
    for slot in (-1, 10**6):
        with pytest.raises(ValueError, match=r"^slots:"):
            store_kv(k, k, batch.k_cache, batch.v_cache, torch.tensor([slot]).int())


def test_bad_arguments() -> None:
    batch = make([(1, 20), (2, 30)], torch.float32)
    bad = {
        "q": batch.q[:, :5],
        "k_cache": batch.k_cache.bfloat16(),
        "v_cache": batch.v_cache[:2],
        "cu_seqlens_q": batch.cu_seqlens_q[:2],
        "seq_lens": batch.seq_lens.long(),
        "block_table": batch.block_table[:1],
        "window": 0,
    }
    for name, value in bad.items():
        with pytest.raises(ValueError, match=rf"^{name}:"):
            replace(batch, **{name: value}).run()
    k, slots = torch.randn(3, 2, 64), torch.arange(3).int()
    caches = batch.k_cache, batch.v_cache
    with pytest.raises(ValueError, match=r"^k:"):
        store_kv(k[..., :8], k, *caches, slots)
    with pytest.raises(ValueError, match=r"^v:"):
        store_kv(k, k[:2], *caches, slots)
    with pytest.raises(ValueError, match=r"^slots:"):
        store_kv(k, k, *caches, slots.long())
