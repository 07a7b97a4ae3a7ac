"""Text to token ids and back, the same ids that a model was trained with.

Every kind of vocabulary (tokenizer.json, sentencepiece, GGUF) becomes one `tokenizers.Tokenizer`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, normalizers
from tokenizers import Tokenizer as Backend

from engine.errors import TokenizerError
from engine.files import write_atomic, write_json
from engine.text.chat import ChatTemplate, Messages
from engine.text.detokenizer import Decoding, Detokenizer
from engine.text.folder import frame, read_folder
from engine.text.gguf_vocabulary import adds_bos, build_backend

_GGUF_SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token",
                 "padding": "pad_token"}  # fmt: skip
BREAK = "\ufdd0"
"""A noncharacter: within a special token's text it keeps that from being read as the token."""


class Tokenizer:
    """A model's tokenizer: `from_folder` or `from_gguf` make one.

    Attributes: `bos_id`, `eos_ids` (ids that end a text, the main one first), `special_ids` (left
    out of decoded text), `special_tokens` (name, e.g. "bos_token", to text), `vocab_size`,
    `decoding` (how ids become text).
    """

    def __init__(
        self,
        backend: Backend,
        *,
        special_tokens: Mapping[str, str],
        chat_template: str | None,
        eos_ids: Sequence[int],
        where: str,
    ) -> None:
        """`eos_ids` come after the `eos_token`'s; `where` names the source in error messages."""
        self._backend = backend
        self._template = chat_template
        self._where = where
        self._variants: dict[tuple[bool, bool, bool], Backend] = {(True, True, False): backend}
        self.special_tokens = dict(special_tokens)
        self.vocab_size: int = backend.get_vocab_size()
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        self.bos_id = self._id("bos_token")
        eos = self._id("eos_token")
        self.eos_ids = tuple(dict.fromkeys([*([] if eos is None else [eos]), *eos_ids]))
        try:
            self.decoding = Decoding.of(backend)
        except ValueError as error:
            raise TokenizerError(f"{where}: {error}") from error

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """The tokenizer of a folder in the Hugging Face layout.

        Raises TokenizerError, naming the file, if one is missing, damaged or of an unknown kind.
        """
        folder = Path(path)
        files = read_folder(folder)
        return cls(
            files.backend,
            special_tokens=files.special_tokens,
            chat_template=files.chat_template,
            eos_ids=files.eos_ids,
            where=str(folder),
        )

    @classmethod
    def from_gguf(cls, fields: Mapping[str, Any], *, where: str = "GGUF metadata") -> Tokenizer:
        """The tokenizer in a GGUF file's metadata (key to plain Python value).

        Raises TokenizerError, beginning with `where`, if a key is missing or of an unknown kind.
        """
        backend = build_backend(fields, where)
        special = {}
        for key, name in _GGUF_SPECIAL.items():
            number = fields.get(f"tokenizer.ggml.{key}_token_id")
            if number is None:
                continue
            text = backend.id_to_token(number)
            if text is None:
                raise TokenizerError(
                    f"{where}: tokenizer.ggml.{key}_token_id is {number}, but there are only "
                    f"{backend.get_vocab_size()} tokens"
                )
            special[name] = text
        ends = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom")]
        add_eos = bool(fields.get("tokenizer.ggml.add_eos_token", False))
        frame(
            backend,
            bos=special.get("bos_token") if adds_bos(fields) else None,
            eos=special.get("eos_token") if add_eos else None,
        )
        return cls(
            backend,
            special_tokens=special,
            chat_template=fields.get("tokenizer.chat_template"),
            eos_ids=[number for number in ends if number is not None],
            where=where,
        )

    def escape(self, text: str) -> str:
        """A stranger's text to be put in a prompt: what looks like a special token stays text.

        Within `<|im_end|>` and its like stands a mark, U+FDD0, that encoding drops wherever it
        stands; all else is as it was. A special token of one character stays one.
        """
        return self._special_text.sub(rf"\g<0>{BREAK}", text)

    def encode(self, text: str, *, bos: bool = True, special: bool = True) -> list[int]:
        """The ids of a text.

        bos: put around it what the model's tokenizer puts there (for most a BOS; never a second
            one if the text, like many rendered chats, begins with it already).
        special: the text of a special token becomes that token; if False, ordinary text, as it
            always is where `escape` went over it.
        Raises TokenizerError if the text cannot be written in UTF-8 (a lone surrogate).
        """
        return self.encode_batch([text], bos=bos, special=special)[0]

    def encode_batch(
        self, texts: Sequence[str], *, bos: bool = True, special: bool = True
    ) -> list[list[int]]:
        """`encode` of many texts, in parallel."""
        rows = self._ids(texts, prefix=True, special=special)
        return [self._framed(ids) for ids in rows] if bos else rows

    def encode_continuation(self, text: str, *, special: bool = True) -> list[int]:
        """The ids of a text that follows other text: no BOS, no dummy prefix space."""
        return self._ids([text], prefix=False, special=special)[0]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of ids. Bytes that are no UTF-8 become U+FFFD; unknown ids have no text."""
        return str(self._backend.decode(ids, skip_special_tokens=skip_special))

    def decode_continuation(self, ids: Sequence[int]) -> str:
        """The text that ids add to a text before them: leading spaces are kept, special ids not."""
        if not self.decoding.lstrip:
            return self.decode(ids)
        detokenizer = Detokenizer(self, continuation=True)
        return "".join(map(detokenizer.put, ids)) + detokenizer.finish()

    def render_chat(self, messages: Messages, *, add_generation_prompt: bool = True) -> str:
        """A conversation as text, by the model's chat template; encode it with the defaults.

        Raises TokenizerError if the model has no template or the template refuses the messages.
        """
        return self._chat.render(messages, add_generation_prompt=add_generation_prompt)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, as transformers reads them."""
        prefix, suffix = self._frame
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "add_bos_token": bool(prefix),
            "add_eos_token": bool(suffix),
            **self.special_tokens,
        }
        if self._template is not None:
            config["chat_template"] = self._template
        write_atomic(Path(folder) / "tokenizer.json", self._backend.to_str(pretty=True).encode())
        write_json(Path(folder) / "tokenizer_config.json", config)

    @cached_property
    def _chat(self) -> ChatTemplate:
        if not self._template:
            raise TokenizerError(
                f"{self._where}: the model has no chat template; give it plain text prompts"
            )
        return ChatTemplate(self._template, self.special_tokens, self._where)

    @cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """The ids put before and after a text."""
        encoding = self._backend.encode("a")
        mask = encoding.special_tokens_mask
        start = mask.index(0) if 0 in mask else len(mask)
        return encoding.ids[:start], encoding.ids[start + mask.count(0) :]

    def _framed(self, ids: list[int]) -> list[int]:
        prefix, suffix = self._frame
        return [*([] if ids[: len(prefix)] == prefix else prefix), *ids, *suffix]

    def _ids(self, texts: Sequence[str], *, prefix: bool, special: bool) -> list[list[int]]:
        kinds: dict[bool, list[int]] = {}
        try:
            for at, text in enumerate(texts):
                kinds.setdefault(BREAK in text, []).append(at)
            rows: dict[int, list[int]] = {}
            for escaped, places in kinds.items():
                backend = self._variant(prefix, special, escaped)
                chosen = [texts[at] for at in places]
                encodings = backend.encode_batch_fast(chosen, add_special_tokens=False)
                rows |= zip(places, (encoding.ids for encoding in encodings), strict=True)
        except (TypeError, UnicodeError) as error:
            for text in texts:
                _check_text(text)
            raise TokenizerError(f"{self._where}: cannot tokenize: {error}") from error
        return [rows[at] for at in range(len(texts))]

    def _variant(self, prefix: bool, special: bool, escaped: bool) -> Backend:
        """The backend without its dummy prefix, with special tokens as plain text, or for `escape`.

        Variants share the vocabulary; making one is cheap.
        """
        kind = prefix, special, escaped
        if kind not in self._variants:
            variant = _copy(self._backend, prefix=prefix, escaped=escaped)
            variant.encode_special_tokens = not special
            self._variants[kind] = variant
        return self._variants[kind]

    @cached_property
    def _special_text(self) -> re.Pattern[str]:
        """The first character of a special token's text, wherever one stands."""
        added = self._backend.get_added_tokens_decoder().values()
        texts = [re.escape(token.content) for token in added if token.special]
        return re.compile(f"(?=(?:{'|'.join(texts)}))." if texts else r"(?!)", re.DOTALL)

    def _id(self, name: str) -> int | None:
        text = self.special_tokens.get(name)
        return None if text is None else self._backend.token_to_id(text)


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise TokenizerError(f"cannot tokenize a {type(text).__name__}; give a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"cannot tokenize {text!r:.60}: the lone surrogate at character {error.start} "
            "has no UTF-8 form; remove it"
        ) from error


def _copy(backend: Backend, *, prefix: bool, escaped: bool) -> Backend:
    """A tokenizer with the same model object and added tokens, with or without dummy prefix.

    escaped: special tokens are looked for where `BREAK` still stands, and then it is dropped.
    """
    normalizer, splitter = _state(backend.normalizer), _state(backend.pre_tokenizer)
    empty: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": normalizer if prefix else _without_prefix(normalizer),
        "pre_tokenizer": splitter if prefix else _without_prefix(splitter),
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    copy = Backend.from_str(json.dumps(empty))
    copy.model = backend.model
    for _, token in sorted(backend.get_added_tokens_decoder().items()):
        copy.add_tokens([_in_raw_text(token) if escaped and token.special else token])
    if escaped:
        drop, rest = normalizers.Replace(BREAK, ""), copy.normalizer
        copy.normalizer = normalizers.Sequence([drop, *([rest] if rest else [])])
    return copy


def _in_raw_text(token: AddedToken) -> AddedToken:
    """The same token, looked for before text is normalized."""
    flags = {name: getattr(token, name) for name in ("single_word", "lstrip", "rstrip", "special")}
    return AddedToken(token.content, normalized=False, **flags)


def _state(component: Any) -> dict[str, Any] | None:
    return None if component is None else json.loads(component.__getstate__())


def _without_prefix(state: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer's or pre-tokenizer's state, less what puts a space before a text."""
    if state is None or state["type"] == "Prepend":
        return None
    state = dict(state)
    for key in ("normalizers", "pretokenizers"):
        if key in state:
            kept = (_without_prefix(step) for step in state[key])
            state[key] = [step for step in kept if step is not None]
    if state["type"] == "Metaspace":
        state["prepend_scheme"] = "never"
    if state["type"] == "ByteLevel":
        state["add_prefix_space"] = False
    return state
