"""tokenizer.json folders against transformers and tokenizers, and what holds for every kind."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from engine.errors import TokenizerError
from engine.text.tokenizer import Tokenizer
from tests.engine.tiny_tokenizers import (
    CHATML,
    SPECIAL_TOKENS,
    Family,
    byte_level_folder,
    nasty_texts,
    sentencepiece_folder,
)

FAMILIES: tuple[Family, ...] = ("gpt2", "smollm", "qwen2", "llama3")


@pytest.fixture(scope="module", params=[*FAMILIES, "bpe", "unigram"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    if request.param in FAMILIES:
        return byte_level_folder(path, request.param)
    return sentencepiece_folder(path, request.param)


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_and_text_equal_transformers(family: Family, tmp_path: Path) -> None:
    ours = Tokenizer.from_folder(byte_level_folder(tmp_path, family))
    peer = AutoTokenizer.from_pretrained(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    for text in nasty_texts():
        ids = ours.encode(text)
        if not text.startswith(SPECIAL_TOKENS[family][0]):  # the peer would put a second BOS there
            assert ids == peer.encode(text) == backend.encode(text).ids, text
        plain = ours.encode(text, bos=False)
        assert plain == peer.encode(text, add_special_tokens=False), text
        assert ours.encode(text, bos=False, special=False) == peer.encode(
            text, add_special_tokens=False, split_special_tokens=True
        ), text
        for skip in (True, False):
            assert ours.decode(plain, skip_special=skip) == peer.decode(
                plain, skip_special_tokens=skip
            )
    assert ours.encode_batch(nasty_texts()) == [ours.encode(text) for text in nasty_texts()]
    assert ours.vocab_size == len(peer)
    assert ours.bos_id == peer.bos_token_id
    assert ours.eos_ids == (peer.eos_token_id,)
    assert ours.special_ids >= set(peer.all_special_ids)


def test_escaped_texts_hold_no_special_tokens(tokenizers: dict[str, Tokenizer]) -> None:
    for name, ours in tokenizers.items():
        names = [ours.decode([number], skip_special=False) for number in sorted(ours.special_ids)]
        nested = [f"{each[:2]}{each}{each[2:]}" for each in names]
        texts = [*nasty_texts(), *names, *nested, "".join(names), "x".join(names)]
        for text in texts:
            escaped = ours.escape(text)
            assert ours.escape(escaped) == escaped
            assert ours.encode(escaped) == ours.encode(text, special=False), (name, text)
            ids = ours.encode_continuation(text, special=False)
            assert ours.encode_continuation(escaped) == ids, (name, text)
        if name != "unigram":  # which may take "<s>" for one of its pieces
            mixed = ours.encode(f"a {names[0]} {ours.escape(f'b {names[-1]} c')}", bos=False)
            assert sum(number in ours.special_ids for number in mixed) == 1


@pytest.mark.parametrize("kind", ["smollm", "bpe"])
def test_escaped_texts_hold_no_special_tokens_that_are_looked_for_in_normalized_text(
    kind: Family, tmp_path: Path
) -> None:
    """As in the tokenizer.json of some Llama folders."""
    make = sentencepiece_folder if kind == "bpe" else byte_level_folder
    source = make(tmp_path / "source") if kind == "bpe" else make(tmp_path / "source", kind)
    Tokenizer.from_folder(source).save(tmp_path)
    state = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    for token in state["added_tokens"]:
        token["normalized"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    ours = Tokenizer.from_folder(tmp_path)
    for number in ours.special_ids:
        name = ours.decode([number], skip_special=False)
        for text in (f"x {name} y", f"x{name}y", name):
            escaped = ours.encode(ours.escape(text), bos=False)
            assert escaped == ours.encode(text, bos=False, special=False), text
            assert number in ours.encode(text, bos=False)
        plain, mixed = f"x {name} y", [ours.escape(name), f"x {name} y", "z"]
        assert ours.encode_batch(mixed)[1] == ours.encode(plain)


@given(text=st.text())
@settings(max_examples=150, deadline=None)
def test_round_trip(tokenizers: dict[str, Tokenizer], text: str) -> None:
    for name, ours in tokenizers.items():
        if name in ("bpe", "unigram"):
            text = text.replace("▁", " ")  # sentencepiece cannot tell them apart
        elif name == "qwen2":
            text = unicodedata.normalize("NFC", text)
        assert ours.decode(ours.encode(text, special=False), skip_special=True) == text
        assert ours.decode(ours.encode_continuation(" " + text)) in (text, " " + text)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("tokenizers")
    folders = {family: byte_level_folder(root / family, family) for family in FAMILIES}
    folders |= {kind: sentencepiece_folder(root / kind, kind) for kind in ("bpe", "unigram")}
    return {name: Tokenizer.from_folder(folder) for name, folder in folders.items()}


def test_saved_tokenizer_gives_the_same_ids(folder: Path, tmp_path: Path) -> None:
    ours = Tokenizer.from_folder(folder)
    ours.save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    again, peer = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in nasty_texts():
        ids = ours.encode(text)
        assert again.encode(text) == ids
        assert peer.encode(text, add_special_tokens=False) == ours.encode(text, bos=False)
        assert peer.decode(ids) == again.decode(ids, skip_special=False)
    assert peer.encode("the") == ours.encode("the")
    assert (again.bos_id, again.eos_ids) == (ours.bos_id, ours.eos_ids)
    assert again.special_ids == ours.special_ids
    assert again.special_tokens == ours.special_tokens
    assert (peer.bos_token_id, peer.eos_token_id) == (ours.bos_id, ours.eos_ids[0])
    if ours.special_tokens.get("eos_token") == "<|im_end|>":
        chat = [{"role": "user", "content": "hi"}]
        assert peer.apply_chat_template(chat, tokenize=False) == ours.render_chat(
            chat, add_generation_prompt=False
        )


def test_a_text_that_begins_with_bos_gets_no_second_one(tmp_path: Path) -> None:
    llama3 = Tokenizer.from_folder(byte_level_folder(tmp_path / "llama3", "llama3"))
    assert llama3.encode("<|begin_of_text|>the") == llama3.encode("the")
    assert llama3.encode("the")[0] == llama3.bos_id
    assert llama3.encode("the", bos=False) == llama3.encode("the")[1:]
    llama2 = Tokenizer.from_folder(sentencepiece_folder(tmp_path / "llama2"))
    assert llama2.encode("<s>the").count(llama2.bos_id) == 1
    assert llama2.encode("<s>the", special=False).count(llama2.bos_id) == 1


@pytest.mark.parametrize("kind", ["metaspace", "prepend", "byte_level"])
def test_continuation_has_no_dummy_prefix(kind: str, tmp_path: Path) -> None:
    if kind == "byte_level":
        byte_level_folder(tmp_path, "gpt2")
        state = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
        state["pre_tokenizer"]["add_prefix_space"] = True
        (tmp_path / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    else:
        sentencepiece_folder(tmp_path, legacy=kind == "prepend")
        Tokenizer.from_folder(tmp_path).save(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    assert ours.decode(ours.encode_continuation("the")) == "the"
    assert ours.encode_continuation("the") != ours.encode("the", bos=False)
    assert ours.encode_continuation(" the") == ours.encode("the", bos=False)
    assert ours.encode_continuation("") == []


def test_configuration_adds_tokens_and_ends(tmp_path: Path) -> None:
    byte_level_folder(
        tmp_path,
        "smollm",
        added_tokens_decoder={
            "640": {"content": "<think>", "special": False, "normalized": False},
            "641": {"content": "<tool>", "special": True},
        },
        pad_token={"__type": "AddedToken", "content": "<pad>", "lstrip": False},
        additional_special_tokens=["<tool>", "<extra>"],
    )
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 0]}', encoding="utf-8")
    ours, peer = Tokenizer.from_folder(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    text = "a<think> b<tool>c <pad><extra> d"
    assert ours.encode(text) == peer.encode(text)
    assert ours.decode(ours.encode(text)) == peer.decode(
        peer.encode(text), skip_special_tokens=True
    )
    assert ours.decode(ours.encode(text)) == "a<think> bc  d"
    assert ours.eos_ids == (2, 0)
    assert ours.vocab_size == len(peer) == 644


def test_padding_and_truncation_of_the_file_are_ignored(tmp_path: Path) -> None:
    byte_level_folder(tmp_path, "gpt2")
    path = str(tmp_path / "tokenizer.json")
    backend = Backend.from_file(path)
    backend.enable_truncation(3)
    backend.enable_padding(length=5)
    backend.save(path)
    ours = Tokenizer.from_folder(tmp_path)
    assert ours.decode(ours.encode("the quick brown fox")) == "the quick brown fox"


def test_bad_text_is_named(tmp_path: Path) -> None:
    ours = Tokenizer.from_folder(byte_level_folder(tmp_path, "smollm"))
    with pytest.raises(TokenizerError, match="lone surrogate at character 1 "):
        ours.encode("a\ud800b")
    with pytest.raises(TokenizerError, match="NoneType"):
        ours.encode(None)  # type: ignore[arg-type]


def _damage(folder: Path, name: str, content: str | None) -> None:
    path = folder / name
    if content is None:
        path.unlink()
    else:
        path.write_text(content, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "neither a tokenizer.json nor a tokenizer.model"),
        ("tokenizer.json", "{", "tokenizer.json: not a usable tokenizer.json"),
        ("tokenizer.json", '{"model": {"type": "Nope"}}', "not a usable tokenizer.json"),
        ("tokenizer_config.json", "[", "tokenizer_config.json: not valid JSON"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: expected a JSON object"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"900": {"content": "<x>"}}}',
         "'<x>' the id 900"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "rag", "template": ""}]}',
         r"\(rag\) is named 'default'"),
    ],
)  # fmt: skip
def test_damaged_folders(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    _damage(byte_level_folder(tmp_path, "smollm"), name, content)
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_folder_and_unsupported_decoder(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no such folder"):
        Tokenizer.from_folder(tmp_path / "absent")
    byte_level_folder(tmp_path, "gpt2")
    state = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    state["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"decoder \(WordPiece\) is not supported"):
        Tokenizer.from_folder(tmp_path)


def test_chat_template_file_wins(tmp_path: Path) -> None:
    byte_level_folder(tmp_path, "smollm", chat_template=[{"name": "default", "template": CHATML}])
    chat = [{"role": "user", "content": "hi"}]
    assert Tokenizer.from_folder(tmp_path).render_chat(chat).startswith("<|im_start|>user\nhi")
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}!", encoding="utf-8")
    assert Tokenizer.from_folder(tmp_path).render_chat(chat) == "<|im_start|>!"
