"""Words of a text in any script."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
)
"""Scripts written without spaces: Thai, Lao, Burmese, Khmer, kana and Han (a regex class)."""

_ASCII_WORD = re.compile(r"[a-z0-9]+")
_PIECE = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


@lru_cache(maxsize=1 << 16)
def words(text: str) -> tuple[str, ...]:
    """The lower-case words of a text: runs of letters, marks and digits.

    For ASCII these are the tokens of `rouge-score`'s default tokenizer, which knows no other
    letters. In scripts without spaces each character is a word. A text without any is split at its
    white space.
    """
    lower = text.lower()
    if lower.isascii():
        found = _ASCII_WORD.findall(lower)
    else:
        kept = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in lower)
        found = _PIECE.findall(kept)
    return tuple(found) or tuple(lower.split())
