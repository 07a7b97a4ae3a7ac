"""The vocabulary of GGUF files against llama.cpp, transformers and the original tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from engine.checkpoint.builtin import builtin_gguf
from engine.errors import TokenizerError
from engine.text.tokenizer import Tokenizer
from tests.engine.tiny_tokenizers import (
    CHATML,
    Family,
    byte_level_folder,
    nasty_texts,
    sentencepiece_model,
)

Fields = dict[str, Any]
PRE_TOKENIZERS: dict[str, Family] = {
    "smollm": "smollm", "gpt-2": "gpt2", "default": "gpt2", "qwen2": "qwen2",
    "llama-bpe": "llama3", "tekken": "gpt2",
}  # fmt: skip


def _byte_level_fields(folder: Path, pre: str) -> Fields:
    family = PRE_TOKENIZERS[pre]
    byte_level_folder(folder, family)
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids: dict[str, int] = state["model"]["vocab"]
    special = {token["content"] for token in state["added_tokens"]}
    tokens = sorted(ids, key=ids.__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in state["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": len(special) - 1,
        "tokenizer.chat_template": CHATML,
    }


def _sentencepiece_fields(**more: Any) -> Fields:
    model = sentencepiece.SentencePieceProcessor(
        model_proto=sentencepiece_model("bpe", 640, ("<user>",))
    )
    numbers = range(model.get_piece_size())
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
        for i in numbers
    ]
    tokens = [model.id_to_piece(i) for i in numbers]
    kinds[tokens.index("<user>")] = 4
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [model.get_score(i) for i in numbers],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **more,
    }


def _write(path: Path, fields: Fields) -> Path:
    """A GGUF file with a vocabulary and no tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in fields.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def _assert_equals_llama_cpp(ours: Tokenizer, path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    peer = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for text in nasty_texts():
        if "\0" in text:
            continue  # it ends a string in C
        data = text.encode()
        plain = peer.tokenize(data, add_bos=False, special=False)
        assert ours.encode(text, bos=False, special=False) == plain, text
        marked = peer.tokenize(data, add_bos=True, special=True)
        if marked[:1] != marked[1:2]:  # we keep to one BOS
            assert ours.encode(text) == marked, text
    peer.close()


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_byte_level_equals_llama_cpp(pre: str, tmp_path: Path) -> None:
    fields = _byte_level_fields(tmp_path, pre)
    _assert_equals_llama_cpp(Tokenizer.from_gguf(fields), _write(tmp_path / "v.gguf", fields))


@pytest.mark.parametrize("prefix", [None, True, False])
@pytest.mark.parametrize("add_bos", [None, False])
def test_sentencepiece_equals_llama_cpp(
    prefix: bool | None, add_bos: bool | None, tmp_path: Path
) -> None:
    flags = {"tokenizer.ggml.add_space_prefix": prefix, "tokenizer.ggml.add_bos_token": add_bos}
    fields = _sentencepiece_fields(**{k: v for k, v in flags.items() if v is not None})
    _assert_equals_llama_cpp(Tokenizer.from_gguf(fields), _write(tmp_path / "v.gguf", fields))


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "qwen2", "llama-bpe"])
def test_byte_level_equals_the_original_tokenizer(pre: str, tmp_path: Path) -> None:
    ours = Tokenizer.from_gguf(_byte_level_fields(tmp_path, pre))
    original = Backend.from_file(str(tmp_path / "tokenizer.json"))
    original.normalizer = None  # a GGUF does not carry Qwen2's NFC
    for text in nasty_texts():
        ids = original.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, bos=False) == ids, text
        assert ours.decode(ids) == original.decode(ids)


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "llama-bpe", "tekken"])
def test_byte_level_equals_transformers(pre: str, tmp_path: Path) -> None:
    fields = _byte_level_fields(tmp_path, pre)
    (tmp_path / "gguf").mkdir()
    peer = _transformers(_write(tmp_path / "gguf" / "v.gguf", fields))
    ours = Tokenizer.from_gguf(fields)
    for text in nasty_texts():
        if "<|endoftext|>" in text and "<|endoftext|>" not in fields["tokenizer.ggml.tokens"]:
            continue  # the peer adds GPT-2's token even to a vocabulary that lacks it
        assert ours.encode(text, bos=False) == peer.encode(text, add_special_tokens=False), text


def _transformers(path: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # older versions read fewer kinds
        pytest.skip(f"transformers cannot read the file: {error}")


def test_saved_vocabulary_loads_in_transformers(tmp_path: Path) -> None:
    for name, fields in {
        "smollm": _byte_level_fields(tmp_path / "a", "smollm"),
        "llama-bpe": _byte_level_fields(tmp_path / "b", "llama-bpe"),
        "llama": _sentencepiece_fields(),
    }.items():
        ours = Tokenizer.from_gguf(fields)
        ours.save(tmp_path / name)
        peer = AutoTokenizer.from_pretrained(tmp_path / name)
        assert peer.encode("the") == ours.encode("the")
        for text in nasty_texts():
            plain = peer.encode(text, add_special_tokens=False)
            assert ours.encode(text, bos=False) == plain, (name, text)
            assert peer.decode(plain) == ours.decode(plain, skip_special=False)


def test_rules_for_bos_and_ends(tmp_path: Path) -> None:
    fields = _byte_level_fields(tmp_path, "llama-bpe")
    assert Tokenizer.from_gguf(fields).encode("the")[0] == 0
    more = {"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": True,
            "tokenizer.ggml.eot_token_id": 1}  # fmt: skip
    ours = Tokenizer.from_gguf({**fields, **more})
    ids = ours.encode("the")
    assert (ids[0] == 0, ids[-1]) == (False, 2)
    assert (ours.bos_id, ours.eos_ids) == (0, (2, 1))
    assert ours.render_chat([{"role": "user", "content": "x"}]).startswith("<|im_start|>user")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.model", "bert", "'bert'; only 'gpt2' and 'llama'"),
        ("tokenizer.ggml.model", None, "None; only"),
        ("tokenizer.ggml.model", "llama", "tokenizer.ggml.scores is missing"),
        ("tokenizer.ggml.pre", "chameleon", "'chameleon'; supported are default, gpt-2"),
        ("tokenizer.ggml.tokens", None, "tokenizer.ggml.tokens is missing or empty"),
        ("tokenizer.ggml.tokens", ["a", "b"], "640 values for 2 tokens"),
        ("tokenizer.ggml.merges", None, "tokenizer.ggml.merges is missing or empty"),
        ("tokenizer.ggml.merges", ["qqq zzz"], "'qqq zzz', which joins no tokens"),
        ("tokenizer.ggml.merges", ["nospace"], "'nospace', which joins no tokens"),
        ("tokenizer.ggml.eos_token_id", 9999, "eos_token_id is 9999, but there are only 640"),
    ],
)
def test_bad_metadata(key: str, value: Any, message: str, tmp_path: Path) -> None:
    fields = {**_byte_level_fields(tmp_path, "smollm"), key: value}
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_gguf(fields, where="model.gguf")
    assert str(caught.value).startswith("model.gguf: ")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_default_model_equals_llama_cpp(tmp_path: Path) -> None:
    path = builtin_gguf("smollm2-135m", tmp_path)
    fields = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    _assert_equals_llama_cpp(Tokenizer.from_gguf(fields), path)
