"""Rows of input and output, in the forms of data sets, and the choice of examples among them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from selfguide.errors import UserError
from selfguide.metrics.exact import normalise
from selfguide.tasks import alpaca, jsonl
from selfguide.tasks.reading import mapping, text, texts
from selfguide.tasks.task import Example

MAX_EXAMPLES = 10
_FEW = 3


@dataclass(frozen=True)
class Row:
    """An input and its right outputs.

    Args:
        where: file and line, for messages.
        instruction: the row's own, where its form has one.
    """

    input: str
    outputs: tuple[str, ...]
    where: str
    instruction: str | None = None


def parse_row(value: Any, where: str) -> Row:
    """A row in one of the forms: input and output(s), Alpaca, `messages`, prompt and completion.

    Raises:
        UserError: it is none of these, or something in it is missing.
    """
    row = mapping(value, where)
    if "messages" in row:
        instruction, input, output = jsonl.parse_messages(row["messages"], where)
        return Row(input, (output,), where, instruction)
    if "prompt" in row and "completion" in row:
        instruction, input, output = jsonl.parse_completion(row, where)
        return Row(input, (output,), where, instruction)
    if "instruction" in row and "output" in row:
        instruction, input, output = alpaca.parse(row, where)
        return Row(input, (output,), where, instruction)
    if "input" in row and ("outputs" in row or "output" in row):
        key = "outputs" if "outputs" in row else "output"
        return Row(text(row["input"], f"{where}: input"), texts(row[key], f"{where}: {key}"), where)
    keys = ", ".join(row) or "nothing"
    raise UserError(
        f"{where}: needs input and output (or messages, or prompt and completion), has {keys}"
    )


def shared_instruction(rows: Sequence[Row], instruction: str) -> tuple[str, list[Row]]:
    """The one instruction of all rows, and the rows without it.

    Args:
        rows: at least one.
        instruction: what the user says it is, or "". Where the rows' own differ from each other,
            each becomes part of its row's input then.

    Raises:
        UserError: there is none, or several.
    """
    own = {row.instruction for row in rows}
    if len(own) > 1 and not instruction:
        other = next(row for row in rows if row.instruction != rows[0].instruction)
        raise UserError(
            f"{other.where}: another instruction than at {rows[0].where}, but an expert has one "
            "task: keep the rows of one, or say with --instruction what they share"
        )
    shared = instruction or own.pop() or ""
    if not shared:
        raise UserError(
            f"{rows[0].where}: nothing says what to do; give it in words with --instruction"
        )
    return shared, without_instruction(rows, shared)


def without_instruction(rows: Sequence[Row], shared: str) -> list[Row]:
    """Rows whose inputs do not say again what all share; another instruction becomes part of them.

    Raises:
        UserError: nothing is left of an input.
    """
    bare = []
    for row in rows:
        input = row.input
        if row.instruction not in (None, shared):
            input = _joined(row.instruction, input)
        rest = _after(shared, input)
        bare.append(_with_input(row, rest or ("" if row.instruction else input)))
    return bare


def choose_examples(
    rows: Sequence[Row], labels: Collection[str]
) -> tuple[list[Example], list[Row]]:
    """The first few rows as examples, the others for evaluation.

    With labels the first row of each label is among the examples. No input is chosen twice.
    """
    wanted = {normalise(label) for label in labels}
    count = min(max(_FEW, len(wanted)), MAX_EXAMPLES)
    covering: dict[str, Row] = {}
    for row in rows:
        answer = normalise(row.outputs[0])
        if answer in wanted and row.input not in {r.input for r in covering.values()}:
            covering.setdefault(answer, row)
        if len(covering) == len(wanted):
            break
    chosen = {row.input: row for row in list(covering.values())[:count]}
    for row in rows:
        if len(chosen) == count:
            break
        chosen.setdefault(row.input, row)
    examples = [Example(row.input, row.outputs[0]) for row in chosen.values()]
    picked = {id(row) for row in chosen.values()}
    return examples, [row for row in rows if id(row) not in picked]


def _after(start: str, text: str) -> str:
    """What follows `start`, if the text begins so and no word is cut; else all of it."""
    rest = text.removeprefix(start)
    within_a_word = start[-1:].isalnum() and rest[:1].isalnum()
    return text if rest == text or within_a_word else rest.lstrip()


def _with_input(row: Row, input: str) -> Row:
    if not input:
        raise UserError(f"{row.where}: input: empty")
    return Row(input, row.outputs, row.where)


def _joined(instruction: str | None, input: str) -> str:
    return "\n".join(part for part in (instruction, input) if part)
