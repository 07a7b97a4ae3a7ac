"""sentencepiece `.model` folders against sentencepiece itself and transformers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from engine.errors import TokenizerError
from engine.text.sentencepiece_model import SentencePieceModel, build
from engine.text.tokenizer import Tokenizer
from tests.engine.tiny_tokenizers import (
    corpus,
    nasty_texts,
    sentencepiece_folder,
    sentencepiece_model,
)

Kind = Literal["bpe", "unigram"]
KINDS: tuple[Kind, ...] = ("bpe", "unigram")


def _peer(kind: Kind) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("legacy", [True, False])
def test_ids_and_text_equal_sentencepiece(kind: Kind, legacy: bool, tmp_path: Path) -> None:
    ours = Tokenizer.from_folder(sentencepiece_folder(tmp_path, kind, legacy=legacy))
    peer = _peer(kind)
    for text in nasty_texts():
        if kind == "unigram" and any(mark in text for mark in ("<s>", "</s>", "<unk>", "<0x")):
            continue  # names of special pieces, see below
        ids = ours.encode(text, special=False)
        assert ids == [1, *peer.encode(text)], text
        assert ours.decode(ids) == peer.decode(ids), text


@given(text=st.text(alphabet="aabehlostu 1é日\n", max_size=60))
@settings(max_examples=200, deadline=None)
def test_random_words_equal_sentencepiece(text: str) -> None:
    for kind in KINDS:
        model = SentencePieceModel.parse(sentencepiece_model(kind))
        ours = build(model, prefix_every_segment=False)
        assert ours.encode(text).ids == _peer(kind).encode(text)


def test_trained_with_other_settings_equals_sentencepiece(tmp_path: Path) -> None:
    """NFKC normalization, squeezed spaces, no dummy prefix, user-defined symbols, moved ids."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        add_dummy_prefix=False,
        unk_id=3,
        bos_id=0,
        eos_id=1,
        pad_id=2,
        user_defined_symbols=["<think>"],
        minloglevel=2,
    )
    ours = Tokenizer.from_folder(tmp_path)
    peer = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in ("a  b   c", " lead", "trail  ", "ﬁ ½ Å x\u0301", "ab<think>cd", "<think>"):
        assert ours.encode(text) == [0, *peer.encode(text)], text
    assert (ours.bos_id, ours.eos_ids, ours.special_ids) == (0, (1,), {0, 1, 2, 3})


@pytest.mark.parametrize("legacy", [True, False])
def test_special_tokens_equal_transformers(legacy: bool, tmp_path: Path) -> None:
    pytest.importorskip("google.protobuf")  # transformers reads .model files with it
    ours = Tokenizer.from_folder(sentencepiece_folder(tmp_path, legacy=legacy))
    peer = AutoTokenizer.from_pretrained(tmp_path)
    for text in nasty_texts():
        if text.startswith(("<s>", " ", "▁")):
            continue  # the peer puts a second BOS, or leaves out sentencepiece's prefix space
        if legacy and any(f"{token} " in text for token in ("<s>", "</s>", "<unk>")):
            continue  # the same, after a special token
        assert ours.encode(text) == peer.encode(text), text


def test_added_tokens_file_and_flags(tmp_path: Path) -> None:
    sentencepiece_folder(tmp_path, add_bos_token=False, add_eos_token=True, pad_token="<pad>")
    (tmp_path / "added_tokens.json").write_text('{"<user>": 641, "<pad>": 640}', encoding="utf-8")
    ours = Tokenizer.from_folder(tmp_path)
    ids = ours.encode("the<user>the<pad>")
    assert [ids[0] == 1, 641 in ids, ids[-2:]] == [False, True, [640, 2]]
    assert ours.vocab_size == 642
    assert ours.decode(ids) == "the<user>the"


def test_defaults_without_configuration(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    ours = Tokenizer.from_folder(tmp_path)
    assert (ours.bos_id, ours.eos_ids, ours.special_ids) == (1, (2,), {0, 1, 2})
    assert ours.encode("the") == [1, *_peer("bpe").encode("the")]
    with pytest.raises(TokenizerError, match="no chat template"):
        ours.render_chat([{"role": "user", "content": "hi"}])


def test_names_of_pieces_are_plain_text_without_special(tmp_path: Path) -> None:
    ours = Tokenizer.from_folder(sentencepiece_folder(tmp_path))
    for text in ("<s>", "</s>a", "<unk>", "<0x41>", "x<0xE2>"):
        ids = ours.encode(text, special=False)
        assert ours.decode(ids, skip_special=False) == "<s>" * bool(ids[0] == 1) + " " + text


def test_damaged_models_are_refused_in_one_line(tmp_path: Path) -> None:
    good = sentencepiece_model()
    rng = random.Random(0)
    damaged = [b"", b"not a model", good[:1000], good[: len(good) // 2 + 1], b"\x0a\xff\xff"]
    damaged += [rng.randbytes(200) for _ in range(20)]
    for data in damaged:
        (tmp_path / "tokenizer.model").write_bytes(data)
        with pytest.raises(TokenizerError, match=r"tokenizer\.model: not a usable") as caught:
            Tokenizer.from_folder(tmp_path)
        assert "\n" not in str(caught.value)
