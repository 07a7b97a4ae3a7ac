"""Renders conversations with the model's own chat template, in jinja2's sandbox.

The environment and the variables are those of transformers' `apply_chat_template`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import TokenizerError

Messages = Sequence[Mapping[str, Any]]


class ChatTemplate:
    """A compiled chat template.

    `special_tokens` maps names as the templates use them ("bos_token") to their text; `where` is
    the file the template came from, for error messages.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], where: str) -> None:
        self.source = source
        self._special_tokens = dict(special_tokens)
        self._where = where
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise self._error(f"line {error.lineno}: {error.message}") from error
        except (TemplateError, RecursionError) as error:
            raise self._error(str(error)) from error

    def render(self, messages: Messages, *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation.

        Each message has a "role" and usually a "content"; keys that are None count as absent.
        Raises TokenizerError if there is no message or the template refuses the conversation.
        """
        for message in messages:
            if not isinstance(message, Mapping) or "role" not in message:
                raise self._error(f"a message needs a 'role' and a 'content', got {message!r:.80}")
        if not messages:
            raise self._error("there is no message to render")
        present = [{k: v for k, v in message.items() if v is not None} for message in messages]
        try:
            return self._template.render(
                messages=present,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except Exception as error:  # a template can raise anything, e.g. by adding str and None
            raise self._error(str(error) or type(error).__name__) from error

    def _error(self, reason: str) -> TokenizerError:
        return TokenizerError(f"{self._where}: chat template: {' '.join(reason.split())}")


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training masks; it renders its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    functions: dict[str, Callable[..., Any]] = {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
    }
    environment.globals.update(functions)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
