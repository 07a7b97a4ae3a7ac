"""What labels mean in words, where an instruction says it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from selfguide.tasks.wording import bare, plain

_SHORT = 2  # longer labels speak for themselves
_WORDS = r"[^\W\d_][\w-]*(?:[ ][^\W\d_][\w-]*){0,2}?"
_END = r"(?=\s*(?:[.,;:!?)\n/]|$|\b(?:and|or)\b))"


def meanings(instruction: str, labels: Sequence[str]) -> dict[str, str]:
    """Each label and the word or phrase that says what it means.

    Labels of a letter or two, and numbers, are looked up in the instruction ("1 for positive",
    "neutral (N)", "(entailment)" for E). Where that does not give a different meaning to every
    label, a label means itself, without punctuation.
    """
    signs = [bare(label) for label in labels]
    if all(len(sign) <= _SHORT or sign.isdecimal() for sign in signs):
        text = plain(instruction)
        for look_up in (_explained, _named_before, _initial):
            words = [look_up(text, sign) for sign in signs]
            if all(words) and len(set(words)) == len(words):
                return dict(zip(labels, words, strict=True))
    return dict(zip(labels, signs, strict=True))


def _explained(text: str, sign: str) -> str:
    """ "E for entailment", "1 = positive", "N: 'not related'", "C (contradiction)"."""
    relation = r"(?:\s+(?:for|means|stands for|denotes|indicates)\s+|\s*[=:(→]\s*|\s+[-–]\s+)"
    phrase = rf"(?:[\"'`]([^\"'`\n]{{2,40}})[\"'`]|({_WORDS}){_END})"
    found = {
        (match[1] or match[2]).strip()
        for match in re.finditer(
            rf"(?<![\w.])['\"`]?{re.escape(sign)}['\"`]?{relation}{phrase}", text
        )
    }
    return found.pop() if len(found) == 1 else ""


def _named_before(text: str, sign: str) -> str:
    """ "entailment (E)", "positive = 1"."""
    before = r"([^\W\d_][\w-]+)['\"`]?\s*"
    close = rf"['\"`]?{re.escape(sign)}['\"`]?"
    found = set(re.findall(rf"{before}(?:\({close}\)|[=:]\s*{close}(?!\w))", text))
    return found.pop() if len(found) == 1 else ""


def _initial(text: str, sign: str) -> str:
    """The only word in brackets or quotes that begins with the label."""
    words = {word.lower() for word in re.findall(r"[(\"'`]([^\W\d_][\w-]{2,})[)\"'`]", text)}
    found = [word for word in words if word.startswith(sign.lower())]
    return found[0] if len(found) == 1 and sign.isalpha() else ""
