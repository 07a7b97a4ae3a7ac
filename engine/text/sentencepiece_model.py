"""Reads a sentencepiece `.model` file and builds the equal tokenizer of the `tokenizers` package.

A `.model` is one protobuf message, `ModelProto` (sentencepiece_model.proto in the sentencepiece
project). Only the few fields that shape segmentation are read here; the wire format itself is
described at https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

SPACE = "▁"  # how sentencepiece writes a space inside a piece
_NEVER = -1e6  # log-probability of pieces that text must not produce in a unigram model


class PieceType(IntEnum):
    """What a vocabulary entry is; the numbers of sentencepiece and of GGUF's `token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Piece:
    """One vocabulary entry; its id is its position."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """The fields of a `.model` that decide how text becomes ids."""

    pieces: Sequence[Piece]
    unigram: bool = False
    byte_fallback: bool = True
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = False
    charsmap: bytes = b""
    ids: Mapping[str, int] = field(default_factory=dict)  # "bos_token" -> id, for those that exist

    @classmethod
    def parse(cls, data: bytes) -> SentencePieceModel:
        """Read a serialized ModelProto. Raises ValueError (or struct.error) if it is damaged."""
        pieces: list[Piece] = []
        trainer, normalizer = b"", b""
        for number, value in _fields(data):
            if number == 1:
                pieces.append(_piece(_bytes(value)))
            elif number == 2:
                trainer = _bytes(value)
            elif number == 3:
                normalizer = _bytes(value)
        if not pieces:
            raise ValueError("no pieces")
        spec, rules = dict(_fields(trainer)), dict(_fields(normalizer))
        kind = spec.get(3, 1)
        if kind not in (1, 2):
            raise ValueError("only the model types unigram and bpe are supported, not word or char")
        numbers = {"unk_token": spec.get(40, 0), "bos_token": spec.get(41, 1),
                   "eos_token": spec.get(42, 2), "pad_token": spec.get(43, -1)}  # fmt: skip
        return cls(
            pieces=pieces,
            unigram=kind == 1,
            byte_fallback=bool(spec.get(35, 0)),
            add_dummy_prefix=bool(rules.get(3, 1)),
            remove_extra_whitespaces=bool(rules.get(4, 1)),
            charsmap=_bytes(rules.get(2, b"")),
            ids={k: v for k, v in numbers.items() if isinstance(v, int) and 0 <= v < len(pieces)},
        )


def build(model: SentencePieceModel, *, prefix_every_segment: bool) -> Tokenizer:
    """A `tokenizers.Tokenizer` that gives sentencepiece's ids, special tokens included.

    `prefix_every_segment`: the dummy prefix space is put before the text after each special token
    too (transformers' `legacy`, llama.cpp), not only before a text's beginning.
    """
    tokenizer = Tokenizer(_unigram(model) if model.unigram else _bpe(model))
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.add_dummy_prefix and prefix_every_segment:
        steps.append(normalizers.Prepend(SPACE))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    if model.add_dummy_prefix and not prefix_every_segment:
        # Metaspace leaves out the prefix where a text already begins with its replacement, which
        # sentencepiece does not. A plain space never begins one here (they are all ▁ by now), so
        # the first step always adds it, at a text's very beginning only; the second respells it.
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(replacement=" ", prepend_scheme="first", split=False),
                pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False),
            ]
        )
    strip = [decoders.Strip(" ", 1, 0)] if model.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.add_tokens(added_tokens([(piece.text, piece.type) for piece in model.pieces]))
    return tokenizer


def added_tokens(entries: Sequence[tuple[str, int]]) -> list[AddedToken]:
    """The vocabulary entries matched whole in a text before it is segmented, in id order."""
    special = (PieceType.CONTROL, PieceType.UNKNOWN)
    return [
        AddedToken(text, normalized=False, special=kind in special)
        for text, kind in entries
        if text and (kind in special or kind == PieceType.USER_DEFINED)
    ]


def _bpe(model: SentencePieceModel) -> models.BPE:
    vocab = {piece.text: number for number, piece in enumerate(model.pieces)}
    unknown = next((p.text for p in model.pieces if p.type == PieceType.UNKNOWN), None)
    return models.BPE(
        vocab=vocab,
        merges=merges_by_score(model.pieces),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def merges_by_score(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Every way of making a piece from two others, best score first.

    sentencepiece joins the neighbours whose joined piece scores best; a rank per pair says the
    same. Special, byte and unused pieces never come from joining.
    """
    ids = {p.text: number for number, p in enumerate(pieces) if p.type == PieceType.NORMAL}
    ranked: list[tuple[float, int, int, str, str]] = []
    for text in ids:
        score = -pieces[ids[text]].score
        for cut in range(1, len(text)):
            left, right = ids.get(text[:cut]), ids.get(text[cut:])
            if left is not None and right is not None:
                ranked.append((score, left, right, text[:cut], text[cut:]))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _unigram(model: SentencePieceModel) -> models.Unigram:
    usable = (PieceType.NORMAL, PieceType.USER_DEFINED)
    vocab = [(p.text, p.score if p.type in usable else _NEVER) for p in model.pieces]
    return models.Unigram(
        vocab, unk_id=model.ids.get("unk_token", 0), byte_fallback=model.byte_fallback
    )


def _piece(data: bytes) -> Piece:
    values = dict(_fields(data))
    (score,) = struct.unpack("<f", _bytes(values.get(2, b"\0\0\0\0")))
    kind = values.get(3, 1)
    return Piece(_bytes(values.get(1, b"")).decode(), score, PieceType(int(kind)))


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a field has the wrong type")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protobuf message; fixed-width values stay bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        wire = tag & 7
        if wire == 0:
            number, position = _varint(data, position)
            yield tag >> 3, number - (1 << 64) if number >= 1 << 63 else number
            continue
        size = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            size, position = _varint(data, position)
        if size is None or position + size > len(data):
            raise ValueError("truncated or not a sentencepiece model")
        yield tag >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("truncated or not a sentencepiece model")
