"""Alpaca's form: rows of instruction, input (which may be empty) and output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfguide.tasks.reading import text


def parse(row: Mapping[str, Any], where: str) -> tuple[str, str, str]:
    """Instruction, input and output of a row; the input is "" where there is none."""
    instruction = text(row["instruction"], f"{where}: instruction")
    given = row.get("input")
    bare = given is None or (isinstance(given, str) and not given.strip())
    input = "" if bare else text(given, f"{where}: input")
    return instruction, input, text(row["output"], f"{where}: output")
