"""JSON and JSON lines of a run folder: objects, candidates (the ledger) and training pairs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from engine.files import replacing
from selfguide.errors import UserError
from selfguide.method.pairs import Candidate, Pair
from selfguide.metrics.exact import normalise
from selfguide.tasks import Task
from selfguide.tasks.reading import read_text, text

_PAIR_KEYS = ("input", "output", "origin", "id")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replaces a JSON lines file as a whole."""
    with replacing(path) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def read_object(path: Path) -> dict[str, Any] | None:
    """A file's JSON object; None if there is no such file.

    Raises:
        UserError: it holds something else.
    """
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a JSON object ({error}); remove it") from None


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON lines file, each with its line's number; empty lines are skipped.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = getattr(error, "msg", error)
            raise UserError(f"{path}:{number}: not JSON: {why}; mend the line") from None
        if not isinstance(value, dict):
            raise UserError(f"{path}:{number}: expected an object with keys, like {{...}}")
        yield number, value


def read_candidates(path: Path) -> list[Candidate]:
    """The ledger.

    Raises:
        UserError: it cannot be read, or a line is no candidate.
    """
    candidates = []
    known = {each.name for each in fields(Candidate)}
    needed = {each.name for each in fields(Candidate) if each.default is MISSING}
    for number, row in read_objects(path):
        if not needed <= row.keys() <= known:
            wrong = ", ".join(sorted(needed - row.keys() | row.keys() - known))
            raise UserError(f"{path}:{number}: missing or unknown: {wrong}; remove the file")
        candidates.append(Candidate(**row))
    return candidates


def read_pairs(path: Path, task: Task) -> list[tuple[str, Pair]]:
    """Training pairs, possibly edited by hand: `input` and `output` suffice.

    Outputs that are a label but for case and punctuation become the label as it is written.

    Returns:
        Each pair with its place, for messages.

    Raises:
        UserError: the file cannot be read, or a line is no pair of this task.
    """
    places = [(f"{path}:{number}", row) for number, row in read_objects(path)]
    return [(where, _pair(row, task, where)) for where, row in places]


def _pair(row: Mapping[str, Any], task: Task, where: str) -> Pair:
    for key in row:
        if key not in _PAIR_KEYS:
            raise UserError(f"{where}: unknown key {key!r}; a row has input and output")
    input, output = (text(row.get(key), f"{where}: {key}") for key in ("input", "output"))
    if task.is_classification:
        output = _label(output, task, where)
    origin, id = row.get("origin", "synthetic"), row.get("id")
    if origin not in ("example", "synthetic"):
        raise UserError(f"{where}: origin: {origin!r} is neither example nor synthetic")
    if id is not None and type(id) is not int:
        raise UserError(f"{where}: id: {id!r} is no candidate's number; leave it out")
    return Pair(input, output, origin, id)


def _label(output: str, task: Task, where: str) -> str:
    written = {normalise(label): label for label in task.labels}
    if normalise(output) not in written:
        raise UserError(f"{where}: output: {output!r} is none of {', '.join(task.labels)}")
    return written[normalise(output)]
