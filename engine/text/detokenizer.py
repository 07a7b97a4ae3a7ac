"""Turns generated ids into text as they come, never showing half a character."""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer as Backend

if TYPE_CHECKING:
    from engine.text.tokenizer import Tokenizer

_TEXT_STEPS = {"Replace", "ByteFallback", "Fuse", "Strip"}
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_of_character() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 as itself, the others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    return dict(zip(characters, printable + others, strict=True))


_BYTE_OF_CHARACTER = _byte_of_character()


@dataclass(frozen=True, slots=True)
class Decoding:
    """How ids become text, read from a tokenizer's decoder.

    Byte-level: every piece is bytes. Otherwise pieces are text, a run of byte pieces is one string
    of UTF-8 (U+FFFD for each byte if it is not valid), and `lstrip` leading spaces are dropped.
    """

    backend: Backend
    byte_level: bool
    replace: tuple[tuple[str, str], ...] = ()
    lstrip: int = 0
    _pieces: dict[int, str | bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, backend: Backend) -> Decoding:
        """Raises ValueError if the decoder is neither byte-level nor with byte fallback."""
        steps = _steps(backend)
        kinds = [step["type"] for step in steps]
        if kinds == ["ByteLevel"]:
            return cls(backend, byte_level=True)
        if "ByteFallback" not in kinds or not _TEXT_STEPS.issuperset(kinds):
            raise ValueError(f"its decoder ({' + '.join(kinds) or 'none'}) is not supported")
        return cls(
            backend,
            byte_level=False,
            replace=tuple(_replacement(step) for step in steps if step["type"] == "Replace"),
            lstrip=sum(step["start"] for step in steps if step["type"] == "Strip"),
        )

    def piece(self, token_id: int) -> str | bytes:
        """The text of one id, or the bytes it adds; b"" for an id the vocabulary lacks."""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._read(token_id)
        return piece

    def _read(self, token_id: int) -> str | bytes:
        token = self.backend.id_to_token(token_id) if token_id >= 0 else None
        if token is None:
            return b""
        if self.byte_level:
            try:
                return bytes(_BYTE_OF_CHARACTER[character] for character in token)
            except KeyError:
                return token.encode()
        if match := _BYTE_PIECE.fullmatch(token):
            return bytes([int(match[1], 16)])
        for old, new in self.replace:
            token = token.replace(old, new)
        return token


class Detokenizer:
    """The text of a growing list of ids, piece by piece.

    The pieces returned by `put` and `finish`, joined, equal `tokenizer.decode(ids)`. A `put` costs
    O(1) amortised. Text is held back only while it may still be part of a character: for byte
    fallback, until the run of byte tokens ends, since one bad byte spoils the whole run there.

    Args:
        tokenizer: whose ids they are.
        skip_special: leave out special tokens.
        continuation: the ids go on from a text, so a space that sentencepiece decoders drop at the
            beginning of a text is kept.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special: bool = True, continuation: bool = False
    ) -> None:
        self._decoding = tokenizer.decoding
        self._skip = tokenizer.special_ids if skip_special else frozenset[int]()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._run = bytearray()
        self._to_strip = 0 if continuation else self._decoding.lstrip

    def put(self, token_id: int) -> str:
        """Add one id; returns the text that is certain now and was not before."""
        if token_id in self._skip:
            return ""
        piece = self._decoding.piece(token_id)
        if not isinstance(piece, bytes):
            return self._strip(self._end_run() + piece)
        if self._decoding.byte_level:
            return self._utf8.decode(piece)
        self._run += piece
        return ""

    def pending(self) -> str:
        """What `finish` would add now, if that is whole characters, else nothing."""
        try:
            return self._run.decode()
        except UnicodeDecodeError:
            return ""

    def finish(self) -> str:
        """The held back rest: U+FFFD where it is no whole character."""
        if self._decoding.byte_level:
            return self._utf8.decode(b"", final=True)
        return self._strip(self._end_run())

    def _end_run(self) -> str:
        run = bytes(self._run)
        self._run.clear()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(run)

    def _strip(self, text: str) -> str:
        while self._to_strip and text:
            if text[0] != " ":
                self._to_strip = 0
                break
            text = text[1:]
            self._to_strip -= 1
        return text


def _steps(backend: Backend) -> list[dict[str, Any]]:
    """The decoder's states, a sequence taken apart."""
    if backend.decoder is None:
        return []
    state: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    return state["decoders"] if state["type"] == "Sequence" else [state]


def _replacement(step: dict[str, Any]) -> tuple[str, str]:
    pattern = step["pattern"].get("String")
    if pattern is None:
        raise ValueError("its decoder replaces by a regular expression, which is not supported")
    return pattern, step["content"]
