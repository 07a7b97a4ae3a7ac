"""Reads the tokenizer files of a Hugging Face model folder, by transformers' rules."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from engine.errors import TokenizerError
from engine.text.sentencepiece_model import SentencePieceModel, build

SPECIAL_NAMES = tuple(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a folder says: the segmentation, named special tokens, template, further EOS ids."""

    backend: Tokenizer
    special_tokens: Mapping[str, str]
    chat_template: str | None
    eos_ids: Sequence[int]


def read_folder(folder: Path) -> TokenizerFiles:
    """Read `tokenizer.json`, else `tokenizer.model`, and the configuration beside it.

    With a tokenizer.json its post-processor alone decides about BOS, as in transformers; with a
    tokenizer.model `add_bos_token` (true if absent) and `add_eos_token` do.
    Raises TokenizerError, naming the file, if one is missing or unusable.
    """
    if not folder.is_dir():
        raise TokenizerError(f"{folder}: there is no such folder to read a tokenizer from")
    config = _read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config |= _read_json(folder / "special_tokens_map.json")
    if (folder / "tokenizer.json").is_file():
        backend = _read_tokenizer_json(folder / "tokenizer.json")
        _add_tokens(backend, config, folder)
    elif (folder / "tokenizer.model").is_file():
        backend = _read_sentencepiece(folder / "tokenizer.model", config)
        _add_tokens(backend, config, folder)
        frame(backend, bos=_text(config.get("bos_token")) if config["add_bos_token"] else None,
              eos=_text(config.get("eos_token")) if config["add_eos_token"] else None)  # fmt: skip
    else:
        raise TokenizerError(f"{folder}: there is neither a tokenizer.json nor a tokenizer.model")
    special = {name: _text(config.get(name)) for name in SPECIAL_NAMES}
    eos = _read_json(folder / "generation_config.json").get("eos_token_id", [])
    return TokenizerFiles(
        backend=backend,
        special_tokens={name: text for name, text in special.items() if text},
        chat_template=_chat_template(folder, config),
        eos_ids=[eos] if isinstance(eos, int) else eos or [],
    )


def frame(backend: Tokenizer, *, bos: str | None, eos: str | None) -> None:
    """Make `backend` put `bos` before and `eos` after a text; None leaves one out."""
    template = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
    ids = [(token, backend.token_to_id(token)) for token in {bos, eos} if token]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)


def _read_tokenizer_json(path: Path) -> Tokenizer:
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exceptions
        raise TokenizerError(f"{path}: not a usable tokenizer.json: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _read_sentencepiece(path: Path, config: dict[str, Any]) -> Tokenizer:
    """Also fills the keys that `config` leaves out with sentencepiece's and Llama's defaults."""
    try:
        model = SentencePieceModel.parse(path.read_bytes())
        backend = build(model, prefix_every_segment=bool(config.get("legacy", False)))
    except Exception as error:
        raise TokenizerError(f"{path}: not a usable sentencepiece model: {error}") from error
    for name, number in model.ids.items():
        config.setdefault(name, model.pieces[number].text)
    config.setdefault("add_bos_token", True)
    config.setdefault("add_eos_token", False)
    return backend


def _add_tokens(backend: Tokenizer, config: Mapping[str, Any], folder: Path) -> None:
    """Add the configuration's tokens that the vocabulary file lacks; mark the special ones."""
    special = [config.get(name) for name in SPECIAL_NAMES]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        extra = config.get(name) or []
        special += extra.values() if isinstance(extra, dict) else extra
    special_texts = {_text(token) for token in special}
    declared = {
        int(number): token for number, token in config.get("added_tokens_decoder", {}).items()
    }
    if not declared and not (folder / "tokenizer.json").is_file():
        added = _read_json(folder / "added_tokens.json")
        declared = {number: {"content": text} for text, number in added.items()}
    for number, token in sorted(declared.items()):
        backend.add_tokens([_added_token(token, special=_text(token) in special_texts)])
        if backend.token_to_id(_text(token) or "") != number:
            raise TokenizerError(
                f"{folder}: tokenizer_config.json or added_tokens.json gives token "
                f"{_text(token)!r} the id {number}, which does not follow on the vocabulary"
            )
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    for token in filter(None, special):
        text = str(_text(token))
        backend.add_special_tokens([known.get(text) or _added_token(token, special=True)])


def _added_token(token: str | Mapping[str, Any], *, special: bool) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=special, normalized=not special)
    flags = {name: token[name] for name in ("single_word", "lstrip", "rstrip") if name in token}
    special = bool(token.get("special", False)) or special
    return AddedToken(
        token["content"],
        special=special,
        normalized=bool(token.get("normalized", not special)),
        **flags,
    )


def _text(token: Any) -> str | None:
    """The text of a token that is written as a string or as an AddedToken's fields."""
    return token.get("content") if isinstance(token, Mapping) else token


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if not isinstance(template, list):
        return template
    named = {entry["name"]: entry["template"] for entry in template}
    if "default" not in named:
        raise TokenizerError(
            f"{folder / 'tokenizer_config.json'}: none of the chat templates "
            f"({', '.join(named) or 'an empty list'}) is named 'default'"
        )
    return str(named["default"])


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
