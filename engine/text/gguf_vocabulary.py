"""Builds a tokenizer from the vocabulary that a GGUF file carries in its metadata.

The keys are described in docs/gguf.md of the ggml project; the rules that the keys leave open
(how text is split, who gets a BOS) are llama.cpp's, which writes and reads these files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from engine.errors import TokenizerError
from engine.text.sentencepiece_model import (
    Piece,
    PieceType,
    SentencePieceModel,
    added_tokens,
    build,
)

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SYMBOLS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_SYMBOLS_AND_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_SYMBOLS_AND_SPACES}"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre -> the patterns that split a text, each applied to the pieces of the one before
_SPLITS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "tekken": (_TEKKEN,),
}
# Of these, a word that is a token is taken without merging, and a text gets a BOS by default.
_WHOLE_WORDS_AND_BOS = ("llama-bpe", "llama3", "llama-v3", "tekken")


def build_backend(fields: Mapping[str, Any], where: str) -> Tokenizer:
    """The tokenizer described by the `tokenizer.ggml.*` values of `fields`.

    Raises TokenizerError, beginning with `where`, if a value is missing or of an unknown kind.
    """
    kind = fields.get("tokenizer.ggml.model")
    tokens = _array(fields, "tokens", where)
    types = fields.get("tokenizer.ggml.token_type") or [PieceType.NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise TokenizerError(
            f"{where}: tokenizer.ggml.token_type has {len(types)} values for {len(tokens)} tokens"
        )
    if kind == "gpt2":
        return _byte_level(fields, tokens, types, where)
    if kind == "llama":
        return _sentencepiece(fields, tokens, types, where)
    raise TokenizerError(
        f"{where}: tokenizer.ggml.model is {kind!r}; only 'gpt2' and 'llama' are supported"
    )


def adds_bos(fields: Mapping[str, Any]) -> bool:
    """Whether a text gets a BOS: the file's flag, else llama.cpp's default for the vocabulary."""
    default = (
        fields.get("tokenizer.ggml.model") == "llama"
        or fields.get("tokenizer.ggml.pre") in _WHOLE_WORDS_AND_BOS
    )
    return bool(fields.get("tokenizer.ggml.add_bos_token", default))


def _byte_level(
    fields: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], where: str
) -> Tokenizer:
    pre = fields.get("tokenizer.ggml.pre", "default")
    if pre not in _SPLITS:
        raise TokenizerError(
            f"{where}: tokenizer.ggml.pre is {pre!r}; supported are {', '.join(_SPLITS)}"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in _array(fields, "merges", where)]
    vocab = {token: number for number, token in enumerate(tokens)}
    for merge in merges:
        if len(merge) != 2 or any(part not in vocab for part in (*merge, "".join(merge))):
            raise TokenizerError(
                f"{where}: tokenizer.ggml.merges has {' '.join(merge)!r}, which joins no tokens"
            )
    model = models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in _WHOLE_WORDS_AND_BOS)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _SPLITS[pre]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(added_tokens(list(zip(tokens, types, strict=True))))
    return tokenizer


def _sentencepiece(
    fields: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], where: str
) -> Tokenizer:
    scores = _array(fields, "scores", where)
    if len(scores) != len(tokens):
        raise TokenizerError(
            f"{where}: tokenizer.ggml.scores has {len(scores)} values for {len(tokens)} tokens"
        )
    try:
        pieces = [
            Piece(text, score, PieceType(kind))
            for text, score, kind in zip(tokens, scores, types, strict=True)
        ]
    except ValueError as error:
        raise TokenizerError(f"{where}: tokenizer.ggml.token_type: {error}") from error
    prefix = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
    model = SentencePieceModel(pieces, add_dummy_prefix=prefix)
    return build(model, prefix_every_segment=True)


def _array(fields: Mapping[str, Any], name: str, where: str) -> Sequence[Any]:
    values = fields.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, Sequence) or isinstance(values, str) or not len(values):
        raise TokenizerError(f"{where}: tokenizer.ggml.{name} is missing or empty")
    return values
