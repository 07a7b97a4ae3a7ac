"""What the sampler's filters keep of a row, found without sorting it: device functions.

A row's tokens lie in groups, whose maxima are known. A threshold is first searched among the
maxima, where it comes out too low if anything; the groups whose maximum reaches it are listed, and
all that follows reads those alone.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def ordered(x):
    """Integers that compare as the floats do."""
    bits = x.to(tl.uint32, bitcast=True)
    return tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def as_float(key):
    """The float that `ordered` made `key` of."""
    bits = tl.where((key >> 31) != 0, key ^ 0x80000000, key ^ 0xFFFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def gather(p_x, p_groups, i, n, vocab, LISTED: tl.constexpr, GROUP: tl.constexpr):
    """Elements i of the n in the listed groups (of the first n, without a list), -inf behind the
    end; the place of each, and whether it is there."""
    m = i < n
    o = i
    if LISTED:
        o = tl.load(p_groups + i // GROUP, mask=m, other=0) * GROUP + i % GROUP
        m = m & (o < vocab)
    return tl.load(p_x + o, mask=m, other=-float("inf")), o, m


@triton.jit
def threshold(
    p_x,
    p_groups,
    n,
    vocab,
    need,
    counting,
    peak,
    scale,
    LISTED: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
):
    """The least float, up to `peak`, such that all that exceeds it weighs less than `need`.

    An element weighs 1 if `counting`, else exp2((x - peak) * scale). Found from the highest of
    eight hexadecimal digits to the lowest: all 16 values of a digit are tried in one pass, whose
    sums stay in their threads until it is over.
    """
    o_d = tl.arange(0, 16).to(tl.uint32)
    key = tl.cast(0, tl.uint32)
    for level in range(8):
        step = tl.cast(1, tl.uint32) << (28 - 4 * level)
        b_limit = key + o_d * step + (step - 1)  # [16]
        # [16, TILE]
        b_above = tl.zeros([16, TILE], tl.float32)
        for begin in range(0, n, TILE):
            i = begin + tl.arange(0, TILE)
            b_x, _, m = gather(p_x, p_groups, i, n, vocab, LISTED, GROUP)
            b_w = tl.where(m, tl.where(counting, 1.0, tl.exp2((b_x - peak) * scale)), 0.0)
            m_above = ordered(b_x)[None, :] > b_limit[:, None]
            b_above += tl.where(m_above, b_w[None, :], 0.0)
        reached = tl.sum((tl.sum(b_above, axis=1) >= need).to(tl.int32), axis=0)
        key += tl.minimum(reached, 15).to(tl.uint32) * step
    lowest = tl.cast(0x007FFFFF, tl.uint32)  # of -inf; lower ones are NaN
    return as_float(tl.minimum(tl.maximum(key, lowest), ordered(peak)))


@triton.jit
def list_groups(p_maxima, p_groups, groups, bound, TILE: tl.constexpr):
    """Lists the groups whose maximum reaches `bound`, ascending; their number."""
    count = tl.cast(0, tl.int32)
    for begin in range(0, groups, TILE):
        o = begin + tl.arange(0, TILE)
        b_max = tl.load(p_maxima + o, mask=o < groups, other=-float("inf"))
        b_kept = ((o < groups) & (b_max >= bound)).to(tl.int32)
        tl.store(p_groups + count + tl.cumsum(b_kept, axis=0) - 1, o, mask=b_kept > 0)
        count += tl.sum(b_kept, axis=0)
    tl.debug_barrier()  # the list is read by other threads than wrote it
    return count


@triton.jit
def mass(p_x, p_groups, n, vocab, least, peak, scale, GROUP: tl.constexpr, TILE: tl.constexpr):
    """Weight of the listed elements that reach `least`."""
    total = 0.0
    for begin in range(0, n, TILE):
        i = begin + tl.arange(0, TILE)
        b_x, _, _ = gather(p_x, p_groups, i, n, vocab, True, GROUP)
        b_w = tl.where(b_x >= least, tl.exp2((b_x - peak) * scale), 0.0)
        total += tl.sum(b_w, axis=0)
    return total


@triton.jit
def first_beyond(b_w, b_o, target):
    """The first place at which the running sum exceeds `target`; where rounding lets none, the
    last that weighs anything."""
    m = b_w > 0
    m_beyond = m & (tl.cumsum(b_w, axis=0) > target)
    first = tl.min(tl.where(m_beyond, b_o, 0x7FFFFFFF), axis=0)
    return tl.minimum(first, tl.max(tl.where(m, b_o, 0), axis=0))


@triton.jit
def draw(
    p_x, p_groups, n, vocab, least, peak, scale, random, GROUP: tl.constexpr, TILE: tl.constexpr
):
    """The token that `random` draws among the listed elements that reach `least`."""
    target = random * mass(p_x, p_groups, n, vocab, least, peak, scale, GROUP, TILE)
    before = 0.0
    token = tl.cast(0, tl.int32)
    for begin in range(0, n, TILE):
        i = begin + tl.arange(0, TILE)
        b_x, b_o, _ = gather(p_x, p_groups, i, n, vocab, True, GROUP)
        b_w = tl.where(b_x >= least, tl.exp2((b_x - peak) * scale), 0.0)
        after = before + tl.sum(b_w, axis=0)
        if (before <= target) & (target < after):
            token = first_beyond(b_w, b_o, target - before)
        before = after
    return token
