from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import (
    paged_attention,
    paged_attention_reference,
    store_kv,
    store_kv_reference,
)
from tests.kernels.oracle import FORWARD, assert_close, misaligned


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
    shared_blocks: int = 0
    scale: float = 0.3
    scales: tuple[Tensor, Tensor] | None = None

    def run(self) -> Tensor:
        k_scale, v_scale = self.scales or (None, None)
        return paged_attention(
            *self.tensors(),
            self.scale,
            self.window,
            shared_blocks=self.shared_blocks,
            k_scale=k_scale,
            v_scale=v_scale,
        )

    def oracle(self) -> Tensor:
        caches = [x.double().nan_to_num() for x in (self.k_cache, self.v_cache)]
        if self.scales:
            caches = [x * s[..., None] for x, s in zip(caches, self.scales, strict=True)]
        return paged_attention_reference(
            self.q.double(), *caches, *self.tensors()[3:], self.scale, self.window
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
    cache: torch.dtype | None = None,
) -> Batch:
    """Sequences of (queries, length), the blocks of their first `shared` tokens the same.

    cache: dtype of a quantised cache.
    """
    width = max((-(-n // block_size) for _, n in lengths), default=0)
    blocks = width * len(lengths) + 3
    table = torch.randperm(blocks)[: width * len(lengths)].view(len(lengths), width)
    table[:, : shared // block_size] = table[:1, : shared // block_size]
    shape = (blocks, block_size, kv_heads, dim)
    k_cache, v_cache = torch.full((2, *shape), 99 if cache else torch.nan, dtype=dtype).to(
        cache or dtype
    )
    scales = tuple(torch.full((2, *shape[:3]), torch.nan)) if cache else None
    for s, (_, length) in enumerate(lengths):
        at = torch.arange(length)
        slots = (table[s, at // block_size] * block_size + at % block_size).int()
        k, v = torch.randn(2, length, kv_heads, dim, dtype=dtype)
        store_kv(k, v, k_cache, v_cache, slots, *(scales or ()))
    queries = torch.tensor([0] + [n for n, _ in lengths]).cumsum(0).int()
    q = torch.randn(int(queries[-1]), heads, dim, dtype=dtype)
    seq_lens = torch.tensor([n for _, n in lengths], dtype=torch.int32)
    layout = queries, seq_lens, table.int()
    return Batch(q, k_cache, v_cache, *layout, window, scales=scales)


DECODE = [(1, n) for n in (1, 15, 64, 65, 200, 130)]
SHORT = [(1, 1), (20, 30), (1, 129), (0, 0), (5, 70)]
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
def test_head_dims(backend: str, dtype: torch.dtype, dim: int) -> None:
    batch = make(SHORT if backend == "triton" else MIXED, dtype, dim=dim, kv_heads=1)
    assert_close(batch.run(), batch.oracle(), FORWARD)


@pytest.mark.parametrize("heads", [1, 7, 40])
@pytest.mark.parametrize("lengths", [DECODE, SHORT], ids=["decode", "short"])
def test_one_kv_head(
    backend: str, dtype: torch.dtype, lengths: list[tuple[int, int]], heads: int
) -> None:
    batch = make(lengths, dtype, heads=heads, kv_heads=1)
    assert_close(batch.run(), batch.oracle(), FORWARD)


def test_an_empty_batch(backend: str, dtype: torch.dtype) -> None:
    assert make([], dtype).run().shape == (0, 6, 64)
    assert make([(0, 5), (0, 0)], dtype).run().shape == (0, 6, 64)


@pytest.mark.parametrize("window", [None, 90])
def test_sequences_that_share_blocks(backend: str, dtype: torch.dtype, window: int | None) -> None:
    decodes = 3 if backend == "triton" else 20
    lengths = [(1, 161 + 7 * n) for n in range(decodes)]
    lengths += [(3, 200), (1, 161), (50, 230), (1, 300)]
    batch = make(lengths, dtype, shared=160, window=window)
    batch.block_table[10:15, :8] = batch.block_table[-4, :8]
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


def test_later_keys_are_not_read(invariant: str, dtype: torch.dtype) -> None:
    batch = make([(20, 70)], dtype)
    early = batch.rows(0, 0, 5)
    before = early.run()
    slot = batch.block_table[0, 3], slice(7, None)  # positions from 55 on
    batch.k_cache[slot] = torch.nan
    batch.v_cache[slot] = torch.nan
    assert torch.equal(early.run(), before)


def test_blocks_behind_the_window_may_be_gone(invariant: str, dtype: torch.dtype) -> None:
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


@pytest.mark.parametrize("lengths", [DECODE, SHORT], ids=["decode", "short"])
def test_misaligned_inputs(
    backend: str, dtype: torch.dtype, lengths: list[tuple[int, int]]
) -> None:
    batch = make(lengths, dtype)
    odd = [misaligned(x) for x in batch.tensors()]
    assert_close(Batch(*odd).run(), batch.oracle(), FORWARD)


IN_THE_PREFIX = [(1, 321), (1, 600), (1, 100), (1, 400)]  # or behind it, and its split's end


@pytest.mark.parametrize("window", [None, 200])
@pytest.mark.parametrize("others", [[], [(3, 500), (40, 360), (0, 9), (2, 1)]], ids=str)
def test_a_promise_of_shared_blocks(
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    dtype: torch.dtype,
    others: list[tuple[int, int]],
    window: int | None,
) -> None:
    if backend == "triton":
        monkeypatch.setattr("kernels.triton.paged_attention._WORTH_SHARING", 0)
    batch = make(IN_THE_PREFIX + others[:3], dtype, shared=320, window=window)
    batch.shared_blocks = 20
    assert_close(batch.run(), batch.oracle(), FORWARD)


@pytest.mark.parametrize("blocks", [2, 6], ids=lambda blocks: f"{16 * blocks} keys")
def test_a_shared_prefix_ends_where_tiles_of_either_kernel_do(
    monkeypatch: pytest.MonkeyPatch, backend: str, dtype: torch.dtype, blocks: int
) -> None:
    """Before compute capability 9.0 the prefix's tiles are half as long as a decode step's."""
    if backend == "triton":
        monkeypatch.setattr("kernels.triton.paged_attention._WORTH_SHARING", 0)
        monkeypatch.setattr("kernels.triton.paged_attention.arch", lambda: 80)
    shared = 16 * blocks
    batch = make([(1, shared + n) for n in (5, 80, 1)], dtype, shared=shared)
    batch.shared_blocks = blocks
    assert_close(batch.run(), batch.oracle(), FORWARD)


@pytest.mark.parametrize("others", [[], [(2, 256), (3, 200)]], ids=["decode", "mixed"])
def test_a_whole_table_shared(
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    dtype: torch.dtype,
    others: list[tuple[int, int]],
) -> None:
    """It is as long as a split, so that the prefix's one partial result is all there is."""
    if backend == "triton":
        monkeypatch.setattr("kernels.triton.paged_attention._WORTH_SHARING", 0)
    batch = make([(1, 256), (1, 100), *others], dtype, shared=256)
    batch.shared_blocks = 16
    assert_close(batch.run(), batch.oracle(), FORWARD)


def test_scratch_is_by_tokens_where_these_are_few(backend: str, dtype: torch.dtype) -> None:
    """Sequences of few queries, of which each would have room for more."""
    batch, empty, taken = make([(1, 300), (2, 260), (0, 0), (4, 20)], dtype), torch.empty, []

    def counted(*size: Any, **options: Any) -> Tensor:
        taken.append(empty(*size, **options))
        return taken[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", counted)
        out = batch.run()
    assert_close(out, batch.oracle(), FORWARD)
    if backend == "triton":
        assert [x.shape[:3] for x in taken if x.dtype == torch.float32 and x.dim() > 2][:2] == [
            (7, 6, 2)
        ] * 2


def test_tokens_as_many_as_sequences_are_no_decode_step_yet(
    monkeypatch: pytest.MonkeyPatch, backend: str, dtype: torch.dtype
) -> None:
    if backend == "triton":
        monkeypatch.setattr("kernels.triton.paged_attention._WORTH_SHARING", 0)
    batch = make([(0, 70), (3, 90), (0, 0), (1, 300)], dtype, shared=64)
    batch.shared_blocks = 4
    assert_close(batch.run(), batch.oracle(), FORWARD)


@pytest.mark.parametrize("cache", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("lengths", [DECODE, SHORT], ids=["decode", "short"])
def test_quantised_caches(
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    dtype: torch.dtype,
    lengths: list[tuple[int, int]],
    cache: torch.dtype,
) -> None:
    batch = make(lengths, dtype, heads=4, shared=64, cache=cache)
    assert_close(batch.run(), batch.oracle(), FORWARD)
    if backend == "triton":
        monkeypatch.setattr("kernels.triton.paged_attention.arch", lambda: 80)  # knows no e4m3
        monkeypatch.setattr("kernels.triton.paged_attention._WORTH_SHARING", 0)
        batch.shared_blocks = 4
        assert_close(batch.run(), batch.oracle(), FORWARD)


@pytest.mark.parametrize("cache", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_store_kv_quantises(backend: str, dtype: torch.dtype, cache: torch.dtype) -> None:
    k, v = (
        torch.randn(2, 50, 3, 40, dtype=dtype) * torch.logspace(-6, 3, 50).to(dtype)[:, None, None]
    )
    k[7], v[:, 1, 1:] = 0, 0
    slots = torch.randperm(80)[:50].int()
    found, expected = (
        [*torch.zeros(2, 10, 8, 3, 40).to(cache), *torch.full((2, 10, 8, 3), torch.nan)]
        for _ in range(2)
    )
    store_kv(k, v, *found[:2], slots, *found[2:])
    store_kv_reference(k, v, *expected[:2], slots, *expected[2:])
    for actual, exact in zip(found, expected, strict=True):
        assert torch.equal(actual.float().nan_to_num(), exact.float().nan_to_num())
    at = slots.long() // 8, slots.long() % 8
    rounded = found[0][at].double() * found[2][at].double()[..., None]
    step = k.double().abs().amax(-1, keepdim=True) / (127 if cache == torch.int8 else 14)
    assert ((rounded - k.double()).abs() <= 0.51 * step).all()


@pytest.mark.parametrize("cache", [None, torch.int8], ids=["plain", "int8"])
def test_store_kv_misaligned(backend: str, dtype: torch.dtype, cache: torch.dtype | None) -> None:
    k, v = torch.randn(2, 50, 3, 64, dtype=dtype)
    slots = torch.randperm(80)[:50].int()
    expected = [*torch.zeros(2, 10, 8, 3, 64, dtype=cache or dtype)]
    expected += [*torch.zeros(2, 10, 8, 3)] if cache else []
    found = [misaligned(x) for x in expected]
    store_kv(misaligned(k), misaligned(v), *found[:2], misaligned(slots), *found[2:])
    store_kv_reference(k, v, *expected[:2], slots, *expected[2:])
    assert all(map(torch.equal, found, expected))


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
        "scale": 0.0,
        "shared_blocks": 3,
    }
    for name, value in bad.items():
        with pytest.raises(ValueError, match=rf"^{name}:"):
            replace(batch, **{name: value}).run()
    for name in ("k_cache", "v_cache"):
        strided = getattr(batch, name).transpose(1, 2).contiguous().transpose(1, 2)
        with pytest.raises(ValueError, match=rf"^{name}: each block"):
            replace(batch, **{name: strided}).run()
    scale = torch.ones(batch.k_cache.shape[:3])
    strided = scale.transpose(1, 2).contiguous().transpose(1, 2)
    quantised = {name: getattr(batch, name).to(torch.int8) for name in ("k_cache", "v_cache")}
    for name, *scales in (
        ("k_cache", scale, scale),
        ("k_scale", scale[1:], scale),
        ("k_scale", strided, scale),
        ("v_scale", scale, strided),
        ("v_scale", scale, None),
        ("v_scale", None, scale),
    ):
        caches = {} if name == "k_cache" or scales[0] is None else quantised
        with pytest.raises(ValueError, match=rf"^{name}:"):
            replace(batch, **caches, scales=scales).run()
    k, slots = torch.randn(3, 2, 64), torch.arange(3).int()
    caches = batch.k_cache, batch.v_cache
    with pytest.raises(ValueError, match=r"^k:"):
        store_kv(k[0], k[0], *caches, slots)
    with pytest.raises(ValueError, match=r"^k_cache:"):
        store_kv(k[..., :8], k[..., :8], *caches, slots)
    with pytest.raises(ValueError, match=r"^v:"):
        store_kv(k, k[:2], *caches, slots)
    with pytest.raises(ValueError, match=r"^slots:"):
        store_kv(k, k, *caches, slots.long())


def test_the_card_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same until the driver or its device is another."""
    triton = pytest.importorskip("triton")
    from kernels.triton.target import arch, shared_bytes

    class Driver:
        asked = device = 0

        def get_current_device(self) -> int:
            return self.device

        def get_current_target(self) -> SimpleNamespace:
            self.asked += 1
            return SimpleNamespace(arch=(80, 120)[self.device])

    driver = Driver()
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    assert [(arch(), shared_bytes()) for _ in range(3)] == [(80, 166_912)] * 3
    driver.device = 1
    assert [(arch(), shared_bytes()) for _ in range(3)] == [(120, 101_376)] * 3
    assert driver.asked == 2
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    assert arch() == 80
