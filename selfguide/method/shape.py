"""The form that a task's inputs share: fields such as "Premise:" and "Hypothesis:"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_LONGEST = 4  # words of a field's name


@dataclass(frozen=True)
class Shape:
    """Names of the fields (with their colon) that every input has, in order; and how many lines.

    Attributes:
        fields: what stands in each input exactly once, in this order.
        start: the first field, if every input begins with it; else "".
        lines: whether inputs are "one" line, "several", or "paragraphs" with blank lines between.
    """

    fields: tuple[str, ...]
    start: str
    lines: str

    @classmethod
    def of(cls, inputs: Sequence[str]) -> Shape:
        """The shape of these inputs."""
        fields = _common_fields(inputs)
        starts = bool(fields) and all(text.startswith(fields[0]) for text in inputs)
        if any("\n\n" in text for text in inputs):
            lines = "paragraphs"
        else:
            lines = "several" if any("\n" in text for text in inputs) else "one"
        return cls(fields, fields[0] if starts else "", lines)

    def misfit(self, text: str) -> str | None:
        """Why a text has another shape, in words; None if it has this one."""
        at = 0
        for number, field in enumerate(self.fields):
            if text.count(field) != 1:
                return f"has {field!r} {text.count(field)} times, the examples have it once"
            found = text.index(field)
            if found < at or (number and not text[at:found].strip()):
                return f"{self.fields[number - 1]!r} is empty or out of order"
            at = found + len(field)
        if self.fields and not text[at:].strip():
            return f"{self.fields[-1]!r} is empty"
        if self.lines == "one" and "\n" in text:
            return "has several lines, the examples have one"
        return None


def _common_fields(inputs: Sequence[str]) -> tuple[str, ...]:
    """Runs of up to four words before a colon that stand in every input once, in one order.

    Between two of them, and after the last, every input has something.
    """
    first = inputs[0]
    found: list[str] = []
    ends = [0] * len(inputs)  # of the last field found
    for colon in re.finditer(":(?=\\s)", first):
        words = re.findall(r"\S+", first[ends[0] : colon.start()].rsplit("\n", 1)[-1])[-_LONGEST:]
        for start in range(len(words)):
            name = " ".join(words[start:]) + ":"
            if all(text.count(name) == 1 for text in inputs):
                places = [text.index(name) for text in inputs]
                between = [t[end:at] for t, end, at in zip(inputs, ends, places, strict=True)]
                if all(map(str.strip, between)) or not found:
                    found.append(name)
                    ends = [at + len(name) for at in places]
                    break
    if not all(text[end:].strip() for text, end in zip(inputs, ends, strict=True)):
        found.pop()
    return tuple(found)
