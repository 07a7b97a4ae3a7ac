"""Chat and completion forms: `messages` as OpenAI writes them, `prompt` and `completion`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfguide.errors import UserError
from selfguide.tasks.reading import items, mapping, text

Parsed = tuple[str | None, str, str]
"""Instruction (None: the form has none here), input, output."""


def parse_messages(messages: Any, where: str) -> Parsed:
    """A conversation of one question and its answer; a system message is the instruction."""
    instruction = None
    turns: list[tuple[str, str]] = []
    for message, place in items(messages, f"{where}: messages"):
        said = mapping(message, place)
        role = text(said.get("role"), f"{place}: role")
        content = _content(said.get("content"), f"{place}: content")
        if role in ("system", "developer") and not turns and instruction is None:
            instruction = content
        else:
            turns.append((role, content))
    if [role for role, _ in turns] != ["user", "assistant"]:
        raise UserError(
            f"{where}: messages: expected one of user and one of assistant, "
            f"got {', '.join(role for role, _ in turns) or 'none'}"
        )
    return instruction, turns[0][1], turns[1][1]


def parse_completion(row: Mapping[str, Any], where: str) -> Parsed:
    """A prompt and its completion, each a text or, as in chats, a list of messages."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return parse_messages([*prompt, *completion], where)
    return None, text(prompt, f"{where}: prompt"), text(completion, f"{where}: completion")


def _content(content: Any, where: str) -> str:
    """A message's text, which may come in parts."""
    if not isinstance(content, list):
        return text(content, where)
    parts = [mapping(part, where) for part in content]
    return text("".join(text(part.get("text"), where) for part in parts), where)
