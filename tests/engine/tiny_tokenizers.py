"""Tiny tokenizers of the shapes real models ship, trained in memory on text made by code.

Each `*_folder` function writes a folder in the Hugging Face layout (tokenizer files only) and
returns its path.
"""

from __future__ import annotations

import io
import json
import random
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Family = Literal["gpt2", "smollm", "qwen2", "llama3"]
SPLIT_PATTERNS = {
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
SPECIAL_TOKENS: dict[Family, tuple[str, ...]] = {
    "gpt2": ("<|endoftext|>",),
    "smollm": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "qwen2": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
}
_BOS_EOS: dict[Family, tuple[str | None, str]] = {
    "gpt2": ("<|endoftext|>", "<|endoftext|>"),
    "smollm": ("<|im_start|>", "<|im_end|>"),
    "qwen2": (None, "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
}


@lru_cache
def corpus(lines: int = 1500, seed: int = 0) -> tuple[str, ...]:
    """English-like sentences with numbers, accents, CJK, emoji, contractions and code."""
    rng = random.Random(seed)
    onsets, nuclei = "bcdfghlmnprstvw", ("a", "e", "i", "o", "u", "ea", "ou")
    syllables = [onset + nucleus for onset in onsets for nucleus in nuclei]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(400)]
    words += [
        "the",
        "and",
        "is",
        "don't",
        "we'll",
        "naïve",
        "café",
        "größe",
        "日本",
        "語",
        "мир",
        "😀",
    ]
    texts = []
    for _ in range(lines):
        sentence = " ".join(rng.choice(words) for _ in range(rng.randint(3, 12)))
        tail = rng.choice(
            [".", "!", "?", f" {rng.randint(0, 99999)}.", "\n    return x", " (a, b);"]
        )
        texts.append(sentence.capitalize() + tail)
    return tuple(texts)


def sentencepiece_folder(
    folder: Path,
    model_type: Literal["bpe", "unigram"] = "bpe",
    *,
    vocab_size: int = 640,
    user_defined: tuple[str, ...] = (),
    **config: Any,
) -> Path:
    """A Llama-2-like folder: `tokenizer.model` with byte fallback, ids 0 <unk>, 1 <s>, 2 </s>.

    `config` overrides keys of `tokenizer_config.json` (None leaves a key out).
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = sentencepiece_model(model_type, vocab_size, user_defined)
    (folder / "tokenizer.model").write_bytes(model)
    defaults = {
        "tokenizer_class": "LlamaTokenizer", "legacy": False,
        "add_bos_token": True, "add_eos_token": False,
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": None,
    }  # fmt: skip
    _write_config(folder, defaults, config)
    return folder


@lru_cache
def sentencepiece_model(
    model_type: str = "bpe", vocab_size: int = 640, user_defined: tuple[str, ...] = ()
) -> bytes:
    """A serialized sentencepiece model trained as Llama's was (identity normalization)."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        model_type=model_type,
        vocab_size=vocab_size,
        byte_fallback=True,
        character_coverage=0.99,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=list(user_defined),
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def byte_level_folder(
    folder: Path, family: Family = "smollm", *, vocab_size: int = 640, **config: Any
) -> Path:
    """A GPT-2, SmolLM2, Qwen2 or Llama-3-like folder: byte-level BPE in `tokenizer.json`.

    `config` overrides keys of `tokenizer_config.json` (None leaves a key out).
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(_byte_level_json(family, vocab_size), encoding="utf-8")
    bos, eos = _BOS_EOS[family]
    defaults = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos, "eos_token": eos, "clean_up_tokenization_spaces": False,
        "chat_template": CHATML if "<|im_start|>" in SPECIAL_TOKENS[family] else None,
    }  # fmt: skip
    _write_config(folder, defaults, config)
    return folder


@lru_cache
def _byte_level_json(family: Family, vocab_size: int) -> str:
    tokenizer = Tokenizer(models.BPE(ignore_merges=family == "llama3"))
    tokenizer.pre_tokenizer = _pre_tokenizer(family)
    tokenizer.decoder = decoders.ByteLevel()
    if family == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS[family]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    if family == "llama3":
        bos = SPECIAL_TOKENS[family][0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, 0)]
        )
    return str(tokenizer.to_str())


def _pre_tokenizer(family: Family) -> pre_tokenizers.PreTokenizer:
    if family in SPLIT_PATTERNS:
        split = pre_tokenizers.Split(Regex(SPLIT_PATTERNS[family]), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, byte_level])
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if family == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, byte_level])
    return byte_level


def _write_config(folder: Path, defaults: dict[str, Any], overrides: dict[str, Any]) -> None:
    config = {key: value for key, value in {**defaults, **overrides}.items() if value is not None}
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(config, ensure_ascii=False, indent=2), encoding="utf-8")


def nasty_texts() -> list[str]:
    """Texts that tokenizers get wrong: all planes, joiners, whitespace, controls, lookalikes."""
    planes = ["".join(chr(plane * 0x10000 + at) for at in range(start, start + 40))
              for plane in range(17) for start in (0x20, 0x3400, 0xFF00)]  # fmt: skip
    blocks = ["".join(map(chr, range(start, start + 64))) for start in range(0, 0x3400, 64)]
    special = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|endoftext|>", "<|begin_of_text|>"]
    return [
        *planes,
        *blocks,
        *(f"{token}{space}a {token}{token} b{space}{token}" for token in special
          for space in ("", " ", "  ", "\n")),
        "<|im_start", "<|im_end|", "<<s>>", "< s >", "<0x41>", "<0xE2><0x82><0xAC>",
        "", " ", "  ", "   ", " a", "  a", "a ", "a  ", "a   b", " " * 333 + "x", "x" + " " * 333,
        "\t", "\t\tx\t y", "\r\n", "a\r\n\r\n  b\n\n\nc\r\rd", " \n \n ", "\n", "x\n", "\nx",
        "▁", "▁▁x", "x▁y", " ▁ x", "Ġthe", "Ċ", "\u00a0x\u2003y\u200b\u202fz\u3000",
        "\0", "a\0b", "\ufeffBOM", "x\ufeff", "\ufffd", "\uffff", "\U0010ffff", "\x01\x7f\x85",
        "👩‍👩‍👧‍👦", "🏳️‍🌈🏴‍☠️", "👍🏽👍🏿", "🇩🇪🇫🇷", "1️⃣#️⃣", "😀😀😀",
        "é e\u0301 ḍ̇ q̣̇", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L", "한국어 \u1112\u1161\u11ab", "ﬁ ﬂ Å Å ½ ² ①",
        "שָׁלוֹם עֲלֵיכֶם", "السَّلامُ ١٢٣", "\u202eabc\u202c", "नमस्ते",
        "ไทยไม่มีช่องว่าง", "日本語テキスト。中文",
        "0123456789" * 12, "1 22 333 4444 55555", "3.14159,26", "٣٤٥ ⅷ", "x1y22z333",
        "don't I'LL we'Ve 'S 'd 're's", "it’s", "a" * 3000, "the" * 700, "ab" * 500,
        "é" * 400, "-" * 300,
        "def f(x):\n    return x**2  # ok\n\n\tif True:\n\t\tpass", "http://a.b/c?d=e&f=%20",
        "{\"k\": [1, 2.5e-3, null]}", "!!!???...", "~~~ ^^ $$ += <= => ||", "I x ß ſ K",
        *corpus()[:40],
    ]  # fmt: skip
