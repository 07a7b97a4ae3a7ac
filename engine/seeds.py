"""Seeds made of numbers: what is drawn depends on where, not on what was drawn before."""

from __future__ import annotations

import hashlib


def mix(*numbers: int) -> int:
    """A seed in [0, 2^63) that depends on all `numbers` (BLAKE2b of their 64-bit forms)."""
    data = b"".join((number & (2**64 - 1)).to_bytes(8, "little") for number in numbers)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1
