"""Finding the label that a generated answer states."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from selfguide.metrics.words import UNSPACED

_OPENING = r"[\s\"'`*_#>(\[{<-]*"
_LEAD = rf"(?:[^\W\d][\w ]{{0,39}}[:=]{_OPENING})??"  # "Sentiment: "
_NOUN = (
    r"\b(?:answer|label|category|class|classification|sentiment|topic|output|prediction|verdict"
    r"|result|response|choice|option|relation|relationship|conclusion)\b"
)
_STATES = (
    rf"{_NOUN}[^.\n]{{0,30}}?(?:\bis\b|\bbe\b|[:=])\s*"
    rf"(?:(?:the|a|an|that|option|label|class|category|clearly|most likely)\s+)*?{_OPENING}"
)
_ALONE = r"(?=\s*(?:$|\n|[.,;:!?)\]}\"`*>—]|'(?!\w)|(?:because|since|as)\b))"
_NEGATED = re.compile(
    r"(?:\b(?:not|neither|nor)|n't)\s+(?:an?\s+|the\s+|\w+ly\s+)?[\"'`*(]*$", re.I
)
_NEXT_IN_LIST = re.compile(r"[\s\"'`*)]*(?:/|\bor\b|,\s*or\b)[\s\"'`*(]*", re.I)
_COMMA_IN_LIST = re.compile(r"[\s\"'`*)]*(?:,|\band\b|&)[\s\"'`*(]*", re.I)
_LIST_GOES_ON = re.compile(r"[\s\"'`*)]*(?:$|[.,;:!?\n/]|or\b|and\b)", re.I)


def parse_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that an answer states, as it stands in `labels`, or None.

    Labels are found as whole words, whatever their case and the quotes, markup and punctuation
    around them; of several that fit at a place the longest counts. In order of preference:

    1. the answer begins with a label, perhaps after a lead such as "Sentiment:";
    2. it says so: "the answer is x", "label = x" (the same one, where it says so repeatedly);
    3. a single label is named, and not after a negation.

    A label of one character counts only in the first two forms and only when it stands alone there
    ("E.", "(N)", "1 because", not the article in "A man"). A list ("x or y", "x, y") states
    nothing.
    """
    answer = _plain(text)
    return _Finder.of(tuple(labels)).stated(answer) if labels else None


class _Finder:
    """The regular expressions of a set of labels."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self._exact = {_plain(label).strip(): label for label in reversed(labels)}
        self._folded = {_key(label): label for label in reversed(labels)}
        ordered = sorted(self._exact, key=len, reverse=True)
        every = "|".join(_pattern(label) for label in ordered)
        long = "|".join(_pattern(label) for label in ordered if len(label) > 1)
        self._any = re.compile(f"({every})", re.I)
        self._start = re.compile(f"{_OPENING}{_LEAD}({every})", re.I)
        self._states = re.compile(f"{_STATES}({every})", re.I)
        self._named = re.compile(f"({long or '(?!)'})", re.I)

    @staticmethod
    @lru_cache(maxsize=256)
    def of(labels: tuple[str, ...]) -> _Finder:
        return _Finder(labels)

    def stated(self, answer: str) -> str | None:
        start = self._start.match(answer)
        if start:
            return None if self._in_list(answer, start) else self._label(start)
        said = {
            self._label(m) for m in self._states.finditer(answer) if not self._in_list(answer, m)
        }
        if said:
            return said.pop() if len(said) == 1 else None
        mentions = self._named.finditer(answer)
        named = {self._label(m) for m in mentions if not _NEGATED.search(answer[: m.start()])}
        return named.pop() if len(named) == 1 else None

    def _label(self, match: re.Match[str]) -> str:
        found = match.group(1)
        return self._exact.get(found) or self._folded[_key(found)]

    def _in_list(self, answer: str, match: re.Match[str]) -> bool:
        """Whether another label is offered beside this one."""
        either = _NEXT_IN_LIST.match(answer, match.end())
        both = either or _COMMA_IN_LIST.match(answer, match.end())
        other = self._any.match(answer, both.end()) if both else None
        if other is None or self._label(other) == self._label(match):
            return False
        return bool(either or _LIST_GOES_ON.match(answer, other.end()))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).translate(
        {0x2019: "'", 0x2018: "'", 0x201C: '"', 0x201D: '"'}
    )


def _key(label: str) -> str:
    return re.sub(r"[\s_-]+", " ", _plain(label).strip()).casefold()


def _pattern(label: str) -> str:
    """A label as a whole word; white space, "_" and "-" within it stand for each other."""
    parts = re.split(r"(?<=\w)[\s_-]+(?=\w)", label)
    body = r"[\s_-]+".join(re.escape(part) for part in parts)
    if len(label) == 1:
        return rf"{_left(label)}{body}{_ALONE}{_right(label)}"
    return f"{_left(label[0])}{body}{_right(label[-1])}"


def _left(edge: str) -> str:
    if re.match(rf"[{UNSPACED}\W]", edge):
        return ""
    return r"(?<![\w.,+-])" if edge.isdigit() else r"(?<!\w)(?<!\w-)"


def _right(edge: str) -> str:
    if re.match(rf"[{UNSPACED}\W]", edge):
        return ""
    return r"(?!\w|[.,]\d)" if edge.isdigit() else r"(?!\w|[-']\w)"
