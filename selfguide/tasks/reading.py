"""Reading users' files: UTF-8 text, YAML, JSON and JSON lines, whose scalars stay as written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from selfguide.errors import UserError

Rows = list[tuple[Any, str]]
"""The values of a file that holds many, each with its place for messages."""

# Unicode keeps them for programs' own use, as the tokenizer does one.
_NONCHARACTERS = dict.fromkeys(range(0xFDD0, 0xFDF0), "\ufffd")

# What the YAML reader says, and what to do about it.
_YAML_HINTS = {
    "mapping values": "; put text that contains ': ' in quotes",
    "unknown escape": "; put text that contains \\ in single quotes",
}


def read_text(path: Path) -> str:
    """A file's text, without byte order mark and with `\\n` as line end.

    Raises:
        UserError: it is not there, cannot be read, or is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8; save the file in UTF-8") from None
    return _unix(text)


def read_yaml(path: Path) -> Any:
    """A YAML file's value. Every scalar is the text the user wrote: `no`, `1.0`, `null`."""
    try:
        return yaml.load(read_text(path), _TextLoader)
    except RecursionError:
        raise UserError(f"{path}: YAML: nested too deeply") from None
    except yaml.MarkedYAMLError as error:
        unclosed = "end of stream" in str(error.problem)  # it says where the file ends
        marks = (error.context_mark, error.problem_mark)[:: 1 if unclosed else -1]
        mark = next((each for each in marks if each), None)
        place = f"{path}:{mark.line + 1}" if mark else f"{path}"
        hint = next((hint for said, hint in _YAML_HINTS.items() if said in str(error)), "")
        raise UserError(f"{place}: YAML: {error.problem or error.context}{hint}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: YAML: {' '.join(str(error).split())}") from None


def read_json(path: Path) -> Any:
    """A JSON file's value, or a list of them where it holds one a line.

    Numbers are the text the user wrote.
    """
    try:
        return _loads(read_text(path))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.lineno > 1:
            return [value for value, _ in _lines(path)]
        raise UserError(f"{path}:{error.lineno}: JSON: {error.msg}") from None
    except _BadJson as error:
        raise UserError(f"{path}: JSON: {error}") from None


def read_rows(path: Path) -> Rows:
    """The values of a JSON lines file, or of a `.json` file that holds a list."""
    return items(read_json(path), str(path)) if path.suffix.lower() == ".json" else _lines(path)


def read_inputs(path: Path) -> list[tuple[str, str]]:
    """Unlabelled inputs, each after its place: JSONL with `input` (or a `.json` list), else lines.

    Raises:
        UserError: the file cannot be read, has none, or one of them is no text.
    """
    if path.suffix.lower() in (".jsonl", ".json"):
        rows = [(where, _input(value), f"{where}: input") for value, where in read_rows(path)]
        inputs = [(where, text(value, place)) for where, value, place in rows]
    else:
        lines = enumerate(read_text(path).split("\n"), start=1)
        inputs = [(f"{path}:{number}", line.strip()) for number, line in lines if line.strip()]
    if not inputs:
        raise UserError(f"{path}: no input")
    return inputs


def expanded(name: str, where: str) -> Path:
    """A path as a user writes it, `~` for the home folder.

    Args:
        name: of a file or folder.
        where: file and key, for the message.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UserError(f"{where}: {name}: {error}") from None


def user_file(value: Any, where: str, folder: Path) -> Path:
    """A file that a key names; relative names start from `folder`.

    Args:
        value: what a file holds.
        where: file and key, for the message.

    Raises:
        UserError: it is no text, or there is no such file.
    """
    path = folder / expanded(text(value, where), where)
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "no such file"
        raise UserError(f"{where}: {str(path)!r}: {what}")
    return path


def items(values: Any, where: str) -> Rows:
    """The values of a list.

    Args:
        values: the list.
        where: file and key, for messages.
    """
    if not isinstance(values, list):
        raise UserError(f"{where}: expected a list, got {_kind(values)}")
    return [(value, f"{where}, item {number}") for number, value in enumerate(values, start=1)]


def text(value: Any, where: str) -> str:
    """A scalar as text, without white space around it.

    Args:
        value: what a file holds.
        where: file and key, for the message.

    Raises:
        UserError: it is missing, empty, or no scalar.
    """
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, int | float):
        value = str(value)
    if not isinstance(value, str):
        hint = "; put JSON that is meant as text in quotes" if isinstance(value, Mapping) else ""
        raise UserError(f"{where}: expected text, got {_kind(value)}{hint}")
    clean = _unix(value.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    clean = clean.translate(_NONCHARACTERS).strip()
    if not clean:
        raise UserError(f"{where}: empty")
    return clean


def _input(row: Any) -> Any:
    return row.get("input") if isinstance(row, Mapping) else row


def texts(value: Any, where: str) -> tuple[str, ...]:
    """A scalar or a list of them, as texts."""
    values = value if isinstance(value, list) else [value]
    if not values:
        raise UserError(f"{where}: empty")
    return tuple(text(each, where) for each in values)


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """`value`, if it is a map from names to values."""
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: expected keys and values, got {_kind(value)}")
    return value


class _BadJson(Exception):  # noqa: N818 - never leaves this module
    """What json lets pass, or cannot say where it is."""


class _TextLoader(yaml.BaseLoader):
    """Keeps scalars as text and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key must be text", problem_mark=key.start_mark
                )
            if key.value in keys:
                problem = f"key {key.value} stands twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _lines(path: Path) -> Rows:
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                rows.append((_loads(line), f"{path}:{number}"))
            except (json.JSONDecodeError, _BadJson) as error:
                hint = "; name a file that holds one list .json" if line.strip() == "[" else ""
                why = getattr(error, "msg", error)
                raise UserError(f"{path}:{number}: JSON: {why}{hint}") from None
    return rows


def _loads(source: str) -> Any:
    try:
        return json.loads(
            source,
            parse_int=str,
            parse_float=str,
            parse_constant=str,
            object_pairs_hook=_without_repeats,
        )
    except RecursionError:
        raise _BadJson("nested too deeply") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _BadJson(f"key {twice} stands twice")
    return found


def _unix(source: str) -> str:
    return source.replace("\r\n", "\n").replace("\r", "\n")


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return "a list"
    return "keys and values" if isinstance(value, Mapping) else "text"
