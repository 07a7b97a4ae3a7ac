"""The tiles of a pack's queries and of its keys: lists made on the device, with no wait for it.

The query heads of one KV head are rows of one matrix: row r of a segment is head `r % group` of
token `r // group`. A tile of queries is then dense even where segments are short, and reads its
keys once for the whole group. Lists are as long as the host can tell that they may have to be;
entries that stand for nothing come last, and their programs end at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.attention import Segments

_Tiles = TypeVar("_Tiles")
_KNOWN: WeakKeyDictionary[Segments, dict[tuple[object, ...], object]] = WeakKeyDictionary()


def _once_per_pack(build: Callable[..., _Tiles]) -> Callable[..., _Tiles]:
    """All layers of a step share one `Segments`, so its lists are made once."""

    @wraps(build)
    def known(segments: Segments, *numbers: int) -> _Tiles:
        lists = _KNOWN.setdefault(segments, {})
        key = (build.__name__, *numbers)
        if key not in lists:
            lists[key] = build(segments, *numbers)
        return lists[key]  # type: ignore[return-value]

    return known


def _spread(counts: Tensor, bound: int) -> tuple[Tensor, Tensor, Tensor]:
    """Groups of `counts` items end to end: each item's group, place in it, and whether it is one.

    All are `[bound]`, of which the first `counts.sum()` are items.
    """
    ends = counts.cumsum(0)
    item = torch.arange(bound, device=counts.device)
    group = torch.searchsorted(ends, item, right=True)
    live = group < len(counts)
    group = group.clamp_max(len(counts) - 1)
    return group, item - (ends - counts)[group], live


def _longest_first(fields: list[Tensor], cost: Tensor, live: Tensor) -> Tensor:
    """`[N, len(fields)]` int32, zeros where not live: what starts last should not last long."""
    order = cost.where(live, -1).argsort(descending=True, stable=True)
    return torch.stack([x.where(live, 0) for x in fields], 1)[order].int()


@dataclass(frozen=True)
class _Bounds:
    """Of each segment: first token, length, the prefix's number, first token and length (0)."""

    start: Tensor
    length: Tensor
    parent: Tensor
    before: Tensor
    prefix: Tensor

    @classmethod
    def of(cls, segments: Segments) -> _Bounds:
        cu_seqlens, parent = segments.cu_seqlens.long(), segments.prefix.long()
        start, length = cu_seqlens[:-1], cu_seqlens.diff()
        earlier = parent.clamp_min(0)
        prefix = length[earlier].where(parent >= 0, 0)
        return cls(start, length, parent, start[earlier], prefix)


@_once_per_pack
def query_tiles(segments: Segments, tokens: int, group: int, block: int) -> Tensor:
    """Tiles of `block` rows, `[N, 5]` int32.

    An entry: the segment's first token and length, its prefix's first token and length, and the
    tile's first row. Length 0 stands for nothing.
    """
    at = _Bounds.of(segments)
    counts = (at.length * group + block - 1) // block
    bound = tokens * group // block + min(tokens, len(counts))
    s, tile, live = _spread(counts, bound)
    fields = [at.start[s], at.length[s], at.before[s], at.prefix[s], tile * block]
    return _longest_first(fields, at.prefix[s] + (tile + 1) * block // group, live)


@dataclass(frozen=True)
class KeyTiles:
    """Tiles of `block` keys, each with the rows that see them.

    Attributes:
        readers: `[2, 2T]` int32, tokens and their positions (over prefix and own tokens): each
            segment's own tokens, and behind them those of all segments that continue it. Row r is
            head `r % group` of the segment's reader `r // group`.
        work: `[N, 10]` int32. An entry: the tile's first token, number of keys (0 for nothing) and
            first position; the segment's first reader; the rows to go through, from and to; the
            first that sees all keys of the tile; the last position of any reader; whether others
            than the segment itself read; and the slot for the sums, -1 where these rows are all.
        merges: `[M, 4]` int32. An entry: the tile's first token, number of keys (0 for nothing),
            first slot and number of slots.
        slots: how many slots there may be.
    """

    readers: Tensor
    work: Tensor
    merges: Tensor
    slots: int


@_once_per_pack
def key_tiles(segments: Segments, tokens: int, group: int, block: int, chunk: int) -> KeyTiles:
    """Tiles of keys, where a prefix's readers are cut into chunks of `chunk` rows.

    Each chunk's sums go to a slot of their own. P tokens of prefixes and Q that continue them are
    at most `tokens`, which bounds the slots.
    """
    at = _Bounds.of(segments)
    readers, first, others, reach = _readers(at, tokens)
    tiles = (at.length + block - 1) // block
    chunks = ((others * group + chunk - 1) // chunk).clamp_min(1)
    split = tokens * group // chunk if len(tiles) > 1 else 0  # at most so many prefixes have chunks
    whole, more = tokens // block + min(tokens, len(tiles)), 0
    if split:
        more = tokens * tokens * group // (4 * block * chunk) + split
    s, item, live = _spread(tiles * chunks, whole + more)
    part, key = item % chunks[s], item // chunks[s] * block
    slots = (tiles * chunks).where(chunks > 1, 0)
    slot = (slots.cumsum(0) - slots)[s] + item
    own, total = at.length[s] * group, (at.length + others)[s] * group
    begin = (key * group).where(part == 0, own + part * chunk)
    end = torch.minimum(own + (part + 1) * chunk, total)
    keys = (at.length[s] - key).clamp_max(block)
    fields = [
        at.start[s] + key,
        keys,
        at.prefix[s] + key,
        first[s],
        begin,
        end,
        (key + keys - 1) * group,
        reach[s],
        others[s] > 0,
        slot.where(chunks[s] > 1, -1),
    ]
    work = _longest_first(fields, end - begin, live)
    merged = tokens // block + split if split else 0
    return KeyTiles(readers, work, _merges(at, tiles, chunks, block, merged), more + merged)


def _readers(at: _Bounds, tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All readers; of each segment its first one, how many others read it, the last position."""
    count = len(at.length)
    token = torch.arange(tokens, device=at.start.device)
    s = torch.searchsorted(at.start + at.length, token, right=True)
    parent = at.parent.where(at.parent >= 0, count)  # those without a prefix sort last
    order = torch.cat([s, parent[s]]).argsort(stable=True)
    position = token - at.start[s] + at.prefix[s]
    readers = torch.stack([token.repeat(2), position.repeat(2)])[:, order].int()
    others = at.length.new_zeros(count + 1).scatter_add_(0, parent, at.length)[:count]
    last = at.prefix + at.length - 1
    reach = last.new_zeros(count + 1).scatter_reduce_(0, parent, last, "amax")[:count]
    each = at.length + others
    return readers, each.cumsum(0) - each, others, torch.maximum(reach, last)


def _merges(at: _Bounds, tiles: Tensor, chunks: Tensor, block: int, bound: int) -> Tensor:
    tiles = tiles.where(chunks > 1, 0)
    s, tile, live = _spread(tiles, bound)
    slots = tiles * chunks
    fields = [
        at.start[s] + tile * block,
        (at.length[s] - tile * block).clamp_max(block),
        (slots.cumsum(0) - slots)[s] + tile * chunks[s],
        chunks[s],
    ]
    return torch.stack([x.where(live, 0) for x in fields], 1).int()


@triton.jit
def query_tile(p_tiles, i_tile, i_head, GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    """A tile of `query_tiles`.

    Returns the segment (first token and length, those of its prefix); its tokens that the tile
    begins and ends with; and each row's token, head, position, and whether it is one.
    """
    p_tile = p_tiles + i_tile * 5
    start, length = tl.load(p_tile), tl.load(p_tile + 1)
    before, prefix, row = tl.load(p_tile + 2), tl.load(p_tile + 3), tl.load(p_tile + 4)
    o_r = row + tl.arange(0, BLOCK_M)
    o_query, o_head = start + o_r // GROUP, i_head * GROUP + o_r % GROUP
    o_position = prefix + tl.minimum(o_r // GROUP, length - 1)
    first, last = row // GROUP, tl.minimum((row + BLOCK_M - 1) // GROUP, length - 1)
    segment = start, length, before, prefix
    return segment, first, last, o_query, o_head, o_position, o_r < length * GROUP


@triton.jit
def tiles_in_sight(keys, first, last, window, BLOCK_N: tl.constexpr, MASKED: tl.constexpr):
    """Tiles of `keys` keys that queries at positions `first` to `last` among these see: those that
    need a mask, or those that all queries see in full.

    Returns the first tile, the number of tiles, how many of them the window's edge cuts, and how
    many tiles that need no mask follow these.
    """
    end = tl.cdiv(tl.minimum(keys, last + 1), BLOCK_N)
    full_end = tl.minimum(keys, first + 1) // BLOCK_N
    if window is None:
        begin, full_begin, full = 0, 0, full_end
    else:
        begin = tl.minimum(tl.maximum(first - window + 1, 0) // BLOCK_N, end)
        full_begin = tl.minimum(tl.cdiv(tl.maximum(last - window + 1, 0), BLOCK_N), end)
        full = tl.maximum(full_end - full_begin, 0)
    if MASKED:
        return begin, end - begin - full, full_begin - begin, full
    return full_begin, full, 0, 0


@triton.jit
def key_tile(i, segment, theirs, own, BLOCK_N: tl.constexpr):
    """Tile `i` of those of the prefix (`theirs`) and of the segment, as `tiles_in_sight` has them.

    Returns its keys' tokens, how many keys there are from its first one on, and their position.
    """
    start, length, before, prefix = segment
    m_own = i >= theirs[1]
    i_own = i - theirs[1]
    tile = tl.where(
        m_own,
        own[0] + i_own + tl.where(i_own >= own[2], own[3], 0),
        theirs[0] + i + tl.where(i >= theirs[2], theirs[3], 0),
    )
    key = tile * BLOCK_N
    o_token = tl.where(m_own, start, before) + key + tl.arange(0, BLOCK_N)
    return (
        o_token.to(tl.int64),
        tl.where(m_own, length, prefix) - key,
        tl.where(m_own, prefix, 0) + key,
    )


@triton.jit
def visible(o_position, position, keys, window, BLOCK_N: tl.constexpr):
    """`[M, BLOCK_N]`: whether the queries see the `keys` keys from `position` on."""
    o_n = tl.arange(0, BLOCK_N)
    o_at = o_position - position
    m = o_n[None, :] <= tl.minimum(o_at, keys - 1)[:, None]
    if window is not None:
        m = m & (o_n[None, :] > (o_at - window)[:, None])
    return m


@triton.jit
def load_rows(p_row, o_d, m_row, D: tl.constexpr, MASKED: tl.constexpr):
    """Rows of D numbers, with zeros from column D on and, if MASKED, where `m_row` is false."""
    p = p_row[:, None] + o_d[None, :]
    if MASKED:
        return tl.load(p, mask=m_row[:, None] & (o_d < D)[None, :], other=0.0)
    if o_d.shape[0] > D:
        return tl.load(p, mask=(o_d < D)[None, :], other=0.0)
    return tl.load(p)
