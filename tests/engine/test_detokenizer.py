"""The detokenizer never shows half a character, and shows in the end what decode shows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text.detokenizer import Detokenizer
from engine.text.tokenizer import Tokenizer
from tests.engine.tiny_tokenizers import (
    byte_level_folder,
    nasty_texts,
    sentencepiece_folder,
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("tokenizers")
    folders = {
        "gpt2": byte_level_folder(
            root / "gpt2", "gpt2", additional_special_tokens=["two words", "ünï"]
        ),
        "llama3": byte_level_folder(root / "llama3", "llama3"),
        "bpe": sentencepiece_folder(root / "bpe", "bpe", user_defined=("<user>",)),
        "legacy": sentencepiece_folder(root / "legacy", "bpe", legacy=True),
        "unigram": sentencepiece_folder(root / "unigram", "unigram"),
    }
    return {name: Tokenizer.from_folder(folder) for name, folder in folders.items()}


def _pieces(tokenizer: Tokenizer, ids: list[int], *, skip_special: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip_special=skip_special)
    return [*map(detokenizer.put, ids), detokenizer.finish()]


def test_texts_come_back_whole(tokenizers: dict[str, Tokenizer]) -> None:
    for tokenizer in tokenizers.values():
        for text in nasty_texts():
            ids = tokenizer.encode(text, special=False)
            pieces = _pieces(tokenizer, ids)
            assert "".join(pieces) == tokenizer.decode(ids)
            if "\ufffd" not in text:
                assert not any("\ufffd" in piece for piece in pieces)


@given(data=st.data(), skip=st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_ids_equal_decode(
    tokenizers: dict[str, Tokenizer], data: st.DataObject, skip: bool
) -> None:
    tokenizer = tokenizers[data.draw(st.sampled_from(sorted(tokenizers)))]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 5), max_size=40))
    assert "".join(_pieces(tokenizer, ids, skip_special=skip)) == tokenizer.decode(
        ids, skip_special=skip
    )


@given(data=st.binary(max_size=24), skip=st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_bytes_equal_decode(tokenizers: dict[str, Tokenizer], data: bytes, skip: bool) -> None:
    """Also invalid UTF-8, byte by byte, with a special token in the middle."""
    for name in ("gpt2", "bpe"):
        tokenizer = tokenizers[name]
        byte_ids = _byte_ids(tokenizer)
        special = min(tokenizer.special_ids)
        ids = [byte_ids[byte] for byte in data]
        ids.insert(len(ids) // 2, special)
        assert "".join(_pieces(tokenizer, ids, skip_special=skip)) == tokenizer.decode(
            ids, skip_special=skip
        )


def _byte_ids(tokenizer: Tokenizer) -> dict[int, int]:
    pieces = {number: tokenizer.decoding.piece(number) for number in range(tokenizer.vocab_size)}
    found = {p[0]: n for n, p in pieces.items() if isinstance(p, bytes) and len(p) == 1}
    assert len(found) == 256
    return found


def test_text_appears_as_soon_as_it_is_certain(tokenizers: dict[str, Tokenizer]) -> None:
    for name in ("gpt2", "bpe"):
        tokenizer = tokenizers[name]
        byte_ids = _byte_ids(tokenizer)
        euro = [byte_ids[byte] for byte in "€".encode()]
        (a,) = tokenizer.encode_continuation("a")
        shown = _pieces(tokenizer, [a, *euro, a, euro[0]])
        expected = ["a", "", "", "€", "a", "", "\ufffd"]
        if name == "bpe":  # a run of byte tokens ends with the next other token
            expected = ["a", "", "", "", "€a", "", "\ufffd"]
        assert shown == expected


def test_leading_space_is_dropped_once(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["bpe"]
    ids = tokenizer.encode("  the", bos=False)
    assert "".join(_pieces(tokenizer, ids)) == "  the"
    assert "".join(_pieces(tokenizer, tokenizer.encode_continuation(" the"))) == "the"


def test_a_continuation_keeps_its_leading_space(tokenizers: dict[str, Tokenizer]) -> None:
    for tokenizer in tokenizers.values():
        for text in (" the cat", "the cat", "  two", ""):
            ids = tokenizer.encode_continuation(text)
            assert tokenizer.decode_continuation(ids) == text


def test_finished_detokenizer_of_nothing(tokenizers: dict[str, Tokenizer]) -> None:
    for tokenizer in tokenizers.values():
        assert Detokenizer(tokenizer).finish() == ""
